"""`shoal infer --batch-dir`: all inputs of a folder through the gateway, and one result file.

Inputs alike are stacked into requests, which the gateway splits over the fleet; a few of them are
under way at a time. What goes wrong with one input is told in its line, and the rest goes on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal_controlplane.cli.batchfile import ResultFile, result_file
from shoal_controlplane.cli.batchinputs import Sample, find_inputs, group, load_input, stack
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import Format
from shoal_controlplane.cli.output import emit
from shoal_controlplane.cli.progress import counting
from shoal_controlplane.cli.views import ModelVersion
from shoal_controlplane.models.card import ModelCard
from shoal_controlplane.models.media import MediaError, read_answer
from shoal_shared.oip import InferReply, Tensor

UNDER_WAY = 4
"""Requests at a time."""

RETRIES = 12
"""Requests that may fail while those inputs of a failed request are found that are to blame."""

GIVE_UP = 3
"""Requests in a row that came to nothing for all of their inputs: nobody answers any more."""


Ask = Callable[[list[Tensor]], InferReply]


@dataclass
class Outcome:
    """What one request brought: outputs by sample, or why there are none."""

    samples: list[Sample]
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)


def run_folder(
    folder: Path,
    target: Path | None,
    version: ModelVersion,
    card: ModelCard | None,
    ask: Ask,
    output: Format,
) -> None:
    """Ask about every input in `folder` and write `target`. Raises `CliError`, at the end too if
    some failed."""
    files = find_inputs(folder, version, card)
    if target is None:
        target = Path(f"{folder.resolve().name or 'root'}-results.jsonl")
    names = [file.name for file in files]
    batched = version.max_batch > 0
    started = time.perf_counter()
    with (
        result_file(target, names, version.signature, rows=batched) as results,
        counting(f"asking {version.name}:{version.version}", len(files)) as advance,
    ):
        run = _Run(files, version, card, results, advance)
        run.all(ask, batched)
    seconds = time.perf_counter() - started
    _report(version, run, target, seconds, output)
    if run.failed:
        raise CliError(f"{run.failed} of {len(files)} inputs failed: {target} says why")


class _Run:
    """Counts what came of the inputs, and puts it into the result file."""

    def __init__(
        self,
        files: Sequence[Path],
        version: ModelVersion,
        card: ModelCard | None,
        results: ResultFile,
        advance: Callable[[int], None],
    ) -> None:
        self.count = len(files)
        self.failed = 0
        self.devices: Counter[str] = Counter()
        self._files = files
        self._version = version
        self._card = card
        self._results = results
        self._advance = advance
        self._settled = [False] * len(files)

    def all(self, ask: Ask, batched: bool) -> None:
        """Ask about all inputs; after `GIVE_UP` the rest are told to have failed."""
        barren = 0
        requests = group(self._samples(), stacked=batched)
        for outcome in under_way(lambda samples: ask_about(ask, samples, batched), requests):
            self._settle(outcome)
            barren = 0 if outcome.outputs else barren + 1
            if barren == GIVE_UP:
                error = next(iter(outcome.errors.values()))
                for index, settled in enumerate(self._settled):
                    if not settled:
                        self._fail(index, f"not asked, since others failed before it: {error}")
                return

    def _samples(self) -> Iterator[Sample]:
        for index, file in enumerate(self._files):
            try:
                yield load_input(index, file, self._version, self._card)
            except (CliError, MediaError) as error:
                self._fail(index, str(error))

    def _settle(self, outcome: Outcome) -> None:
        self.devices.update(outcome.devices)
        for index, error in outcome.errors.items():
            self._fail(index, error)
        for sample in outcome.samples:
            outputs = outcome.outputs.get(sample.index)
            if outputs is None:
                continue
            try:
                self._results.add(sample.index, outputs, self._read(sample, outputs))
            except (CliError, MediaError) as error:
                self._fail(sample.index, str(error))
            else:
                self._done(sample.index)

    def _read(self, sample: Sample, outputs: Sequence[Tensor]) -> dict[str, Any] | None:
        if self._card is None or sample.rows > 1:
            return None
        arrays = {tensor.name: tensor.data for tensor in outputs}
        return asdict(read_answer(self._card, arrays, sample.picture))

    def _fail(self, index: int, error: str) -> None:
        self.failed += 1
        self._results.failed(index, error)
        self._done(index)

    def _done(self, index: int) -> None:
        self._settled[index] = True
        self._advance(1)


def ask_about(ask: Ask, samples: list[Sample], batched: bool) -> Outcome:
    """One request for all samples. If it fails, its halves are asked, so that only those fail
    that are to blame, up to `RETRIES` failures."""
    outcome = Outcome(samples)
    todo, failures = [samples], 0
    while todo:
        part = todo.pop()
        try:
            reply = ask(stack(part))
            pieces = _apart(reply, part, batched)
        except CliError as error:
            failures += 1
            if len(part) > 1 and failures <= RETRIES:
                middle = len(part) // 2
                todo += [part[middle:], part[:middle]]
            else:
                outcome.errors.update((sample.index, str(error)) for sample in part)
            continue
        outcome.outputs.update(pieces)
        items = sum(sample.rows for sample in part)
        devices = reply.parameters.get("devices")
        if not isinstance(devices, dict):
            devices = {str(reply.parameters.get("device", "a device")): items}
        outcome.devices.update({str(k): v for k, v in devices.items() if isinstance(v, int)})
    return outcome


def _apart(reply: InferReply, samples: Sequence[Sample], batched: bool) -> dict[int, list[Tensor]]:
    """The rows of each sample."""
    if not batched:
        return {samples[0].index: reply.outputs}
    items = sum(sample.rows for sample in samples)
    for tensor in reply.outputs:
        if tensor.data.shape[:1] != (items,):
            raise CliError(
                f"output '{tensor.name}' has shape {list(tensor.data.shape)} for {items} items"
            )
    found, start = {}, 0
    for sample in samples:
        stop = start + sample.rows
        found[sample.index] = [
            Tensor(t.name, t.datatype, t.data[start:stop]) for t in reply.outputs
        ]
        start = stop
    return found


def under_way(
    work: Callable[[list[Sample]], Outcome], requests: Iterable[list[Sample]]
) -> Iterator[Outcome]:
    """Outcomes as they come, of `UNDER_WAY` requests at a time.

    The threads are daemons, so that Ctrl-C waits for none of them.
    """
    todo: queue.SimpleQueue[list[Sample] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def serve() -> None:
        while (samples := todo.get()) is not None:
            try:
                done.put(work(samples))
            except BaseException as error:  # is raised where the outcome is awaited
                done.put(error)

    for _ in range(UNDER_WAY):
        threading.Thread(target=serve, name="shoal-batch", daemon=True).start()

    def next_outcome() -> Outcome:
        outcome = done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    waiting = 0
    try:
        for request in requests:
            if waiting == UNDER_WAY:
                yield next_outcome()
                waiting -= 1
            todo.put(request)
            waiting += 1
        while waiting:
            yield next_outcome()
            waiting -= 1
    finally:
        for _ in range(UNDER_WAY):
            todo.put(None)


def _report(version: ModelVersion, run: _Run, target: Path, seconds: float, output: Format) -> None:
    rate = (run.count - run.failed) / max(seconds, 1e-6)
    document = {
        "model": version.name,
        "version": version.version,
        "inputs": run.count,
        "failed": run.failed,
        "seconds": round(seconds, 3),
        "items_per_second": round(rate, 1),
        "devices": dict(sorted(run.devices.items())),
        "file": str(target),
    }
    lines = [f"{run.count - run.failed} answers in {seconds:.1f} s, {rate:.1f} a second: {target}"]
    lines += [f"{device}  {items}" for device, items in sorted(run.devices.items())]
    emit(output, document, lambda: lines)
