"""Progress of long work: a bar or a spinner on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shoal_controlplane.cli import units
from shoal_controlplane.cli.output import clean

_STEPS = 4


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{clean(text)}\n")
    sys.stderr.flush()


@contextmanager
def transfer(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over `total` bytes; call what is given with every number of bytes moved."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            SpeedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(clean(what), total=total)
            yield lambda count: bar.advance(task, count)
        return
    note(f"{what}: {units.size(total)}")
    moved, told = 0, 0

    def advance(count: int) -> None:
        nonlocal moved, told
        moved += count
        step = moved * _STEPS // total if total else _STEPS
        if step > told:
            told = step
            note(f"{what}: {units.percent(min(moved / total, 1.0) if total else 1.0)}")

    yield advance


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Progress of something that others do; call what is given with how it stands."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield lambda text: status.update(Text(clean(text)))
        return
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            note(text)

    yield tell
