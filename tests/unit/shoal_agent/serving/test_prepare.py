"""Choosing, trying and loading with fakes that say what each way does; no runtime is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_agent.runtimes.base import LoadedModel, ProviderSet, RuntimeLoadError, RuntimeRunError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask
from shoal_agent.serving.prepare import Prepared, Preparer
from shoal_agent.serving.records import Record
from shoal_shared.compiled import CompileKey
from shoal_shared.golden import Case, Golden, encode
from shoal_shared.messages import GoldenGoal, ModelGoal, RuntimeInfo, VariantGoal
from shoal_shared.placement import Placement, Proof, of_nodes
from shoal_shared.profiles import fit
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
SIGNATURE = ModelSignature(
    inputs=(SPEC,), outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)
)
NPU, CPU = "QNNExecutionProvider", "CPUExecutionProvider"
ON_NPU, ON_CPU = of_nodes({NPU: 3}), of_nodes({CPU: 3})
CPU_SET = ProviderSet(name="cpu", providers=((CPU, {}),))
NPU_SET = ProviderSet(
    name="qnn-htp",
    providers=((NPU, {}), (CPU, {})),
    accelerated=True,
    static=True,
    compiles=True,
    target="qualcomm-soc57",
)
GPU_SET = ProviderSet(name="qnn-gpu", providers=((NPU, {"backend_type": "gpu"}),), accelerated=True)
INPUT = np.ones((1, 2), np.float32)
GOLDEN = encode(Golden((Case({"x": INPUT}, {"y": INPUT * 2}),)))


class Model:
    def __init__(self, placement: Placement, factor: float) -> None:
        self.placement = placement
        self.factor = factor
        self.closed = False
        self.signature = SIGNATURE
        self.providers = tuple(placement.nodes)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self.factor < 0:
            raise RuntimeRunError("the model failed: out of memory")
        return {"y": inputs["x"] * self.factor}

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A runtime, trials, compiled code and records that behave as the test says.

    Keys of `ms`, `broken` and `placements` are (file name, provider set).
    """

    folder: Path
    sets: tuple[ProviderSet, ...] = (NPU_SET, CPU_SET)
    ms: dict[tuple[str, str], float] = field(default_factory=dict)
    broken: dict[tuple[str, str], str] = field(default_factory=dict)
    placements: dict[tuple[str, str], Placement] = field(default_factory=dict)
    factors: dict[tuple[str, str], float] = field(default_factory=dict)
    bad_load: dict[tuple[str, str], str] = field(default_factory=dict)
    origin: str = ""
    dies_in_load: bool = False
    bad_code: bool = False
    tasks: list[tuple[str, str]] = field(default_factory=list)
    loads: list[Model] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    release: str = "1.32.0"
    note: str | None = None

    @property
    def version(self) -> str:
        return f"onnxruntime {self.release}"

    @property
    def info(self) -> RuntimeInfo:
        return RuntimeInfo(name="onnxruntime", version=self.release, formats=("onnx",))

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        return self.sets

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        assert provider_set is not None
        key = (path.name, provider_set.name)
        if self.dies_in_load:
            raise KeyboardInterrupt  # As good as a crash: nothing handles it.
        if key in self.bad_load:
            raise RuntimeLoadError(self.bad_load[key])
        self.shapes.append(shapes)
        natural = ON_NPU if provider_set.accelerated else ON_CPU
        model = Model(self.placements.get(key, natural), self.factors.get(key, 2.0))
        self.loads.append(model)
        return model

    async def __call__(self, task: TrialTask) -> TrialOutcome:
        key = (Path(task.path).name, task.provider_set.name)
        self.tasks.append(key)
        if key in self.broken:
            raise RuntimeLoadError(self.broken[key])
        if self.bad_code and self.origin:
            raise RuntimeLoadError("QNNExecutionProvider crashed (SIGSEGV) while loading the model")
        error = abs(self.factors.get(key, 2.0) - 2.0)
        natural = ON_NPU if task.provider_set.accelerated else ON_CPU
        return TrialOutcome(
            providers=(NPU,),
            placement=self.placements.get(key, natural),
            signature=SIGNATURE,
            load_s=9.0,
            milliseconds=self.ms.get(key, 1.0),
            memory_bytes=1,
            golden_error=error,
            agrees=error <= task.absolute + 2 * task.relative,
            compiled_here=bool(task.compiled) and not self.origin,
        )

    async def obtain(self, key: CompileKey) -> tuple[Path, str]:
        assert key.runtime.startswith("onnxruntime")
        return self.folder / key.hex, self.origin

    async def offer(self, key: CompileKey) -> None:
        self.compiled.append("offer")
        self.origin = "here"

    async def reject(self, key: CompileKey, reason: str) -> None:
        self.compiled.append(f"reject: {reason}")
        self.origin = ""

    async def collect(self, keep: Collection[str]) -> None:
        self.compiled.append("collect")

    async def close(self) -> None:
        self.compiled.append("close")

    def get(self, key: str) -> Record | None:
        return self.records.get(key)

    async def put(self, key: str, record: Record) -> None:
        self.records[key] = record

    async def forget(self, key: str) -> None:
        self.records.pop(key, None)

    def preparer(self) -> Preparer:
        async def inline(work: Any) -> Any:
            return work()

        return Preparer(
            RuntimeRegistry([self]),
            self,
            self,
            self,
            target="qualcomm-soc57",
            driver="qnn 2.51",
            run_blocking=inline,
            clock=lambda: 0.0,
        )

    async def prepare(self, goal: ModelGoal) -> Prepared:
        files = {}
        for file in goal.files:
            files[file.digest] = self.folder / file.name
        if goal.golden:
            path = self.folder / "golden"
            if not path.exists():
                path.write_bytes(GOLDEN)
            files[goal.golden.digest] = path

        async def run(model: LoadedModel, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            await asyncio.sleep(0)
            return model.run(inputs)

        return await self.preparer().prepare(goal, files, run)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def goal(*variants: str, **more: Any) -> ModelGoal:
    files = tuple(
        VariantGoal(name=name, digest=f"sha256:{name}", size=1, format="onnx") for name in variants
    )
    golden = GoldenGoal(digest="sha256:golden", size=1, absolute=0.01, relative=0.0)
    values = {"digest": "sha256:r", "size": 1, "format": "onnx", "golden": golden, **more}
    return ModelGoal(deployment="d", model="m", version="1", variants=files, **values)


def chosen(prepared: Prepared) -> tuple[str, str]:
    return prepared.candidate.file.name, prepared.candidate.provider_set.name


async def test_an_accelerator_is_tried_in_a_child_then_serves(world: World) -> None:
    prepared = await world.prepare(goal())
    assert chosen(prepared) == ("reference", "qnn-htp")
    assert world.tasks == [("reference", "qnn-htp")]
    assert prepared.placement == ON_NPU
    assert (prepared.golden_error, prepared.notes) == (0.0, ())
    assert world.shapes == [{"x": (1, 2)}]
    # What it compiled is shared, and the load that compiled is the one that counts.
    assert (world.compiled, prepared.compiled, prepared.load_s) == (["offer"], "here", 9.0)


async def test_a_siblings_code_is_not_compiled_again(world: World) -> None:
    world.origin = "shared"
    prepared = await world.prepare(goal())
    assert (prepared.compiled, prepared.load_s, world.compiled) == ("shared", 0.0, [])


async def test_the_fastest_that_agrees_wins(world: World) -> None:
    world.sets = (NPU_SET, GPU_SET, CPU_SET)
    world.ms = {
        ("reference", "qnn-htp"): 5.0,
        ("reference", "qnn-gpu"): 4.0,
        ("int8", "qnn-htp"): 1.0,
        ("int8", "qnn-gpu"): 3.0,
    }
    world.factors = {("int8", "qnn-htp"): 2.5}
    prepared = await world.prepare(goal("int8"))
    assert chosen(prepared) == ("int8", "qnn-gpu")
    assert prepared.notes == (
        "int8: qnn-htp: its outputs differ by 0.5, more than the model allows",
    )
    # The CPU is no rival of an accelerator.
    assert all(name != "cpu" for _, name in world.tasks)


async def test_no_accelerator_falls_back_and_says_why(world: World) -> None:
    reason = "libascendcl.so not found: install CANN 8.x"
    world.broken = {("reference", "qnn-htp"): reason}
    prepared = await world.prepare(goal())
    assert chosen(prepared) == ("reference", "cpu")
    assert prepared.notes == (f"qnn-htp: {reason}",)


async def test_a_required_accelerator_fails_instead(world: World) -> None:
    world.broken = {("reference", "qnn-htp"): "libascendcl.so not found: install CANN 8.x"}
    with pytest.raises(RuntimeLoadError, match=r"libascendcl\.so not found: install CANN 8\.x"):
        await world.prepare(goal(require_accelerator=True))
    assert world.loads == []


@pytest.mark.parametrize(
    ("placement", "reason"),
    [
        (of_nodes({NPU: 1, CPU: 3}), "1 of 4 nodes run on the accelerator"),
        (
            Placement(accelerated=0.0, proof=Proof.TIMING),
            "does not run on the accelerator: it is as slow as on the CPU",
        ),
        (Placement(accelerated=1.0, proof=Proof.LISTED), "does not run on the accelerator"),
    ],
)
async def test_a_provider_that_is_listed_but_runs_little_does_not_count(
    world: World, placement: Placement, reason: str
) -> None:
    world.placements = {("reference", "qnn-htp"): placement}
    with pytest.raises(RuntimeLoadError, match=reason):
        await world.prepare(goal(require_accelerator=True))


async def test_placement_that_only_the_trial_could_prove_is_kept(world: World) -> None:
    key = ("reference", "qnn-htp")
    timed = Placement(accelerated=1.0, proof=Proof.TIMING)
    world.placements = {key: timed}
    world.sets = (NPU_SET,)
    prepared = await world.prepare(goal())
    assert prepared.placement == timed


async def test_the_session_that_serves_is_checked_itself(world: World) -> None:
    world.ms = {("int8", "qnn-htp"): 0.5}
    world.bad_load = {("int8", "qnn-htp"): "not enough memory on the accelerator"}
    prepared = await world.prepare(goal("int8"))
    assert chosen(prepared) == ("reference", "qnn-htp")
    assert prepared.notes == ("int8: qnn-htp: not enough memory on the accelerator",)


async def test_a_session_that_fails_its_check_is_closed(world: World) -> None:
    world.sets = (CPU_SET,)
    world.factors = {("reference", "cpu"): 3.0}
    with pytest.raises(RuntimeLoadError, match="cpu: its outputs differ by 1, more than"):
        await world.prepare(goal())
    assert [model.closed for model in world.loads] == [True]
    world.factors = {("reference", "cpu"): -1.0}
    with pytest.raises(RuntimeLoadError, match="golden inputs cannot be run"):
        await world.prepare(goal())


async def test_code_that_was_tampered_with_is_made_anew_once(world: World) -> None:
    world.origin, world.bad_code = "shared", True
    prepared = await world.prepare(goal())
    assert chosen(prepared) == ("reference", "qnn-htp")
    assert world.tasks == [("reference", "qnn-htp")] * 2
    assert world.compiled == [
        "reject: QNNExecutionProvider crashed (SIGSEGV) while loading the model",
        "offer",
    ]
    assert prepared.compiled == "here"


async def test_variants_of_the_cpu_are_compared_too(world: World) -> None:
    world.sets = (CPU_SET,)
    world.ms = {("reference", "cpu"): 5.0, ("int8", "cpu"): 2.0}
    assert chosen(await world.prepare(goal("int8"))) == ("int8", "cpu")
    world.tasks.clear()
    assert chosen(await world.prepare(goal())) == ("reference", "cpu")
    assert world.tasks == []  # One way only: loading it is the trial.


async def test_what_is_known_from_before_needs_no_trial(world: World) -> None:
    first = await world.prepare(goal())
    await world.preparer().remember(goal(), first, fit([(1, 2.0)]))
    world.tasks.clear()
    again = await world.prepare(goal())
    assert (chosen(again), world.tasks) == (("reference", "qnn-htp"), [])
    assert again.record is not None
    assert again.record.profile == fit([(1, 2.0)])
    # Another driver or runtime: everything is found out anew.
    world.release = "1.33.0"
    await world.prepare(goal())
    assert world.tasks == [("reference", "qnn-htp")]


async def test_a_record_that_no_longer_holds_is_forgotten(world: World) -> None:
    first = await world.prepare(goal())
    await world.preparer().remember(goal(), first, fit([(1, 2.0)]))
    world.bad_load = {("reference", "qnn-htp"): "the NPU is gone"}
    world.broken = {("reference", "qnn-htp"): "the NPU is gone"}
    prepared = await world.prepare(goal())
    assert chosen(prepared) == ("reference", "cpu")
    assert world.records == {}


async def test_a_fallback_is_not_remembered_for_the_accelerator_may_be_back(world: World) -> None:
    world.broken = {("reference", "qnn-htp"): "libQnnHtp.so not found: install QNN"}
    first = await world.prepare(goal())
    await world.preparer().remember(goal(), first, fit([(1, 2.0)]))
    world.broken = {}
    assert chosen(await world.prepare(goal())) == ("reference", "qnn-htp")


async def test_what_kills_the_agent_is_tried_in_a_child_at_the_next_start(world: World) -> None:
    first = await world.prepare(goal())
    await world.preparer().remember(goal(), first, fit([(1, 2.0)]))
    world.dies_in_load = True
    with pytest.raises(KeyboardInterrupt):
        await world.prepare(goal())
    world.dies_in_load = False
    world.tasks.clear()
    await world.prepare(goal())
    assert world.tasks == [("reference", "qnn-htp")]


async def test_lost_code_is_compiled_by_a_child_not_by_the_agent(world: World) -> None:
    first = await world.prepare(goal())
    await world.preparer().remember(goal(), first, fit([(1, 2.0)]))
    world.tasks.clear()
    world.origin = ""
    await world.prepare(goal())
    assert world.tasks == [("reference", "qnn-htp")]


async def test_without_golden_outputs_it_says_that_nothing_was_checked(world: World) -> None:
    prepared = await world.prepare(goal(golden=None, options={"profile_shapes": {"x": [1, 2]}}))
    assert "nobody knows whether the answers are right" in prepared.notes[0]
    assert world.shapes == [{"x": (1, 2)}]
    world.sets = (CPU_SET,)
    assert (await world.prepare(goal(golden=None))).notes == ()


async def test_golden_outputs_that_cannot_be_read_are_told(world: World) -> None:
    (world.folder / "golden").write_bytes(b"nonsense")
    world.sets = (CPU_SET,)
    (note, *_) = (await world.prepare(goal())).notes
    assert note.startswith("the golden outputs cannot be used, so nothing was compared: ")


async def test_files_that_no_way_fits_are_not_needed(world: World) -> None:
    g = goal()
    assert [f.name for f in world.preparer().needed_files(g)] == ["reference"]
    world.sets = (CPU_SET,)
    with pytest.raises(RuntimeLoadError, match="uses an accelerator, which is required"):
        world.preparer().needed_files(goal(require_accelerator=True))
