"""The gateway's core, which HTTP and gRPC share: from a request to its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from shoal_controlplane.gateway.admission import Priority, priority_of
from shoal_controlplane.gateway.batch import BatchRunner
from shoal_controlplane.gateway.classification import classify
from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.join import JoinError
from shoal_controlplane.gateway.overflow import Job, Overflow, Terms, by_device
from shoal_controlplane.gateway.statistics import Statistics
from shoal_controlplane.gateway.table import Replica, ServedModel, ServingTable
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest, OipError, RequestedOutput, Tensor
from shoal_shared.validation import check_request

DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 3600.0
MAX_ITEMS = 100_000
"""Of one request, where it may be split; what is more is a mistake."""


class ModelRepository(Protocol):
    """Triton's repository extension, answered by the deployments room."""

    async def index(self) -> list[dict[str, str]]:
        """Entries with name, version, state (READY or UNAVAILABLE) and reason."""

    async def load(self, name: str) -> None:
        """Deploy a model and wait until it serves. Raises a `DomainError`."""

    async def unload(self, name: str) -> None:
        """Remove the deployments of a model. Raises a `DomainError`."""


class Gateway:
    """Answers inference requests out of the serving table. Without `batches` none is split, and
    without `overflow` all go to the devices, however full they are."""

    def __init__(
        self,
        table: ServingTable,
        dispatcher: Dispatcher,
        repository: ModelRepository,
        *,
        clock: Clock,
        wall_clock: Callable[[], float] = time.time,
        default_timeout_s: float = DEFAULT_TIMEOUT_S,
        batches: BatchRunner | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        self.table = table
        self.repository = repository
        self.statistics = Statistics()
        self._dispatcher = dispatcher
        self._batches = batches
        self._overflow = overflow
        self._clock = clock
        self._wall_clock = wall_clock
        self._default_timeout_s = default_timeout_s

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model that a request names. Raises `GatewayError` NOT_FOUND."""
        model = self.table.find(name, version)
        if model is None:
            shown = f"{name}:{version}" if version else name
            raise GatewayError(GatewayStatus.NOT_FOUND, f"model {shown[:200]!r} is not deployed")
        return model

    async def infer(
        self,
        request: InferRequest,
        name: str,
        version: str,
        timeout_s: float | None,
        *,
        priority: str | None = None,
        client: str = "",
    ) -> InferReply:
        """Answer a request for a model; outputs come in the order that was asked for.

        The earlier of `timeout_s` and the request's `timeout` parameter (µs) counts, the default
        where there is neither. `priority`, by name, comes before the request's `priority`
        parameter; `client` names whose share of the devices it takes. Cancelling the coroutine
        cancels the request. Raises `GatewayError`.
        """
        started = self._clock()
        model = self.model(name, version)
        try:
            idempotent = "sequence_id" not in request.parameters
            most = MAX_ITEMS if idempotent and self._batches is not None else 0
            items = check_request(request, model.signature, model.max_batch, most)
            timeout = self._timeout(request, timeout_s)
            rank = priority_of(request.parameters.get("priority"), priority)
        except ValueError as error:
            raise GatewayError(GatewayStatus.INVALID, str(error)) from None
        figures = self.statistics.of(model.name, model.version)
        wire = InferRequest(
            request.inputs,
            [RequestedOutput(o.name) for o in request.outputs],
            model.name,
            model.version,
        )
        sent = self._clock()
        try:
            terms = _terms(model, started, timeout, idempotent, rank, client)
            reply = await self._call(wire, model, items, terms)
            received = self._clock()
            outputs = self._outputs(reply, request, model)
        except GatewayError as error:
            shed = error.status is GatewayStatus.EXHAUSTED
            figures.failed(int((self._clock() - started) * 1e9), shed=shed)
            raise
        target = reply.parameters.get("target", "")
        service_us = reply.parameters.get("service_us", 0)
        # A device cannot have merged more than the model takes.
        batch = min(max(reply.parameters.get("batch", 0), items), max(model.max_batch, items))
        now = self._clock()
        figures.answered(
            items=items,
            batch=batch,
            total_ns=int((now - started) * 1e9),
            input_ns=int((sent - started) * 1e9),
            infer_ns=service_us * 1000,
            output_ns=int((now - received) * 1e9),
            wall_ms=int(self._wall_clock() * 1000),
            target=target,
        )
        told = ("device", "devices", "target", "service_us")
        parameters = {key: reply.parameters[key] for key in told if key in reply.parameters}
        return InferReply(outputs, model.name, model.version, request.id, parameters)

    async def _call(
        self, wire: InferRequest, model: ServedModel, items: int, terms: Terms
    ) -> InferReply:
        """The answer of one device, of several together where splitting pays, or of a cloud."""

        def replicas() -> tuple[Replica, ...]:
            return self._replicas(model)

        job = Job(wire, model, replicas, items, terms)
        batches, overflow = self._batches, self._overflow
        if batches is not None and terms.idempotent and batches.pays(wire, model, items):
            if overflow is not None:
                overflow.split(job)
            try:
                return await batches.call(wire, model, replicas, items, terms.deadline)
            except JoinError as error:
                # Output sizes depend on the data: only one device can answer the whole.
                if items > model.max_batch:
                    raise GatewayError(GatewayStatus.INTERNAL, str(error)) from None
            except GatewayError as error:
                # A target takes it only as a whole.
                if overflow is None or items > model.max_batch:
                    raise
                return await overflow.rescue(job, error)
        if overflow is not None:
            return await overflow.call(job)
        reply, ticket = await self._dispatcher.call(
            wire,
            replicas,
            items,
            terms.deadline,
            idempotent=terms.idempotent,
            sharded=model.sharded,
        )
        return by_device(reply, ticket.device)

    def _replicas(self, model: ServedModel) -> tuple[Replica, ...]:
        current = self.table.find(model.name, model.version)
        return current.replicas if current is not None else ()

    def _timeout(self, request: InferRequest, timeout_s: float | None) -> float:
        limits = [self._default_timeout_s if timeout_s is None else timeout_s]
        parameter = request.parameters.get("timeout")
        if parameter is not None:
            if not isinstance(parameter, int) or isinstance(parameter, bool) or parameter < 0:
                raise OipError("the parameter 'timeout' must be a number of microseconds")
            if parameter:
                limits = [parameter / 1e6, *([timeout_s] if timeout_s is not None else [])]
        return min(*limits, MAX_TIMEOUT_S)

    def _outputs(
        self, reply: InferReply, request: InferRequest, model: ServedModel
    ) -> list[Tensor]:
        """The reply's tensors in the order asked for, classified where asked for; all of the
        model's if none were asked for."""
        given = {tensor.name: tensor for tensor in reply.outputs}
        outputs: list[Tensor] = []
        for wanted in request.outputs or [RequestedOutput(s.name) for s in model.signature.outputs]:
            tensor = given.get(wanted.name)
            if tensor is None:
                raise GatewayError(
                    GatewayStatus.INTERNAL, f"the device did not return output '{wanted.name}'"
                )
            if wanted.classification:
                labels = model.labels.get(wanted.name, ())
                try:
                    tensor = classify(
                        tensor, wanted.classification, labels, batched=model.max_batch > 0
                    )
                except ValueError as error:
                    raise GatewayError(GatewayStatus.INVALID, str(error)) from None
            outputs.append(tensor)
        return outputs


def _terms(
    model: ServedModel,
    started: float,
    timeout: float,
    idempotent: bool,
    priority: Priority,
    client: str,
) -> Terms:
    due = timeout if model.slo_ms is None else min(timeout, model.slo_ms / 1e3)
    return Terms(started, started + due, started + timeout, idempotent, priority, client)
