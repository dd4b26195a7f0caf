"""Stages on a network and accelerators that the test holds: no broker, no threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stages import REPLIES, SERVICE_S, TOPICS, Device, Gateway, Model, Network

from shoal_agent.serving import stage as stage_module
from shoal_agent.serving.stage import Turns
from shoal_shared import oip
from shoal_shared.messages import RoleGoal
from shoal_shared.oip import HEADER_LENGTH, InferRequest, Tensor
from shoal_shared.publish import Message, PublishProperties, response_topic, user_property
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.status import InferCode
from shoal_shared.tensors import Array

NAN = float("nan")


def specs(*names: str, datatype: str = "FP32") -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, datatype=datatype, shape=(-1,)) for name in names)


def model(
    takes: tuple[str, ...],
    gives: tuple[str, ...],
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
) -> Model:
    return Model(ModelSignature(inputs=specs(*takes), outputs=specs(*gives)), run)


ADD_ONE = model(("x",), ("h",), lambda t: {"h": t["x"] + np.float32(1)})
TIMES = model(("h", "x"), ("y",), lambda t: {"y": t["h"] * t["x"]})


def first(**changes: object) -> RoleGoal:
    role = RoleGoal(plan="ocr", epoch=3, stage=0, model="a", version="1", next=(1.0,))
    return msgspec.structs.replace(role, passes=("x",), **changes)


def last(**changes: object) -> RoleGoal:
    role = RoleGoal(plan="ocr", epoch=3, stage=1, model="b", version="1")
    return msgspec.structs.replace(role, **changes)


def x(*values: float) -> Tensor:
    return Tensor("x", "FP32", np.array(values or (1.0, 2.0, 3.0), "<f4"))


class Rig:
    """`ocr`, epoch 3, on one device: x -> (x + 1) * x."""

    def __init__(self) -> None:
        self.now = 100.0
        self.network = Network()
        self.gateway = Gateway(self.network)
        self.device = Device(self.network, "d1", lambda: self.now)
        self.computer = self.device.computer
        self.computer.models = {"a:1": ADD_ONE, "b:1": TIMES}
        self.device.assign(first(), last())

    def send(self, *tensors: Tensor, stage: int = 0, epoch: object = 3, **more: object) -> None:
        topic = TOPICS.stage("ocr", 3, stage)
        self.gateway.send(topic, tensors or (x(),), epoch=epoch, **more)  # type: ignore[arg-type]
        self.network.deliver()

    def finish(self) -> None:
        """Until nothing moves any more."""
        while self.network.deliver() or self.computer.jobs:
            if self.computer.jobs:
                self.computer.finish()

    def refused(self, code: InferCode, words: str, stage: int = 0, depth: int = 0) -> None:
        if not depth:
            self.finish()
        reply = self.gateway.reply
        assert (reply.code, reply.outputs) == (code.value, [])
        assert words in reply.error
        parameters = {"queue_depth": depth, "epoch": 3, "stage": stage, "device": "d1"}
        assert reply.parameters == parameters
        assert (reply.model_name, reply.model_version) in (("whole", "1"), ("", ""))
        self.gateway.replies.clear()

    def still_works(self) -> None:
        self.send()
        self.finish()
        assert self.gateway.reply.outputs[0].data.tolist() == [2.0, 6.0, 12.0]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_two_stages_on_one_device_compute_the_whole(rig: Rig) -> None:
    rig.send(x(), expiry_s=10, timeout=5_000_000)
    assert rig.computer.deadlines == [105.0]
    rig.now += 1.0
    rig.computer.finish()
    on = rig.network.sent[-1]
    assert (on.topic, on.response_topic) == (TOPICS.stage("ocr", 3, 1), REPLIES)
    assert (on.correlation, on.expiry_s) == (b"12345678", 4)
    request = oip.decode_request(on.payload, int(on.user_properties[HEADER_LENGTH]))
    assert request.parameters == {
        "epoch": 3,
        "trace": [["d1", 999_000, 1000]],
        "timeout": 4_000_000,
    }
    assert [(t.name, t.datatype) for t in request.inputs] == [("h", "FP32"), ("x", "FP32")]
    assert (request.model_name, request.model_version, request.id) == ("whole", "1", None)
    rig.network.deliver()
    assert rig.computer.deadlines == [105.0, 105.0]
    rig.now += 0.5
    rig.computer.finish()
    rig.finish()
    reply = rig.gateway.reply
    assert [(t.name, t.data.tolist()) for t in reply.outputs] == [("y", [2.0, 6.0, 12.0])]
    assert (reply.model_name, reply.error) == ("whole", "")
    assert reply.parameters == {
        "queue_depth": 0,
        "service_us": 2000,
        "batch": 1,
        "epoch": 3,
        "trace": [["d1", 999_000, 1000], ["d1", 499_000, 1000]],
    }


def test_without_a_deadline_none_is_sent_on(rig: Rig) -> None:
    rig.send()
    rig.computer.finish()
    on = rig.network.sent[-1]
    assert on.expiry_s is None
    assert b"timeout" not in on.payload


def test_the_last_stage_answers_with_what_it_passes(rig: Rig) -> None:
    rig.device.assign(first(next=()))
    rig.send()
    rig.finish()
    assert [t.name for t in rig.gateway.reply.outputs] == ["h", "x"]


def test_an_output_comes_before_a_tensor_of_its_name(rig: Rig) -> None:
    rig.computer.models["a:1"] = model(("x",), ("x",), lambda t: {"x": t["x"] + np.float32(1)})
    rig.device.assign(first(next=()))
    rig.send()
    rig.finish()
    assert [(t.name, t.data.tolist()) for t in rig.gateway.reply.outputs] == [("x", [2, 3, 4])]


@pytest.mark.parametrize("epoch", [2, 4, None, "3", 3.0, True])
def test_another_epoch_is_dropped_and_counted(rig: Rig, epoch: object) -> None:
    rig.send(epoch=epoch)
    rig.finish()
    assert rig.gateway.replies == {}
    (counted, _) = rig.device.stages._stages.values()
    assert counted.stale == 1
    rig.still_works()


def test_after_a_role_is_gone_nothing_of_it_is_handled(rig: Rig) -> None:
    rig.send()
    rig.device.assign(last())
    # What was accepted is computed, and goes on to whoever is there.
    rig.finish()
    assert rig.gateway.reply.outputs[0].data.tolist() == [2.0, 6.0, 12.0]
    rig.gateway.replies.clear()
    rig.send()
    rig.finish()
    assert rig.gateway.replies == {}
    rig.device.assign()
    assert set(rig.network.readers) == {
        REPLIES,
        "shoal/v1/default/devices/d1/desired",
        "shoal/v1/default/devices/d1/infer",
    }


def test_two_epochs_run_on_the_same_models(rig: Rig) -> None:
    rig.device.assign(first(), last(), first(epoch=4), last(epoch=4))
    assert rig.device.stages.names == (
        "0 of ocr, epoch 3",
        "1 of ocr, epoch 3",
        "0 of ocr, epoch 4",
        "1 of ocr, epoch 4",
    )
    for epoch in 3, 4:
        rig.gateway.send(TOPICS.stage("ocr", epoch, 0), [x()], key=bytes([epoch]), epoch=epoch)
    rig.finish()
    assert {k[0]: r.parameters["epoch"] for k, (r,) in rig.gateway.replies.items()} == {3: 3, 4: 4}


def test_roles_that_stay_keep_their_state(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = dict(rig.device.stages._stages)
    rig.device.assign(last(), first())
    assert rig.device.stages._stages == before
    assert caplog.records == []
    rig.device.assign(last(), first(credits=2))
    (line,) = caplog.records
    assert (line.getMessage(), line.__dict__["fields"]) == (
        "stages changed",
        {"now": 2, "new": 1, "gone": 0},
    )
    rig.still_works()


def test_a_model_that_is_not_there_yet_is_not_found(rig: Rig) -> None:
    del rig.computer.models["b:1"]
    rig.send()
    rig.refused(InferCode.NOT_FOUND, "does not serve b:1", stage=1)


def test_a_model_that_goes_while_requests_wait_is_not_found(rig: Rig) -> None:
    rig.send()
    rig.computer.fail(InferCode.NOT_FOUND, "this device stopped serving the model")
    rig.refused(InferCode.NOT_FOUND, "stopped serving")
    rig.still_works()


@pytest.mark.parametrize("code", [InferCode.INTERNAL, InferCode.EXPIRED, InferCode.OVERLOADED])
def test_what_the_accelerator_refuses_is_told_to_the_gateway(rig: Rig, code: InferCode) -> None:
    rig.send()
    rig.computer.fail(code, "so it is")
    rig.refused(code, "so it is")


def test_more_requests_than_credits_are_turned_away(rig: Rig) -> None:
    rig.device.assign(first(credits=2), last())
    for _ in range(3):
        rig.send()
    assert len(rig.computer.jobs) == 2
    assert rig.network.deliver()
    rig.refused(InferCode.OVERLOADED, "2 requests are under way in stage 0 of plan ocr", depth=2)
    rig.finish()
    assert [r.error for r in rig.gateway.replies[b"12345678"]] == ["", ""]
    rig.gateway.replies.clear()
    rig.still_works()


def test_failures_give_their_credit_back(rig: Rig) -> None:
    rig.device.assign(first(credits=1), last())
    for _ in range(3):
        rig.send()
        rig.computer.fail(InferCode.INTERNAL, "oops")
        rig.refused(InferCode.INTERNAL, "oops")
        rig.send(Tensor("x", "INT8", np.zeros(1, "i1")))
        rig.refused(InferCode.INVALID, "input 'x' is INT8")
    rig.still_works()


def test_a_deadline_that_passes_in_a_stage_ends_there(rig: Rig) -> None:
    rig.send(timeout=1_000_000)
    rig.now += 1.0
    rig.refused(InferCode.EXPIRED, "the deadline passed in stage 0 of plan ocr")
    assert all(m.topic != TOPICS.stage("ocr", 3, 1) for m in rig.network.sent)


def test_nan_that_was_computed_here_is_a_fault_of_the_device(rig: Rig) -> None:
    rig.computer.models["b:1"] = model(
        ("h", "x"), ("y",), lambda t: {"y": np.array([1, NAN], "<f4")}
    )
    rig.send()
    rig.refused(InferCode.INTERNAL, "stage 1 of plan ocr computed NaN on this device", stage=1)
    assert rig.computer.failed == 1
    rig.send(x(1.0, NAN))
    rig.finish()
    assert rig.gateway.reply.error == ""


def test_activations_that_no_device_takes_are_not_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "MAX_MESSAGE_BYTES", 100)
    rig.send()
    rig.refused(InferCode.INTERNAL, "more than the limit of 100")


def test_a_session_lost_in_between_costs_the_message_and_nothing_else(rig: Rig) -> None:
    rig.send()
    rig.network.up = False
    rig.finish()
    assert rig.gateway.replies == {}
    rig.network.up = True
    rig.still_works()


@pytest.mark.parametrize(
    ("tensors", "more", "words"),
    [
        ([Tensor("z", "FP32", np.zeros(1, "<f4"))], {}, "tensor 'x', which later stages need"),
        ([x(), x()], {}, "more than once"),
        ([Tensor("x", "FP64", np.zeros(1))], {}, "input 'x' is FP64, but the model takes FP32"),
        ([Tensor("x", "FP32", np.zeros((1, 1), "<f4"))], {}, "has shape [1, 1]"),
        ([x()], {"scales": 1}, "parameter 'scales'"),
        ([x()], {"scales": {"x": 1}}, "'x', which is not compressed"),
        ([x()], {"trace": "no"}, "parameter 'trace'"),
        ([x()], {"timeout": "soon"}, "parameter 'timeout'"),
        ([x()], {"header_length": "1"}, "not a valid inference request"),
        ([x()], {"header_length": "99999"}, HEADER_LENGTH),
        ([x()], {"header_length": "x"}, HEADER_LENGTH),
    ],
)
def test_messages_that_cannot_be_used_are_told_to_the_gateway(
    rig: Rig, tensors: list[Tensor], more: dict[str, object], words: str
) -> None:
    rig.send(*tensors, **more)
    rig.refused(InferCode.INVALID, words)
    rig.still_works()


def test_a_stage_may_need_tensors_that_did_not_come(rig: Rig) -> None:
    rig.send(x(), stage=1)
    rig.refused(InferCode.INVALID, "input 'h' is missing", stage=1)


@pytest.mark.parametrize(
    "message",
    [
        Message("t", b"", response_topic=None),
        Message("t", b"", response_topic="shoal/v1/default/devices/d2/desired"),
        Message("t", b"", response_topic="shoal/v1/other/gateways/g1/replies"),
        Message("t", b"", retain=True, response_topic=REPLIES),
    ],
)
def test_messages_that_may_not_be_answered_cost_a_line(
    rig: Rig, caplog: pytest.LogCaptureFixture, message: Message
) -> None:
    rig.network.readers[TOPICS.stage("ocr", 3, 0)](message)
    rig.finish()
    assert rig.gateway.replies == {}
    assert [r.getMessage() for r in caplog.records] == ["ignored an inference request"]


REQUEST, LENGTH = oip.encode_request(InferRequest([x()], parameters={"epoch": 3}))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 50),
    st.integers(-2, LENGTH + 2),
)
def test_no_damage_makes_it_raise_or_lose_a_credit(
    damage: list[tuple[int, int]], cut: int, length: int
) -> None:
    rig = Rig()
    payload = bytearray(b"".join(REQUEST))
    for position, value in damage:
        payload[position % len(payload)] = value
    properties = PublishProperties(
        response_topic(REPLIES), user_property(HEADER_LENGTH, str(length or LENGTH))
    )
    rig.gateway.replies.clear()
    rig.network.readers[REPLIES] = lambda _: None
    rig.network.send(TOPICS.stage("ocr", 3, 0), bytes(payload[: len(payload) - cut]), properties)
    rig.finish()
    assert all(not stage._under_way for stage in rig.device.stages._stages.values())


@pytest.mark.parametrize("compression", ["fp16", "int8"])
def test_what_is_sent_on_is_compressed_once_and_arrives_as_fp32(compression: str) -> None:
    """Three stages: `x` is passed twice, and must be compressed by the first one only."""
    rig = Rig()
    second = last(model="a", next=(1.0,), passes=("x", "h"))
    rig.computer.models["a:1"] = model(("x",), ("h",), lambda t: {"h": t["x"] * np.float32(1e6)})
    rig.device.assign(
        first(compression=compression),
        msgspec.structs.replace(second, compression=compression, passes=("x",)),
        last(stage=2, passes=("x",)),
    )
    rig.send(x(0.5, -1.0, 0.1))
    rig.finish()
    raw = [m for m in rig.network.sent if "/plans/" in m.topic]
    hops = [oip.decode_request(m.payload, int(m.user_properties[HEADER_LENGTH])) for m in raw]
    sent = [{t.name: t for t in hop.inputs} for hop in hops]
    travelled = {"fp16": "FP16", "int8": "INT8"}[compression]
    assert [hop["x"].datatype for hop in sent] == ["FP32", travelled, travelled]
    assert sent[1]["x"].data.tobytes() == sent[2]["x"].data.tobytes()
    assert hops[1].parameters["scales"]["x"] == hops[2].parameters["scales"]["x"]
    # Magnitudes past the end of FP16 travel as they are.
    large = "FP32" if compression == "fp16" else "INT8"
    assert [hop["h"].datatype for hop in sent[1:]] == [large, large]
    reply = rig.gateway.reply
    assert [(t.name, t.datatype) for t in reply.outputs] == [("y", "FP32"), ("x", "FP32")]
    np.testing.assert_allclose(reply.outputs[1].data, [0.5, -1.0, 0.1], atol=1 / 254)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(1, 200))
def test_turns_follow_the_shares_at_every_moment(weights: list[float], rounds: int) -> None:
    shares = [w / sum(weights) for w in weights]
    turns, count = Turns(shares), [0] * len(shares)
    for number in range(1, rounds + 1):
        count[turns.next()] += 1
        assert all(abs(c - s * number) < len(shares) for c, s in zip(count, shares, strict=True))


def test_replicas_of_the_next_stage_take_turns() -> None:
    rig = Rig()
    rig.device.assign(first(next=(0.75, 0.25)))
    for _ in range(8):
        rig.send()
    rig.finish()
    topics = [m.topic for m in rig.network.sent if "/plans/ocr/3/1" in m.topic]
    assert [topics.count(TOPICS.stage("ocr", 3, 1, r)) for r in (0, 1)] == [6, 2]


# A random model, cut at random into random stages, on random devices.


def value(name: str, sources: tuple[str, ...], known: Mapping[str, Array]) -> Array:
    """A mean, so that errors do not grow, with a weight of its own."""
    mean: Array = np.mean([known[s] for s in sources], axis=0, dtype=np.float32)
    return mean * np.float32(1 - int(name[1:]) / 64)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[str, ...]], list[int], list[int]]:
    """Number of inputs, sources of each value, ends of the stages, replicas of each."""
    inputs = draw(st.integers(1, 3))
    count = draw(st.integers(1, 10))
    sources = [
        tuple(
            draw(
                st.lists(
                    st.sampled_from([f"v{j}" for j in range(inputs + i)]), min_size=1, max_size=3
                )
            )
        )
        for i in range(count)
    ]
    cuts = draw(st.sets(st.integers(1, count - 1), max_size=4)) if count > 1 else set()
    ends = [*sorted(cuts), count]
    return inputs, sources, ends, [draw(st.integers(1, 3)) for _ in ends]


@settings(deadline=None, max_examples=60)
@given(graphs(), st.sampled_from(["", "fp16", "int8"]), st.randoms(use_true_random=False))
def test_any_chain_of_stages_computes_the_whole(
    graph: tuple[int, list[tuple[str, ...]], list[int], list[int]],
    compression: str,
    rng: random.Random,
) -> None:
    inputs, sources, ends, replicas = graph
    replicas = [1, *replicas[1:]]
    names = [f"v{i}" for i in range(inputs + len(sources))]
    made = dict(zip(names[inputs:], sources, strict=True))
    outputs = {names[-1], *rng.sample(names[inputs:], rng.randint(0, len(sources) - 1))}

    network = Network()
    gateway = Gateway(network)
    devices = [Device(network, f"d{i}", lambda: 5.0) for i in range(3)]
    roles: list[list[RoleGoal]] = [[] for _ in devices]
    for index, (begin, end) in enumerate(pairwise([0, *ends])):
        inside = names[inputs + begin : inputs + end]
        later = {s for name in names[inputs + end :] for s in made[name]} | outputs
        takes = dict.fromkeys(s for n in inside for s in made[n] if s not in inside)
        gives = [name for name in inside if name in later]
        before = [name for name in names[: inputs + begin] if name in later]
        part = model(tuple(takes), tuple(gives), _computes(inside, made))
        following = replicas[index + 1] if index + 1 < len(ends) else 0
        for replica in range(replicas[index]):
            number = rng.randrange(len(devices))
            devices[number].computer.models[f"s{index}:1"] = part
            roles[number].append(
                RoleGoal(
                    plan="p",
                    epoch=1,
                    stage=index,
                    replica=replica,
                    model=f"s{index}",
                    version="1",
                    next=(1 / following,) * following if following else (),
                    passes=tuple(before),
                    compression=compression,
                )
            )
    for device, assigned in zip(devices, roles, strict=True):
        device.assign(*assigned)

    feeds = [
        {f"v{i}": np.array([rng.uniform(-9, 9) for _ in range(5)], "<f4") for i in range(inputs)}
        for _ in range(4)
    ]
    for key, feed in enumerate(feeds):
        tensors = [Tensor(name, "FP32", data) for name, data in feed.items()]
        gateway.send(TOPICS.stage("p", 1, 0), tensors, key=bytes([key]), epoch=1)
    while True:
        busy = [d.computer for d in devices if d.computer.jobs]
        if network.on_its_way and (not busy or rng.random() < 0.5):
            network.deliver()
        elif busy:
            computer = rng.choice(busy)
            computer.finish(rng.randrange(len(computer.jobs)))
        else:
            break

    assert len(gateway.replies) == len(feeds)
    for key, feed in enumerate(feeds):
        whole = _computes(names[inputs:], made)(feed)
        (reply,) = gateway.replies[bytes([key])]
        assert reply.error == ""
        got = {tensor.name: tensor.data for tensor in reply.outputs}
        assert set(got) == outputs
        assert len(reply.parameters["trace"]) == len(ends)
        assert reply.parameters["service_us"] == round(SERVICE_S * 1e6) * len(ends)
        for name in outputs:
            if compression:
                np.testing.assert_allclose(got[name], whole[name], atol=len(ends) * 9 / 250)
            else:
                np.testing.assert_array_equal(got[name], whole[name])


def _computes(
    inside: list[str], made: Mapping[str, tuple[str, ...]]
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        known = dict(given)
        for name in inside:
            known[name] = value(name, made[name], known)
        return known

    return run
