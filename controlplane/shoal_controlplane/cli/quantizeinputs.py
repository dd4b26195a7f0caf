"""Inputs for quantising: arrays in `.npz` files, and pictures that the model's card turns into
arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.npzfile import load_npz
from shoal_controlplane.models.card import ModelCard, card_from_dict
from shoal_controlplane.models.media import image_to_tensor
from shoal_shared.signature import ModelSignature, shape_fits
from shoal_shared.tensors import Array, datatype_of

ARRAYS = ".npz"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
ENOUGH_TO_SPLIT = 8
HELD_OUT = 4
"""Every so many of `ENOUGH_TO_SPLIT` inputs or more are kept for the comparison."""

Sample: TypeAlias = Callable[[], dict[str, Array]]
"""Makes the inputs of one run, when they are needed."""


def find_samples(
    path: Path, signature: ModelSignature, card: Mapping[str, Any] | None, limit: int
) -> list[Sample]:
    """Up to `limit` inputs at `path`: a `.npz` file, a picture, or a folder of both.

    A `.npz` file holds an array for each input; one with a batch dimension gives as many inputs
    as its arrays are long. Raises `CliError`; a sample may raise `MediaError` for its picture.
    """
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in (ARRAYS, *PICTURES))
    else:
        files = [path]
    known = card_from_dict(card) if card is not None else None
    samples: list[Sample] = []
    for file in files:
        if len(samples) >= limit:
            break
        if file.suffix.lower() == ARRAYS:
            samples += _split(file, signature)
        elif file.suffix.lower() in PICTURES:
            samples.append(_picture(file, known))
        else:
            raise CliError(f"{file} is neither a {ARRAYS} file nor a picture nor a folder of them")
    if not samples:
        raise CliError(f"{path} holds no {ARRAYS} files and no pictures ({', '.join(PICTURES)})")
    return samples[:limit]


def hold_out(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to calibrate with, and to compare with: the same ones where they are few."""
    if len(samples) < ENOUGH_TO_SPLIT:
        return samples, samples
    return (
        [sample for index, sample in enumerate(samples) if index % HELD_OUT],
        samples[::HELD_OUT],
    )


def _picture(file: Path, card: ModelCard | None) -> Sample:
    if card is None:
        raise CliError(
            f"the model has no card that says how {file.name} becomes its input: give a "
            f"{ARRAYS} file with an array for each input"
        )
    return lambda: image_to_tensor(card, file)


def _split(file: Path, signature: ModelSignature) -> list[Sample]:
    arrays = load_npz(file)
    names = [spec.name for spec in signature.inputs]
    if set(arrays) != set(names):
        raise CliError(
            f"{file} holds {_listed(arrays)}, but the model takes {_listed(names)}: name the "
            "arrays as the inputs"
        )
    for spec in signature.inputs:
        array = arrays[spec.name]
        if datatype_of(array) != spec.datatype or not shape_fits(array.shape, spec.shape):
            raise CliError(
                f"'{spec.name}' in {file} is {datatype_of(array)} {list(array.shape)}, but the "
                f"model takes {spec.datatype} {list(spec.shape)}"
            )
    if not signature.batchable:
        return [lambda: arrays]
    count = len(arrays[names[0]])
    if any(len(array) != count for array in arrays.values()):
        raise CliError(f"the arrays in {file} are not equally long")
    return [_rows(arrays, index) for index in range(count)]


def _rows(arrays: dict[str, Array], index: int) -> Sample:
    return lambda: {name: array[index : index + 1] for name, array in arrays.items()}


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(f"'{name[:80]}'" for name in names)[:300]
