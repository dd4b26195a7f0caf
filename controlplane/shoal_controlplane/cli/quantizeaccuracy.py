"""What quantising cost: outputs of two models on the same inputs, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal_controlplane.models.card import (
    CtcOutput,
    LabelsOutput,
    card_from_dict,
)
from shoal_shared.golden import error_of
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


@dataclass
class OutputError:
    """Differences of one output: the `largest`, their `total` over `count` numbers; `low` and
    `high` are the least and greatest that the reference gave."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def relative(self) -> float:
        """The largest difference as a part of the reference's range."""
        spread = self.high - self.low
        return self.largest / spread if spread > 0 else (math.inf if self.largest else 0.0)


@dataclass
class Comparison:
    """Differences by output over all inputs that were added. `ranked` are the outputs whose
    greatest score in the last dimension is the answer; `agreed` of `asked` answers are the same.
    """

    ranked: frozenset[str]
    outputs: dict[str, OutputError] = field(default_factory=dict)
    inputs: int = 0
    agreed: int = 0
    asked: int = 0

    def add(self, reference: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Add the outputs for one input."""
        self.inputs += 1
        for name, wanted in reference.items():
            error = self.outputs.setdefault(name, OutputError())
            given = got[name]
            error.largest = max(error.largest, error_of(wanted, given))
            if wanted.dtype.kind not in "iuf" or wanted.shape != given.shape or not wanted.size:
                continue
            numbers = wanted.astype(np.float64)
            finite = numbers[np.isfinite(numbers)]
            difference = np.abs(numbers - given.astype(np.float64))
            error.total += float(np.sum(difference, where=np.isfinite(difference)))
            error.count += wanted.size
            error.low = min(error.low, float(np.min(finite, initial=math.inf)))
            error.high = max(error.high, float(np.max(finite, initial=-math.inf)))
            if name in self.ranked:
                same = wanted.argmax(-1) == given.argmax(-1)
                self.agreed += int(np.count_nonzero(same))
                self.asked += int(same.size)

    def top1(self) -> str:
        """As in "the best class agrees in 15 of 16", empty where there are no classes."""
        if not self.asked:
            return ""
        return f"the best class agrees in {self.agreed} of {self.asked}"

    def summary(self) -> str:
        """The worst output in a line."""
        name, worst = max(self.outputs.items(), key=lambda item: item[1].relative)
        where = f" in '{name}'" if len(self.outputs) > 1 else ""
        line = (
            f"largest difference{where} {worst.largest:.3g} ({_percent(worst.relative)} of the "
            f"range), mean {worst.mean:.3g}"
        )
        return f"{line}, {self.top1()}" if self.asked else line

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each output: name, largest, of the range, mean, range."""
        return [
            (
                name,
                f"{e.largest:.3g}",
                _percent(e.relative),
                f"{e.mean:.3g}",
                f"{e.low:.3g} to {e.high:.3g}" if e.low <= e.high else "-",
            )
            for name, e in self.outputs.items()
        ]


def ranked_outputs(signature: ModelSignature, card: Mapping[str, Any] | None) -> frozenset[str]:
    """Outputs with scores of classes: what the card says, else those of rank 2 with several."""
    if card is not None:
        output = card_from_dict(card).output
        return frozenset([output.tensor] if isinstance(output, LabelsOutput | CtcOutput) else [])
    return frozenset(
        spec.name for spec in signature.outputs if len(spec.shape) == 2 and spec.shape[-1] != 1
    )


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2g} %" if math.isfinite(fraction) else "all"
