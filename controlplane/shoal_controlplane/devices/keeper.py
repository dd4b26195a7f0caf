"""Once a second: who stayed silent counts as offline, and what changed is saved."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from shoal_controlplane.database import Database
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.devices.tables import load_devices, save_observed

log = structlog.get_logger("devices")

INTERVAL_S = 1.0
BATCH = 500


class FleetKeeper:
    """Carries the live fleet over restarts: loads it on start, saves it in batches."""

    def __init__(self, fleet: LiveFleet, database: Database) -> None:
        self._fleet = fleet
        self._database = database
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._fleet.load(await self._database.run(load_devices))
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.save()

    def connection_changed(self, connected: bool) -> None:
        """For the link: after an outage the devices must show that they are still there."""
        if connected:
            self._fleet.expect_all()

    async def save(self) -> None:
        """Write all devices that changed, a batch a transaction."""
        while batch := self._fleet.take_unsaved(BATCH):
            try:
                await self._database.run(partial(save_observed, devices=batch))
            except BaseException:
                self._fleet.put_back(batch)
                raise

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self._fleet.sweep()
            try:
                await self.save()
            except SQLAlchemyError as error:
                log.error("devices could not be saved, trying again", error=str(error))
