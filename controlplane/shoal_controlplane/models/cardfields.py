"""Strict reading of a model card's sections: every key is asked for once, the rest is refused."""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CardError(ValueError):
    """A model card is wrong; the message is one sentence for its author."""


class Section:
    """One table of a card. The readers return checked values and raise CardError; `finish`
    refuses keys that nobody asked for."""

    def __init__(self, name: str, values: object) -> None:
        self._where = f"[{name}] " if name else ""
        if not isinstance(values, dict):
            raise CardError(f"{self._where or 'The model card '}must be a table of keys.")
        self._values: dict[object, object] = values
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def finish(self) -> None:
        unknown = sorted(repr(key)[:80] for key in self._values if key not in self._asked)
        if unknown:
            raise CardError(f"{self._where}has an unknown key {unknown[0]}.")

    def section(self, key: str) -> Section:
        self._asked.add(key)
        if key not in self._values:
            raise CardError(f"The model card lacks its section [{key}].")
        return Section(key, self._values[key])

    def name(self, key: str) -> str:
        """A model's name as the whole system accepts it."""
        value = self.text(key, limit=128)
        if not _NAME.fullmatch(value):
            raise CardError(
                f"{self._where}{key} must start with a letter or digit and hold only letters, "
                "digits, '.', '_' and '-'."
            )
        return value

    def text(self, key: str, *, limit: int, default: str | None = None) -> str:
        """One line of text, not empty unless that is the default."""
        value = self._value(key, default)
        if default is not None and value == default:
            return default
        return self._line(key, value, limit)

    def texts(self, key: str, *, limit: int, count: int) -> tuple[str, ...]:
        """A list of 1 to `count` lines of text."""
        values = self._value(key, None)
        if not isinstance(values, list) or not 1 <= len(values) <= count:
            raise CardError(f"{self._where}{key} must be a list of 1 to {count} texts.")
        return tuple(self._line(key, value, limit) for value in values)

    def choice(self, key: str, options: Sequence[str], *, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or value not in options:
            raise CardError(f"{self._where}{key} must be one of {', '.join(options)}.")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CardError(f"{self._where}{key} must be true or false.")
        return value

    def integer(self, key: str, least: int, most: int, *, default: int) -> int:
        return self._integer(key, self._value(key, default), least, most)

    def integers(
        self,
        key: str,
        least: int,
        most: int,
        *,
        lengths: Sequence[int],
        default: tuple[int, ...] | None = None,
    ) -> tuple[int, ...]:
        """A list of whole numbers within [least, most], of one of the given lengths."""
        values = self._value(key, None if default is None else list(default))
        if not isinstance(values, list) or len(values) not in lengths:
            wanted = f"{min(lengths)} to {max(lengths)}" if len(lengths) > 1 else f"{lengths[0]}"
            raise CardError(f"{self._where}{key} must be a list of {wanted} whole numbers.")
        return tuple(self._integer(key, value, least, most) for value in values)

    @overload
    def number(self, key: str, *, above: float, most: float, default: float) -> float: ...

    @overload
    def number(
        self, key: str, *, above: float, most: float, optional: Literal[True]
    ) -> float | None: ...

    def number(
        self,
        key: str,
        *,
        above: float,
        most: float,
        default: float | None = None,
        optional: bool = False,
    ) -> float | None:
        """A number within (above, most]; None only if `optional` and absent."""
        if optional and key not in self._values:
            return None
        value = self._finite(key, self._value(key, default))
        if not above < value <= most:
            raise CardError(f"{self._where}{key} must be above {above:g} and at most {most:g}.")
        return value

    def per_channel(self, key: str, *, default: float) -> tuple[float, float, float]:
        """One number for all three channels, or a list of three; at most a million either way."""
        value = self._value(key, default)
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3:
            raise CardError(f"{self._where}{key} must be a number or a list of 3 numbers.")
        first, second, third = (self._finite(key, item) for item in values)
        if max(abs(first), abs(second), abs(third)) > 1e6:
            raise CardError(f"{self._where}{key} must lie between -1e6 and 1e6.")
        return first, second, third

    def _value(self, key: str, default: object) -> object:
        self._asked.add(key)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise CardError(f"{self._where}lacks {key}.")
        return default

    def _line(self, key: str, value: object, limit: int) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= limit:
            raise CardError(f"{self._where}{key} must be a text of 1 to {limit} characters.")
        # Control characters would reach a terminal, lone surrogates break every encoder.
        if any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in value):
            raise CardError(f"{self._where}{key} must not contain control characters.")
        return value

    def _integer(self, key: str, value: object, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise CardError(f"{self._where}{key} must be a whole number from {least} to {most}.")
        return value

    def _finite(self, key: str, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise CardError(f"{self._where}{key} must be a finite number.")


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; CardError for anything else.

    Links are not followed, so that a name cannot lead elsewhere; the file is opened without
    blocking, so that a pipe under that name cannot hang the reader.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise CardError(f"{path.name} {reason}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CardError(f"{path.name} is not a regular file.")
        if status.st_size > limit:
            raise CardError(f"{path.name} is larger than {limit} bytes.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError as error:
        raise CardError(f"{path.name} cannot be read: {error.strerror}.") from error
    finally:
        os.close(descriptor)
