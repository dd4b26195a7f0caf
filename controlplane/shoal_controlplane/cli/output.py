"""Printing of results: tables for people, JSON and YAML for programs.

On a terminal rich draws and colours; elsewhere columns are aligned with blanks and nothing is
cut, so that `grep` and `awk` work.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from shoal_controlplane.cli.options import Format

if TYPE_CHECKING:
    from rich.text import Text as RichText

NONE = "-"
"""Shown where there is no value."""

_COLOURS = {
    "online": "green",
    "ready": "green",
    "offline": "red",
    "failed": "bold red",
    "degraded": "yellow",
    "cordoned": "yellow",
    "pending": "cyan",
    "progressing": "cyan",
    "queued": "cyan",
    "fetching": "cyan",
    "loading": "cyan",
    "profiling": "cyan",
    "connecting": "cyan",
    "deploying": "cyan",
    "warming": "cyan",
    "over_budget": "yellow",
    "ejected": "red",
    "rising": "yellow",
    "saturated": "red",
}
_STATE = re.compile(r"\b(" + "|".join(_COLOURS) + r")\b")
_GAP = 2
"""Cells between columns."""
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class State(str):
    """A cell whose words for states are coloured on a terminal."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; an empty header shows none."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Table | str
"""What a result consists of; a text is a line."""


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line; pairs without a value are left out."""
    return Table((), [pair for pair in pairs if pair[1]])


def clean(text: str) -> str:
    """`text` without characters that could drive a terminal or hide something."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("�" if unicodedata.category(c) in _HIDDEN else c for c in text)


def emit(style: Format, document: Any, blocks: Callable[[], Iterable[Block]]) -> None:
    """Print a result: `document` for programs, `blocks` for people."""
    if style is Format.TABLE:
        print_blocks(list(blocks()), sys.stdout)
    else:
        sys.stdout.write(as_text(style, document))
    sys.stdout.flush()


def as_text(style: Format, document: Any, indent: int | None = 2) -> str:
    """A document as JSON, on one line without `indent`, or as YAML; ends in a line break."""
    if style is Format.YAML:
        import yaml

        dumped: str = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
        return dumped
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    # JSON lets these pass, but a terminal may obey them.
    return re.sub(r"[\x7f-\x9f\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", text) + "\n"


def print_blocks(blocks: Sequence[Block], stream: TextIO) -> None:
    """Print lines and tables, with an empty line before and after a table that has company."""
    for index, block in enumerate(blocks):
        if index and (isinstance(block, Table) or isinstance(blocks[index - 1], Table)):
            stream.write("\n")
        if isinstance(block, str):
            stream.write(f"{clean(block)}\n")
        elif stream.isatty():
            _draw(block, stream)
        else:
            stream.writelines(plain_lines(block))


def plain_lines(table: Table) -> list[str]:
    """A table as lines, columns two blanks apart."""
    rows = [[clean(cell) for cell in row] for row in table.rows]
    lines = [list(table.header), *rows] if table.header else rows
    if not lines:
        return []
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    ]


def widths(naturals: Sequence[int], room: int) -> list[int]:
    """Widths of columns of the given natural widths within `room` cells, gaps included.

    The first column names the row and stays whole if half of the room is left to the others;
    of these none is wider than it must be for all to fit, so that only the widest fold.
    """
    if not naturals:
        return []
    room -= _GAP * (len(naturals) - 1)
    first = naturals[0] if naturals[0] <= room // 2 or sum(naturals) <= room else room // 2
    rest = naturals[1:]
    cap = max(rest, default=0)
    while cap > 1 and first + sum(min(width, cap) for width in rest) > room:
        cap -= 1
    return [max(first, 1), *(max(min(width, cap), 1) for width in rest)]


def _draw(table: Table, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    drawn = RichTable(
        box=None,
        show_header=bool(table.header),
        header_style="bold dim",
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    cells = [[_text(cell) for cell in row] for row in table.rows]
    header = table.header or [""] * len(cells[0] if cells else ())
    columns = [[Text(name), *(row[index] for row in cells)] for index, name in enumerate(header)]
    naturals = [max(text.cell_len for text in column) for column in columns]
    for name, width in zip(header, widths(naturals, console.width), strict=True):
        drawn.add_column(name, overflow="fold", width=width)
    for row in cells:
        if not table.header:
            row[0].stylize("dim")
        drawn.add_row(*row)
    console.print(drawn)


def _text(cell: str) -> RichText:
    from rich.text import Text

    text = Text(clean(cell))
    if isinstance(cell, State):
        for word in _STATE.finditer(text.plain):
            text.stylize(_COLOURS[word[0]], word.start(), word.end())
    return text
