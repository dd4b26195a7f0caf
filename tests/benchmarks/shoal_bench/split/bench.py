"""The benchmark `split`: stages composed against the whole, for many architectures."""

from __future__ import annotations

import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx

from shoal_bench.figures import Result, Table, Target, figure, number
from shoal_controlplane.planner.cuts.analysis import Analysis
from shoal_controlplane.planner.cuts.cutter import analyse_model, extract_stages
from shoal_shared.tensors import Array
from shoal_simulators.demo.assets import default_cache
from shoal_simulators.demo.models import build_demo_models

sys.path.append(str(Path(__file__).resolve().parents[3]))
from support.architectures import ARCHITECTURES, Session, run_stages

STAGES = (2, 3, 4)
LEVELS = ("none", "extended", "all")
TOLERANCE = 1e-5
DEMO_INPUTS = {
    "efficientnet-lite0": {"image": (1, 3, 224, 224)},
    "ppocr-det": {"x": (1, 3, 320, 320)},
    "ppocr-rec": {"x": (1, 3, 48, 320)},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model with the shapes that it is cut for, and inputs. The demo's models are `real`: they
    compute long enough for their times to say something."""

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    feeds: Mapping[str, Array]
    real: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model in `stages` against itself: the largest absolute difference at each level of the
    runtime's optimisations, the last also relative to the largest absolute value of the outputs,
    and the times of both with all optimisations, run by run, in ms."""

    stages: int
    differences: tuple[float, ...]
    relative: float
    whole_ms: tuple[float, ...]
    staged_ms: tuple[float, ...]


def run(*, quick: bool = False, say: Callable[[str], None] = print) -> Result:
    """Compare everything: about a minute on two idle cores, a quarter of one if `quick`."""
    runs = 5 if quick else 40
    result = Result("split", quick=quick, notes=_notes(runs))
    rows, real, differences = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in (*architectures(folder), *demo_models(folder)):
            say(f"split: {case.name}")
            started = time.perf_counter()
            analysis = analyse_model(case.path, case.shapes)
            took_ms = 1e3 * (time.perf_counter() - started)
            found = [
                compare(case, analysis, stages, runs, folder)
                for stages in STAGES
                if stages <= len(analysis.segments)
            ]
            differences += found
            real += found if case.real else []
            rows.append(_row(case, analysis, took_ms, found))
    columns = ("model", "nodes", "segments", "smallest cut", "largest cut", "analysis ms",
               *LEVELS, "relative", *(f"time x{n}" for n in STAGES))  # fmt: skip
    result.tables.append(Table("Stages composed against the whole", columns, tuple(rows)))
    exact = [float(c.differences[0] == 0) for c in differences]
    limit = Target(TOLERANCE, of_ratio=False)
    result.figures += [
        figure(
            "bit-identical without optimisations, share of the cases",
            "",
            [sum(exact) / len(exact)],
            more_is_better=True,
            target=Target(1.0, at_least=True, of_ratio=False),
        ),
        figure(
            "largest difference with optimisations, relative to the largest output",
            "",
            [max(c.relative for c in differences)],
            target=limit,
        ),
    ]
    for stages in STAGES:
        times = [c for c in real if c.stages == stages]
        result.figures.append(
            figure(
                f"time of {stages} stages of the demo's models on one device",
                "ms",
                [float(np.median(c.staged_ms)) for c in times],
                peer="whole",
                peer_runs=[float(np.median(c.whole_ms)) for c in times],
            )
        )
    return result


def architectures(folder: Path) -> list[Case]:
    """The small models of the tests."""
    cases = []
    for make in ARCHITECTURES:
        architecture = make()
        path = folder / f"{architecture.name}.onnx"
        onnx.save(architecture.model, path)
        cases.append(
            Case(architecture.name, path, architecture.shapes, architecture.feeds, real=False)
        )
    return cases


def demo_models(folder: Path) -> list[Case]:
    """The demonstration's ONNX models with noise for pictures."""
    build_demo_models(default_cache(), folder / "models")
    rng = np.random.default_rng(1)
    return [
        Case(
            name,
            folder / "models" / name / "model.onnx",
            shapes,
            {key: rng.uniform(-1, 1, shape).astype(np.float32) for key, shape in shapes.items()},
            real=True,
        )
        for name, shapes in DEMO_INPUTS.items()
    ]


def balanced_bounds(analysis: Analysis, stages: int) -> tuple[int, ...]:
    """Bounds after which each stage has about its share of the work, and none is empty."""
    work = list(accumulate(s.macs + s.moved_bytes for s in analysis.segments))
    bounds = [0]
    for stage in range(1, stages):
        place = bisect_left(work, work[-1] * stage / stages) + 1
        latest = len(work) - (stages - stage)
        bounds.append(min(max(place, bounds[-1] + 1), latest))
    return (*bounds, len(work))


def compare(case: Case, analysis: Analysis, stages: int, runs: int, folder: Path) -> Comparison:
    """Cut a model into `stages` of like work, and run both, each run of one after one of the
    other."""
    files = extract_stages(case.path, case.shapes, balanced_bounds(analysis, stages), folder)
    differences: list[float] = []
    for level in LEVELS:
        whole = Session(case.path, level)
        parts = [Session(folder / file.filename, level) for file in files]
        expected, found = whole.run(case.feeds), run_stages(files, parts, case.feeds)
        differences.append(_difference(expected, found))
    largest = max(float(np.abs(v.astype(np.float64)).max()) for v in expected.values())
    relative = differences[-1] / (largest or 1.0)
    whole_ms: list[float] = []
    staged_ms: list[float] = []
    for _ in range(runs):
        whole_ms.append(_timed(lambda: whole.run(case.feeds)))
        staged_ms.append(_timed(lambda: run_stages(files, parts, case.feeds)))
    return Comparison(stages, tuple(differences), relative, tuple(whole_ms), tuple(staged_ms))


def _difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Largest absolute difference. Raises `ValueError` if other outputs came than expected."""
    if expected.keys() != found.keys():
        raise ValueError(f"the stages gave {sorted(found)}, not {sorted(expected)}")
    largest = 0.0
    for name, values in expected.items():
        if not np.array_equal(values, found[name], equal_nan=values.dtype.kind == "f"):
            gap = np.abs(values.astype(np.float64) - found[name].astype(np.float64))
            largest = max(largest, float(gap.max()))
    return largest


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def _row(
    case: Case, analysis: Analysis, took_ms: float, found: Sequence[Comparison]
) -> tuple[str, ...]:
    sizes = [segment.out_bytes for segment in analysis.segments[:-1]]
    ratios = {
        c.stages: f"{np.median(np.divide(c.staged_ms, c.whole_ms)):.2f}" if case.real else "-"
        for c in found
    }
    return (
        case.name,
        str(len(onnx.load(case.path).graph.node)),
        str(len(analysis.segments)),
        f"{min(sizes):,}",
        f"{max(sizes):,}",
        number(took_ms),
        *(_shown(max(values)) for values in zip(*(c.differences for c in found), strict=True)),
        _shown(max(c.relative for c in found)),
        *(ratios.get(stages, "-") for stages in STAGES),
    )


def _shown(difference: float) -> str:
    return "identical" if difference == 0 else f"{difference:.1e}"


def _notes(runs: int) -> list[str]:
    return [
        f"Each model cut into {', '.join(map(str, STAGES))} stages of like work, each a model file "
        "of its own, run one after another in one process on one thread by ONNX Runtime for the "
        "CPU, with values of noise. `none`, `extended` and `all` are the largest absolute "
        "difference to the whole with none of the runtime's graph optimisations, with all but "
        "those of the memory layout, and with all; `relative` is the last over the largest "
        "absolute output. Cuts in bytes of one request.",
        "Without optimisations every operator is the same in a stage, and so is every bit. With "
        "those of the layout, the runtime keeps activations in blocks of channels up to a "
        "boundary, and what follows adds in another order.",
        f"`time x2` is the median over {runs} pairs of runs of the time of two stages together "
        "over that of the whole, on the same cores: what cutting itself costs, without any link. "
        "The small architectures compute for microseconds, which says nothing of that.",
    ]
