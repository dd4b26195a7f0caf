"""Parts of models as artifacts: cut once, then found again by digest of the model and shapes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.artifacts import ArtifactStore
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.cuts.analysis import Analysis, CutError, StageFile
from shoal_controlplane.plans.store import PlanStore, cut_key

_CHUNK = 1 << 20


class Extract(Protocol):
    """Cuts a model's file; see `planner.cuts.cutter.extract`."""

    async def __call__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        bounds: Sequence[int],
        folder: Path,
    ) -> tuple[StageFile, ...]:
        """Raises `CutError`."""


class Parts:
    """Cuts models into parts and keeps them in the artifact store."""

    def __init__(self, store: PlanStore, artifacts: ArtifactStore, extract: Extract) -> None:
        self._store = store
        self._artifacts = artifacts
        self._extract = extract
        artifacts.add_room(self._refers_to)

    async def of(
        self, model: ModelVersion, analysis: Analysis, bounds: Sequence[int]
    ) -> tuple[StageFile, ...]:
        """The parts between `bounds`, indices of segments from 0 to their number. The whole model
        is its own part. Raises `InvalidError` where it cannot be cut so."""
        key = cut_key(model.digest, analysis.shapes)
        ranges = list(pairwise(bounds))
        if len(ranges) == 1:
            return (whole(model, analysis),)
        known = self._store.parts(key)
        found = [known.get(pair) for pair in ranges]
        ready = [file for file in found if file is not None and file.digest in self._artifacts]
        if len(ready) == len(ranges):
            return tuple(ready)
        with tempfile.TemporaryDirectory(prefix="shoal-cut-") as folder:
            try:
                files = await self._extract(
                    self._artifacts.path(model.digest), analysis.shapes, bounds, Path(folder)
                )
            except CutError as error:
                raise InvalidError(f"{model.name}:{model.version} cannot be cut: {error}") from None
            # In the database first: what the store refers to is never swept away.
            await self._store.add_parts(key, files)
            for file in files:
                await self._artifacts.put(file.digest, _chunks(Path(folder) / file.filename))
        return files

    async def ranges(
        self, model: ModelVersion, analysis: Analysis, wanted: Sequence[tuple[int, int]]
    ) -> tuple[StageFile, ...]:
        """Parts of any ranges of segments, which may overlap. Raises `InvalidError`."""
        last = len(analysis.segments)
        found: dict[tuple[int, int], StageFile] = {}
        for first, end in wanted:
            if (first, end) not in found:
                # As many of the ranges that are left as follow one another are cut at once.
                bounds = [0] if first == 0 else [0, first]
                bounds.append(end)
                while (following := _next(wanted, bounds[-1], found)) is not None:
                    bounds.append(following)
                if bounds[-1] != last:
                    bounds.append(last)
                for file in await self.of(model, analysis, bounds):
                    found[file.first, file.last] = file
        return tuple(found[pair] for pair in wanted)

    async def keep(self, model_digests: Collection[str]) -> None:
        """Drop the parts of all other models."""
        for digest in await self._store.keep_parts(model_digests):
            await self._artifacts.remove(digest)

    async def _refers_to(self, digest: str) -> bool:
        return digest in self._store.digests()


def whole(model: ModelVersion, analysis: Analysis) -> StageFile:
    """A model as its only part."""
    return StageFile(
        first=0,
        last=len(analysis.segments),
        filename="",
        digest=model.digest,
        size=model.size,
        inputs=analysis.inputs,
        outputs=tuple(tensor.name for tensor in analysis.outputs),
        passes=(),
    )


def _next(
    wanted: Sequence[tuple[int, int]], first: int, found: Mapping[tuple[int, int], StageFile]
) -> int | None:
    """Where the next range that begins at `first` ends, if one is left."""
    return next(
        (end for start, end in wanted if start == first and (start, end) not in found), None
    )


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, _CHUNK):
            yield data
