"""What operators may do with deployments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from shoal_controlplane.api.conditional import check_if_match
from shoal_controlplane.deployments.controller import DeploymentController, Models
from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.goals import files, goal_size, model_goal
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.deployments.views import (
    DeploymentView,
    MeasuredView,
    deployment_view,
    measured_view,
)
from shoal_controlplane.errors import ConflictError, InvalidError, NotFoundError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.gateway.saturation import Picture
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.partition.problem import Objective
from shoal_shared.names import NAME_RULE, is_name
from shoal_shared.status import DeploymentState

MAX_GOAL_BYTES = 4096
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """What to create. Without a `name` it gets the model's; without a `version` the newest;
    `replicas` None means every device that fits. With `require_accelerator` a replica fails
    rather than runs on the CPU. The rest is as in `Deployment`."""

    model: str
    version: str | None = None
    name: str | None = None
    replicas: int | None = 1
    select: Mapping[str, str] = field(default_factory=dict)
    slo_ms: float | None = None
    max_batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    require_accelerator: bool = False
    shards: int | None = None
    objective: Objective = Objective.THROUGHPUT
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    offload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """What to change; None leaves it. `every` is `all` of the API."""

    replicas: int | None = None
    every: bool | None = None
    version: str | None = None
    select: Mapping[str, str] | None = None
    require_accelerator: bool | None = None
    offload: tuple[str, ...] | None = None


class Pressures(Protocol):
    """How full the devices of a model are, as `gateway.pressure.Pressures` has it."""

    def of(self, model: str, version: str) -> Picture:
        """The picture of a model; a calm one where nothing is known."""


class DeploymentService:
    """Rules of deployments over store and controller. `targets` are the names of those that there
    are."""

    def __init__(
        self,
        store: DeploymentStore,
        controller: DeploymentController,
        models: Models,
        events: EventLog,
        wall: Callable[[], float],
        targets: Callable[[], Collection[str]] = tuple,
        pressures: Pressures | None = None,
    ) -> None:
        self._store = store
        self._controller = controller
        self._models = models
        self._events = events
        self._wall = wall
        self._targets = targets
        self._pressures = pressures

    def view(self, name: str) -> DeploymentView:
        """One deployment. Raises `NotFoundError`."""
        return self._shown(self._find(name))

    def find(
        self,
        model: str | None,
        state: DeploymentState | None,
        select: Mapping[str, str],
        after: str | None,
        limit: int,
    ) -> list[DeploymentView]:
        """Up to `limit` deployments by name, names after `after`; `select` must be contained in
        the deployment's."""
        found: list[DeploymentView] = []
        for name, deployment in sorted(self._store.deployments.items()):
            if (
                (after is not None and name <= after)
                or model not in (None, deployment.model)
                or not select.items() <= deployment.select.items()
            ):
                continue
            view = self._shown(deployment)
            if state in (None, view.state):
                found.append(view)
                if len(found) == limit:
                    break
        return found

    async def profiles(
        self, model: str, version: str, after: str | None, limit: int
    ) -> list[MeasuredView]:
        """Up to `limit` of what was measured of a model version, keys after `after`. Raises
        `NotFoundError`."""
        found = await self._models.get(model, version)
        measured = self._store.measured
        views = [measured_view(f.name, m) for f in files(found) for m in measured.of(f.digest)]
        views.sort(key=lambda view: view.key)
        return [view for view in views if after is None or view.key > after][:limit]

    async def create(self, new: NewDeployment) -> DeploymentView:
        """Create a deployment. Raises `NotFoundError` for a model that is not there,
        `ConflictError` for a name that is taken, `InvalidError`."""
        if new.name is not None and not is_name(new.name):
            raise InvalidError(f"The name {new.name[:80]!r} is not valid: use {NAME_RULE}.")
        options = _plain(new.options)
        model = await self._models.get(new.model, new.version)
        if (new.max_batch or 1) > max(1, model.max_batch):
            raise InvalidError(
                f"max_batch is {new.max_batch}, but model {model.name}:{model.version} takes "
                f"batches of at most {max(1, model.max_batch)}."
            )
        async with self._store.changing:
            deployment = Deployment(
                name=self._name(new, model),
                model=model.name,
                version=model.version,
                replicas=new.replicas,
                select=dict(new.select),
                created_at=self._wall(),
                slo_ms=new.slo_ms,
                max_batch=new.max_batch,
                options=options,
                require_accelerator=new.require_accelerator,
                shards=new.shards,
                objective=new.objective,
                shapes=dict(new.shapes),
                offload=self._offload(new.offload),
            )
            _check_size(deployment, model)
            await self._store.put(deployment)
            self._controller.learn(model)
        self._tell("created", deployment)
        return self._shown(deployment)

    async def edit(
        self, name: str, change: DeploymentChange, if_match: str | None
    ) -> DeploymentView:
        """Change a deployment. Raises `NotFoundError`, `PreconditionError`, `InvalidError`."""
        async with self._store.changing:
            before = self._find(name)
            check_if_match(if_match, before.revision)
            if before.shards is not None and (change.replicas is not None or change.every):
                raise InvalidError(
                    f"Deployment {name} is sharded: its plan says how many devices it takes."
                )
            model = await self._models.get(before.model, change.version or before.version)
            after = replace(
                before,
                version=model.version,
                replicas=_replicas(before, change),
                select=before.select if change.select is None else dict(change.select),
                require_accelerator=(
                    before.require_accelerator
                    if change.require_accelerator is None
                    else change.require_accelerator
                ),
                offload=(
                    before.offload if change.offload is None else self._offload(change.offload)
                ),
            )
            if after == before:
                return self._shown(before)
            if (after.max_batch or 1) > max(1, model.max_batch):
                raise InvalidError(
                    f"Deployment {name} has max_batch {after.max_batch}, but version "
                    f"{model.version} takes batches of at most {max(1, model.max_batch)}."
                )
            _check_size(after, model)
            after = replace(after, revision=before.revision + 1, completed=False)
            await self._store.put(after)
            self._controller.learn(model)
        self._tell("changed", after)
        return self._shown(after)

    async def delete(self, name: str) -> None:
        """Delete a deployment; its devices unload it. Raises `NotFoundError`."""
        async with self._store.changing:
            deployment = self._find(name)
            await self._store.delete(name)
        self._controller.wake()
        self._tell("deleted", deployment)

    def _find(self, name: str) -> Deployment:
        deployment = self._store.deployments.get(name)
        if deployment is None:
            raise NotFoundError(f"There is no deployment {name[:80]!r}.")
        return deployment

    def _shown(self, deployment: Deployment) -> DeploymentView:
        pressures, (model, version) = self._pressures, deployment.key
        picture = pressures.of(model, version) if pressures is not None else None
        return deployment_view(deployment, self._controller.summary(deployment), picture)

    def _offload(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of targets, each once. Raises `InvalidError` for those that are not there."""
        known = self._targets()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidError(
                f"There is no target {unknown[0][:80]!r} to offload to: see `shoal target list`."
            )
        return tuple(dict.fromkeys(names))

    def _name(self, new: NewDeployment, model: ModelVersion) -> str:
        """The name asked for, or a free one made of the model's. Raises `ConflictError`."""
        asked, taken = new.name, self._store.deployments
        if asked is not None:
            if asked in taken:
                raise ConflictError(
                    f"There is a deployment {asked} already: change it, or choose another name."
                )
            return asked
        sharded = new.shards is not None
        for name in self._store.using(model.name, model.version):
            # On whole devices and in stages at once is how one changes from one to the other.
            if (taken[name].shards is not None) is sharded:
                raise ConflictError(
                    f"Deployment {name} serves {model.name}:{model.version} already: change it, "
                    "or name a second one."
                )
        bases = [model.name, f"{model.name[: MAX_NAME // 2]}-{model.version}"[:MAX_NAME]]
        bases += [f"{bases[1][: MAX_NAME - 6]}-{n}" for n in range(2, len(taken) + 2)]
        return next(name for name in bases if name not in taken)

    def _tell(self, verb: str, deployment: Deployment) -> None:
        model = f"{deployment.model}:{deployment.version}"
        self._events.append(
            f"deployment.{verb}",
            deployment.name,
            f"Deployment {deployment.name} of {model} was {verb}.",
            {"model": deployment.model, "version": deployment.version},
        )


def _check_size(deployment: Deployment, model: ModelVersion) -> None:
    """Raises `InvalidError` if devices could not be told of the deployment."""
    if goal_size(model_goal(deployment, model)) <= MAX_GOAL_BYTES:
        return
    if model.variants:
        raise InvalidError(
            f"The options and the {len(model.variants)} variants of {model.name}:{model.version} "
            f"exceed {MAX_GOAL_BYTES} bytes: shorten the options, or delete variants."
        )
    raise InvalidError(f"The options exceed {MAX_GOAL_BYTES} bytes: shorten them.")


def _replicas(before: Deployment, change: DeploymentChange) -> int | None:
    if change.every and change.replicas is not None:
        raise InvalidError("Give either replicas or all, not both.")
    if change.every:
        return None
    if change.replicas is not None:
        return change.replicas
    if change.every is False and before.replicas is None:
        raise InvalidError("Without all, say how many replicas.")
    return before.replicas


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they will arrive on devices. Raises `InvalidError`."""
    try:
        return msgspec.json.decode(msgspec.json.encode(options), type=dict[str, Any])
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise InvalidError(f"The options cannot be sent to devices: {error}.") from None
