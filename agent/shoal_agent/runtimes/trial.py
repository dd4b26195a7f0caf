"""Trying a way to run a model, in a child process where a crash hurts nobody.

    python -m shoal_agent.runtimes.trial ANSWER PARENT   with a task as JSON on standard input

Accelerators' libraries may crash, hang or take all memory while a model is loaded; what they have
to say about it goes to standard error only. The child's answer goes to the file ANSWER, for
libraries write to standard output as they like. It dies with the process PARENT.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from shoal_agent.runtimes.base import (
    InferenceRuntime,
    LoadedModel,
    ProviderSet,
    RuntimeLoadError,
    RuntimeRunError,
)
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.remedies import explain
from shoal_shared.golden import Case, GoldenError, agrees, decode
from shoal_shared.placement import CPU_PROVIDERS, Placement, Proof
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import NUMPY, Array

TIMEOUT_S = 1800.0
"""Compiling a large model takes minutes; what takes longer hangs."""
MUST_BEAT_CPU = 0.8
"""Where nodes are not told, an accelerator must take at most this part of the CPU's time."""

_SAID_BYTES = 64 * 1024
_NICE = 5
_OOM_SCORE = 500
"""Where memory runs out, the kernel takes the child and not the models that serve."""
_PR_SET_PDEATHSIG = 1
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COMMAND = (sys.executable, "-P", "-m", "shoal_agent.runtimes.trial")
_LOGGED_ERROR = re.compile(
    r"\[E:onnxruntime:[^\]]*\] (?:.*?\[ONNXRuntimeError\] : \d+ : \w+ : )?([^\n]*)"
)


class TrialTask(msgspec.Struct, frozen=True, kw_only=True):
    """What to try: a file, a provider set, a folder for compiled code, golden cases and how far
    outputs may be off, and the number of timed runs."""

    format: str
    path: str
    options: dict[str, Any]
    provider_set: ProviderSet
    compiled: str = ""
    shapes: dict[str, tuple[int, ...]] = {}
    golden: str = ""
    absolute: float = 0.0
    relative: float = 0.0
    runs: int = 5


class TrialOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `milliseconds` is the median of the timed runs, None where no input could
    be made up; `memory_bytes` what the process grew by; `agrees` is true without golden cases.
    `complaint` is what the runtime's log said last of an error, which tells why a provider was
    not used."""

    providers: tuple[str, ...]
    placement: Placement
    signature: ModelSignature
    load_s: float
    milliseconds: float | None = None
    memory_bytes: int = 0
    golden_error: float | None = None
    agrees: bool = True
    compiled_here: bool = False
    complaint: str = ""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    outcome: TrialOutcome | None = None
    error: str = ""


# Unlike JSON, it carries a golden error that is infinite.
_answers = msgspec.msgpack.Decoder(_Answer)


def run_trial(task: TrialTask, registry: RuntimeRegistry) -> TrialOutcome:
    """Try it in this process; blocking. Raises `RuntimeLoadError`."""
    runtime = registry.for_format(task.format)
    cases = _cases(task)
    folder = Path(task.compiled) if task.compiled else None
    had_code = folder is not None and _has_files(folder)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    model = _load(runtime, task, task.provider_set, folder)
    load_s = time.perf_counter() - started
    fine, error = True, None
    for case in cases:
        outputs = _run(model, case.inputs)
        same, difference = agrees(case.outputs, outputs, task.absolute, task.relative)
        fine, error = fine and same, max(error or 0.0, difference)
    inputs = cases[0].inputs if cases else _made_up(model.signature, task.shapes)
    milliseconds = _median_ms(model, inputs, task.runs)
    memory = psutil.Process().memory_info().rss - before
    placement = model.placement
    if placement.proof is Proof.LISTED and placement.accelerated and milliseconds is not None:
        placement = _timed(runtime, task, inputs, milliseconds)
    return TrialOutcome(
        providers=model.providers,
        placement=placement,
        signature=model.signature,
        load_s=load_s,
        milliseconds=milliseconds,
        memory_bytes=max(0, memory),
        golden_error=error,
        agrees=fine,
        compiled_here=folder is not None and not had_code and _has_files(folder),
    )


async def try_in_child(
    task: TrialTask, *, timeout_s: float = TIMEOUT_S, command: Sequence[str] = _COMMAND
) -> TrialOutcome:
    """Try it in a child of lower priority, which is killed with its own children when this is
    cancelled.

    Raises `RuntimeLoadError` with the reason as one sentence, also where the child crashes,
    hangs, or says nothing.
    """
    # -P only exists from Python 3.11 on; the working directory is no module path either way.
    arguments = [a for a in command if a != "-P" or sys.version_info >= (3, 11)]
    with tempfile.TemporaryDirectory(prefix="shoal-trial-") as folder, _Tail() as said:
        answer = Path(folder) / "answer"
        child = await asyncio.create_subprocess_exec(
            *arguments,
            str(answer),
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=said.writer,
            stderr=said.writer,
            cwd=folder,
            start_new_session=True,
        )
        timed_out = False
        try:
            await asyncio.wait_for(child.communicate(msgspec.json.encode(task)), timeout_s)
        except asyncio.TimeoutError:
            timed_out = True
        finally:
            # Compilers that it started go with it, whichever way it ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        if timed_out:
            raise RuntimeLoadError(
                f"{_first(task)} did not load the model within {timeout_s:g} s: check its driver"
            )
        return _verdict(task, child.returncode or 0, _read(answer), said.text())


class _Tail:
    """A pipe of which the last bytes are kept, however much is written to it."""

    def __init__(self) -> None:
        self._kept = b""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)

    def __enter__(self) -> _Tail:
        asyncio.get_running_loop().add_reader(self._reader, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        os.close(self.writer)

    def text(self) -> str:
        """What was kept, without colours."""
        while self._take():
            pass
        return _ANSI.sub("", self._kept.decode(errors="replace"))

    def _take(self) -> bool:
        try:
            data = os.read(self._reader, _SAID_BYTES)
        except BlockingIOError:
            return False
        self._kept = (self._kept + data)[-_SAID_BYTES:]
        return bool(data)


def _verdict(task: TrialTask, code: int, answer: bytes, said: str) -> TrialOutcome:
    """The outcome of a child that has ended. Raises `RuntimeLoadError`."""
    if code == 0:
        try:
            decoded = _answers.decode(answer)
        except msgspec.DecodeError:
            decoded = _Answer(error=f"{_first(task)} ended its trial without an answer")
        if decoded.outcome is not None:
            complaint = explain(said) or _last_error(said)
            return msgspec.structs.replace(decoded.outcome, complaint=complaint)
        # Why an accelerator cannot be used is often told in the log only.
        log = said if task.provider_set.accelerated else ""
        raise RuntimeLoadError(explain(f"{log}\n{decoded.error}") or decoded.error)
    if code == -signal.SIGKILL:
        raise RuntimeLoadError(
            f"{_first(task)} was killed while it loaded the model: probably there was not enough "
            "memory"
        )
    how = f"crashed ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
    reason = explain(said) or _last_error(said) or _last_line(said)
    raise RuntimeLoadError(
        f"{_first(task)} {how} while it loaded the model: "
        f"{reason or 'check that driver and runtime fit'}"
    )


def _load(
    runtime: InferenceRuntime, task: TrialTask, provider_set: ProviderSet, folder: Path | None
) -> LoadedModel:
    return runtime.load(Path(task.path), task.options, provider_set, folder, task.shapes)


def _timed(
    runtime: InferenceRuntime,
    task: TrialTask,
    inputs: Mapping[str, Array] | None,
    milliseconds: float,
) -> Placement:
    """Placement by comparison with the CPU, where the runtime does not tell its nodes. Raises
    `RuntimeLoadError`."""
    try:
        on_cpu = _load(runtime, task, runtime.provider_sets({})[-1], None)
    except RuntimeLoadError as error:
        raise RuntimeLoadError(
            f"whether the accelerator is used cannot be told, for the CPU has no time to beat: "
            f"{error}"
        ) from error
    to_beat = _median_ms(on_cpu, inputs, task.runs)
    faster = to_beat is not None and milliseconds <= MUST_BEAT_CPU * to_beat
    return Placement(accelerated=float(faster), proof=Proof.TIMING)


def _cases(task: TrialTask) -> tuple[Case, ...]:
    if not task.golden:
        return ()
    try:
        return decode(Path(task.golden).read_bytes()).cases
    except (OSError, GoldenError) as error:
        raise RuntimeLoadError(f"the golden outputs cannot be read: {error}") from error


def _run(model: LoadedModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return model.run(inputs)
    except RuntimeRunError as error:
        raise RuntimeLoadError(f"the golden inputs cannot be run: {error}") from error


def _made_up(
    signature: ModelSignature, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array] | None:
    """Zeros of the shapes that are known, with 1 for a free batch dimension; None if others are
    free."""
    out: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = shapes.get(spec.name) or tuple(
            1 if d == -1 and i == 0 else d for i, d in enumerate(spec.shape)
        )
        if -1 in shape:
            return None
        text = spec.datatype == "BYTES"
        out[spec.name] = (
            np.full(shape, b"", dtype=object) if text else np.zeros(shape, NUMPY[spec.datatype])
        )
    return out


def _median_ms(model: LoadedModel, inputs: Mapping[str, Array] | None, runs: int) -> float | None:
    if inputs is None:
        return None
    times: list[float] = []
    try:
        model.run(inputs)
        for _ in range(runs):
            started = time.perf_counter()
            model.run(inputs)
            times.append((time.perf_counter() - started) * 1000)
    except RuntimeRunError:
        return None
    return statistics.median(times)


def _first(task: TrialTask) -> str:
    """The provider that the set is about."""
    names = [name for name, _ in task.provider_set.providers]
    return next((name for name in names if name not in CPU_PROVIDERS), names[0])


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(p.is_file() for p in folder.rglob("*"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _last_line(said: str) -> str:
    """The last line that says something."""
    lines = [line for line in said.splitlines() if any(c.isalpha() for c in line)]
    return _plain(lines[-1]) if lines else ""


def _last_error(said: str) -> str:
    """The last error in ONNX Runtime's log, "[E:onnxruntime:, file.cc:1 Function] text"."""
    found = _LOGGED_ERROR.findall(said)
    return _plain(found[-1]) if found else ""


def _plain(line: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())[:200]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main(arguments: Sequence[str]) -> int:
    """The child."""
    answer, parent = Path(arguments[0]), int(arguments[1])
    with contextlib.suppress(OSError, AttributeError):
        # Whatever becomes of the agent, no child goes on compiling.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialTask)
    try:
        found = _Answer(outcome=run_trial(task, RuntimeRegistry.discover()))
    except RuntimeLoadError as error:
        found = _Answer(error=str(error))
    except MemoryError:
        found = _Answer(error="MemoryError: there is not enough memory")
    answer.write_bytes(msgspec.msgpack.encode(found))
    sys.stderr.flush()
    # Some libraries crash while they are taken down; the answer is complete.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
