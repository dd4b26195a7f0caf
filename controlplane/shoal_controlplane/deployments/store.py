"""Deployments, assignments, goals and measurements: in memory for the loop, in the database for
a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from shoal_controlplane.database import Database
from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.measured import Measured, MeasuredKey, Measurements
from shoal_controlplane.deployments.tables import (
    AssignmentRow,
    DeploymentRow,
    GoalRow,
    MeasuredRow,
)
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.messages import Desired, decode_document, encode_document
from shoal_shared.profiles import Profile

BATCH = 500


class DeploymentStore:
    """The one holder of this state. Whoever changes it holds `changing` from reading what the
    change builds on until the change is in memory; the database always comes first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changing = asyncio.Lock()
        self.deployments: dict[str, Deployment] = {}
        self.assignment: dict[str, frozenset[str]] = {}
        self.goals: dict[str, Desired] = {}
        self.measured = Measurements()

    async def load(self) -> None:
        """Start with what the database holds."""
        self.deployments, self.assignment, self.goals = await self._database.run(_load)
        self.measured.load(await self._database.run(_load_measured))

    def goal_of(self, device: str) -> int | None:
        """Number of a device's goal, None if it never had one."""
        goal = self.goals.get(device)
        return None if goal is None else goal.goal

    def using(self, model: str, version: str | None = None) -> list[str]:
        """Names of the deployments of a model, or of one version of it."""
        return [
            d.name
            for d in self.deployments.values()
            if d.model == model and version in (None, d.version)
        ]

    def offloading(self, target: str) -> dict[str, ModelKey]:
        """The deployments that may offload to a target, with their models."""
        return {d.name: d.key for d in self.deployments.values() if target in d.offload}

    async def put(self, deployment: Deployment) -> None:
        """Create or replace a deployment."""
        await self._database.run(lambda session: _put(session, deployment))
        self.deployments[deployment.name] = deployment

    async def delete(self, name: str) -> None:
        await self._database.run(lambda session: _delete(session, name))
        self.deployments.pop(name, None)
        self.assignment.pop(name, None)

    async def commit(
        self,
        assignment: Mapping[str, frozenset[str]],
        goals: Mapping[str, Desired],
        gone: Collection[str],
        completed: Collection[str],
    ) -> None:
        """Write, in one transaction, new devices of deployments, new goals of devices, devices
        that are `gone`, and deployments that became complete."""

        def work(session: Session) -> None:
            _save_assignment(session, assignment)
            _save_goals(session, goals, gone)
            for name in completed:
                row = session.get(DeploymentRow, name)
                if row is not None:
                    row.completed = True
                    session.add(row)

        await self._database.run(work)
        self.assignment.update(assignment)
        self.goals.update(goals)
        for device in gone:
            self.goals.pop(device, None)
        for name in completed:
            self.deployments[name] = replace(self.deployments[name], completed=True)

    async def save_measured(self) -> None:
        """Write what was measured, and what was dropped, since the last time."""
        while changes := self.measured.take_unsaved(BATCH):
            try:
                await self._database.run(partial(_save_measured, changes=changes))
            except BaseException:
                self.measured.put_back(changes)
                raise


Loaded = tuple[dict[str, Deployment], dict[str, frozenset[str]], dict[str, Desired]]


def _load(session: Session) -> Loaded:
    rows = session.exec(
        select(DeploymentRow).order_by(col(DeploymentRow.created_at), col(DeploymentRow.name))
    )
    deployments = {row.name: _deployment(row) for row in rows}
    devices: dict[str, set[str]] = {}
    for assigned in session.exec(select(AssignmentRow)):
        devices.setdefault(assigned.deployment, set()).add(assigned.device)
    goals = {
        row.device: decode_document(Desired, row.document.encode())
        for row in session.exec(select(GoalRow))
    }
    return deployments, {name: frozenset(d) for name, d in devices.items()}, goals


def _deployment(row: DeploymentRow) -> Deployment:
    return Deployment(
        name=row.name,
        model=row.model,
        version=row.version,
        replicas=row.replicas,
        select=msgspec.json.decode(row.selector, type=dict[str, str]),
        created_at=row.created_at,
        slo_ms=row.slo_ms,
        max_batch=row.max_batch,
        options=msgspec.json.decode(row.options, type=dict[str, Any]),
        revision=row.revision,
        completed=row.completed,
        require_accelerator=row.require_accelerator,
        shards=row.shards,
        objective=Objective(row.objective),
        shapes=msgspec.json.decode(row.shapes, type=dict[str, tuple[int, ...]]),
        offload=msgspec.json.decode(row.offload, type=tuple[str, ...]),
    )


def _put(session: Session, deployment: Deployment) -> None:
    session.merge(
        DeploymentRow(
            name=deployment.name,
            model=deployment.model,
            version=deployment.version,
            replicas=deployment.replicas,
            selector=msgspec.json.encode(deployment.select).decode(),
            slo_ms=deployment.slo_ms,
            max_batch=deployment.max_batch,
            options=msgspec.json.encode(deployment.options).decode(),
            created_at=deployment.created_at,
            revision=deployment.revision,
            completed=deployment.completed,
            require_accelerator=deployment.require_accelerator,
            shards=deployment.shards,
            objective=deployment.objective.value,
            shapes=msgspec.json.encode(deployment.shapes).decode(),
            offload=msgspec.json.encode(deployment.offload).decode(),
        )
    )


def _delete(session: Session, name: str) -> None:
    session.execute(delete(AssignmentRow).where(col(AssignmentRow.deployment) == name))
    session.execute(delete(DeploymentRow).where(col(DeploymentRow.name) == name))


def _save_assignment(session: Session, assignment: Mapping[str, frozenset[str]]) -> None:
    for name, devices in assignment.items():
        rows = session.exec(select(AssignmentRow).where(col(AssignmentRow.deployment) == name))
        present = {row.device: row for row in rows}
        for device, row in present.items():
            if device not in devices:
                session.delete(row)
        session.add_all(
            AssignmentRow(deployment=name, device=device) for device in devices - present.keys()
        )


def _save_goals(session: Session, goals: Mapping[str, Desired], gone: Collection[str]) -> None:
    for device, goal in goals.items():
        session.merge(GoalRow(device=device, document=encode_document(goal).decode()))
    for device in gone:
        found = session.get(GoalRow, device)
        if found is not None:
            session.delete(found)


def _load_measured(session: Session) -> list[Measured]:
    rows = session.exec(select(MeasuredRow).order_by(col(MeasuredRow.updated_at)))
    return [
        Measured(
            digest=row.digest,
            board=row.board,
            runtime=row.runtime,
            profile=msgspec.json.decode(row.profile, type=Profile),
            memory_bytes=row.memory_bytes,
            accelerated=row.accelerated,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


def _save_measured(session: Session, changes: Mapping[MeasuredKey, Measured | None]) -> None:
    for key, measured in changes.items():
        if measured is None:
            found = session.get(MeasuredRow, key)
            if found is not None:
                session.delete(found)
            continue
        session.merge(
            MeasuredRow(
                digest=measured.digest,
                board=measured.board,
                runtime=measured.runtime,
                profile=msgspec.json.encode(measured.profile).decode(),
                memory_bytes=measured.memory_bytes,
                accelerated=measured.accelerated,
                updated_at=measured.updated_at,
            )
        )
