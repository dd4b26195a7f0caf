"""Golden inputs and outputs that come with a push: read, and checked against the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.card import ModelCard
from shoal_shared.golden import (
    DEFAULT_ABSOLUTE,
    DEFAULT_RELATIVE,
    MAX_BYTES,
    Golden,
    GoldenError,
    decode,
)
from shoal_shared.signature import ModelSignature, TensorSpec, shape_fits
from shoal_shared.tensors import Array, TensorError, datatype_of


@dataclass(frozen=True, slots=True)
class NewGolden:
    """Golden outputs to be made of an artifact that was uploaded before. Without `absolute` or
    `relative` the card gives them, else the defaults of `shoal_shared.golden`."""

    digest: str
    absolute: float | None = None
    relative: float | None = None


def tolerance(golden: NewGolden, card: ModelCard | None) -> tuple[float, float]:
    """How far outputs may be off: absolute, and relative to the largest. Raises `InvalidError`."""
    absolute, relative = golden.absolute, golden.relative
    if card is not None and absolute is None:
        absolute = card.model.tolerance if card.golden.absolute is None else card.golden.absolute
    if card is not None and relative is None:
        relative = card.golden.relative
    absolute = DEFAULT_ABSOLUTE if absolute is None else absolute
    relative = DEFAULT_RELATIVE if relative is None else relative
    for what, value in (("absolute", absolute), ("relative", relative)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidError(f"The {what} tolerance of golden outputs must be 0 or more.")
    return absolute, relative


def read_golden(path: Path, signature: ModelSignature) -> Golden:
    """The golden cases in a file, which must fit the model. Raises `InvalidError`."""
    if path.stat().st_size > MAX_BYTES:
        raise InvalidError(f"The file of golden cases has more than {MAX_BYTES} bytes.")
    try:
        golden = decode(path.read_bytes())
    except GoldenError as error:
        raise InvalidError(f"The golden cases cannot be used: {_printable(error)}.") from None
    for case in golden.cases:
        check_tensors("input", case.inputs, signature.inputs)
        check_tensors("output", case.outputs, signature.outputs)
    return golden


def check_tensors(what: str, given: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> None:
    """Check that golden tensors are all that a model takes, or gives. Raises `InvalidError`."""
    unknown = given.keys() - {spec.name for spec in specs}
    if unknown:
        names = ", ".join(f"'{spec.name}'" for spec in specs)[:300]
        raise InvalidError(
            f"The golden {what} '{min(unknown)[:80]}' is none of the model: it has {names}."
        )
    for spec in specs:
        if spec.name not in given:
            raise InvalidError(f"A golden case lacks the {what} '{spec.name}'.")
        array = given[spec.name]
        try:
            datatype = datatype_of(array)
        except TensorError as error:
            raise InvalidError(
                f"The golden {what} '{spec.name}' cannot be used: {error}."
            ) from None
        if datatype != spec.datatype and (datatype, spec.datatype) != ("UINT16", "BF16"):
            raise InvalidError(
                f"The golden {what} '{spec.name}' is {datatype}, but {spec.datatype} in the model."
            )
        if not shape_fits(array.shape, spec.shape):
            raise InvalidError(
                f"The golden {what} '{spec.name}' has the shape {list(array.shape)}, but "
                f"{list(spec.shape)} in the model."
            )


def _printable(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))
