"""The doctor on accelerators: what is there, and whether a tiny model really runs on it."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.runtimes.selftest import self_test
from shoal_agent.runtimes.trial import TrialOutcome, TrialTask
from shoal_agent.service.finding import Finding, pip
from shoal_shared.golden import encode

Trial = Callable[[TrialTask], Awaitable[TrialOutcome]]
"""Tries a model where a crash hurts nobody; raises `RuntimeLoadError`."""

TOLERANCE = 0.02
"""Half precision, and QNN's, stay within it for the self-test's values of about 1."""

_AGAIN = "check that driver and runtime fit, then shoal-agent doctor"
_EXTRAS = {"jetson": "jetson", "ascend": "ascend", "snapdragon": "qualcomm"}
_JETPACK_6 = (
    "install NVIDIA's onnxruntime-gpu wheel for your JetPack: "
    "https://elinux.org/Jetson_Zoo#ONNX_Runtime"
)


def check_accelerators(facts: BoardFacts) -> Finding:
    """What the board has; having none is fine."""
    if not facts.accelerators:
        return Finding(
            check="accelerators", ok=True, detail="none was found: models run on the CPU"
        )
    each = []
    for accelerator in facts.accelerators:
        about = [accelerator.kind, *accelerator.precisions]
        if accelerator.memory_bytes:
            about.append(f"{accelerator.memory_bytes / 2**30:.1f} GiB")
        if accelerator.compute_capability:
            about.append(f"compute capability {accelerator.compute_capability}")
        each.append(f"{accelerator.name} ({', '.join(about)})")
    return Finding(check="accelerators", ok=True, detail="; ".join(each))


def check_drivers(facts: BoardFacts) -> Finding:
    """Versions of drivers and toolkits, as far as the board tells them."""
    found = [f"{name} {version}" for name, version in sorted(facts.toolkits.items())]
    if facts.power_mode:
        found.append(f"power mode {facts.power_mode}")
    return Finding(check="drivers", ok=True, detail=", ".join(found) or "none was found")


def check_notes(facts: BoardFacts) -> tuple[Finding, ...]:
    """What the board says of itself is a warning, and says what to do."""
    return tuple(
        Finding(check="board", ok=False, detail=note.partition(": ")[0], remedy=_remedy(note))
        for note in facts.notes
    )


def check_coverage(
    facts: BoardFacts, sets: Sequence[ProviderSet], python: tuple[int, int]
) -> Finding:
    """Whether some runtime here can use what the board has."""
    name = "runtime for the accelerator"
    family = facts.description.family
    if not facts.accelerators or any(s.accelerated for s in sets):
        return Finding(check=name, ok=True, detail="nothing is missing")
    extra = _EXTRAS.get(family)
    remedy = pip(f"install 'shoal[{extra}]'") if extra else "see CONTRIBUTING: add a runtime"
    if family == "jetson" and python < (3, 11):
        remedy = _JETPACK_6
    return Finding(
        check=name,
        ok=False,
        detail=f"{facts.accelerators[0].name} is there, but no runtime that uses it is installed",
        remedy=remedy,
        blocks=True,
    )


async def check_inference(registry: RuntimeRegistry, trial: Trial) -> tuple[Finding, ...]:
    """Run the self-test on every provider set of ONNX Runtime, one after the other.

    An accelerated one that fails blocks if no other accelerated one works, for then the device
    is slower than its owner thinks.
    """
    try:
        sets = registry.provider_sets("onnx", {})
    except RuntimeLoadError:
        return ()
    with tempfile.TemporaryDirectory(prefix="shoal-doctor-") as folder:
        findings = [(s, await _try(s, Path(folder), trial)) for s in sets]
    one_works = any(s.accelerated and f.ok for s, f in findings)
    return tuple(
        msgspec.structs.replace(f, blocks=not f.ok and not (s.accelerated and one_works))
        for s, f in findings
    )


async def _try(provider_set: ProviderSet, folder: Path, trial: Trial) -> Finding:
    test = self_test()
    model, golden = folder / "selftest.onnx", folder / "golden"
    model.write_bytes(test.model)
    golden.write_bytes(encode(test.golden))
    task = TrialTask(
        format="onnx",
        path=str(model),
        options={},
        provider_set=provider_set,
        golden=str(golden),
        absolute=TOLERANCE,
    )
    name = f"inference on {provider_set.name}"
    try:
        outcome = await trial(task)
    except RuntimeLoadError as error:
        return _problem(name, str(error))
    text = _placed(outcome)
    if provider_set.accelerated and not outcome.placement.is_accelerated:
        return _problem(name, f"{text}: {outcome.complaint or 'the provider ran nothing'}")
    if not outcome.agrees:
        return _problem(name, f"{text}, but its answer is wrong by {outcome.golden_error:.3g}")
    took = "" if outcome.milliseconds is None else f", {outcome.milliseconds:.2f} ms"
    return Finding(
        check=name, ok=True, detail=f"{text}{took}, right within {outcome.golden_error:.1g}"
    )


def _placed(outcome: TrialOutcome) -> str:
    nodes = outcome.placement.nodes
    if not nodes:
        share = "runs" if outcome.placement.is_accelerated else "does not run"
        return f"{share} on {outcome.providers[0]}, told by its time"
    total = sum(nodes.values())
    return " and ".join(f"{n} of {total} nodes on {name}" for name, n in nodes.items())


def _problem(check: str, text: str) -> Finding:
    cause, missing, remedy = text.partition(" not found: ")
    if not missing:
        return Finding(check=check, ok=False, detail=text, remedy=_AGAIN)
    return Finding(check=check, ok=False, detail=f"{cause} not found", remedy=remedy)


def _remedy(note: str) -> str:
    return note.partition(": ")[2] or "see the board's own documentation"
