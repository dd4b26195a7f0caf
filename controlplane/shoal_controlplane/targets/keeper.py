"""The loop from what operators and deployments say to what should be on the targets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from shoal_controlplane.deployments.controller import Models
from shoal_controlplane.errors import NotFoundError
from shoal_controlplane.gateway.table import ServingTable
from shoal_controlplane.offload.manager import TargetPlan, WantedModel
from shoal_controlplane.targets.store import TargetStore
from shoal_controlplane.targets.target import Manual, Place
from shoal_controlplane.targets.wanted import pins, target_plan, targets_by_model, wanted_model

log = structlog.get_logger("targets")

RETRY_S = 5.0


class CloudSide(Protocol):
    """Who brings the targets in step with what they should be, as `CloudManager` does."""

    def set_targets(self, targets: Iterable[TargetPlan]) -> None:
        """Have these targets, and no others."""

    def set_pins(self, pins: Mapping[Place, int]) -> None:
        """Have these numbers of replicas, whatever is needed; all others follow the need."""

    def set_wanted(self, wanted: Iterable[WantedModel]) -> None:
        """Have these models on their targets, and no others."""


class TargetKeeper:
    """Tells the clouds what is wanted of them, whenever that changes.

    `artifact` and `url` tell where the bytes of a digest lie, here and for machines elsewhere.
    """

    def __init__(
        self,
        store: TargetStore,
        table: ServingTable,
        models: Models,
        clouds: CloudSide,
        artifact: Callable[[str], Path],
        url: Callable[[str], str],
    ) -> None:
        self._store = store
        self._table = table
        self._models = models
        self._clouds = clouds
        self._artifact = artifact
        self._url = url
        self._plans: list[TargetPlan] = []
        self._wanted: list[WantedModel] = []
        self._pins: dict[Place, int] = {}
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what operators said before and begin. Start the clouds afterwards."""
        await self._store.load()
        await self.step()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Something changed: targets, models, or what is served."""
        self._woken.set()

    async def step(self) -> None:
        """Tell what is wanted now, as far as that is news."""
        plans = [target_plan(target) for _, target in sorted(self._store.targets.items())]
        if plans != self._plans:
            self._clouds.set_targets(plans)
            self._plans = plans
        fixed = pins(self._store.manual)
        if fixed != self._pins:
            self._clouds.set_pins(fixed)
            self._pins = fixed
        wanted = await self._look_up()
        if wanted != self._wanted:
            self._clouds.set_wanted(wanted)
            self._wanted = wanted

    async def _look_up(self) -> list[WantedModel]:
        found: list[WantedModel] = []
        by_model = targets_by_model(self._table.all(), self._store.manual)
        for key, targets in sorted(by_model.items()):
            try:
                model = await self._models.get(*key)
            except NotFoundError:
                await self._forget(key)
                continue
            found.append(wanted_model(model, targets, self._artifact, self._url))
        return found

    async def _forget(self, key: tuple[str, str]) -> None:
        """A model was deleted: what was done with it by hand is of no use any more."""
        async with self._store.changing:
            for place in [place for place in self._store.manual if place[1] == key]:
                await self._store.put_manual(place, Manual())

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.step()
            except Exception:
                # One bad step must not cut the clouds off for good: say it in full, try again.
                log.exception("the targets could not be told what is wanted, trying again")
                await asyncio.sleep(RETRY_S)
                self._woken.set()
