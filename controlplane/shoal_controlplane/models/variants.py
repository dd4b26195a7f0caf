"""Variants: more files of a version, which compute the same as the file it was pushed with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.findings import Findings
from shoal_shared.messages import REFERENCE
from shoal_shared.names import checked_name
from shoal_shared.signature import ModelSignature, TensorSpec

MAX_VARIANTS = 8
MAX_NOTE = 1000

_TARGET = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Variant:
    """A file that devices may serve in the place of the reference.

    `digest` is `sha256:<hex>`, `size` its bytes, `format` "onnx" or "tflite". `target` is the
    chip that it was compiled for, as "qualcomm-soc57", empty if any board may load it. `note` is
    for people, as what was lost by quantising. `created_at` is in Unix seconds.
    """

    name: str
    digest: str
    size: int
    format: str
    target: str
    note: str
    created_at: float


@dataclass(frozen=True, slots=True)
class NewVariant:
    """A variant to be made of an artifact that was uploaded before; see `Variant`. `format` and
    `filename` help to tell the format."""

    name: str
    digest: str
    format: str | None = None
    filename: str = ""
    target: str = ""
    note: str = ""


def check_names(variants: Iterable[NewVariant], known: Iterable[str] = ()) -> None:
    """Check names, targets, notes and number of new variants, beside those that are `known`.

    Raises `InvalidError`.
    """
    taken = {REFERENCE, *known}
    for variant in variants:
        try:
            checked_name(variant.name, "variant")
        except ValueError as error:
            raise InvalidError(f"{error}.") from None
        if variant.name == REFERENCE:
            raise InvalidError(
                f"'{REFERENCE}' is the file that the version was pushed with: give the variant "
                "another name."
            )
        if variant.name in taken:
            raise InvalidError(f"The variant '{variant.name}' is given twice.")
        taken.add(variant.name)
        if variant.target and not _TARGET.fullmatch(variant.target):
            raise InvalidError(
                f"The target {variant.target[:80]!r} is not 1 to 64 small letters, digits, dots "
                "and hyphens, as in qualcomm-soc57."
            )
        if len(variant.note) > MAX_NOTE or not variant.note.isprintable():
            raise InvalidError(
                f"The note of a variant must be one line of at most {MAX_NOTE} characters."
            )
    if len(taken) > MAX_VARIANTS + 1:
        raise InvalidError(f"A version has at most {MAX_VARIANTS} variants: remove one.")


def check_fits(variant: NewVariant, findings: Findings, reference: ModelSignature) -> None:
    """Check that a variant takes and gives what the reference does. Raises `InvalidError`.

    Names and datatypes must be the same; a size may be fixed where it is free in the reference.
    """
    if findings.compiled and not variant.target:
        raise InvalidError(
            f"The variant '{variant.name}' is compiled for one kind of chip: name it as the "
            "target, as in qualcomm-soc57."
        )
    own = findings.signature
    _check_tensors(variant.name, "input", own.inputs, reference.inputs)
    _check_tensors(variant.name, "output", own.outputs, reference.outputs)


def _check_tensors(
    variant: str, what: str, own: tuple[TensorSpec, ...], reference: tuple[TensorSpec, ...]
) -> None:
    found = {spec.name: spec for spec in own}
    for wanted in reference:
        spec = found.pop(wanted.name, None)
        if spec is None:
            raise InvalidError(
                f"The variant '{variant}' has no {what} '{wanted.name}', which the reference has."
            )
        where = f"The {what} '{wanted.name}' of the variant '{variant}'"
        if spec.datatype != wanted.datatype:
            raise InvalidError(
                f"{where} is {spec.datatype}, but {wanted.datatype} in the reference."
            )
        fits = len(spec.shape) == len(wanted.shape) and all(
            b in (-1, a) for a, b in zip(spec.shape, wanted.shape, strict=True)
        )
        if not fits:
            raise InvalidError(
                f"{where} has the shape {list(spec.shape)}, but {list(wanted.shape)} in the "
                "reference."
            )
    if found:
        raise InvalidError(
            f"The variant '{variant}' has the {what} '{next(iter(found))}', which the reference "
            "has not."
        )
