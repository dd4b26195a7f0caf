"""Targets: in memory for the loops, in the database for a restart."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from shoal_controlplane.database import Database
from shoal_controlplane.offload.target import Price
from shoal_controlplane.targets.tables import ManualRow, TargetRow
from shoal_controlplane.targets.target import Manual, Place, Target


class TargetStore:
    """The one holder of this state. Whoever changes it holds `changing` from reading what the
    change builds on until the change is in memory; the database always comes first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changing = asyncio.Lock()
        self.targets: dict[str, Target] = {}
        self.manual: dict[Place, Manual] = {}

    async def load(self) -> None:
        """Start with what the database holds."""
        self.targets, self.manual = await self._database.run(_load)

    async def put(self, target: Target) -> None:
        """Create or replace a target."""
        await self._database.run(lambda session: _put(session, target))
        self.targets[target.name] = target

    async def delete(self, name: str) -> None:
        await self._database.run(lambda session: _delete(session, name))
        self.targets.pop(name, None)
        for place in [place for place in self.manual if place[0] == name]:
            del self.manual[place]

    async def put_manual(self, place: Place, manual: Manual) -> None:
        """Remember what was done by hand, or forget it where that is nothing."""
        await self._database.run(lambda session: _put_manual(session, place, manual))
        if manual.is_nothing:
            self.manual.pop(place, None)
        else:
            self.manual[place] = manual


_Loaded: TypeAlias = tuple[dict[str, Target], dict[Place, Manual]]


def _load(session: Session) -> _Loaded:
    rows = session.exec(select(TargetRow).order_by(col(TargetRow.name)))
    targets = {row.name: _target(row) for row in rows}
    manual = {
        (row.target, (row.model, row.version)): Manual(row.placed, row.replicas)
        for row in session.exec(select(ManualRow))
    }
    return targets, manual


def _target(row: TargetRow) -> Target:
    return Target(
        name=row.name,
        kind=row.kind,
        options=msgspec.json.decode(row.options, type=dict[str, Any]),
        credential=row.credential,
        price=Price(row.price_per_replica_hour, row.price_per_request),
        cap_per_hour=row.cap_per_hour,
        max_replicas=row.max_replicas,
        created_at=row.created_at,
        revision=row.revision,
    )


def _put(session: Session, target: Target) -> None:
    session.merge(
        TargetRow(
            name=target.name,
            kind=target.kind,
            options=msgspec.json.encode(target.options).decode(),
            credential=target.credential,
            price_per_replica_hour=target.price.per_replica_hour,
            price_per_request=target.price.per_request,
            cap_per_hour=target.cap_per_hour,
            max_replicas=target.max_replicas,
            created_at=target.created_at,
            revision=target.revision,
        )
    )


def _delete(session: Session, name: str) -> None:
    session.execute(delete(ManualRow).where(col(ManualRow.target) == name))
    session.execute(delete(TargetRow).where(col(TargetRow.name) == name))


def _put_manual(session: Session, place: Place, manual: Manual) -> None:
    target, (model, version) = place
    if manual.is_nothing:
        found = session.get(ManualRow, (target, model, version))
        if found is not None:
            session.delete(found)
        return
    session.merge(
        ManualRow(
            target=target,
            model=model,
            version=version,
            placed=manual.placed,
            replicas=manual.replicas,
        )
    )
