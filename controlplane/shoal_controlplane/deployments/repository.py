"""Triton's model repository, in terms of deployments: loading deploys, unloading undeploys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal_controlplane.deployments.controller import DeploymentController, Models
from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.service import DeploymentService, NewDeployment
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.errors import ConflictError, NotFoundError, UnavailableError
from shoal_controlplane.gateway.table import ServingTable, version_key
from shoal_controlplane.models.version import ModelVersion
from shoal_shared.status import ReplicaState

LOAD_TIMEOUT_S = 60.0


class DeployedRepository:
    """Every model that was pushed is in the repository; it is ready where a device serves it."""

    def __init__(
        self,
        service: DeploymentService,
        store: DeploymentStore,
        controller: DeploymentController,
        models: Models,
        table: ServingTable,
        *,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self._service = service
        self._store = store
        self._controller = controller
        self._models = models
        self._table = table
        self._load_timeout_s = load_timeout_s

    async def index(self) -> list[dict[str, str]]:
        """Name, version, state (READY or UNAVAILABLE) and reason of every model version."""
        pushed = sorted(await self._models.all(), key=lambda m: (m.name, version_key(m.version)))
        return [self._entry(model) for model in pushed]

    async def load(self, name: str) -> None:
        """See to it that a model is deployed, on all devices that fit unless an operator said
        otherwise, and wait until one device serves it.

        Raises `NotFoundError` for an unknown model, `UnavailableError` with the reason if no
        device serves it in time.
        """
        model = await self._models.get(name)
        if not self._store.using(name):
            try:
                await self._service.create(
                    NewDeployment(model=name, version=model.version, replicas=None)
                )
            except ConflictError:
                if not self._store.using(name):
                    raise
        await self._wait(lambda: self._decided(name))
        if not self._ready(name):
            raise UnavailableError(f"Model {name} is not ready: {self._reason(name)}.")

    async def unload(self, name: str) -> None:
        """Delete all deployments of a model, and wait until no device serves it.

        Raises `NotFoundError` for an unknown model.
        """
        await self._models.get(name)
        for deployment in self._store.using(name):
            try:
                await self._service.delete(deployment)
            except NotFoundError:
                continue  # Somebody else was faster.
        await self._wait(lambda: self._table.find(name) is None)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a step has made `condition` true, but not for ever."""
        try:
            async with asyncio.timeout(self._load_timeout_s):
                await self._controller.changed(condition)
        except TimeoutError:
            pass

    def _entry(self, model: ModelVersion) -> dict[str, str]:
        served = self._table.find(model.name, model.version)
        entry = {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
        if served is None or not served.ready:
            entry["state"] = "UNAVAILABLE"
            entry["reason"] = self._reason(model.name, model.version)
        return entry

    def _deployments(self, name: str, version: str | None = None) -> list[Deployment]:
        return [self._store.deployments[d] for d in self._store.using(name, version)]

    def _ready(self, name: str) -> bool:
        found = self._table.find(name)
        return found is not None and found.ready

    def _decided(self, name: str) -> bool:
        """Whether waiting longer makes no sense."""
        if self._ready(name):
            return True
        return all(self._is_hopeless(d) for d in self._deployments(name))

    def _is_hopeless(self, deployment: Deployment) -> bool:
        """Whether the planner found no device, or all of them say that they cannot."""
        placements = self._controller.summary(deployment).placements
        return self._controller.is_placed(deployment.name) and all(
            p.state is ReplicaState.FAILED for p in placements
        )

    def _reason(self, name: str, version: str | None = None) -> str:
        for deployment in self._deployments(name, version):
            summary = self._controller.summary(deployment)
            return summary.reason or summary.state.value
        return "not deployed"
