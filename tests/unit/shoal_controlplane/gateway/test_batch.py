"""Batches over several devices that the test plays, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from support import asgi
from support.gateway import PROFILE, Sent, World, model, nothing_left, spec
from support.virtual_time import virtual_time

from shoal_controlplane.gateway import service
from shoal_controlplane.gateway.batch import BatchRunner
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.convert import response_of
from shoal_controlplane.gateway.http import InferenceApp
from shoal_controlplane.gateway.service import Gateway
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared import oip
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.profiles import Profile, fit
from shoal_shared.signature import ModelSignature
from shoal_shared.status import InferCode


class Fleet(World):
    """Devices that compute one piece at a time as their profile says, times `slow`; `on_piece`
    may do something else with a piece, and then says so."""

    def __init__(self, *devices: str, profiles: dict[str, Profile] | None = None) -> None:
        super().__init__(*devices)
        profiles = profiles or {}
        self.profiles = {device: profiles.get(device, PROFILE) for device in devices}
        self.slow: dict[str, float] = {}
        self.free: dict[str, float] = {}
        self.pieces: list[tuple[str, list[float]]] = []
        self.on_piece: Callable[[Sent, list[float]], bool] = lambda sent, rows: False
        self.link.on_sent = self.compute
        self.gateway = Gateway(
            self.table,
            self.dispatcher,
            self.repository,
            clock=self.clock,
            wall_clock=lambda: 0.0,
            batches=BatchRunner(self.dispatcher, self.router, self.clock),
        )
        self.serve(model())

    def serve(self, served: ServedModel) -> None:
        replicas = tuple(Replica(d, p) for d, p in self.profiles.items())
        self.table.publish([model(**vars_of(served) | {"replicas": replicas})])

    def compute(self, sent: Sent) -> None:
        rows = [float(value) for value in sent.request.inputs[0].data[:, 0]]
        self.pieces.append((sent.device, rows))
        if self.on_piece(sent, rows):
            return
        took_ms = self.profiles[sent.device].milliseconds(len(rows))
        took_ms *= self.slow.get(sent.device, 1.0)
        now = self.clock()
        done = max(now, self.free.get(sent.device, 0.0)) + took_ms / 1e3
        self.free[sent.device] = done
        asyncio.get_running_loop().call_later(done - now, self.finish, sent, took_ms, len(rows))

    def finish(self, sent: Sent, took_ms: float, batch: int) -> None:
        self.link.answer(sent, service_us=int(took_ms * 1e3), batch=batch)

    async def ask(self, items: int, timeout_s: float = 10.0, **parameters: object) -> InferReply:
        request = InferRequest([rows_of(items)], [], parameters=dict(parameters))
        return await self.gateway.infer(request, "cat", "1", timeout_s)


def vars_of(served: ServedModel) -> dict[str, object]:
    return {name: getattr(served, name) for name in served.__slots__}


def rows_of(items: int) -> Tensor:
    data = np.repeat(np.arange(items, dtype=np.float32)[:, None], 3, axis=1)
    return Tensor("x", "FP32", data)


def in_order(reply: InferReply, items: int) -> bool:
    (tensor,) = reply.outputs
    return tensor.data[:, 0].tolist() == list(range(items))


@virtual_time
async def test_a_large_batch_is_computed_by_all_and_put_together_in_order() -> None:
    fleet = Fleet("d1", "d2", "d3")
    reply = await fleet.ask(200)
    assert in_order(reply, 200)
    assert reply.parameters["device"] == "3 devices"
    assert set(reply.parameters["devices"]) == {"d1", "d2", "d3"}
    assert sum(reply.parameters["devices"].values()) == 200
    assert max(len(rows) for _, rows in fleet.pieces) <= 8
    sent = Counter(row for _, rows in fleet.pieces for row in rows)
    assert set(sent) == set(range(200))
    statistics = fleet.gateway.statistics.snapshot("cat", "1")
    assert statistics["inference_count"] == 200
    assert statistics["inference_stats"]["success"]["count"] == 1
    await asyncio.sleep(1)
    assert nothing_left(fleet)


@virtual_time
async def test_at_most_two_pieces_wait_at_a_device() -> None:
    fleet = Fleet("d1", "d2")
    most = 0

    def count(sent: Sent, rows: list[float]) -> bool:
        nonlocal most
        most = max(most, *fleet.in_flight().values())
        return False

    fleet.on_piece = count
    await fleet.ask(300)
    assert most == 2


@virtual_time
async def test_a_faster_device_gets_more() -> None:
    fast = fit([(1, 1.0), (2, 1.2), (4, 1.6), (8, 2.4)])
    fleet = Fleet("fast", "slow", profiles={"fast": fast})
    counts = (await fleet.ask(400)).parameters["devices"]
    assert counts["fast"] > 6 * counts["slow"] > 0


@virtual_time
async def test_one_device_alone_takes_a_large_batch_in_pieces() -> None:
    fleet = Fleet("d1")
    reply = await fleet.ask(30)
    assert in_order(reply, 30)
    assert reply.parameters["device"] == "d1"
    assert reply.parameters["devices"] == {"d1": 30}


@virtual_time
async def test_a_batch_is_split_where_that_ends_clearly_earlier() -> None:
    slope = fit([(1, 10.0), (2, 19.0), (4, 38.0), (8, 75.0)])
    fleet = Fleet("d1", "d2", profiles={"d1": slope, "d2": slope})
    assert (await fleet.ask(8)).parameters["device"] == "2 devices"
    flat = fit([(1, 10.0), (2, 10.2), (4, 10.4), (8, 10.8)])
    fleet = Fleet("d1", "d2", profiles={"d1": flat, "d2": flat})
    reply = await fleet.ask(8)
    assert len(fleet.pieces) == 1
    assert "devices" not in reply.parameters


@virtual_time
async def test_what_a_device_that_goes_was_computing_is_computed_by_others() -> None:
    fleet = Fleet("d1", "d2", "d3")
    task = asyncio.create_task(fleet.ask(200))
    await asyncio.sleep(0.03)
    fleet.on_piece = lambda sent, rows: sent.device == "d2"
    fleet.profiles.pop("d2")
    fleet.serve(model())
    fleet.dispatcher.device_gone("d2")
    reply = await task
    assert in_order(reply, 200)


@virtual_time
async def test_a_straggler_loses_its_share_and_its_last_pieces() -> None:
    fleet = Fleet("d1", "d2", "d3", "d4")
    even = Fleet("d1", "d2", "d3", "d4")
    began = fleet.clock()
    await even.ask(400)
    usual_s = fleet.clock() - began
    began = fleet.clock()
    task = asyncio.create_task(fleet.ask(400))
    await asyncio.sleep(usual_s / 2)
    fleet.slow["d1"] = 20.0
    reply = await task
    assert in_order(reply, 400)
    # One piece alone takes the straggler as long as the others need for all.
    assert fleet.clock() - began < 1.35 * usual_s
    counts = reply.parameters["devices"]
    assert counts["d1"] < min(counts[device] for device in ("d2", "d3", "d4"))
    await asyncio.sleep(2)
    assert nothing_left(fleet)


@virtual_time
async def test_the_first_answer_to_a_piece_wins_and_the_other_is_forgotten() -> None:
    fleet = Fleet("d1", "d2")
    kept: list[Sent] = []

    def silent(sent: Sent, rows: list[float]) -> bool:
        if sent.device == "d1":
            kept.append(sent)
        return sent.device == "d1"

    fleet.on_piece = silent
    reply = await fleet.ask(60)
    assert in_order(reply, 60)
    assert reply.parameters["devices"] == {"d2": 60}
    assert 1 <= len(kept) <= 3
    for sent in kept:
        fleet.link.answer(sent)
    await asyncio.sleep(0)
    assert nothing_left(fleet)


@virtual_time
async def test_the_first_final_error_of_a_piece_is_that_of_the_request() -> None:
    fleet = Fleet("d1", "d2")

    def refuse(sent: Sent, rows: list[float]) -> bool:
        if 100.0 not in rows:
            return False
        fleet.link.refuse(sent, InferCode.INVALID, "row 100 is not to my taste")
        return True

    fleet.on_piece = refuse
    with pytest.raises(GatewayError, match="row 100 is not to my taste") as caught:
        await fleet.ask(200)
    assert caught.value.status is GatewayStatus.INVALID
    assert fleet.gateway.statistics.snapshot("cat", "1")["inference_stats"]["fail"]["count"] == 1
    await asyncio.sleep(2)
    assert nothing_left(fleet)


@virtual_time
async def test_a_piece_that_one_device_fails_on_goes_to_another() -> None:
    fleet = Fleet("d1", "d2")

    def refuse(sent: Sent, rows: list[float]) -> bool:
        if sent.device == "d1":
            fleet.link.refuse(sent, InferCode.INTERNAL)
        return sent.device == "d1"

    fleet.on_piece = refuse
    reply = await fleet.ask(100)
    assert in_order(reply, 100)
    assert reply.parameters["devices"] == {"d2": 100}


@virtual_time
async def test_cancelling_forgets_all_pieces() -> None:
    fleet = Fleet("d1", "d2")
    task = asyncio.create_task(fleet.ask(200))
    await asyncio.sleep(0.03)
    assert fleet.dispatcher.in_flight > 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fleet.dispatcher.in_flight == 0
    assert fleet.in_flight() == {}
    before = len(fleet.pieces)
    await asyncio.sleep(1)
    assert len(fleet.pieces) == before
    assert nothing_left(fleet)


@virtual_time
async def test_what_the_fleet_cannot_do_in_time_is_refused_at_once() -> None:
    fleet = Fleet("d1", "d2")
    began = fleet.clock()
    with pytest.raises(GatewayError, match="all 2 together would take") as caught:
        await fleet.ask(1000, timeout_s=0.5)
    assert caught.value.status is GatewayStatus.EXHAUSTED
    assert caught.value.retry_after_s is not None
    assert fleet.clock() == began
    assert not fleet.pieces


@virtual_time
async def test_the_deadline_is_that_of_the_whole() -> None:
    fleet = Fleet("d1", "d2")
    fleet.on_piece = lambda sent, rows: True
    began = fleet.clock()
    with pytest.raises(GatewayError) as caught:
        await fleet.ask(100, timeout_s=3.0)
    assert caught.value.status is GatewayStatus.DEADLINE
    assert fleet.clock() - began == pytest.approx(3.0, abs=0.01)
    assert nothing_left(fleet)


@virtual_time
async def test_nobody_serves_the_model() -> None:
    fleet = Fleet()
    with pytest.raises(GatewayError, match="no device serves cat:1 now") as caught:
        await fleet.ask(100)
    assert caught.value.status is GatewayStatus.UNAVAILABLE
    assert nothing_left(fleet)


@virtual_time
async def test_sequences_are_never_split() -> None:
    fleet = Fleet("d1", "d2")
    with pytest.raises(GatewayError, match="model's limit of 8") as caught:
        await fleet.ask(9, sequence_id=7)
    assert caught.value.status is GatewayStatus.INVALID
    await fleet.ask(8, sequence_id=7)
    assert len(fleet.pieces) == 1


@virtual_time
async def test_there_is_a_limit_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_ITEMS", 50)
    fleet = Fleet("d1", "d2")
    with pytest.raises(GatewayError, match="more than the limit of 50") as caught:
        await fleet.ask(51)
    assert caught.value.status is GatewayStatus.INVALID
    assert in_order(await fleet.ask(50), 50)


@virtual_time
async def test_classification_of_a_split_batch() -> None:
    fleet = Fleet("d1", "d2")
    request = InferRequest([rows_of(100)], [RequestedOutput("y", classification=1)])
    reply = await fleet.gateway.infer(request, "cat", "1", 10.0)
    (tensor,) = reply.outputs
    assert (tensor.datatype, tensor.data.shape) == ("BYTES", (100, 1))
    assert tensor.data[99, 0] == b"99.000000:0"


@virtual_time
async def test_outputs_that_cannot_be_put_together() -> None:
    fleet = Fleet("d1", "d2")

    def odd(sent: Sent, rows: list[float]) -> bool:
        y = Tensor("y", "FP32", np.zeros((len(rows), int(rows[0]) + 1), np.float32))
        fleet.link.answer(sent, y)
        return True

    fleet.on_piece = odd
    fleet.serve(
        model(
            signature=ModelSignature(
                inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("y", "FP32", -1, -1),)
            )
        )
    )
    with pytest.raises(GatewayError, match="output 'y' cannot be put together") as caught:
        await fleet.ask(100)
    assert caught.value.status is GatewayStatus.INTERNAL
    # What one device can take, it then gets.
    steep = fit([(1, 10.0), (2, 19.0), (4, 38.0), (8, 75.0)])
    fleet.profiles = dict.fromkeys(fleet.profiles, steep)
    fleet.serve(fleet.gateway.model("cat"))
    reply = await fleet.ask(8)
    assert reply.outputs[0].data.shape == (8, 1)
    assert reply.parameters["device"] in ("d1", "d2")


@virtual_time
async def test_a_device_with_smaller_batches_gets_smaller_pieces() -> None:
    small = fit([(1, 10.0), (2, 12.0)])
    fleet = Fleet("d1", "d2", profiles={"d1": small})
    await fleet.ask(100)
    sizes = {device: [len(r) for d, r in fleet.pieces if d == device] for device in ("d1", "d2")}
    assert max(sizes["d1"]) == 2
    assert max(sizes["d2"]) == 8


@virtual_time
async def test_over_http_and_as_grpc_tells_it() -> None:
    fleet = Fleet("d1", "d2")
    request = InferRequest([rows_of(100)], parameters={"binary_data_output": True})
    buffers, length = oip.encode_request(request)
    response = await asgi.call(
        InferenceApp(fleet.gateway),
        "POST",
        "/v2/models/cat/infer",
        body=b"".join(buffers),
        headers={oip.HEADER_LENGTH: str(length)},
    )
    assert response is not None
    assert response.status == 200
    size = int(response.headers["inference-header-content-length"])
    reply = oip.decode_reply(response.body, size)
    assert in_order(reply, 100)
    assert sum(reply.parameters["devices"].values()) == 100
    answer = response_of(reply)
    assert answer.parameters["device"].string_param == "2 devices"
    counts = json.loads(answer.parameters["devices"].string_param)
    assert counts == reply.parameters["devices"]


@virtual_time
async def test_a_device_that_lost_a_piece_gets_no_other_while_it_computes_it() -> None:
    fleet = Fleet("d1", "d2", "d3")
    fleet.slow["d1"] = 50.0
    reply = await fleet.ask(600)
    assert in_order(reply, 600)
    assert sum(device == "d1" for device, _ in fleet.pieces) == 2
    assert "d1" not in reply.parameters["devices"]


@virtual_time
async def test_a_sharded_model_waits_for_its_next_plan() -> None:
    fleet = Fleet()
    fleet.serve(model(sharded=True))
    task = asyncio.create_task(fleet.ask(100))
    await asyncio.sleep(0.5)
    assert not task.done()
    fleet.profiles = {"d1": PROFILE, "d2": PROFILE}
    fleet.serve(model(sharded=True))
    fleet.dispatcher.table_changed()
    assert in_order(await task, 100)
