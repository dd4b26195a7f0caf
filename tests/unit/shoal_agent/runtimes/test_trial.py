from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from support.runtimes import CPU_SET, CpuRuntime

from shoal_agent.runtimes import trial as module
from shoal_agent.runtimes.base import (
    LoadedModel,
    ProviderSet,
    RuntimeLoadError,
    RuntimeRunError,
)
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask, run_trial, try_in_child
from shoal_shared.golden import Case, Golden, encode
from shoal_shared.placement import Placement, Proof, of_nodes
from shoal_shared.signature import ModelSignature, TensorSpec
from shoal_shared.tensors import Array

NPU_SET = ProviderSet(
    name="npu", providers=(("NpuProvider", {}), ("CPUExecutionProvider", {})), accelerated=True
)
LISTED = Placement(accelerated=1.0, proof=Proof.LISTED)


def a_task(**changes: Any) -> TrialTask:
    known = TrialTask(format="onnx", path="/none", options={}, provider_set=NPU_SET)
    return msgspec.structs.replace(known, **changes)


# A child that does what a script says.

Tried = Callable[..., Awaitable[TrialOutcome]]


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    """Tries with a child that runs a script, from `answer` to what is left of the world."""

    async def run(script: str, task: TrialTask | None = None, **options: Any) -> TrialOutcome:
        path = tmp_path / "child.py"
        path.write_text(
            "import os, resource, signal, subprocess, sys, time\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n" + script
        )
        return await try_in_child(task or a_task(), command=(sys.executable, str(path)), **options)

    return run


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped by whoever inherited it or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


CANN_MISSING = "libascendcl.so: cannot open shared object file: No such file or directory"
COLOURED = "\\x1b[1;31m2026 [E:onnxruntime:Default, x.cc:1 Run] DSP said no\\n\\x1b[m\\n****\\n"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        pytest.param(
            "os.write(2, b'loading\\nbad skel version\\n\\n***\\n')\n"
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "NpuProvider crashed (SIGSEGV) while it loaded the model: bad skel version",
            id="segfault",
        ),
        pytest.param(
            "os.abort()",
            "NpuProvider crashed (SIGABRT) while it loaded the model: check that driver and "
            "runtime fit",
            id="abort without a word",
        ),
        pytest.param(
            f"os.write(2, b'{CANN_MISSING}\\nbye\\n'); os.abort()",
            "NpuProvider crashed (SIGABRT) while it loaded the model: libascendcl.so not found: "
            "install CANN 8.x and source /usr/local/Ascend/ascend-toolkit/set_env.sh",
            id="crash with a remedy",
        ),
        pytest.param(
            f"os.write(2, b'{COLOURED}'); os.abort()",
            "NpuProvider crashed (SIGABRT) while it loaded the model: DSP said no",
            id="crash with a coloured log",
        ),
        pytest.param(
            "os.write(1, b'on stdout\\n'); sys.exit(3)",
            "NpuProvider ended with exit code 3 while it loaded the model: on stdout",
            id="exit code",
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "NpuProvider was killed while it loaded the model: probably there was not enough "
            "memory",
            id="killed",
        ),
        pytest.param(
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\nx = bytes(1 << 31)",
            "NpuProvider ended with exit code 1 while it loaded the model: not enough memory: use "
            "a smaller variant, or unload other models",
            id="out of memory",
        ),
        pytest.param("", "NpuProvider ended its trial without an answer", id="silent"),
        pytest.param(
            "open(sys.argv[1], 'wb').write(os.urandom(999))",
            "NpuProvider ended its trial without an answer",
            id="garbage",
        ),
        pytest.param(
            "open(sys.argv[1], 'wb').write(b'{}')",
            "NpuProvider ended its trial without an answer",
            id="another kind of answer",
        ),
    ],
)
async def test_whatever_becomes_of_the_child_is_one_sentence(
    tried: Tried, script: str, sentence: str
) -> None:
    with pytest.raises(RuntimeLoadError) as caught:
        await tried(script)
    assert str(caught.value) == sentence


HANGS = """
child = subprocess.Popen(["sleep", "1000"])
open({path!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({path!r} + ".new", {path!r})
time.sleep(1000)
"""


async def test_cancelling_kills_the_child_and_its_children(tried: Tried, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    running = asyncio.create_task(tried(HANGS.format(path=str(told))))
    await until(told.exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    child, grandchild = map(int, told.read_text().split())
    assert not psutil.pid_exists(child)
    await until(lambda: is_gone(grandchild))


async def test_a_child_that_hangs_is_killed_and_told(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "pids"

    async def when_told(work: Any, timeout_s: float) -> None:
        running = asyncio.ensure_future(work)
        await until(told.exists)
        running.cancel()
        raise asyncio.TimeoutError

    monkeypatch.setattr(module.asyncio, "wait_for", when_told)
    with pytest.raises(RuntimeLoadError) as caught:
        await tried(HANGS.format(path=str(told)), timeout_s=7)
    assert str(caught.value) == "NpuProvider did not load the model within 7 s: check its driver"
    child, grandchild = map(int, told.read_text().split())
    assert not psutil.pid_exists(child)
    await until(lambda: is_gone(grandchild))


async def test_compilers_left_by_a_crash_are_killed(tried: Tried, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    script = HANGS.format(path=str(told)).replace("time.sleep(1000)", "os.abort()")
    with pytest.raises(RuntimeLoadError, match="SIGABRT"):
        await tried(script)
    _, grandchild = map(int, told.read_text().split())
    await until(lambda: is_gone(grandchild))


async def test_of_endless_noise_only_the_end_is_kept(tried: Tried) -> None:
    script = (
        "for n in range(200): os.write(n % 2 + 1, b'x' * 99_999 + b'\\n')\n"
        "os.write(2, b'the last word\\n'); os.abort()"
    )
    with pytest.raises(RuntimeLoadError, match=r"the last word$"):
        await tried(script)


def answering(script: str) -> str:
    """The real child, with another way to find its runtimes."""
    return (
        "from shoal_agent.runtimes import trial\n"
        "from shoal_agent.runtimes.base import RuntimeLoadError\n"
        f"def discover():\n    {script}\n"
        "trial.RuntimeRegistry.discover = discover\n"
        "sys.exit(trial.main(sys.argv[1:]))"
    )


async def test_the_child_yields_to_models_that_serve(tried: Tried) -> None:
    look = (
        "raise RuntimeLoadError(str([os.nice(0), *resource.getrlimit(resource.RLIMIT_CORE),"
        " int(open('/proc/self/oom_score_adj').read()), os.getpgid(0) == os.getpid()]))"
    )
    with pytest.raises(RuntimeLoadError) as caught:
        await tried(answering(look))
    nice, soft, hard, score, leads = json.loads(str(caught.value).replace("True", "true"))
    assert (nice, soft, hard, leads) == (os.nice(0) + 5, 0, 0, True)
    assert score >= 500


async def test_the_log_tells_why_an_accelerator_failed_and_is_no_matter_for_the_cpu(
    tried: Tried,
) -> None:
    script = answering(
        f"os.write(2, b'{CANN_MISSING}\\n'); raise RuntimeLoadError('it could not be used')"
    )
    with pytest.raises(RuntimeLoadError, match=r"^libascendcl\.so not found: install CANN 8\.x"):
        await tried(script)
    with pytest.raises(RuntimeLoadError, match=r"^it could not be used$"):
        await tried(script, a_task(provider_set=CPU_SET))


async def test_too_little_memory_in_python_is_told(tried: Tried) -> None:
    with pytest.raises(RuntimeLoadError, match=r"^not enough memory: use a smaller variant"):
        await tried(answering("raise MemoryError"))


def test_a_child_whose_agent_is_gone_does_nothing(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    done = subprocess.run(
        [sys.executable, "-m", "shoal_agent.runtimes.trial", str(answer), "1"],
        input=msgspec.json.encode(a_task()),
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert not answer.exists()


async def test_the_child_dies_with_its_agent(tmp_path: Path) -> None:
    told, child = tmp_path / "pid", tmp_path / "child.py"
    child.write_text(
        "import os, sys, time\n"
        + answering(
            f"open('{told}.new', 'w').write(str(os.getpid())); "
            f"os.rename('{told}.new', '{told}'); time.sleep(1000)"
        )
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys, msgspec\n"
        "from shoal_agent.runtimes.trial import TrialTask, try_in_child\n"
        "task = msgspec.json.decode(sys.argv[1], type=TrialTask)\n"
        f"asyncio.run(try_in_child(task, command=(sys.executable, {str(child)!r})))",
        msgspec.json.encode(a_task()).decode(),
    )
    try:
        await until(told.exists)
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: is_gone(int(told.read_text())))


# The real child on a real model.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    path.write_bytes(self_test().model)
    return path


def write_golden(folder: Path, *cases: Case) -> str:
    path = folder / "golden"
    path.write_bytes(encode(Golden(cases)))
    return str(path)


async def test_a_real_trial(model: Path, tmp_path: Path) -> None:
    test = self_test()
    outcome = await try_in_child(
        a_task(
            path=str(model),
            provider_set=CPU_SET,
            golden=write_golden(tmp_path, *test.golden.cases),
            absolute=1e-4,
        )
    )
    assert outcome.agrees
    assert outcome.golden_error is not None
    assert outcome.golden_error < 1e-4
    assert outcome.providers == ("CPUExecutionProvider",)
    assert outcome.placement.accelerated == 0
    assert outcome.signature.inputs[0].name == "x"
    assert outcome.load_s > 0
    assert outcome.milliseconds is not None
    assert outcome.memory_bytes > 0
    assert not outcome.compiled_here


async def test_a_noisy_trial_still_answers(tried: Tried, model: Path) -> None:
    noisy = (
        "from shoal_agent.runtimes import trial\n"
        "print('{\"outcome\": null}' * 99_999, flush=True)\n"
        "trial.main(sys.argv[1:])"
    )
    outcome = await tried(noisy, a_task(path=str(model), provider_set=CPU_SET))
    assert outcome.agrees


async def test_an_infinite_difference_comes_across(model: Path, tmp_path: Path) -> None:
    (case,) = self_test().golden.cases
    wrong = Case(case.inputs, {"y": case.outputs["y"][:, :3]})
    outcome = await try_in_child(
        a_task(path=str(model), provider_set=CPU_SET, golden=write_golden(tmp_path, wrong))
    )
    assert not outcome.agrees
    assert outcome.golden_error == math.inf


async def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model" * 99)
    with pytest.raises(RuntimeLoadError, match="cannot load the model") as caught:
        await try_in_child(a_task(path=str(path), provider_set=CPU_SET))
    assert "\n" not in str(caught.value)


# What a trial does, on runtimes that only pretend.


class Clock:
    """Time that passes when a model runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Model:
    """Gives `outputs`, takes `takes_s`, and says what its placement is."""

    providers = ("NpuProvider", "CPUExecutionProvider")

    def __init__(self, world: World, placement: Placement, takes_s: float) -> None:
        self.signature = world.signature
        self.placement = placement
        self._world = world
        self._takes_s = takes_s

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._world.clock.now += self._takes_s
        self._world.ran.append(dict(inputs))
        if self._world.broken:
            raise RuntimeRunError("the model failed: bad op")
        return self._world.outputs

    def close(self) -> None:
        pass


class World(CpuRuntime):
    """A runtime with an accelerator of which it does not tell the nodes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.placement = LISTED
        self.signature = ModelSignature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),), outputs=()
        )
        self.outputs: dict[str, Array] = {}
        self.takes_s = {"npu": 0.010, "cpu": 0.100}
        self.ran: list[dict[str, Array]] = []
        self.loaded: list[str] = []
        self.broken = False
        self.cpu_loads = True
        self.writes: Sequence[str] = ()

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        return (NPU_SET, CPU_SET)

    def load(
        self,
        path: Path,
        options: Mapping[str, Any],
        provider_set: ProviderSet | None = None,
        compiled: Path | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> LoadedModel:
        assert provider_set is not None
        self.clock.now += 2.5
        self.loaded.append(provider_set.name)
        if not provider_set.accelerated and not self.cpu_loads:
            raise RuntimeLoadError("unknown operator EdgeTpu")
        for name in self.writes:
            assert compiled is not None
            (compiled / name).write_bytes(b"code")
        placement = self.placement if provider_set.accelerated else of_nodes({"CPU": 1})
        return Model(self, placement, self.takes_s[provider_set.name])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=world.clock.perf_counter))
    return world


def tried_here(world: World, **changes: Any) -> TrialOutcome:
    return run_trial(a_task(**changes), RuntimeRegistry([world]))


@pytest.mark.parametrize(
    ("npu_s", "accelerated"), [(0.01, 1.0), (0.0799, 1.0), (0.0801, 0.0), (0.1, 0.0), (5.0, 0.0)]
)
def test_an_accelerator_that_tells_nothing_must_beat_the_cpu(
    world: World, npu_s: float, accelerated: float
) -> None:
    world.takes_s["npu"] = npu_s
    outcome = tried_here(world)
    assert outcome.placement == Placement(accelerated=accelerated, proof=Proof.TIMING)
    assert outcome.placement.is_accelerated == bool(accelerated)
    assert outcome.milliseconds == pytest.approx(npu_s * 1000)
    assert outcome.load_s == pytest.approx(2.5)
    assert world.loaded == ["npu", "cpu"]
    # Both on the same input.
    assert {a["x"].tobytes() for a in world.ran} == {np.zeros((1, 3), "<f4").tobytes()}


@pytest.mark.parametrize(
    "placement",
    [of_nodes({"NpuProvider": 3, "CPU": 1}), Placement(accelerated=0.0, proof=Proof.LISTED)],
)
def test_the_cpu_is_not_asked_where_it_is_known(world: World, placement: Placement) -> None:
    world.placement = placement
    assert tried_here(world).placement == placement
    assert world.loaded == ["npu"]


def test_without_a_time_to_beat_nothing_is_proven(world: World) -> None:
    world.cpu_loads = False
    with pytest.raises(RuntimeLoadError, match="no time to beat: unknown operator EdgeTpu"):
        tried_here(world)


def test_without_an_input_nothing_is_timed(world: World) -> None:
    world.signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, -1)),), outputs=()
    )
    outcome = tried_here(world)
    assert outcome.milliseconds is None
    assert outcome.placement == LISTED
    assert not outcome.placement.is_accelerated
    assert world.ran == []


def test_an_input_that_does_not_run_is_not_timed(world: World) -> None:
    world.broken = True
    assert tried_here(world).milliseconds is None


def test_inputs_are_made_up_from_the_shapes_that_are_given(world: World) -> None:
    world.placement = of_nodes({"NpuProvider": 1})
    world.signature = ModelSignature(
        inputs=(
            TensorSpec(name="ids", datatype="INT64", shape=(-1, -1)),
            TensorSpec(name="text", datatype="BYTES", shape=(-1,)),
        ),
        outputs=(),
    )
    assert tried_here(world, shapes={"ids": (2, 7)}, runs=3).milliseconds is not None
    assert len(world.ran) == 4  # The first one warms up.
    ids, text = world.ran[0]["ids"], world.ran[0]["text"]
    assert (ids.shape, ids.dtype) == ((2, 7), np.int64)
    assert text.tolist() == [b""]


def test_all_golden_cases_count(world: World, tmp_path: Path) -> None:
    world.outputs = {"y": np.array([1.0, 2.0], "<f4")}
    inputs = {"x": np.ones((1, 3), "<f4")}
    fine = Case(inputs, {"y": np.array([1.0, 2.01], "<f4")})
    off = Case(inputs, {"y": np.array([1.0, 2.5], "<f4")})
    golden = write_golden(tmp_path, fine)
    assert tried_here(world, golden=golden, absolute=0.02).agrees
    outcome = tried_here(world, golden=write_golden(tmp_path, off, fine), absolute=0.02)
    assert not outcome.agrees
    assert outcome.golden_error == pytest.approx(0.5)
    assert world.ran[-1]["x"].tolist() == [[1, 1, 1]]


def test_an_answer_that_is_no_number_never_agrees(world: World, tmp_path: Path) -> None:
    world.outputs = {"y": np.array([np.nan, 2.0], "<f4")}
    case = Case({"x": np.ones((1, 3), "<f4")}, {"y": np.array([1.0, 2.0], "<f4")})
    outcome = tried_here(world, golden=write_golden(tmp_path, case), absolute=9.0, relative=9.0)
    assert not outcome.agrees
    assert outcome.golden_error == math.inf


def test_golden_inputs_that_do_not_run_fail_the_trial(world: World, tmp_path: Path) -> None:
    world.broken = True
    case = Case({"x": np.ones((1, 3), "<f4")}, {"y": np.ones(2, "<f4")})
    with pytest.raises(RuntimeLoadError, match="golden inputs cannot be run: the model failed"):
        tried_here(world, golden=write_golden(tmp_path, case))


@pytest.mark.parametrize("content", [b"no golden", None])
def test_a_golden_file_that_cannot_be_used(
    world: World, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "golden"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RuntimeLoadError, match="golden outputs cannot be read"):
        tried_here(world, golden=str(path))
    assert world.loaded == []


def test_code_counts_as_made_here_only_in_an_empty_folder(world: World, tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert not tried_here(world, compiled=folder).compiled_here
    world.placement, world.writes = of_nodes({"NpuProvider": 1}), ("model.bin",)
    assert tried_here(world, compiled=folder).compiled_here
    assert not tried_here(world, compiled=folder).compiled_here
