"""Golden inputs and outputs for `shoal model push`: given in a file, or recorded on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.npzfile import load_npz
from shoal_controlplane.cli.reference import ReferenceFailedError, ReferenceModel, format_of
from shoal_controlplane.models.card import ImageInput, card_from_dict
from shoal_controlplane.models.picture import picture_to_array
from shoal_shared.golden import MAX_BYTES, Case, Golden, GoldenError, agrees, encode
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import NUMPY, Array

INPUT, OUTPUT = "input:", "output:"
"""What the names of arrays in a golden file begin with."""

ENOUGH_BYTES = 8 * 1024 * 1024
"""Devices fetch it all, so a batch that makes it more is not recorded."""

_SEED = 2024
_BLOCKS = 8
"""Patches a side of a made-up picture."""
# Sizes to try for free dimensions: pictures want a picture's size, anything else the smallest.
_SIZES = (1, 32, 224, 320)
_PICTURE_SIZES = (224, 320, 32, 1)
_PICTURE_RANK = 4


class NoGoldenError(CliError):
    """No golden outputs could be recorded; the model can be pushed without."""


def given(file: Path, model: Path) -> bytes:
    """The golden case in a `.npz` file, whose outputs are computed if it has none.

    Its arrays are named "input:NAME" and "output:NAME", or by the inputs alone. Raises
    `CliError`, `RuntimeMissingError` if only the runtime is missing.
    """
    arrays = load_npz(file, MAX_BYTES)
    inputs = {n.removeprefix(INPUT): a for n, a in arrays.items() if n.startswith(INPUT)}
    outputs = {n.removeprefix(OUTPUT): a for n, a in arrays.items() if n.startswith(OUTPUT)}
    if not inputs and not outputs:
        inputs = arrays
    elif not inputs or len(inputs) + len(outputs) < len(arrays):
        raise CliError(
            f"{file} must hold arrays named {INPUT}NAME and {OUTPUT}NAME, or inputs by their "
            "names alone"
        )
    if not outputs:
        with ReferenceModel(model, format_of(model), threads=1) as reference:
            outputs = reference.run(inputs)
    try:
        return encode(Golden((Case(inputs, outputs),)))
    except GoldenError as error:
        raise CliError(f"{file} cannot be used: {error}") from None


def recorded(model: Path, card: Mapping[str, Any] | None) -> bytes:
    """Golden cases of made-up inputs, always the same ones: a single one and a batch of 2.

    Raises `NoGoldenError` with the reason if the model cannot be run, or is not the same twice.
    """
    picture = card_from_dict(card).input if card is not None else None
    try:
        with ReferenceModel(model, format_of(model), threads=1) as reference:
            cases = _cases(reference, picture if isinstance(picture, ImageInput) else None)
    except ReferenceFailedError as error:
        raise NoGoldenError(str(error)) from None
    try:
        single = encode(Golden(cases[:1]))
    except GoldenError as error:
        raise NoGoldenError(str(error)) from None
    with suppress(GoldenError):
        both = encode(Golden(cases))
        return both if len(both) <= ENOUGH_BYTES else single
    return single


def _cases(model: ReferenceModel, picture: ImageInput | None) -> tuple[Case, ...]:
    signature, reason = model.signature, ""
    for size, picture_size in zip(_SIZES, _PICTURE_SIZES, strict=True):
        single = made_up(signature, picture, size, picture_size, 1)
        try:
            outputs = model.run(single)
        except ReferenceFailedError as error:
            reason = reason or str(error)
            continue
        if not agrees(outputs, model.run(single), 0.0, 0.0)[0]:
            raise NoGoldenError("the model gives other outputs for the same inputs each time")
        cases = [Case(single, outputs)]
        if signature.batchable:
            with suppress(ReferenceFailedError):
                batch = made_up(signature, picture, size, picture_size, 2)
                cases.append(Case(batch, model.run(batch)))
        return tuple(cases)
    raise NoGoldenError(f"{reason}, with any input that could be made up")


def made_up(
    signature: ModelSignature,
    picture: ImageInput | None,
    size: int,
    picture_size: int,
    batch: int,
) -> dict[str, Array]:
    """Inputs from a fixed seed, free dimensions of the given sizes; an input that the card says
    is a picture gets one."""
    random = np.random.default_rng(_SEED)
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        if picture is not None and spec.name == picture.tensor:
            inputs[spec.name] = np.concatenate(
                [picture_to_array(picture, _picture(picture, random)) for _ in range(batch)]
            )
            continue
        free = picture_size if len(spec.shape) >= _PICTURE_RANK else size
        shape = tuple(free if d == -1 else d for d in spec.shape)
        if signature.batchable:
            shape = (batch, *shape[1:])
        inputs[spec.name] = _values(spec, shape, random)
    return inputs


def _values(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if spec.datatype == "BYTES":
        return np.full(shape, b"golden", dtype=object)
    kind = NUMPY[spec.datatype]
    if kind.kind == "f":
        return random.uniform(size=shape).astype(kind)
    return random.integers(0, 2, shape).astype(kind)


def _picture(spec: ImageInput, random: np.random.Generator) -> Image.Image:
    """Patches of colour that run into one another: nearer to a photograph than noise is."""
    patches = random.integers(0, 256, (_BLOCKS, _BLOCKS, 3), dtype=np.uint8)
    height, width = spec.size
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
