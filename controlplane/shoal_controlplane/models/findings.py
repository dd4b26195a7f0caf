"""What an inspection of a model file finds, and the rules that every signature obeys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY

MAX_TENSORS = 256
MAX_TENSOR_NAME = 256
MAX_RANK = 32
MAX_PARAMETERS = 2**63 - 1
"""What the database can hold; no file holds as many, but its shapes may say so."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file is. `opset` is that of ONNX's default domain, None for TFLite;
    `parameters` counts the elements of all constant tensors; `compiled` is true where the graph
    holds code for one kind of chip."""

    signature: ModelSignature
    parameters: int = 0
    opset: int | None = None
    compiled: bool = False


def checked_findings(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    parameters: int,
    opset: int | None = None,
    compiled: bool = False,
) -> Findings:
    """Findings of these tensors. Raises `InvalidError` for one that cannot be served."""
    for what, specs in (("input", inputs), ("output", outputs)):
        if not 1 <= len(specs) <= MAX_TENSORS:
            raise InvalidError(f"The model has {len(specs)} {what}s, not 1 to {MAX_TENSORS}.")
        if len({spec.name for spec in specs}) < len(specs):
            raise InvalidError(f"The model has two {what}s of the same name.")
        for spec in specs:
            _check(what, spec)
    return Findings(
        signature=ModelSignature(inputs=tuple(inputs), outputs=tuple(outputs)),
        parameters=max(0, min(parameters, MAX_PARAMETERS)),
        opset=opset,
        compiled=compiled,
    )


def _check(what: str, spec: TensorSpec) -> None:
    if not 1 <= len(spec.name) <= MAX_TENSOR_NAME or not spec.name.isprintable():
        raise InvalidError(
            f"The model's {what} {spec.name[:80]!r} needs a name of 1 to {MAX_TENSOR_NAME} "
            "printable characters."
        )
    if spec.datatype not in NUMPY:
        raise InvalidError(
            f"The model's {what} '{spec.name}' is of {spec.datatype}, which cannot be served: "
            "cast it within the model."
        )
    if len(spec.shape) > MAX_RANK or any(not -1 <= d < 2**31 for d in spec.shape):
        raise InvalidError(f"The model's {what} '{spec.name}' has an impossible shape.")
