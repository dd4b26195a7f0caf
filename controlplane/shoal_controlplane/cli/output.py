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
from typing import Any, TextIO

from shoal_controlplane.cli.options import Format

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
}
_STATE = re.compile(r"\b(" + "|".join(_COLOURS) + r")\b")
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


def _draw(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD if table.header else None,
        show_header=bool(table.header),
        header_style="bold",
        pad_edge=False,
        padding=(0, 1),
    )
    for name in table.header or ("name", "value"):
        drawn.add_column(name, overflow="fold", style="" if table.header else None)
    for row in table.rows:
        cells = [Text(clean(cell)) for cell in row]
        for cell, text in zip(row, cells, strict=True):
            if isinstance(cell, State):
                for word in _STATE.finditer(text.plain):
                    text.stylize(_COLOURS[word[0]], word.start(), word.end())
        if not table.header:
            cells[0].stylize("dim")
        drawn.add_row(*cells)
    Console(file=stream, highlight=False).print(drawn)
