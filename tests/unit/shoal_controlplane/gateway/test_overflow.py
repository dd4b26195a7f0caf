"""Requests between devices and clouds that the test plays, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from support.gateway import World, model, nothing_left, row
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.admission import Admission
from shoal_controlplane.gateway.batch import BatchRunner
from shoal_controlplane.gateway.clouds import CloudOption, Pressure
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.overflow import MIN_PATIENCE_S, Overflow
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.offload.target import Fault, TargetError
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.status import InferCode


class FakeClouds:
    """Targets by name; each answers at once, raises what it is set to, or never answers."""

    def __init__(self, **finish_ms: float) -> None:
        self.finish_ms = finish_ms
        self.errors: dict[str, TargetError] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.deadlines: list[float] = []

    def options(
        self, model: ServedModel, items: int, payload_bytes: int, now: float
    ) -> Sequence[CloudOption]:
        return [CloudOption(name, ms, 0.0) for name, ms in self.finish_ms.items()]

    async def infer(
        self, target: str, model: ServedModel, request: InferRequest, items: int, deadline: float
    ) -> InferReply:
        self.asked.append(target)
        self.deadlines.append(deadline)
        if target in self.silent:
            await asyncio.sleep(deadline - asyncio.get_running_loop().time())
            raise TargetError(Fault.TIMEOUT, "it does not answer")
        if target in self.errors:
            raise self.errors[target]
        first = request.inputs[0]
        outputs = [Tensor("y", first.datatype, first.data)]
        return InferReply(outputs, parameters={"device": "forged", "service_us": "x", "batch": []})

    def demand(self, model: ServedModel, pressure: Pressure) -> None:
        return


class Site(World):
    """`cat` on devices that take 10 ms, with an SLO, and clouds."""

    def __init__(
        self, *devices: str, clouds: FakeClouds, slo_ms: float | None = 100.0, **more: Any
    ) -> None:
        super().__init__(*devices)
        self.clouds = clouds
        self.pressures = Pressures(self.router, self.table.all, clouds, self.clock)
        overflow = Overflow(self.dispatcher, Admission(), clouds, self.pressures, self.clock)
        self.gateway = Gateway(
            self.table,
            self.dispatcher,
            self.repository,
            clock=self.clock,
            wall_clock=lambda: 0.0,
            overflow=overflow,
            batches=BatchRunner(self.dispatcher, self.router, self.clock) if more else None,
        )
        self.table.publish([model(replicas=self.replicas, slo_ms=slo_ms, offload=("aks", "tpu"))])
        self.link.on_sent = self.link.answer

    async def ask(self, timeout_s: float = 5.0, **parameters: Any) -> InferReply:
        request = InferRequest([row(1, 2, 3)], parameters=parameters)
        return await self.gateway.infer(request, "cat", "1", timeout_s)

    async def refused(self, timeout_s: float = 5.0, **parameters: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.ask(timeout_s, **parameters)
        assert "\n" not in str(caught.value)
        return caught.value

    def fill(self, seconds: float = 3600.0) -> None:
        """Long queues for so long, of which only the router knows."""
        now, loop = self.clock(), asyncio.get_running_loop()
        for _ in range(200 * len(self.replicas)):
            ticket = self.router.pick("cat:1", self.replicas, 1, now)
            assert ticket is not None
            loop.call_later(seconds, self.router.withdrawn, ticket)

    @property
    def figures(self) -> Any:
        return self.gateway.statistics.of("cat", "1")


@virtual_time
async def test_devices_answer_while_they_are_in_time() -> None:
    site = Site("d1", clouds=FakeClouds(aks=20.0))
    reply = await site.ask()
    assert reply.parameters == {"device": "d1", "service_us": 10_000}
    assert site.clouds.asked == []
    assert nothing_left(site)


@virtual_time
async def test_else_a_target_does_and_its_word_counts_for_nothing_else() -> None:
    site = Site("d1", clouds=FakeClouds(aks=20.0))
    site.fill()
    reply = await site.ask()
    assert reply.parameters == {"target": "aks"}
    assert reply.outputs[0].data.tolist() == [[1, 2, 3]]
    assert site.link.sent == []
    assert site.figures.spilled == {"aks": 1}
    assert site.figures.compute_infer.ns == 0


@virtual_time
async def test_a_target_that_fails_is_followed_by_the_next_one() -> None:
    clouds = FakeClouds(aks=20.0, tpu=30.0)
    clouds.errors["aks"] = TargetError(Fault.BROKEN, "it answers with 500")
    site = Site("d1", clouds=clouds)
    site.fill()
    assert (await site.ask()).parameters == {"target": "tpu"}
    assert clouds.asked == ["aks", "tpu"]


@virtual_time
async def test_then_by_the_devices_if_they_can_be_in_time() -> None:
    clouds = FakeClouds(aks=20.0, tpu=30.0)
    for name in ("aks", "tpu"):
        clouds.errors[name] = TargetError(Fault.UNREACHABLE, "its name does not resolve")
    site = Site("d1", clouds=clouds)
    site.fill()
    reply = await site.ask(timeout_s=60.0)
    assert reply.parameters["device"] == "d1"
    assert clouds.asked == ["aks", "tpu"]


@virtual_time
async def test_else_it_is_shed_and_says_what_is_wrong_with_whom() -> None:
    clouds = FakeClouds(aks=20.0)
    clouds.errors["aks"] = TargetError(Fault.CREDENTIALS, "the token has expired")
    site = Site("d1", clouds=clouds)
    site.fill()
    error = await site.refused(timeout_s=0.2)
    assert error.status is GatewayStatus.EXHAUSTED
    assert error.retry_after_s is not None
    assert "target aks failed: the token has expired" in str(error)
    assert "devices would answer" in str(error)
    assert site.figures.shed == 1


@virtual_time
async def test_a_silent_target_leaves_time_for_the_devices() -> None:
    clouds = FakeClouds(aks=20.0)
    clouds.silent.add("aks")
    site = Site("d1", clouds=clouds)
    site.fill(seconds=0.1)
    began = site.clock()
    reply = await site.ask(timeout_s=60.0)
    assert reply.parameters["device"] == "d1"
    assert clouds.deadlines == [pytest.approx(began + MIN_PATIENCE_S)]


@virtual_time
async def test_throttled_targets_say_when_to_come_back() -> None:
    clouds = FakeClouds(aks=20.0)
    clouds.errors["aks"] = TargetError(Fault.THROTTLED, "429", retry_after_s=7.0)
    site = Site(clouds=clouds)
    error = await site.refused()
    assert error.status is GatewayStatus.UNAVAILABLE
    assert str(error).endswith("no device serves cat:1 now")
    assert "target aks failed: 429" in str(error)


@virtual_time
async def test_what_no_place_would_take_is_refused_at_once() -> None:
    clouds = FakeClouds(aks=20.0, tpu=30.0)
    clouds.errors["aks"] = TargetError(Fault.INVALID, "the picture is too small")
    site = Site("d1", clouds=clouds)
    site.fill()
    error = await site.refused(timeout_s=60.0)
    assert error.status is GatewayStatus.INVALID
    assert clouds.asked == ["aks"]


@virtual_time
async def test_full_everywhere_is_shed_at_once() -> None:
    site = Site("d1", clouds=FakeClouds())
    site.fill()
    began = site.clock()
    error = await site.refused()
    assert site.clock() == began
    assert error.status is GatewayStatus.EXHAUSTED
    assert "no target takes more" in str(error)
    assert site.link.sent == []
    assert site.dispatcher.in_flight == 0


@virtual_time
async def test_without_devices_a_target_answers_even_if_later_than_the_slo() -> None:
    site = Site(clouds=FakeClouds(aks=20.0))
    assert (await site.ask()).parameters == {"target": "aks"}
    slow = Site(clouds=FakeClouds(aks=500.0))
    assert (await slow.ask()).parameters == {"target": "aks"}
    error = await slow.refused(timeout_s=0.4)
    assert error.status is GatewayStatus.UNAVAILABLE


@virtual_time
async def test_devices_that_fail_are_followed_by_a_target() -> None:
    site = Site("d1", "d2", clouds=FakeClouds(aks=20.0))
    site.link.on_sent = lambda sent: site.link.refuse(sent, InferCode.INTERNAL, "out of memory")
    assert (await site.ask()).parameters == {"target": "aks"}
    assert len(site.link.sent) == 2
    site.clouds.errors["aks"] = TargetError(Fault.BROKEN, "it answers with 500")
    error = await site.refused()
    assert error.status is GatewayStatus.INTERNAL
    assert "out of memory; target aks failed: it answers with 500" in str(error)


@virtual_time
async def test_what_is_wrong_with_the_request_is_no_case_for_a_target() -> None:
    site = Site("d1", clouds=FakeClouds(aks=20.0))
    site.link.on_sent = lambda sent: site.link.refuse(sent, InferCode.INVALID, "it does not fit")
    assert (await site.refused()).status is GatewayStatus.INVALID
    assert site.clouds.asked == []


@virtual_time
async def test_a_sequence_goes_to_one_place_only() -> None:
    clouds = FakeClouds(aks=20.0, tpu=30.0)
    clouds.errors["aks"] = TargetError(Fault.BROKEN, "it answers with 500")
    site = Site("d1", clouds=clouds)
    site.link.on_sent = lambda sent: site.link.refuse(sent, InferCode.INTERNAL, "no")
    assert (await site.refused(sequence_id=7)).status is GatewayStatus.INTERNAL
    assert (len(site.link.sent), clouds.asked) == (1, [])
    site.fill()
    error = await site.refused(timeout_s=60.0, sequence_id=7)
    assert (len(site.link.sent), clouds.asked) == (1, ["aks"])
    assert "target aks failed" in str(error)
    assert site.clouds.deadlines == [pytest.approx(site.clock() + 60.0)]


@virtual_time
async def test_a_batch_goes_to_a_target_as_a_whole_or_not_at_all() -> None:
    site = Site("d1", "d2", clouds=FakeClouds(aks=20.0), split=True)
    site.fill()
    rows = InferRequest([Tensor("x", "FP32", row(1, 2, 3).data.repeat(8, axis=0))])
    batches = site.gateway._batches
    assert batches is not None
    batches.pays = lambda request, model, items: True  # type: ignore[method-assign]
    reply = await site.gateway.infer(rows, "cat", "1", 0.2)
    assert reply.parameters == {"target": "aks"}
    assert reply.outputs[0].data.shape == (8, 3)
    more = InferRequest([Tensor("x", "FP32", row(1, 2, 3).data.repeat(9, axis=0))])
    with pytest.raises(GatewayError) as caught:
        await site.gateway.infer(more, "cat", "1", 0.2)
    assert caught.value.status is GatewayStatus.EXHAUSTED
    assert site.clouds.asked == ["aks"]
    site.pressures.tick(site.clock() + 1.0)
    picture = site.pressures.of("cat", "1")
    assert (picture.edge > 0, "aks" in picture.spilled, picture.shed > 0) == (True, True, False)


@virtual_time
async def test_priorities_are_checked() -> None:
    site = Site("d1", clouds=FakeClouds())
    assert (await site.refused(priority=9)).status is GatewayStatus.INVALID
    assert (await site.ask(priority=3)).parameters["device"] == "d1"


@virtual_time
async def test_a_request_that_is_given_up_leaves_nothing() -> None:
    clouds = FakeClouds(aks=20.0)
    clouds.silent.add("aks")
    site = Site("d1", clouds=clouds)
    site.fill()
    task = asyncio.create_task(site.ask())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.dispatcher.in_flight == 0
