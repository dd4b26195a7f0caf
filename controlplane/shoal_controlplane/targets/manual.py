"""What operators may do with a target by hand: try it, place models, scale them, ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from shoal_controlplane.deployments.controller import Models
from shoal_controlplane.errors import (
    ConflictError,
    DomainError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.offload.kinds import Kind, kind_of
from shoal_controlplane.offload.target import CloudTarget, Description, Fault, TargetError
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.targets.service import TargetService, Users
from shoal_controlplane.targets.store import TargetStore
from shoal_controlplane.targets.target import Manual, Target
from shoal_controlplane.targets.views import CheckView, TargetModelView
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest, OipError, RequestedOutput
from shoal_shared.validation import check_request

log = structlog.get_logger("targets")

TEST_S = 10.0
CLOSE_S = 2.0

_NOTHING = Manual()


class Asked(Protocol):
    """Who sends requests to targets, as `gateway.clouds.Clouds` does."""

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        """Answer a request by a target until `deadline`. Raises `TargetError`."""


class ManualService:
    """By hand, over the rules of targets. `changed` is told after each change."""

    def __init__(
        self,
        store: TargetStore,
        targets: TargetService,
        users: Users,
        models: Models,
        clouds: Asked,
        changed: Callable[[], None],
        clock: Clock,
        kinds: Callable[[str], Kind] = kind_of,
    ) -> None:
        self._store = store
        self._targets = targets
        self._users = users
        self._models = models
        self._clouds = clouds
        self._changed = changed
        self._clock = clock
        self._kinds = kinds

    async def test(self, name: str) -> CheckView:
        """Reach a target with its credentials as they are now, and say what it is or what is
        wrong. Raises `NotFoundError`."""
        target = self._targets.get(name)
        models = self._targets.view(name).models
        try:
            said = await self._described(target)
        except TimeoutError:
            reason = f"it did not answer within {TEST_S:.0f} s"
        except (TargetError, DomainError) as error:
            reason = str(error).rstrip(".")
        except Exception as error:
            # A fault of ours or of an SDK: the log says it in full.
            log.exception("target failed at a test", target=name)
            reason = f"it failed with {type(error).__name__}: the control plane's log says why"
        else:
            return CheckView(ok=True, message=said.where, facts=dict(said.facts), models=models)
        return CheckView(ok=False, message=reason, facts={}, models=models)

    def model(self, name: str, key: ModelKey) -> TargetModelView:
        """A model on a target. Raises `NotFoundError`."""
        for view in self._targets.view(name).models:
            if (view.model, view.version) == key:
                return view
        raise NotFoundError(
            f"The model {':'.join(key)[:140]} is not on target {name}: see `shoal target show "
            f"{name}`."
        )

    async def place(self, name: str, key: ModelKey) -> TargetModelView:
        """Have a model on a target whatever deployments say. Raises `NotFoundError`."""
        model = await self._models.get(*key)
        key = (model.name, model.version)
        async with self._store.changing:
            self._targets.get(name)
            before = self._store.manual.get((name, key), _NOTHING)
            await self._store.put_manual((name, key), replace(before, placed=True))
        self._changed()
        return self.model(name, key)

    async def scale(self, name: str, key: ModelKey, replicas: int | None) -> TargetModelView:
        """Fix the number of replicas of a model, or with None let it follow the need. Raises
        `NotFoundError`, `InvalidError` for more than the target may have."""
        async with self._store.changing:
            target = self._targets.get(name)
            self.model(name, key)
            if replicas is not None and replicas > target.max_replicas:
                raise InvalidError(
                    f"Target {name} may have {target.max_replicas} replicas of a model: raise its "
                    "max_replicas first."
                )
            before = self._store.manual.get((name, key), _NOTHING)
            await self._store.put_manual((name, key), replace(before, replicas=replicas))
        self._changed()
        return self.model(name, key)

    async def take_away(self, name: str, key: ModelKey) -> None:
        """Undo what was done by hand with a model. Raises `NotFoundError`, and `ConflictError`
        where only a deployment has it there."""
        async with self._store.changing:
            view = self.model(name, key)
            if not view.placed and view.pinned is None:
                raise ConflictError(
                    f"Deployment {', '.join(view.deployments)[:200] or 'none'} has "
                    f"{':'.join(key)} on target {name}, nobody placed it by hand: change that "
                    "deployment's offload."
                )
            await self._store.put_manual((name, key), _NOTHING)
        self._changed()

    async def infer(
        self, name: str, key: ModelKey, request: InferRequest, timeout_s: float
    ) -> InferReply:
        """Have a target answer a request, whatever the devices do. The reply's parameters are
        `target` and `latency_ms`. Raises `NotFoundError`, `InvalidError`, `UnavailableError`."""
        self._targets.get(name)
        model = await self._models.get(*key)
        key = (model.name, model.version)
        self.model(name, key)
        if any(output.classification for output in request.outputs):
            raise InvalidError("Targets do not classify: ask the gateway, or for the tensors.")
        try:
            items = check_request(request, model.signature, model.max_batch)
        except OipError as error:
            raise InvalidError(f"The request does not fit the model: {error}.") from None
        served = ServedModel(
            *key, model.platform, model.signature, model.max_batch, labels=model.labels
        )
        wire = InferRequest(
            request.inputs, [RequestedOutput(o.name) for o in request.outputs], *key
        )
        began = self._clock()
        try:
            reply = await self._clouds.infer(name, served, wire, items, began + timeout_s)
        except TargetError as error:
            refused = error.fault in (Fault.INVALID, Fault.UNSUPPORTED)
            kind = InvalidError if refused else UnavailableError
            raise kind(f"Target {name} did not answer: {error}") from None
        took_ms = (self._clock() - began) * 1e3
        given = {tensor.name: tensor for tensor in reply.outputs}
        wanted = [o.name for o in request.outputs] or [s.name for s in model.signature.outputs]
        outputs = [given[output] for output in wanted if output in given]
        parameters = {"target": name, "latency_ms": round(took_ms, 3)}
        return InferReply(outputs, *key, request.id, parameters)

    async def _described(self, target: Target) -> Description:
        """What a target that is opened for this alone says of itself: its credentials are read
        anew. Raises `TimeoutError`, `TargetError`, `DomainError`."""
        opened: CloudTarget | None = None
        try:
            async with asyncio.timeout(TEST_S):
                kind = await asyncio.to_thread(self._kinds, target.kind)
                opened = kind.open_target(target.settings)
                return await opened.describe()
        finally:
            if opened is not None:
                await _close(opened, target.name)


async def _close(cloud: CloudTarget, name: str) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await cloud.close()
    except (TimeoutError, TargetError) as error:
        log.warning("a target did not close after a test", target=name, reason=str(error))
