"""Figures per model as Triton's statistics extension gives them, and a latency histogram.

Source: Triton Inference Server, protocol extension "statistics".
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class _Total:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelFigures:
    """Totals of one model version since the gateway started."""

    success: _Total = field(default_factory=_Total)
    fail: _Total = field(default_factory=_Total)
    queue: _Total = field(default_factory=_Total)
    compute_input: _Total = field(default_factory=_Total)
    compute_infer: _Total = field(default_factory=_Total)
    compute_output: _Total = field(default_factory=_Total)
    items: int = 0
    executions: float = 0.0
    last_ms: int = 0
    by_batch: dict[int, _Total] = field(default_factory=dict)
    shed: int = 0
    """Of the failures: there was no room for the request."""
    spilled: dict[str, int] = field(default_factory=dict)
    """Answers of targets in the cloud."""
    histogram: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))

    def answered(
        self,
        *,
        items: int,
        batch: int,
        total_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
        wall_ms: int,
        target: str = "",
    ) -> None:
        """One answer: `infer_ns` is the device's compute time for a batch of `batch` items, unless
        a `target` answered."""
        self.success.add(total_ns)
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)
        # What is neither coding nor compute is waiting: on the way and in the device's queue.
        self.queue.add(max(0, total_ns - input_ns - infer_ns - output_ns))
        self.items += items
        # Each answer is the share of an execution that it made up.
        self.executions += items / max(batch, items)
        self.last_ms = wall_ms
        self.histogram[bisect_left(BUCKETS_S, total_ns / 1e9)] += 1
        if target:
            self.spilled[target] = self.spilled.get(target, 0) + 1
            return
        per_batch = self.by_batch.get(batch)
        if per_batch is None:
            per_batch = self.by_batch[batch] = _Total()
        per_batch.add(infer_ns)

    def failed(self, total_ns: int, *, shed: bool = False) -> None:
        self.fail.add(total_ns)
        self.shed += shed


class Statistics:
    """Figures of all models."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelFigures] = {}

    def of(self, name: str, version: str) -> ModelFigures:
        """The figures to add to."""
        figures = self._models.get((name, version))
        if figures is None:
            figures = self._models[name, version] = ModelFigures()
        return figures

    def all(self) -> list[tuple[str, str, ModelFigures]]:
        return [(name, version, f) for (name, version), f in self._models.items()]

    def snapshot(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`; zeros if the model has not been asked yet."""
        f = self._models.get((name, version), ModelFigures())
        return {
            "name": name,
            "version": version,
            "last_inference": f.last_ms,
            "inference_count": f.items,
            "execution_count": round(f.executions),
            "inference_stats": {
                "success": f.success.as_dict(),
                "fail": f.fail.as_dict(),
                "queue": f.queue.as_dict(),
                "compute_input": f.compute_input.as_dict(),
                "compute_infer": f.compute_infer.as_dict(),
                "compute_output": f.compute_output.as_dict(),
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [
                {
                    "batch_size": batch,
                    "compute_input": {"count": 0, "ns": 0},
                    "compute_infer": total.as_dict(),
                    "compute_output": {"count": 0, "ns": 0},
                }
                for batch, total in sorted(f.by_batch.items())
            ],
        }
