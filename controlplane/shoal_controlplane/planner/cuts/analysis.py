"""What the analysis of a graph tells, as it travels from the child process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal_controlplane.planner.partition.problem import Segment


class CutError(ValueError):
    """A graph that cannot be read, sized or extracted; the text is one plain sentence."""


@dataclass(frozen=True, slots=True)
class BoundaryTensor:
    """One tensor that crosses a cut: an Open Inference Protocol datatype, its shape with the
    hints put in, and bytes. Only an output of the model may have a shape that is not known: -1
    stands for such dimensions, and its size is 0."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


_SHARE = {"fp16": 0.5, "int8": 0.25}
"""Of the bytes of a tensor of FP32."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """A graph as segments. `cuts[i]` are the tensors alive between segment i and i + 1, outputs of
    the model that are finished among them, and inputs that are needed later.

    `shapes` are those of the inputs that all sizes are for. A graph that cannot be cut has one
    segment and says why in `reason`, one sentence.
    """

    segments: tuple[Segment, ...]
    cuts: tuple[tuple[BoundaryTensor, ...], ...]
    inputs: tuple[BoundaryTensor, ...]
    outputs: tuple[BoundaryTensor, ...]
    shapes: dict[str, tuple[int, ...]]
    reason: str = ""

    def sent(self, compression: str) -> tuple[Segment, ...]:
        """The segments, with as many bytes at each cut as travel under a compression."""
        share = _SHARE.get(compression)
        if share is None:
            return self.segments
        crossing = [
            sum(round(t.size * share) if t.datatype == "FP32" else t.size for t in cut)
            for cut in self.cuts
        ]
        cut_off = [
            replace(segment, out_bytes=size)
            for segment, size in zip(self.segments, crossing, strict=False)
        ]
        return (*cut_off, self.segments[-1])


@dataclass(frozen=True, slots=True)
class StageFile:
    """An extracted sub-model: segments [first, last), the file's name in the folder given, its
    digest (`sha256:<hex>`) and size, its inputs and outputs, and `passes`: tensors that come in
    with the message and that later stages need, too."""

    first: int
    last: int
    filename: str
    digest: str
    size: int
    inputs: tuple[BoundaryTensor, ...]
    outputs: tuple[str, ...]
    passes: tuple[str, ...]
