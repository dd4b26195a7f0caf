"""Progress of long work: a bar or a spinner on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal_controlplane.cli import units
from shoal_controlplane.cli.output import clean

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_TRANSFER_STEPS = 4
_COUNTING_STEPS = 10


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{clean(text)}\n")
    sys.stderr.flush()


@contextmanager
def transfer(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over `total` bytes; call what is given with every number of bytes moved."""
    if sys.stderr.isatty():
        from rich.progress import DownloadColumn, TransferSpeedColumn

        with _bar(what, total, DownloadColumn(binary_units=True), TransferSpeedColumn()) as advance:
            yield advance
        return
    note(f"{what}: {units.size(total)}")

    def tell(moved: int) -> None:
        note(f"{what}: {units.percent(min(moved / total, 1.0) if total else 1.0)}")

    yield _in_steps(total, _TRANSFER_STEPS, tell)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over `total` inputs; call what is given with every number of inputs done."""
    if sys.stderr.isatty():
        from rich.progress import MofNCompleteColumn, TimeRemainingColumn

        with _bar(what, total, MofNCompleteColumn(), TimeRemainingColumn()) as advance:
            yield advance
        return
    note(f"{what}: {total} inputs")
    yield _in_steps(total, _COUNTING_STEPS, lambda done: note(f"{what}: {done} of {total}"))


@contextmanager
def _bar(what: str, total: int, *columns: ProgressColumn) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    shown = (TextColumn("{task.description}", markup=False), BarColumn(), *columns)
    with Progress(*shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(clean(what), total=total)
        yield lambda count: bar.advance(task, count)


def _in_steps(total: int, steps: int, tell: Callable[[int], None]) -> Callable[[int], None]:
    """Counts, and tells the count whenever another of so many steps is done."""
    done, told = 0, 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        step = done * steps // total if total else steps
        if step > told:
            told = step
            tell(done)

    return advance


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
