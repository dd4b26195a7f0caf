"""The doctor on accelerators: what is there, and whether a tiny model really runs on it."""

from __future__ import annotations

import re
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
from shoal_shared.placement import CPU_PROVIDERS, Proof

Trial = Callable[[TrialTask], Awaitable[TrialOutcome]]
"""Tries a model where a crash hurts nobody; raises `RuntimeLoadError`."""

TOLERANCE = 0.02
"""Half precision, and QNN's, stay within it for the self-test's values of about 1."""

_AGAIN = "check that driver and runtime fit, then shoal-agent doctor"
_EXTRAS = {"jetson": "jetson", "ascend": "ascend", "snapdragon": "qualcomm"}
_REPLACED = ("jetson", "ascend")
"""Extras with an ONNX Runtime of their own, which the plain one must make room for."""
_JETPACK_WHEEL = (
    "install NVIDIA's onnxruntime-gpu wheel for your JetPack: "
    "https://elinux.org/Jetson_Zoo#ONNX_Runtime"
)
_NEWER_PYTHON = (
    "install Python 3.11 or 3.12, for which Qualcomm's runtime is built, and there: "
    "python -m pip install 'shoal[qualcomm]'"
)
_DO_WITHOUT = "; without such an accelerator, install 'shoal[cpu]' in an environment of its own"
_CUDA = re.compile(r"install CUDA (\d+)")
# How the sentences of boards and runtimes say what to do, after a colon.
_ADVICE = re.compile(r"(.+?): ((?:check|install|set|source|start|update|use) .+)", re.DOTALL)


def check_accelerators(facts: BoardFacts) -> Finding:
    """What the board has; having none is fine."""
    if not facts.accelerators:
        return Finding(check="accelerators", ok=True, detail="none was found")
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
    """What the board says of itself is a warning; after its first sentence it says what to do."""
    findings = []
    for note in facts.notes:
        detail, _, remedy = note.partition(". ")
        if not remedy:
            detail, remedy = _parted(note)
        findings.append(
            Finding(
                check="board note",
                ok=False,
                detail=detail.rstrip("."),
                remedy=remedy.rstrip(".") or _AGAIN,
            )
        )
    return tuple(findings)


def provider_sets(registry: RuntimeRegistry) -> tuple[tuple[str, ProviderSet], ...]:
    """All ways to run models here, each with the format that it runs."""
    formats = [fmt for info in registry.infos() for fmt in info.formats]
    return tuple((fmt, s) for fmt in formats for s in registry.provider_sets(fmt, {}))


def check_coverage(
    facts: BoardFacts,
    sets: Sequence[ProviderSet],
    python: tuple[int, int],
    distributions: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """A problem if the board has an accelerator that no runtime here is made for.

    `distributions` are those of ONNX Runtime that are installed.
    """
    if not facts.accelerators or any(s.accelerated for s in sets):
        return ()
    family = facts.description.family
    extra = _EXTRAS.get(family)
    if extra is None:
        remedy = "see CONTRIBUTING: add a runtime"
    elif extra == "qualcomm" and python < (3, 11):
        remedy = _NEWER_PYTHON
    else:
        old = extra == "jetson" and python < (3, 11)
        remedy = _JETPACK_WHEEL if old else pip(f"install 'shoal[{extra}]'")
        if extra in _REPLACED and distributions:
            joint = ", then " if old else " && "
            remedy = pip("uninstall -y " + " ".join(distributions)) + joint + remedy
    return (
        Finding(
            check="accelerators",
            ok=False,
            detail=f"no runtime that uses {facts.accelerators[0].name} is installed",
            remedy=remedy,
            blocks=True,
        ),
    )


async def check_inference(
    facts: BoardFacts, sets: Sequence[tuple[str, ProviderSet]], trial: Trial
) -> tuple[Finding, ...]:
    """Run the self-test on every provider set, one after the other.

    An accelerated one that fails blocks if no other accelerated one works, for then the device
    is slower than its owner thinks.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-doctor-") as folder:
        findings = [(s, await _try(fmt, s, Path(folder), trial)) for fmt, s in sets]
    one_works = any(s.accelerated and f.ok for s, f in findings)
    return tuple(f if f.ok else _weighed(f, s, facts, one_works) for s, f in findings)


def _weighed(
    problem: Finding, provider_set: ProviderSet, facts: BoardFacts, one_works: bool
) -> Finding:
    """How bad it is that a set failed, and the other way out."""
    remedy, cuda = problem.remedy, facts.toolkits.get("cuda", "")
    needed = _CUDA.match(remedy)
    if provider_set.accelerated and not facts.accelerators:
        remedy += _DO_WITHOUT
    elif needed and cuda and needed[1] != cuda.partition(".")[0] and _is_jetson(facts):
        # A Jetson's CUDA comes with its JetPack and stays: the runtime is what must fit.
        remedy = f"{_JETPACK_WHEEL} (this one needs CUDA {needed[1]}, the board has {cuda})"
    blocks = not (provider_set.accelerated and one_works)
    return msgspec.structs.replace(problem, remedy=remedy, blocks=blocks)


def _is_jetson(facts: BoardFacts) -> bool:
    return facts.description.family == "jetson"


async def _try(fmt: str, provider_set: ProviderSet, folder: Path, trial: Trial) -> Finding:
    test = self_test(fmt)
    model, golden = folder / f"selftest.{fmt}", folder / f"{fmt}.golden"
    model.write_bytes(test.model)
    golden.write_bytes(encode(test.golden))
    task = TrialTask(
        format=fmt,
        path=str(model),
        options={},
        provider_set=provider_set,
        golden=str(golden),
        absolute=TOLERANCE,
    )
    name = f"{fmt} on {provider_set.name}"
    try:
        outcome = await trial(task)
    except RuntimeLoadError as error:
        return _problem(name, str(error))
    text = _placed(outcome)
    if provider_set.accelerated and not _is_used(outcome):
        return _problem(name, f"{text}: {outcome.complaint or 'the provider ran nothing'}")
    difference = outcome.golden_error or 0.0
    if not outcome.agrees:
        return _problem(name, f"{text}, but its answer is wrong by {difference:.3g}")
    took = "" if outcome.milliseconds is None else f", {outcome.milliseconds:.3f} ms"
    right = f"right within {difference:.1g}" if difference else "right"
    return Finding(check=name, ok=True, detail=f"{text}{took}, {right}")


def _is_used(outcome: TrialOutcome) -> bool:
    """Whether the accelerator ran it. Where nodes are not told, that the session has its provider
    must do: on so small a model, no accelerator is faster than the CPU."""
    if outcome.placement.proof is Proof.GRAPH:
        return outcome.placement.is_accelerated
    return outcome.providers[0] not in CPU_PROVIDERS


def _placed(outcome: TrialOutcome) -> str:
    nodes = outcome.placement.nodes
    if nodes:
        total = sum(nodes.values())
        return " and ".join(f"{n} of {total} nodes on {name}" for name, n in nodes.items())
    first = outcome.providers[0]
    if first in CPU_PROVIDERS:
        return f"runs on {first}"
    return f"loads on {first}, but this runtime does not tell which nodes run there"


def _problem(check: str, text: str) -> Finding:
    detail, remedy = _parted(text)
    return Finding(check=check, ok=False, detail=detail, remedy=remedy or _AGAIN)


def _parted(text: str) -> tuple[str, str]:
    """What is wrong, and what to do about it, as far as a sentence says that."""
    match = _ADVICE.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")
