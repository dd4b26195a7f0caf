"""Reader of the protobuf text format without a schema, for small configuration files.

Source: protobuf's "Text Format Language Specification".
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from shoal_controlplane.errors import InvalidError

MAX_CHARACTERS = 256 * 1024
MAX_DEPTH = 32

Message = dict[str, list[Any]]
"""Fields by name, every one with all its values: text, int, float, `Word` or a message."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?))
      | (?P<word>-?[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[{}<>\[\]:,;./])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f"}
_CLOSING = {"{": "}", "<": ">"}


class Word(str):
    """An identifier that stands as a value: an enum's name, true or false."""

    __slots__ = ()


def parse(text: str, what: str) -> Message:
    """Read a whole document. Raises `InvalidError` with `what` and the line in one sentence."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidError(f"{what} has more than {MAX_CHARACTERS} characters.")
    return _Parser(text, what).fields("", 0)


class _Parser:
    def __init__(self, text: str, what: str) -> None:
        self._text, self._what = text, what
        self._end = 0
        self._advance()

    def fields(self, close: str, depth: int) -> Message:
        """Fields up to the mark `close`, or the end of the document."""
        if depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} blocks lie within one another")
        message: Message = {}
        while not self._take(close):
            if self._kind == "end":
                self._fail(f"the block has no closing '{close}'")
            name = self._name()
            colon = self._take(":")
            if self._take("["):
                values = self._list(depth)
            elif colon or self._token in _CLOSING:
                values = [self._value(depth)]
            else:
                self._fail(f"after '{name[:40]}' comes neither ':' nor a block")
            message.setdefault(name, []).extend(values)
            if not self._take(","):
                self._take(";")
        return message

    def _name(self) -> str:
        if self._take("["):  # the name of an extension or of an Any's type
            while self._kind == "word" or self._token in (".", "/"):
                self._advance()
            self._expect("]")
            return "[]"
        if self._kind != "word" or self._token.startswith("-"):
            self._fail(f"a field's name is missing at '{self._token[:40]}'")
        return self._step()

    def _list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        if self._take("]"):
            return values
        values.append(self._value(depth))
        while self._take(","):
            values.append(self._value(depth))
        self._expect("]")
        return values

    def _value(self, depth: int) -> Any:
        if self._token in _CLOSING:
            close = _CLOSING[self._step()]
            return self.fields(close, depth + 1)
        if self._kind == "text":
            parts = []
            while self._kind == "text":
                parts.append(self._step()[1:-1])
            return self._unescape("".join(parts))
        if self._kind == "number":
            return self._number(self._step())
        if self._kind != "word":
            self._fail(f"a value is missing at '{self._token[:40]}'")
        return Word(self._step())

    def _number(self, token: str) -> int | float:
        try:
            hexadecimal = "x" in token.lower()
            if hexadecimal or not re.search("[.eEfF]", token):
                return int(token, 0)
            return float(token.rstrip("fF"))
        except ValueError:
            self._fail(f"'{token[:40]}' is not a number")

    def _unescape(self, text: str) -> str:
        def plain(match: re.Match[bytes]) -> bytes:
            octal, hexadecimal, other = match.groups()
            if octal is not None:
                return bytes([int(octal, 8) & 0xFF])
            if hexadecimal is not None:
                return bytes([int(hexadecimal, 16)])
            return _ESCAPES.get(other, other)

        try:
            return _ESCAPE.sub(plain, text.encode()).decode()
        except UnicodeError:
            self._fail("a text is not UTF-8")

    def _take(self, mark: str) -> bool:
        """Step over `mark` if it comes next; "" is the end of the document."""
        kind = "mark" if mark else "end"
        if self._kind != kind or self._token != mark:
            return False
        self._advance()
        return True

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            self._fail(f"'{mark}' is missing at '{self._token[:40]}'")

    def _step(self) -> str:
        token = self._token
        self._advance()
        return token

    def _advance(self) -> None:
        while self._end < len(self._text):
            match = _TOKEN.match(self._text, self._end)
            if match is None:
                self._fail(f"{self._text[self._end]!r} cannot stand here")
            self._end = match.end()
            self._kind, self._token = str(match.lastgroup), match.group()
            if self._kind != "space":
                return
        self._kind, self._token = "end", ""

    def _fail(self, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, self._end) + 1
        raise InvalidError(f"{self._what} cannot be read, line {line}: {reason}.")
