from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from support.fleet import MB, FakeClock, capabilities, model_version, status, telemetry

from shoal_controlplane.deployments.measured import Measured, Measurements
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.errors import ConflictError, InvalidError
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.cuts.analysis import Analysis, BoundaryTensor, CutError
from shoal_controlplane.planner.partition.problem import (
    Link,
    Objective,
    Outcome,
    Problem,
    Segment,
)
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.draft import Basis, Draft
from shoal_controlplane.plans.drafting import (
    MAX_DEVICES,
    MAX_TYPES,
    THROTTLED,
    Drafter,
)
from shoal_controlplane.plans.links import DeviceLink, LinkBook
from shoal_shared.messages import Board
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature, TensorSpec

BOARD = "jetson/orin-nano"
PART = "sha256:" + "01" * 32
OTHER = "sha256:" + "02" * 32
X = BoundaryTensor("x", "FP32", (1, 4), 16)
Y = BoundaryTensor("y", "FP32", (1, 2), 8)


def analysis(count: int = 4, macs: float = 6e9, weights: int = 10 * MB, **changes: Any) -> Analysis:
    facts: dict[str, Any] = {
        "segments": tuple(
            Segment(f"n{i}", weights, 1000, 50_000, macs, 1_000_000) for i in range(count)
        ),
        "cuts": (),
        "inputs": (X,),
        "outputs": (Y,),
        "shapes": {"x": (1, 4)},
    }
    return Analysis(**facts | changes)


class Prober:
    """Knows the links already; what happens meanwhile is the test's."""

    def __init__(self) -> None:
        self.book = LinkBook()
        self.asked: list[set[str]] = []
        self.meanwhile = lambda: None

    async def refresh(self, devices: Collection[str], timeout_s: float = 3.0) -> None:
        self.asked.append(set(devices))
        self.meanwhile()


class World:
    """A fleet of boards with six cores each, and a drafter."""

    def __init__(self, *devices: str, **able: Any) -> None:
        self.clock = FakeClock()
        self.fleet = LiveFleet(self.clock, self.clock.wall)
        self.measured = Measurements()
        self.prober = Prober()
        self.analysis: Analysis | CutError = analysis()
        self.shapes: list[Any] = []
        self.reserved: dict[str, int] = {}
        self.parts: dict[str, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.drafter = Drafter(
            self.fleet,
            self.measured,
            self,
            self.prober,
            reserved=lambda: self.reserved,
            ranges=self._ranges,
            solve=self._solve,
        )
        for name in devices:
            self.join(name, **able)

    def join(self, name: str, **able: Any) -> None:
        self.fleet.observe(name, capabilities(**able))
        self.fleet.observe(name, status())

    def measure(self, digest: str, ms: float, board: str = BOARD, **changes: Any) -> None:
        facts: dict[str, Any] = {
            "digest": digest,
            "board": board,
            "runtime": "onnxruntime",
            "profile": fit([(1, ms)]),
            "memory_bytes": 0,
            "accelerated": None,
            "updated_at": 0.0,
        }
        self.measured.note(Measured(**facts | changes))

    async def of(self, model: ModelVersion, shapes: Any = None) -> Analysis:
        self.shapes.append(shapes)
        if isinstance(self.analysis, CutError):
            raise self.analysis
        return self.analysis

    async def draft(self, model: ModelVersion | None = None, **changes: Any) -> Draft:
        facts: dict[str, Any] = {"select": {}, "objective": Objective.THROUGHPUT, "stages": None}
        return await self.drafter.draft(model or model_version(), **facts | changes)

    def _ranges(
        self, digest: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, tuple[int, int]]:
        assert isinstance(self.analysis, Analysis)
        assert (digest, shapes) == (model_version().digest, self.analysis.shapes)
        return self.parts

    def _solve(self, problem: Problem) -> Outcome:
        self.problems.append(problem)
        return solve(problem)


async def test_like_devices_become_one_type_and_a_plan() -> None:
    world = World("a", "b", "c")
    draft = await world.draft(shapes={"x": (1, 4)})
    (kind,) = draft.problem.types
    assert (kind.name, kind.devices, kind.memory_bytes) == (BOARD, ("a", "b", "c"), 1000 * MB)
    assert draft.boards == (BOARD,)
    assert draft.basis == (Basis.ESTIMATED,)
    assert draft.problem.input_bytes == X.size
    assert draft.outcome.best is not None
    assert draft.outcome == solve(draft.problem)
    assert draft.notes == ()
    assert world.shapes == [{"x": (1, 4)}]
    assert world.prober.asked == [{"a", "b", "c"}]
    assert draft.problem.stages is None


async def test_links_lead_through_the_broker() -> None:
    world = World("a", "b")
    world.prober.book.put("a", DeviceLink(1e6, 2e6, 1.0, measured=True))
    world.prober.book.put("b", DeviceLink(3e6, 4e6, 20.0, measured=True))
    problem = (await world.draft()).problem
    assert [kind.name for kind in problem.types] == [BOARD, f"{BOARD} #2"]
    assert [kind.devices for kind in problem.types] == [("a",), ("b",)]
    assert problem.links[0][1] == Link(0.95 * 1e6, 21.0)
    assert problem.links[1][0] == Link(0.95 * 2e6, 21.0)
    assert problem.links[0][0] == Link(0.95 * 1e6, 2.0)
    assert problem.entries == (Link(0.95 * 2e6, 1.0), Link(0.95 * 4e6, 20.0))
    assert problem.exits == (Link(0.95 * 1e6, 1.0), Link(0.95 * 3e6, 20.0))


async def test_memory_is_what_others_leave_and_what_the_plan_has_already() -> None:
    world = World("a", "b")
    world.analysis = analysis(weights=200 * MB)
    world.reserved = {"a": 300 * MB, "b": 300 * MB}
    world.fleet.observe("b", telemetry(memory_used_bytes=200 * MB))
    problem = (await world.draft(own={"a": 100 * MB})).problem
    memory = {name: kind.memory_bytes for kind in problem.types for name in kind.devices}
    assert memory == {"a": 800 * MB, "b": 500 * MB}


async def test_parts_that_were_measured_count() -> None:
    world = World("a")
    world.parts = {PART: (0, 2), OTHER: (2, 4)}
    world.measure(PART, 30.0, memory_bytes=77 * MB)
    world.measure(OTHER, 50.0)
    draft = await world.draft()
    assert draft.basis == (Basis.MEASURED,)
    assert draft.problem.known_ms == {(0, 2, 0): 30.0, (2, 4, 0): 50.0}
    assert draft.problem.known_bytes == {(0, 2, 0): 77 * MB}
    (kind,) = draft.problem.types
    assert kind.overhead_ms + sum(kind.times_ms[:2]) == pytest.approx(30.0, rel=0.05)


async def test_a_whole_model_that_was_measured_is_shared_out() -> None:
    world = World("a")
    world.measure(model_version().digest, 40.0, memory_bytes=90 * MB)
    draft = await world.draft()
    assert draft.basis == (Basis.SCALED,)
    assert draft.problem.known_ms == {(0, 4, 0): 40.0}
    assert draft.problem.known_bytes == {(0, 4, 0): 90 * MB}
    (kind,) = draft.problem.types
    assert kind.overhead_ms + sum(kind.times_ms) == pytest.approx(40.0)


async def test_a_whole_model_of_open_sizes_was_measured_with_others_and_only_scales() -> None:
    world = World("a")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    out = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    model = model_version(signature=ModelSignature(inputs=(spec,), outputs=(out,)))
    world.measure(model.digest, 40.0)
    draft = await world.draft(model)
    assert draft.basis == (Basis.SCALED,)
    assert draft.problem.known_ms == {}
    world.parts = {PART: (0, 4)}
    world.measure(PART, 10.0)
    (kind,) = (await world.draft(model)).problem.types
    assert kind.overhead_ms + sum(kind.times_ms) == pytest.approx(10.0)


async def test_times_are_those_of_the_batch_that_is_analysed() -> None:
    world = World("a")
    world.analysis = analysis(shapes={"x": (4, 4)})
    world.measure(model_version().digest, 1.0, profile=fit([(1, 10.0), (2, 12.0), (4, 16.0)]))
    assert (await world.draft()).problem.known_ms == {(0, 4, 0): 16.0}
    world.measure(model_version().digest, 1.0, profile=fit([(1, 10.0), (2, 20.0)]))
    assert (await world.draft()).problem.known_ms == {(0, 4, 0): pytest.approx(40.0)}
    # A part is cut for the batch, so that its only size is the batch.
    world.parts = {PART: (0, 2)}
    world.measure(PART, 7.0)
    assert (await world.draft()).problem.known_ms[0, 2, 0] == 7.0


async def test_the_fastest_runtime_counts_unless_it_needs_what_a_device_does_not_have() -> None:
    world = World("a")
    world.parts = {PART: (0, 4), OTHER: (0, 9)}
    world.measure(PART, 30.0, runtime="cpu")
    world.measure(PART, 20.0, runtime="faster cpu", accelerated=0.0)
    world.measure(PART, 2.0, runtime="cuda", accelerated=1.0)
    world.measure(PART, 1.0, board="other/board")
    world.measure(PART, 0.0, runtime="unknown time")
    world.measure(OTHER, 5.0)
    assert (await world.draft()).problem.known_ms == {(0, 4, 0): 20.0}


async def test_a_device_that_throttles_is_slower_than_its_type() -> None:
    world = World("a", "b")
    world.measure(model_version().digest, 40.0)
    world.fleet.observe("b", telemetry(throttled=True, memory_used_bytes=0))
    problem = (await world.draft()).problem
    assert [kind.devices for kind in problem.types] == [("a",), ("b",)]
    assert problem.known_ms == {(0, 4, 0): 40.0, (0, 4, 1): 40.0 * THROTTLED}
    assert problem.types[1].times_ms[0] == pytest.approx(THROTTLED * problem.types[0].times_ms[0])


async def test_at_most_so_many_devices_are_weighed() -> None:
    world = World(*(f"d{i:02}" for i in range(MAX_DEVICES)), memory_bytes=400 * MB)
    for i in range(5):
        world.join(f"large{i}", memory_bytes=4000 * MB)
    world.join("agx", board=Board(family="jetson", model="agx"), memory_bytes=300 * MB)
    world.measure(model_version().digest, 40.0)
    world.measure(model_version().digest, 4.0, board="jetson/agx")
    draft = await world.draft(own={"d31": 1})
    names = {name for kind in draft.problem.types for name in kind.devices}
    assert len(names) == MAX_DEVICES
    assert {"agx", "large0", "large1", "large2", "large3", "large4", "d31"} <= names
    assert world.prober.asked == [names]
    (note,) = draft.notes
    assert note.startswith("6 of 38 devices were left out")


async def test_at_most_so_many_types_are_weighed() -> None:
    world = World()
    for i in range(MAX_TYPES + 2):
        world.join(f"d{i}", memory_bytes=(100 + 20 * i) * MB)
    draft = await world.draft()
    assert len(draft.problem.types) == MAX_TYPES
    (note,) = draft.notes
    assert "were left out: the planner weighs 8 types of device at once." in note


async def test_a_device_that_goes_while_links_are_measured_takes_no_part() -> None:
    world = World("a", "b")

    def goes() -> None:
        world.fleet.remove("a")

    world.prober.meanwhile = goes
    (kind,) = (await world.draft()).problem.types
    assert kind.devices == ("b",)
    world.prober.meanwhile = lambda: world.fleet.remove("b")
    with pytest.raises(ConflictError, match="no device has joined the fleet yet"):
        await world.draft()


async def test_without_devices_the_reason_is_said() -> None:
    sentence = r"^There is no plan for cat:1: no device has joined the fleet yet\.$"
    with pytest.raises(ConflictError, match=sentence):
        await World().draft()
    with pytest.raises(ConflictError, match=r"cat:1: needs 2 devices, there is 1\.$"):
        await World("a").draft(stages=2)
    with pytest.raises(ConflictError, match=r"cat:1: no device has zone=x\.$"):
        await World("a").draft(select={"zone": "x"})
    with pytest.raises(ConflictError, match="without a, left out on purpose, there is 0"):
        await World("a").draft(exclude=["a"])
    with pytest.raises(ConflictError, match="needs a device with an accelerator"):
        await World("a").draft(require_accelerator=True)


async def test_models_that_cannot_be_planned_say_so() -> None:
    world = World("a", "b", "c")
    with pytest.raises(InvalidError, match="at least one stage"):
        await world.draft(stages=0)
    with pytest.raises(InvalidError, match=r"into 5 stages: at most 4 stages are possible\.$"):
        await world.draft(stages=5)
    world.analysis = analysis(1, reason="an If holds everything.")
    with pytest.raises(InvalidError, match=r"into 2 stages: an If holds everything\.$"):
        await world.draft(stages=2)
    world.analysis = CutError("only ONNX models can be cut: deploy it on one device")
    with pytest.raises(
        InvalidError, match=r"^cat:1 cannot be planned: only ONNX .* on one device\.$"
    ):
        await world.draft()


async def test_a_model_too_large_for_all_says_how_much_is_missing() -> None:
    world = World("a")
    world.analysis = analysis(weights=2000 * MB)
    draft = await world.draft()
    assert draft.outcome.best is None
    assert draft.outcome.missing_bytes > 0
    assert draft.outcome.reason


async def test_a_model_too_large_for_one_is_cut() -> None:
    world = World("a", "b", "c")
    world.analysis = analysis(weights=200 * MB)
    draft = await world.draft()
    assert draft.outcome.single is None
    assert draft.outcome.best is not None
    assert all(stage.last - stage.first <= 2 for stage in draft.outcome.best.stages)


async def test_large_problems_are_solved_in_a_thread() -> None:
    world = World(*(f"d{i}" for i in range(10)))
    world.analysis = analysis(60)
    draft = await world.draft(stages=3)
    assert draft.outcome.best is not None
    assert len(draft.outcome.best.stages) == 3
