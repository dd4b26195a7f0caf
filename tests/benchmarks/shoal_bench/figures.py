"""What a benchmark finds: figures beside those of the best peer, tables, and how they were got."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should reach: at most (or at least) `limit`, of the ratio or of the value."""

    limit: float
    at_least: bool = False
    of_ratio: bool = True

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{'x' if self.of_ratio else ''}"


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians over runs. `ratio` is the median of the ratios within each run, and `worst_ratio`
    the least favourable of them; without a peer both are None."""

    name: str
    value: float
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    runs: tuple[float, ...]
    worst: float
    peer_runs: tuple[float, ...] = ()
    worst_ratio: float | None = None
    target: str = ""
    met: bool | None = None


def figure(
    name: str,
    unit: str,
    runs: Sequence[float],
    *,
    peer: str | None = None,
    peer_runs: Sequence[float] = (),
    more_is_better: bool = False,
    target: Target | None = None,
) -> Figure:
    """A figure from the runs of Shoal and, run by run, of a peer.

    Raises `ValueError` if there is no run, or not as many of the peer.
    """
    if not runs or (peer is not None and len(runs) != len(peer_runs)):
        raise ValueError(f"{name}: as many runs of the peer as of Shoal are needed, and at least 1")
    worst_of = min if more_is_better else max
    ratios = [own / other for own, other in zip(runs, peer_runs, strict=True)] if peer else []
    ratio = statistics.median(ratios) if ratios else None
    value = statistics.median(runs)
    judged = ratio if target is not None and target.of_ratio else value
    return Figure(
        name=name,
        value=value,
        unit=unit,
        peer=peer,
        peer_value=statistics.median(peer_runs) if peer else None,
        ratio=ratio,
        runs=tuple(runs),
        worst=worst_of(runs),
        peer_runs=tuple(peer_runs),
        worst_ratio=worst_of(ratios) if ratios else None,
        target=str(target) if target is not None else "",
        met=target.met(judged) if target is not None and judged is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def describe_machine() -> str:
    """The machine in words."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}"


@dataclass(slots=True)
class Result:
    """All that one benchmark found."""

    benchmark: str
    quick: bool = False
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    taken: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    machine: str = field(default_factory=describe_machine)


def number(value: float | None) -> str:
    """Three significant digits, thousands in full; '-' for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3g}" if abs(value) < 0.9995 else f"{value:.2f}"


def figures_table(figures: Sequence[Figure]) -> Table:
    """Figures as rows: median, worst run, peer, ratio, and what should be reached."""
    rows = []
    for f in figures:
        reached = "" if f.met is None else f"{f.target}: {'reached' if f.met else 'missed'}"
        peer = f"{number(f.peer_value)} ({f.peer})" if f.peer else "-"
        ratio = f"{f.ratio:.2f}x" if f.ratio is not None else "-"
        worst = f"{f.worst_ratio:.2f}x" if f.worst_ratio is not None else "-"
        rows.append(
            (f.name, f"{number(f.value)} {f.unit}", number(f.worst), peer, ratio, worst, reached)
        )
    columns = ("figure", "Shoal", "worst run", "peer", "ratio", "worst ratio", "to reach")
    return Table("Figures", columns, tuple(rows))


def render(table: Table) -> str:
    """A table for the screen."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([table.title, *(f"  {line.rstrip()}" for line in lines)])


def save(result: Result, folder: Path) -> Path:
    """Write `folder/NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.benchmark}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(result)), indent=2) + b"\n")
    return path


def load(path: Path) -> Result:
    """Read what `save` wrote. Raises `msgspec.ValidationError` or `OSError`."""
    content: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return msgspec.convert(content, Result)
