"""Cuts of a model file: in this process, or in a child process that a hostile file cannot leave."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shoal_controlplane.planner.cuts.analysis import Analysis, CutError, StageFile

__all__ = ["CutError", "analyse", "analyse_model", "extract", "extract_stages"]

TIMEOUT_S = 120.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do: analyse a file, or extract its stages where there is a folder."""

    path: str
    shapes: dict[str, tuple[int, ...]]
    cpu_seconds: int
    bounds: tuple[int, ...] = ()
    folder: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found: `error` is one sentence where there is neither of the others."""

    analysis: Analysis | None = None
    stages: tuple[StageFile, ...] | None = None
    error: str = ""


_decoder = msgspec.json.Decoder(Answer)


def analyse_model(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Analysis:
    """Segments and cuts of a model, in this process. `shapes` are whole shapes by input, needed
    for inputs with free dimensions other than a first one alone, which becomes 1.

    Raises `CutError`.
    """
    from shoal_controlplane.planner.cuts.reading import read_model
    from shoal_controlplane.planner.cuts.segments import cut_graph

    return cut_graph(read_model(path), shapes).analysis


def extract_stages(
    path: Path, shapes: Mapping[str, tuple[int, ...]], bounds: Sequence[int], folder: Path
) -> tuple[StageFile, ...]:
    """Write the stages [bounds[k], bounds[k + 1]) of a model into `folder`, in this process.

    `shapes` must be those of the analysis that the bounds are from. Raises `CutError`.
    """
    from shoal_controlplane.planner.cuts.extraction import write_stages
    from shoal_controlplane.planner.cuts.reading import read_model
    from shoal_controlplane.planner.cuts.segments import cut_graph

    return write_stages(cut_graph(read_model(path), shapes), bounds, folder)


async def analyse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], timeout_s: float = TIMEOUT_S
) -> Analysis:
    """As `analyse_model`, in a child process with limits. Raises `CutError`, also if the child
    crashes or takes too long."""
    job = Job(path=str(path), shapes=dict(shapes), cpu_seconds=int(timeout_s) + 1)
    answer = await _in_child(job, timeout_s)
    if answer.analysis is None:
        raise CutError(answer.error)
    return answer.analysis


async def extract(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Sequence[int],
    folder: Path,
    timeout_s: float = TIMEOUT_S,
) -> tuple[StageFile, ...]:
    """As `extract_stages`, in a child process with limits: all files are there afterwards, or
    none is. Raises `CutError`."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".cut-", dir=folder))
    except OSError as error:
        raise CutError(f"The stages cannot be written: {error.strerror}.") from None
    try:
        job = Job(
            path=str(path),
            shapes=dict(shapes),
            cpu_seconds=int(timeout_s) + 1,
            bounds=tuple(bounds),
            folder=str(scratch),
        )
        answer = await _in_child(job, timeout_s)
        if answer.stages is None:
            raise CutError(answer.error)
        for stage in answer.stages:
            (scratch / stage.filename).replace(folder / stage.filename)
        return answer.stages
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _in_child(job: Job, timeout_s: float) -> Answer:
    # -P: nothing in the working directory can pose as a module.
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "shoal_controlplane.planner.cuts.child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate(msgspec.json.encode(job))
    except TimeoutError:
        raise CutError(f"The model could not be cut within {timeout_s:g} s.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        return _decoder.decode(output)
    except msgspec.DecodeError:
        raise CutError(
            "The model made its analysis crash: it is damaged, hostile, or too large."
        ) from None
