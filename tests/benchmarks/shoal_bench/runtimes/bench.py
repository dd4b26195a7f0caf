"""The benchmark `runtimes`: real models on every runtime that has an environment here.

The environments are those of `make setup-hardware`; this one, with ONNX Runtime on the CPU, gives
the reference outputs.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_bench.figures import Figure, Result, Table, Target, figure, number
from shoal_simulators.demo.assets import default_cache
from shoal_simulators.demo.models import build_demo_models

ROOT = Path(__file__).resolve().parents[4]
MIN_SPEED_UP = 10.0
MAX_DETECTION_MS = 200.0
MAX_OVERHEAD_MS = 0.2

_PROBE = Path(__file__).with_name("probe.py")
_TIMEOUT_S = 300.0
_NOT_ON_CPU_ONLY = ("qnn", "cann", "gpu")


@dataclass(frozen=True, slots=True)
class Model:
    """A model file with inputs of fixed shapes, and the CPU's outputs for them."""

    name: str
    path: Path
    shapes: dict[str, list[int]]
    inputs: Path
    outputs: Path


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """About four minutes, one if `quick`."""
    rounds, runs = (2, 3) if quick else (5, 10)
    result = Result("runtimes", quick=quick)
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        models = prepare(Path(folder))
        small = prepare_small(Path(folder))
        python = {"cpu": Path(sys.executable), **environments()}
        for env, interpreter in python.items():
            for model in models if env in ("cpu", *_NOT_ON_CPU_ONLY) else ():
                say(f"runtimes: {model.name} in {env}")
                rows += measure(env, interpreter, model, rounds, runs, Path(folder), result)
        say("runtimes: what the agent adds, and detection")
        result.figures += [
            overhead(python["cpu"], small, rounds, 50 if quick else 400),
            detection(python["cpu"], rounds),
        ]
    columns = ("environment", "model", "provider set", "load ms", "shared ms", "p50 ms",
               "placement", "golden difference")  # fmt: skip
    result.tables = [Table("By provider set", columns, tuple(rows))]
    missing = [env for env in _NOT_ON_CPU_ONLY if env not in python]
    result.notes = [
        f"{rounds} rounds, each load in a process of its own that has loaded a tiny model on the "
        "same provider before, as an agent that serves has, or none (`first of its process`: the "
        "provider's own libraries are loaded, too). `load` is without compiled code, `shared` "
        "from the code that another load of the same kind left, as a sibling downloads it. p50 "
        f"over {runs} runs at batch 1.",
        "QNN computes in its simulator of a Snapdragon 8 Gen 3 on x86-64: its p50 says nothing "
        "of the chip. CANN, CUDA and TensorRT are installed without their toolkits: what is "
        "shown is the reason with which they are refused.",
        "The golden difference is the largest absolute one to the CPU's outputs.",
    ]
    if missing:
        result.notes.append(f"Not measured, for `make setup-hardware` was not run: {missing}.")
    return result


def prepare(folder: Path) -> list[Model]:
    """EfficientNet-Lite0 and PP-OCR's recogniser, each with inputs and reference outputs."""
    build_demo_models(default_cache(), folder / "models")
    shapes = {"efficientnet-lite0": (1, 3, 224, 224), "ppocr-rec": (1, 3, 48, 320)}
    models = []
    for name, shape in shapes.items():
        path = folder / "models" / name / "model.onnx"
        loaded = RuntimeRegistry.discover().for_format("onnx").load(path, {})
        (spec,) = loaded.signature.inputs
        x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        outputs = loaded.run({spec.name: x})
        models.append(_model(name, path, {spec.name: x}, outputs, folder))
        if name == "efficientnet-lite0":
            int8 = quantized(path, spec.name, shape, folder / "int8.onnx")
            models.append(_model(f"{name} int8", int8, {spec.name: x}, outputs, folder))
    return models


def quantized(path: Path, name: str, shape: tuple[int, ...], target: Path) -> Path:
    """A QDQ variant, as `shoal model quantize` makes it, calibrated with noise: it is here for
    its speed and placement."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(2)
            self._feeds = iter([rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)])

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self._feeds, None)
            return None if feed is None else {name: feed}

    quantize_static(path, target, Noise(), quant_format=QuantFormat.QDQ, per_channel=True)
    return target


def prepare_small(folder: Path) -> Model:
    """The agent's own self-test, a model that costs next to nothing."""
    from shoal_agent.runtimes.selftest import self_test

    test = self_test()
    path = folder / "selftest.onnx"
    path.write_bytes(test.model)
    (case,) = test.golden.cases
    return _model("selftest", path, case.inputs, case.outputs, folder)


def environments() -> dict[str, Path]:
    """Interpreters of `make setup-hardware`, by runtime."""
    found = {env: ROOT / f".venv-{env}" / "bin" / "python" for env in _NOT_ON_CPU_ONLY}
    return {env: path for env, path in found.items() if path.exists()}


def measure(
    env: str,
    python: Path,
    model: Model,
    rounds: int,
    runs: int,
    folder: Path,
    result: Result,
) -> list[tuple[str, ...]]:
    """Rows of one model in one environment; figures go to `result`."""
    rows = []
    for provider_set in probe(python, "sets", model=str(model.path)):
        name = provider_set["name"]
        if env != "cpu" and name == "cpu":
            continue
        arguments = {"model": str(model.path), "provider_set": name, "shapes": model.shapes}
        cold: list[float] = []
        shared: list[float] = []
        cold_first: list[float] = []
        shared_first: list[float] = []
        small = str(folder / "selftest.onnx")
        code = folder / f"code-{env}-{model.name}-{name}"
        first = probe(python, "load", compiled="", started_by="", **arguments)
        if "error" in first:
            rows.append((env, model.name, name, "-", "-", "-", "refused", first["error"]))
            continue
        compiled = str(code) if provider_set["compiles"] else ""
        places = ((small, cold, shared), ("", cold_first, shared_first))
        for _ in range(rounds):
            for started_by, without, with_code in places if compiled else places[:1]:
                shutil.rmtree(code, ignore_errors=True)
                more = {"compiled": compiled, "started_by": started_by, **arguments}
                without.append(probe(python, "load", **more)["load_s"])
                if compiled:
                    with_code.append(probe(python, "load", **more)["load_s"])
        ran = probe(
            python,
            "run",
            compiled=str(code) if shared else "",
            inputs=str(model.inputs),
            outputs=str(model.outputs),
            runs=runs,
            **arguments,
        )
        if shared:
            title = f"{model.name} on {name}: load from compiled code"
            target = Target(1 / MIN_SPEED_UP)
            result.figures += [
                compared(title, shared, cold, target),
                compared(f"{title}, first of its process", shared_first, cold_first, None),
            ]
        nodes = " and ".join(f"{count} {provider}" for provider, count in ran["nodes"].items())
        rows.append(
            (
                env,
                model.name,
                name,
                number(statistics.median(cold) * 1e3),
                number(statistics.median(shared) * 1e3) if shared else "-",
                number(ran["p50_ms"]),
                f"{ran['accelerated']:.0%} accelerated: {nodes}",
                f"{ran['error']:.2g}",
            )
        )
    return rows


def compared(name: str, shared: list[float], cold: list[float], target: Target | None) -> Figure:
    """Loading compiled code beside compiling it, in milliseconds."""
    own, peer = [s * 1e3 for s in shared], [s * 1e3 for s in cold]
    return figure(name, "ms", own, peer="compiling", peer_runs=peer, target=target)


def overhead(python: Path, model: Model, rounds: int, runs: int) -> Figure:
    """The agent's part of a request at batch 1, over the same run without it."""
    added = [
        probe(python, "overhead", model=str(model.path), inputs=str(model.inputs), runs=runs)
        for _ in range(rounds)
    ]
    return figure(
        "what the agent adds to a bare run at batch 1, p50",
        "ms",
        [a["added_ms"] for a in added],
        target=Target(MAX_OVERHEAD_MS, of_ratio=False),
    )


def detection(python: Path, rounds: int) -> Figure:
    """From nothing known to the board's facts."""
    return figure(
        "detecting the board",
        "ms",
        [probe(python, "detect")["detect_s"] * 1e3 for _ in range(rounds)],
        target=Target(MAX_DETECTION_MS, of_ratio=False),
    )


def probe(python: Path, what: str, **task: Any) -> Any:
    """One measurement in an environment. Raises `RuntimeError` with its last words."""
    done = subprocess.run(
        [str(python), str(_PROBE), json.dumps({"what": what, **task})],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"{what} failed in {python}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _model(
    name: str, path: Path, inputs: dict[str, Any], outputs: dict[str, Any], folder: Path
) -> Model:
    given, expected = folder / f"{name}-inputs.npz", folder / f"{name}-outputs.npz"
    np.savez(given, **inputs)
    np.savez(expected, **outputs)
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    return Model(name, path, shapes, given, expected)
