"""What may become a version: uploaded files inspected, and what came with them checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_controlplane.errors import ConflictError, InvalidError
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.card import ModelCard
from shoal_controlplane.models.findings import Findings
from shoal_controlplane.models.goldenfile import NewGolden, read_golden, tolerance
from shoal_controlplane.models.inspect import format_of
from shoal_controlplane.models.triton import TritonConfig, check_config, parse_config
from shoal_controlplane.models.variants import NewVariant, Variant, check_fits, check_names
from shoal_controlplane.models.version import ModelVersion, by_name, checked_card, checked_labels
from shoal_shared.messages import GoldenGoal
from shoal_shared.names import checked_name
from shoal_shared.signature import ModelSignature

DEFAULT_MAX_BATCH = 64
"""Largest batch of a model with a batch dimension whose config gives none."""
MAX_CHECKS = 2
"""Files inspected at once."""

Inspector = Callable[[Path, str], Awaitable[Findings]]
"""Checks a model file of a format, as `inspect` does."""


@dataclass(frozen=True, slots=True)
class Push:
    """A version to be made of artifacts that were uploaded before.

    Without `version` it gets the next number. `format` and `filename` help to tell the format;
    `config` is the text of a `config.pbtxt`, `card` a card as `card_to_dict` writes it, `labels`
    class names per output.
    """

    name: str
    digest: str
    version: str | None = None
    format: str | None = None
    filename: str = ""
    card: dict[str, Any] | None = None
    config: str | None = None
    labels: dict[str, list[str]] | None = None
    golden: NewGolden | None = None
    variants: tuple[NewVariant, ...] = ()

    @property
    def artifacts(self) -> set[str]:
        """Digests of all its files."""
        golden = {self.golden.digest} if self.golden is not None else set()
        return {self.digest, *(variant.digest for variant in self.variants)} | golden


class PushChecker:
    """Turns what was pushed into what is stored; all of it is hostile until checked here."""

    def __init__(
        self, store: ArtifactStore, inspector: Inspector, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._inspect = inspector
        self._clock = clock
        self._checking = asyncio.Semaphore(MAX_CHECKS)

    def require(self, digest: str) -> Path:
        """The file of an uploaded artifact. Raises `ConflictError` if it is not here."""
        if digest not in self._store:
            raise ConflictError(
                f"The artifact {digest} is not here: PUT it to /artifacts/sha256/ first."
            )
        return self._store.path(digest)

    def check_names(self, push: Push) -> None:
        """Check all that needs no file. Raises `InvalidError`."""
        try:
            checked_name(push.name, "model")
            checked_name("1" if push.version is None else push.version, "version")
        except ValueError as error:
            raise InvalidError(f"{error}.") from None
        check_names(push.variants)
        _config(push)

    async def version(self, push: Push) -> ModelVersion:
        """The version that `push` asks for, still without its number if it names none.

        Raises `InvalidError` if a file is no model or what came with it does not fit,
        `ConflictError` if an artifact was not uploaded.
        """
        for digest in push.artifacts:
            self.require(digest)
        path = self.require(push.digest)
        format_name = push.format or format_of(path, push.filename)
        findings = await self._findings(path, format_name)
        if findings.compiled:
            raise InvalidError(
                "The file is compiled for one kind of chip: push the model that it was compiled "
                "from, and this as a variant with its target."
            )
        signature, config = findings.signature, _config(push)
        check_config(config, push.name, signature)
        card = checked_card(push.card, signature) if push.card is not None else None
        golden, cases = None, 0
        if push.golden is not None:
            golden, cases = await self._golden(push.golden, card, signature)
        variants = [await self.variant(variant, signature) for variant in push.variants]
        return ModelVersion(
            name=push.name,
            version=push.version or "",
            digest=push.digest,
            size=path.stat().st_size,
            format=format_name,
            signature=signature,
            max_batch=_max_batch(config, signature),
            parameters=findings.parameters,
            opset=findings.opset,
            created_at=self._clock(),
            card=card,
            given_labels=checked_labels(push.labels or {}, signature),
            golden=golden,
            golden_cases=cases,
            variants=by_name(variants),
        )

    async def variant(self, new: NewVariant, reference: ModelSignature) -> Variant:
        """A variant of a model with the signature `reference`. Raises as `version` does."""
        path = self.require(new.digest)
        format_name = new.format or format_of(path, new.filename)
        try:
            findings = await self._findings(path, format_name)
        except InvalidError as error:
            raise InvalidError(f"The variant '{new.name}' cannot be used: {error}") from None
        check_fits(new, findings, reference)
        size = path.stat().st_size
        return Variant(new.name, new.digest, size, format_name, new.target, new.note, self._clock())

    def same(self, existing: ModelVersion, push: Push) -> ModelVersion:
        """`existing`, if all that `push` gives is already what it says, else `ConflictError`."""
        signature, config = existing.signature, _config(push)
        check_config(config, push.name, signature)
        card = checked_card(push.card, signature) if push.card is not None else None
        differs = {
            "file": push.digest != existing.digest,
            "card": card is not None and card != existing.card,
            "labels": push.labels is not None
            and checked_labels(push.labels, signature) != existing.given_labels,
            "config": push.config is not None
            and _max_batch(config, signature) != existing.max_batch,
            "set of golden outputs": push.golden is not None
            and _other_golden(push.golden, card or existing.card, existing.golden),
        }
        for what, other in differs.items():
            if other:
                raise ConflictError(
                    f"{existing.name}:{existing.version} exists with another {what}, and versions "
                    "never change: push it as a new version."
                )
        known = {variant.name: variant for variant in existing.variants}
        for variant in push.variants:
            if not is_same(known, variant):
                raise ConflictError(
                    f"{existing.name}:{existing.version} exists without this variant "
                    f"'{variant.name}': add it with `shoal model variant add`."
                )
        return existing

    async def _golden(
        self, new: NewGolden, card: ModelCard | None, signature: ModelSignature
    ) -> tuple[GoldenGoal, int]:
        """The golden outputs, and how many cases they are."""
        path = self.require(new.digest)
        absolute, relative = tolerance(new, card)
        golden = await asyncio.to_thread(read_golden, path, signature)
        goal = GoldenGoal(
            digest=new.digest, size=path.stat().st_size, absolute=absolute, relative=relative
        )
        return goal, len(golden.cases)

    async def _findings(self, path: Path, format_name: str) -> Findings:
        async with self._checking:
            return await self._inspect(path, format_name)


def is_same(known: Mapping[str, Variant], new: NewVariant) -> bool:
    """Whether a new variant is already among those that are known."""
    own = known.get(new.name)
    return own is not None and (own.digest, own.target) == (new.digest, new.target)


def _other_golden(new: NewGolden, card: ModelCard | None, known: GoldenGoal | None) -> bool:
    if known is None:
        return True
    return (new.digest, *tolerance(new, card)) != (known.digest, known.absolute, known.relative)


def _config(push: Push) -> TritonConfig:
    return parse_config(push.config) if push.config is not None else TritonConfig()


def _max_batch(config: TritonConfig, signature: ModelSignature) -> int:
    if config.max_batch_size is not None:
        return config.max_batch_size
    return DEFAULT_MAX_BATCH if signature.batchable else 0
