"""Figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from datetime import datetime

from shoal_shared.placement import CPU_PROVIDERS, Placement, Proof

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def size(count: float) -> str:
    """Bytes with a binary unit: 512 B, 7.6 GiB, 120 MiB."""
    for unit in _SIZES:
        if count < 999.5 or unit == _SIZES[-1]:
            return f"{count:.1f} {unit}" if unit != "B" and count < 99.95 else f"{count:.0f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")


def milliseconds(value: float) -> str:
    """Milliseconds with three figures: 0.42 ms, 8.31 ms, 120 ms."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} ms"


def percent(fraction: float) -> str:
    """A fraction of one in whole per cent."""
    return f"{fraction * 100:.0f} %"


def providers(names: Iterable[str]) -> str:
    """Execution providers without the word that they all end in: CUDA, CPU."""
    return ", ".join(name.removesuffix("ExecutionProvider") for name in names)


def runs_on(placement: Placement | None, names: Collection[str]) -> str:
    """Where a model runs: "100 % QNN (97 of 97 nodes)", "CPU only", "CUDA, not proven".

    `names` are the providers, which are all there is where a device tells no placement. The
    share is rounded down, so that 100 % is all of it.
    """
    if placement is None:
        return providers(names)
    nodes = placement.nodes
    fast = [name for name in nodes or names if name not in CPU_PROVIDERS]
    if placement.accelerated <= 0:
        return "CPU only"
    where = providers(fast) or "accelerator"
    if placement.proof is Proof.LISTED:
        return f"{where}, not proven"
    share = f"{math.floor(placement.accelerated * 100 + 1e-9)} % {where}"
    if not nodes:
        return f"{share} (by timing)" if placement.proof is Proof.TIMING else share
    return f"{share} ({sum(nodes[name] for name in fast)} of {sum(nodes.values())} nodes)"


def age(moment: datetime, now: datetime) -> str:
    """How long ago `moment` was, in its largest unit: 5 s ago, 3 d ago."""
    seconds = max(0, int((now - moment).total_seconds()))
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return "now"


def local(moment: datetime) -> str:
    """Date and time of this machine's zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def money(amount: float) -> str:
    """An amount of whatever currency, with at least three figures: 0, 1.20, 0.00042."""
    if amount == 0:
        return "0"
    return f"{amount:.2f}" if abs(amount) >= 0.995 else f"{amount:.3g}"
