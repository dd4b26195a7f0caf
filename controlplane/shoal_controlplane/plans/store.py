"""Plans and parts of models: in memory for the loop, in the database for a restart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from shoal_controlplane.database import Database
from shoal_controlplane.planner.cuts.analysis import StageFile
from shoal_controlplane.plans.plan import Plan
from shoal_controlplane.plans.tables import PartRow, PlanRow

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

CutKey: TypeAlias = tuple[str, str]
"""Digest of a model, and its inputs' shapes as sorted JSON: what parts are cut for."""

_shapes_encoder = msgspec.json.Encoder(order="sorted")


def cut_key(digest: str, shapes: Shapes) -> CutKey:
    """What the parts of a model for some shapes are filed under."""
    return (digest, _shapes_encoder.encode(dict(shapes)).decode())


class PlanStore:
    """The one holder of plans and parts; the database always comes first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.plans: dict[str, Plan] = {}
        self._parts: dict[CutKey, dict[tuple[int, int], StageFile]] = {}

    async def load(self) -> None:
        """Start with what the database holds."""
        self.plans, self._parts = await self._database.run(_load)

    async def put(self, plan: Plan) -> None:
        """Create or replace a plan."""
        row = PlanRow(deployment=plan.name, document=msgspec.json.encode(plan).decode())

        def work(session: Session) -> None:
            session.merge(row)

        await self._database.run(work)
        self.plans[plan.name] = plan

    async def delete(self, name: str) -> None:
        """Forget a plan, if there is one."""
        await self._database.run(
            lambda session: session.execute(delete(PlanRow).where(col(PlanRow.deployment) == name))
        )
        self.plans.pop(name, None)

    def parts(self, key: CutKey) -> Mapping[tuple[int, int], StageFile]:
        """Files that were cut, by first and last segment."""
        return self._parts.get(key, {})

    def ranges(self, digest: str, shapes: Shapes) -> dict[str, tuple[int, int]]:
        """First and last segment of the parts of a model, by their digests."""
        parts = self.parts(cut_key(digest, shapes))
        return {file.digest: segments for segments, file in parts.items()}

    def digests(self) -> set[str]:
        """Digests of all parts."""
        return {file.digest for files in self._parts.values() for file in files.values()}

    async def add_parts(self, key: CutKey, files: Collection[StageFile]) -> None:
        """Remember files that were cut."""
        rows = [
            PartRow(
                model_digest=key[0],
                shapes=key[1],
                first=file.first,
                last=file.last,
                digest=file.digest,
                size=file.size,
                document=msgspec.json.encode(file).decode(),
            )
            for file in files
        ]

        def work(session: Session) -> None:
            for row in rows:
                session.merge(row)

        await self._database.run(work)
        self._parts.setdefault(key, {}).update({(f.first, f.last): f for f in files})

    async def keep_parts(self, model_digests: Collection[str]) -> set[str]:
        """Forget the parts of all other models; the digests that nothing refers to any more."""
        gone = [key for key in self._parts if key[0] not in model_digests]
        if not gone:
            return set()
        doomed = {key[0] for key in gone}

        def work(session: Session) -> None:
            session.execute(delete(PartRow).where(col(PartRow.model_digest).in_(doomed)))

        await self._database.run(work)
        digests = {f.digest for key in gone for f in self._parts.pop(key).values()}
        return digests - self.digests()


_Loaded: TypeAlias = tuple[dict[str, Plan], dict[CutKey, dict[tuple[int, int], StageFile]]]


def _load(session: Session) -> _Loaded:
    plans = {
        row.deployment: msgspec.json.decode(row.document, type=Plan)
        for row in session.exec(select(PlanRow))
    }
    parts: dict[CutKey, dict[tuple[int, int], StageFile]] = {}
    for row in session.exec(select(PartRow)):
        file = msgspec.json.decode(row.document, type=StageFile)
        parts.setdefault((row.model_digest, row.shapes), {})[file.first, file.last] = file
    return plans, parts
