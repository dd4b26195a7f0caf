"""A version of a model, as the other rooms see it, and how it is told from what was pushed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.card import (
    MAX_LABELS,
    AnchorBoxesOutput,
    ImageInput,
    LabelsOutput,
    ModelCard,
    card_from_dict,
    card_to_dict,
)
from shoal_controlplane.models.cardfields import CardError, Section
from shoal_controlplane.models.inspect import PLATFORMS
from shoal_controlplane.models.tables import ModelVariantRow, ModelVersionRow
from shoal_controlplane.models.variants import Variant
from shoal_shared.messages import GoldenGoal
from shoal_shared.signature import ModelSignature, TensorSpec

Labels = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model; all but its variants never changes.

    `digest` is `sha256:<hex>` of the file, `size` its bytes, `format` "onnx" or "tflite".
    `max_batch` is 0 where the model has no batch dimension. `labels` holds class names per
    output, those of the card and those that were given beside it; `given_labels` only the
    latter. `golden_cases` counts the cases of `golden`. `created_at` is in Unix seconds;
    `revision` counts changes of the variants, which are in the order of their names.
    """

    name: str
    version: str
    digest: str
    size: int
    format: str
    signature: ModelSignature
    max_batch: int
    parameters: int
    opset: int | None
    created_at: float
    card: ModelCard | None = None
    given_labels: Labels = field(default_factory=dict)
    golden: GoldenGoal | None = None
    golden_cases: int = 0
    variants: tuple[Variant, ...] = ()
    revision: int = 1

    @property
    def platform(self) -> str:
        """Name of the format in the Open Inference Protocol's metadata."""
        return PLATFORMS[self.format]

    @property
    def labels(self) -> Labels:
        return card_labels(self.card) | self.given_labels

    @property
    def artifacts(self) -> set[str]:
        """Digests of all its files."""
        golden = {self.golden.digest} if self.golden is not None else set()
        return {self.digest, *(variant.digest for variant in self.variants)} | golden


def to_row(version: ModelVersion) -> ModelVersionRow:
    """The row that stores a version."""
    return ModelVersionRow(
        name=version.name,
        version=version.version,
        digest=version.digest,
        size=version.size,
        format=version.format,
        max_batch=version.max_batch,
        opset=version.opset,
        parameters=version.parameters,
        signature=msgspec.to_builtins(version.signature),
        card=card_to_dict(version.card) if version.card else None,
        labels={name: list(texts) for name, texts in version.given_labels.items()} or None,
        golden=_golden_document(version),
        created_at=version.created_at,
        revision=version.revision,
    )


def variant_rows(version: ModelVersion) -> list[ModelVariantRow]:
    """The rows that store a version's variants."""
    return [
        ModelVariantRow(
            name=version.name,
            version=version.version,
            variant=variant.name,
            digest=variant.digest,
            size=variant.size,
            format=variant.format,
            target=variant.target,
            note=variant.note,
            created_at=variant.created_at,
        )
        for variant in version.variants
    ]


def from_row(row: ModelVersionRow, variants: Iterable[ModelVariantRow] = ()) -> ModelVersion:
    """The version that rows store; what is in the database was checked before."""
    golden = dict(row.golden or {})
    cases = golden.pop("cases", 0)
    return ModelVersion(
        name=row.name,
        version=row.version,
        digest=row.digest,
        size=row.size,
        format=row.format,
        signature=msgspec.convert(row.signature, ModelSignature),
        max_batch=row.max_batch,
        parameters=row.parameters,
        opset=row.opset,
        created_at=row.created_at,
        card=card_from_dict(row.card) if row.card is not None else None,
        given_labels={name: tuple(texts) for name, texts in (row.labels or {}).items()},
        golden=msgspec.convert(golden, GoldenGoal) if golden else None,
        golden_cases=cases,
        variants=by_name(
            Variant(v.variant, v.digest, v.size, v.format, v.target, v.note, v.created_at)
            for v in variants
        ),
        revision=row.revision,
    )


def by_name(variants: Iterable[Variant]) -> tuple[Variant, ...]:
    """Variants in the order that a version has them."""
    return tuple(sorted(variants, key=lambda variant: variant.name))


def card_labels(card: ModelCard | None) -> Labels:
    """Class names that a card gives, by output; other kinds of output are no classification."""
    if card is None or not isinstance(card.output, LabelsOutput):
        return {}
    return {card.output.tensor: card.output.labels}


def checked_card(document: object, signature: ModelSignature) -> ModelCard:
    """The card in `document`. Raises `InvalidError` if it is wrong or not for this model."""
    try:
        card = card_from_dict(document)
    except CardError as error:
        raise InvalidError(str(error)) from None
    own = _tensor("input", card.input.tensor, signature.inputs)
    if isinstance(card.input, ImageInput) and card.input.datatype != own.datatype:
        raise InvalidError(
            f"The model card gives {card.input.datatype} for '{own.name}', but the model takes "
            f"{own.datatype}."
        )
    if isinstance(card.output, AnchorBoxesOutput):
        outputs = [card.output.boxes, card.output.scores]
    else:
        outputs = [card.output.tensor]
    for name in outputs:
        _tensor("output", name, signature.outputs)
    return card


def checked_labels(labels: Mapping[str, Any], signature: ModelSignature) -> Labels:
    """Class names by output. Raises `InvalidError` for a wrong text or an unknown output."""
    section = Section("labels", dict(labels))
    try:
        checked = {name: section.texts(name, limit=256, count=MAX_LABELS) for name in labels}
    except CardError as error:
        raise InvalidError(str(error)) from None
    for name in checked:
        _tensor("output", name, signature.outputs)
    return checked


def _golden_document(version: ModelVersion) -> dict[str, Any] | None:
    if version.golden is None:
        return None
    return {**msgspec.to_builtins(version.golden), "cases": version.golden_cases}


def _tensor(what: str, name: str, specs: tuple[TensorSpec, ...]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    names = ", ".join(f"'{spec.name}'" for spec in specs)
    raise InvalidError(f"The model has no {what} '{name[:80]}', only {names[:300]}.")
