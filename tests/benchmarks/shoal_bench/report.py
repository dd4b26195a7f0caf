"""Puts results into docs/benchmarks.md, between markers; the prose around them is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shoal_bench.figures import Result, Table, figures_table

TITLE = "# Benchmarks\n"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- figures of {name}: written by run.py --report -->", f"<!-- end of {name} -->"


def markdown_table(table: Table) -> str:
    """A table in Markdown, without its title."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join(
        [line(table.columns), line("---" for _ in table.columns), *map(line, table.rows)]
    )


def section(result: Result) -> str:
    """One benchmark's figures, tables and notes."""
    parts = [f"Taken {result.taken} on {result.machine}."]
    if result.quick:
        parts[0] += " A quick run: too short to rely on."
    parts.append(markdown_table(figures_table(result.figures)))
    parts.extend(f"**{table.title}**\n\n{markdown_table(table)}" for table in result.tables)
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(parts)


def update(document: str, results: Iterable[Result]) -> str:
    """The document with each result's section replaced, or appended where it has none yet."""
    text = document or TITLE
    for result in results:
        start, end = _markers(result.benchmark)
        block = f"{start}\n\n{section(result)}\n\n{end}"
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if pattern.search(text):
            text = pattern.sub(lambda _, block=block: block, text, count=1)  # type: ignore[misc]
        else:
            text = f"{text.rstrip()}\n\n## `{result.benchmark}`\n\n{block}\n"
    return text
