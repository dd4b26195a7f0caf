"""The service with real ONNX models on the real runtime, computing inline where order matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: make setup")
pytest.importorskip("onnx", reason="onnx is not installed: make setup")

from onnx import TensorProto, helper
from support import onnx_models

from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.serving.queue import Limits
from shoal_agent.serving.resident import FIRST_REQUESTS, Loaded
from shoal_agent.serving.service import InferenceService, ServingError
from shoal_shared import oip
from shoal_shared.messages import ModelGoal
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor
from shoal_shared.profiles import fit
from shoal_shared.status import InferCode, ReplicaState


class Held:
    """An accelerator that runs at once, unless it is held."""

    def __init__(self) -> None:
        self.hold = False
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.closed = False

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((work, done))
        if not self.hold:
            asyncio.get_running_loop().call_soon(self.finish)

    def finish(self) -> None:
        if not self.jobs:
            return
        work, done = self.jobs.pop(0)
        try:
            result = work()
        except Exception as error:
            result = error
        done(result)

    def finish_all(self) -> None:
        while self.jobs:
            self.finish()

    def close(self) -> None:
        self.closed = True


class Client:
    """Sends requests to a service and keeps every reply."""

    def __init__(self, service: InferenceService, accelerator: Held, clock: list[float]) -> None:
        self.service, self.accelerator, self.clock = service, accelerator, clock
        self.states: list[ReplicaState] = []

    async def load(self, path: Path, name: str = "m", **goal: Any) -> Loaded:
        goal = {"version": "1", "format": "onnx", "max_batch": 8, **goal}
        fields = {"deployment": "d", "digest": f"sha256:{path.stem}", "size": 1, **goal}
        files = {fields["digest"]: path}
        return await self.service.load(ModelGoal(model=name, **fields), files, self.states.append)

    def send(
        self, request: InferRequest, expires_at: float | None = None, name: str = "m"
    ) -> list[InferReply]:
        request.model_name, request.model_version = name, "1"
        buffers, header_length = oip.encode_request(request)
        return self.send_bytes(b"".join(buffers), header_length, expires_at)

    def send_bytes(
        self, payload: bytes, header_length: int | None, expires_at: float | None = None
    ) -> list[InferReply]:
        replies: list[InferReply] = []
        self.service.handle(
            payload,
            header_length,
            expires_at,
            lambda buffers, n: replies.append(oip.decode_reply(b"".join(buffers), n)),
        )
        return replies

    async def ask(self, request: InferRequest, name: str = "m") -> InferReply:
        replies = self.send(request, name=name)
        self.accelerator.finish_all()
        (reply,) = replies
        return reply


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    accelerator, clock = Held(), [100.0]
    service = InferenceService(
        RuntimeRegistry.discover(),
        clock=lambda: clock[0],
        accelerator=accelerator,
        max_depth=6,
        drain_s=0.01,
        resident_bytes=lambda: 1000,
    )
    yield Client(service, accelerator, clock)
    await service.close()


def _add(rows: int = 1, value: float = 1.0, **fields: Any) -> InferRequest:
    a = np.full((rows, 4), value, "<f4")
    return InferRequest([Tensor("b", "FP32", a), Tensor("a", "FP32", a)], **fields)


async def test_a_model_goes_through_its_states_and_answers(client: Client, tmp_path: Path) -> None:
    path = onnx_models.add(tmp_path / "add.onnx")
    loaded = await client.load(path)

    assert client.states == [ReplicaState.LOADING, ReplicaState.PROFILING]
    assert loaded.providers == ("CPUExecutionProvider",)
    assert loaded.memory_bytes == path.stat().st_size
    assert [b for b, _ in loaded.profile.samples][:1] == [1]
    assert client.service.resident()[0][1] is loaded

    reply = await client.ask(_add(rows=2, value=1.5, id="seven"))
    assert (reply.error, reply.id, reply.model_name, reply.model_version) == ("", "seven", "m", "1")
    (output,) = reply.outputs
    assert (output.name, output.datatype, output.data.tolist()) == ("sum", "FP32", [[3.0] * 4] * 2)
    assert reply.parameters == {"queue_depth": 0, "service_us": 0, "batch": 2}
    assert client.service.stats() == {"m:1": (1, 0, 0)}


async def test_waiting_requests_share_a_batch_and_each_gets_its_own(
    client: Client, tmp_path: Path
) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    client.accelerator.hold = True
    client.service._models["m:1"].limits = _limits()
    replies = [client.send(_add(value=i)) for i in range(6)]
    assert client.service.stats() == {"m:1": (0, 0, 6)}
    client.accelerator.finish_all()
    answers = [reply.outputs[0].data[0, 0] for (reply,) in replies]
    assert answers == [0, 2, 4, 6, 8, 10]
    # The first ran alone on the idle accelerator, the next four together.
    assert [reply.parameters["batch"] for (reply,) in replies] == [1, 4, 4, 4, 4, 1]
    assert [reply.parameters["queue_depth"] for (reply,) in replies] == [5, 1, 1, 1, 1, 0]


def _limits() -> Limits:
    return Limits.of(fit([(1, 1.0), (2, 1.1), (4, 1.2)]), 4)


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "FP16", "BF16", "INT64", "FP64"])
async def test_datatypes_nan_and_no_elements_pass_through(
    client: Client, tmp_path: Path, datatype: str
) -> None:
    await client.load(onnx_models.identity(tmp_path / "id.onnx", datatype))
    if datatype == "BYTES":
        data = np.array([[b"a", "ü".encode()]], dtype=object)
    else:
        data = np.array([[0, 1]]).astype(oip.tensors.NUMPY[datatype])
        if datatype == "FP64":
            data = np.array([[np.nan, np.inf]])
    for array in (data, data[:0], data[:, :0]):
        reply = await client.ask(InferRequest([Tensor("x", datatype, array)]))
        assert reply.error == ""
        (output,) = reply.outputs
        assert (output.datatype, output.data.shape) == (datatype, array.shape)
        np.testing.assert_array_equal(output.data, array)


async def test_only_outputs_that_were_asked_for_are_sent(client: Client, tmp_path: Path) -> None:
    def value(name: str):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])

    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["p"])]
    path = onnx_models.save(tmp_path / "two.onnx", nodes, [value("x")], [value("n"), value("p")])
    await client.load(path)
    x = Tensor("x", "FP32", np.array([-1], "<f4"))

    reply = await client.ask(InferRequest([x]))
    assert [output.name for output in reply.outputs] == ["n", "p"]
    reply = await client.ask(InferRequest([x], [RequestedOutput("p"), RequestedOutput("n")]))
    assert [(o.name, o.data.tolist()) for o in reply.outputs] == [("p", [1]), ("n", [1])]
    reply = await client.ask(InferRequest([x], [RequestedOutput("p")]))
    assert [output.name for output in reply.outputs] == ["p"]


_ROW = np.zeros((1, 4), "<f4")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (InferRequest([Tensor("a", "FP32", _ROW)]), "input 'b' is missing"),
        (
            InferRequest([Tensor(n, "FP32", _ROW) for n in "abc"]),
            "the model has no input 'c'; its inputs are a, b",
        ),
        (
            InferRequest([Tensor("a", "FP64", _ROW.astype("<f8")), Tensor("b", "FP32", _ROW)]),
            "input 'a' is FP64, but the model takes FP32",
        ),
        (
            InferRequest([Tensor("a", "FP32", _ROW[:, :3]), Tensor("b", "FP32", _ROW)]),
            "input 'a' has shape [1, 3], but the model takes [-1, 4]",
        ),
        (_add(rows=9), "a batch of 9 is more than the model's limit of 8"),
        (_add(outputs=[RequestedOutput("z")]), "the model has no output 'z'; its outputs are sum"),
        (_add(parameters={"timeout": "soon"}), "'timeout' must be a number"),
    ],
)
async def test_what_does_not_fit_the_model_is_invalid(
    client: Client, tmp_path: Path, request_: InferRequest, message: str
) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    reply = await client.ask(request_)
    assert reply.code == InferCode.INVALID
    assert message in reply.error
    assert reply.outputs == []
    assert reply.parameters == {"queue_depth": 0}
    assert client.service.stats() == {"m:1": (0, 1, 0)}


async def test_a_model_that_is_not_there(client: Client) -> None:
    reply = await client.ask(_add(id="i"), name="other")
    assert (reply.code, reply.id) == (InferCode.NOT_FOUND, "i")
    assert "other:1" in reply.error


async def test_what_expires_is_not_run(client: Client, tmp_path: Path) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    late = client.send(_add(), expires_at=99.0)
    assert late[0].code == InferCode.EXPIRED

    client.accelerator.hold = True
    client.service._models["m:1"].limits = _limits()
    client.send(_add())
    by_timeout = client.send(_add(parameters={"timeout": 500_000}))
    by_expiry = client.send(_add(), expires_at=100.4)
    client.clock[0] = 100.6
    client.accelerator.finish_all()
    assert by_timeout[0].code == by_expiry[0].code == InferCode.EXPIRED
    assert client.service.stats() == {"m:1": (1, 3, 0)}


async def test_a_full_queue_turns_requests_away(client: Client, tmp_path: Path) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"), max_batch=1)
    client.accelerator.hold = True
    replies = [client.send(_add()) for _ in range(9)]
    # Two are at the accelerator and six wait.
    assert [reply[0].code for reply in replies if reply] == [InferCode.OVERLOADED]
    client.accelerator.finish_all()
    assert all(len(reply) == 1 for reply in replies)
    assert client.service.stats() == {"m:1": (8, 1, 0)}


async def test_a_failing_run_is_internal_and_fails_alone(client: Client, tmp_path: Path) -> None:
    path = onnx_models.save(
        tmp_path / "gather.onnx",
        [
            helper.make_node(
                "Constant",
                [],
                ["t"],
                value=helper.make_tensor("t", TensorProto.FLOAT, [2], [5.0, 6.0]),
            ),
            helper.make_node("Gather", ["t", "i"], ["y"]),
        ],
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    await client.load(path)
    client.accelerator.hold = True
    client.service._models["m:1"].limits = _limits()
    indices = [0, 0, 9, 1, 1]
    replies = [
        client.send(InferRequest([Tensor("i", "INT64", np.array([i], "<i8"))])) for i in indices
    ]
    client.accelerator.finish_all()
    assert [reply.code for (reply,) in replies] == ["", "", InferCode.INTERNAL, "", ""]
    assert [r.outputs[0].data[0] for (r,) in replies if not r.error] == [5, 5, 6, 6]
    assert "out of data bounds" in replies[2][0].error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400)))
async def test_no_payload_makes_it_raise(client: Client, payload: bytes, length) -> None:
    (reply,) = client.send_bytes(payload, length)
    assert reply.code in (InferCode.INVALID, InferCode.NOT_FOUND)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 20),
)
async def test_no_damaged_request_makes_it_raise(
    client: Client, tmp_path: Path, damage: list[tuple[int, int]], cut: int
) -> None:
    if not client.service.resident():
        await client.load(onnx_models.add(tmp_path / "add.onnx"))
    request = _add(model_name="m", model_version="1")
    buffers, length = oip.encode_request(request)
    payload = bytearray(b"".join(buffers))
    for position, value in damage:
        payload[position % len(payload)] = value
    replies = client.send_bytes(bytes(payload[: len(payload) - cut]), length)
    client.accelerator.finish_all()
    assert len(replies) == 1


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"format": "torch"}, "'torch' is not known"),
        ({"options": {"providers": 3}}, "must be a list"),
        ({"options": {"profile_shapes": {"z": [1]}}}, "unknown input 'z'"),
    ],
)
async def test_a_goal_that_cannot_be_served(
    client: Client, tmp_path: Path, goal: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServingError, match=message):
        await client.load(onnx_models.add(tmp_path / "add.onnx"), **goal)
    assert client.service.resident() == []


async def test_a_broken_file_leaves_the_old_model_in_service(
    client: Client, tmp_path: Path
) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"x" * 100)
    with pytest.raises(ServingError, match="cannot load the model"):
        await client.load(tmp_path / "broken.onnx")
    assert (await client.ask(_add())).error == ""


async def test_the_new_model_is_there_before_the_old_one_goes(
    client: Client, tmp_path: Path
) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    client.states.clear()
    same = await client.load(onnx_models.add(tmp_path / "add.onnx"), deployment="other")
    assert client.states == []
    assert client.service.resident()[0] == (client.service.resident()[0][0], same)
    assert client.service.resident()[0][0].deployment == "other"

    old = client.service._models["m:1"]
    client.accelerator.hold = True
    before = client.send(_add(value=2))
    client.accelerator.hold = False
    loading = asyncio.create_task(client.load(onnx_models.dense(tmp_path / "dense.onnx", 4)))
    asyncio.get_running_loop().call_soon(client.accelerator.finish)
    await loading
    assert before[0].outputs[0].name == "sum"
    assert client.service._models["m:1"] is not old
    x = Tensor("x", "FP32", np.zeros((1, 4), "<f4"))
    reply = await client.ask(InferRequest([x]))
    assert [output.name for output in reply.outputs] == ["y"]
    assert client.service.stats() == {"m:1": (2, 0, 0)}


async def test_unloading_answers_what_was_accepted(client: Client, tmp_path: Path) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"), max_batch=1)
    client.accelerator.hold = True
    replies = [client.send(_add()) for _ in range(3)]
    unloading = asyncio.create_task(client.service.unload("m", "1"))
    await asyncio.sleep(0)
    assert client.send(_add())[0].code == InferCode.NOT_FOUND
    client.accelerator.finish_all()
    await unloading
    assert [reply.error for (reply,) in replies] == ["", "", ""]
    assert client.service.stats() == {}
    await client.service.unload("m", "1")


async def test_unloading_does_not_wait_for_ever(client: Client, tmp_path: Path) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"), max_batch=1)
    client.accelerator.hold = True
    replies = [client.send(_add()) for _ in range(3)]
    await client.service.unload("m", "1")
    # The last one never got to the accelerator: another device may take it.
    assert [reply[0].code if reply else None for reply in replies] == [
        None,
        None,
        InferCode.NOT_FOUND,
    ]
    client.accelerator.finish_all()
    assert all(len(reply) == 1 for reply in replies)


async def test_a_model_that_cannot_be_profiled_learns_from_its_first_requests(
    client: Client, tmp_path: Path
) -> None:
    # Takes rows of exactly 7 numbers, but does not say so.
    path = onnx_models.save(
        tmp_path / "seven.onnx",
        [
            helper.make_node(
                "Constant",
                [],
                ["seven"],
                value=helper.make_tensor("s", TensorProto.FLOAT, [7], [1.0] * 7),
            ),
            helper.make_node("Add", ["x", "seven"], ["t"]),
            helper.make_node(
                "Constant",
                [],
                ["shape"],
                value=helper.make_tensor("r", TensorProto.INT64, [2], [-1, 7]),
            ),
            helper.make_node("Reshape", ["x", "shape"], ["u"]),
            helper.make_node("Add", ["t", "u"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "M"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "K"])],
    )
    loaded = await client.load(path)
    assert "profile_shapes" in loaded.notes[0]
    x = Tensor("x", "FP32", np.zeros((1, 7), "<f4"))
    for _ in range(FIRST_REQUESTS):
        assert client.service.resident()[0][1].notes
        assert (await client.ask(InferRequest([x]))).error == ""
    assert client.service.resident()[0][1].notes == ()

    again = await client.load(path, options={"profile_shapes": {"x": [1, 7]}})
    assert again.notes == ()


async def test_closing_ends_everything(client: Client, tmp_path: Path) -> None:
    await client.load(onnx_models.add(tmp_path / "add.onnx"))
    await client.service.close()
    assert client.accelerator.closed
    assert client.send(_add())[0].code == InferCode.NOT_FOUND


async def test_with_a_thread_and_the_real_clock(tmp_path: Path) -> None:
    service = InferenceService(RuntimeRegistry.discover(), max_depth=1000)
    path = onnx_models.dense(tmp_path / "dense.onnx")
    goal = ModelGoal(
        deployment="d",
        model="m",
        version="1",
        digest="sha256:1",
        size=1,
        format="onnx",
        max_batch=16,
    )
    loaded = await service.load(goal, {"sha256:1": path}, lambda _: None)
    assert all(ms > 0 for _, ms in loaded.profile.samples)
    rng = np.random.default_rng(0)
    sent = rng.normal(size=(200, 16)).astype("<f4")
    replies: dict[int, InferReply] = {}
    finished = asyncio.Event()

    def receive(number: int, buffers: list[Any], header_length: int | None) -> None:
        assert number not in replies
        replies[number] = oip.decode_reply(b"".join(buffers), header_length)
        if len(replies) == len(sent):
            finished.set()

    for i, row in enumerate(sent):
        tensor = Tensor("x", "FP32", row.reshape(1, 16))
        request = InferRequest([tensor], model_name="m", model_version="1", id=str(i))
        buffers, header_length = oip.encode_request(request)
        payload = b"".join(buffers)
        service.handle(payload, header_length, None, lambda b, n, i=i: receive(i, b, n))
    await asyncio.wait_for(finished.wait(), 20)
    await service.close()

    weights = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    assert all(reply.id == str(i) and not reply.error for i, reply in replies.items())
    answers = np.concatenate([replies[i].outputs[0].data for i in range(len(sent))])
    np.testing.assert_allclose(answers, np.maximum(sent @ weights, 0), rtol=1e-4, atol=1e-5)
