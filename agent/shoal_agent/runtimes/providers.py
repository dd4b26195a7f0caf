"""Which execution providers ONNX Runtime can be asked for on a board, as data. Pure.

Options are those of ONNX Runtime's documentation of each provider: TensorRT, CUDA, CANN and QNN
("Execution Providers", onnxruntime.ai).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.delegates import BY_PROVIDER
from shoal_shared.placement import CPU_PROVIDERS

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CANN, QNN = "CANNExecutionProvider", "QNNExecutionProvider"

SIMULATED_SOC = "57"
"""Snapdragon 8 Gen 3: what QNN's simulator on x86-64 stands for, unless told otherwise."""

_QUALCOMM = "qualcomm-soc"
# Options as QNN's backend_path and op_packages, TensorRT's trt_extra_plugin_lib_paths and
# trt_dump_subgraphs, CANN's dump_graphs.
_FILES = re.compile(r"path|_lib|dump|op_packages|saver|file")
_SETS: dict[str, tuple[ProviderSet, ...]] = {
    TENSORRT: (
        ProviderSet(
            name="tensorrt",
            providers=(
                (TENSORRT, {"trt_fp16_enable": "1", "trt_builder_optimization_level": "3"}),
                (CUDA, {}),
                (CPU, {}),
            ),
            accelerated=True,
            compiles=True,
        ),
    ),
    CUDA: (ProviderSet(name="cuda", providers=((CUDA, {}), (CPU, {})), accelerated=True),),
    CANN: (
        ProviderSet(
            name="cann",
            providers=(
                (CANN, {"arena_extend_strategy": "kSameAsRequested", "enable_cann_graph": "1"}),
                (CPU, {}),
            ),
            accelerated=True,
            compiles=True,
        ),
    ),
    QNN: (
        ProviderSet(
            name="qnn-htp",
            providers=((QNN, {"backend_type": "htp", "htp_performance_mode": "burst"}), (CPU, {})),
            accelerated=True,
            static=True,
            compiles=True,
        ),
        ProviderSet(
            name="qnn-gpu",
            providers=((QNN, {"backend_type": "gpu"}), (CPU, {})),
            accelerated=True,
            static=True,
        ),
    ),
    CPU: (ProviderSet(name="cpu", providers=((CPU, {}),)),),
}


def board_sets(
    listed: Sequence[str], facts: BoardFacts | None, machine: str
) -> tuple[ProviderSet, ...]:
    """Provider sets for the providers that a runtime lists, the most preferred first.

    `machine` is the processor's architecture: on x86-64, QNN computes in its simulator, which
    has no GPU and must be told what chip to be.
    """
    found: list[ProviderSet] = []
    target = facts.target if facts is not None else ""
    for provider in (TENSORRT, CUDA, CANN, QNN, CPU):
        if provider in listed:
            found += [_for_board(s, target, machine) for s in _SETS[provider]]
    if _is_simulator(machine):
        found = [s for s in found if s.name != "qnn-gpu"]
    return tuple(found)


def simulator_note(listed: Sequence[str], machine: str) -> str | None:
    """What the operator must know where QNN only pretends to be a chip."""
    if QNN not in listed or not _is_simulator(machine):
        return None
    return f"QNN computes in the HTP simulator of chip {SIMULATED_SOC}: right, but slow"


def with_options(
    sets: Sequence[ProviderSet], listed: Sequence[str], options: Mapping[str, Any]
) -> tuple[ProviderSet, ...]:
    """The sets as a deployment's options have them. Raises `RuntimeLoadError`.

    `providers`, a list of names or [name, {option: value}] pairs, replaces all sets by one;
    `provider_options`, {name: {option: value}}, adds to the options of a provider wherever it
    is used; `provider_set` names the sets that may be used.
    """
    if "providers" in options:
        sets = (_custom(options["providers"], listed, sets),)
    if "provider_options" in options:
        added = _checked_options(options["provider_options"], listed)
        sets = [_merged(s, added) for s in sets]
    if "provider_set" in options:
        wanted = options["provider_set"]
        names = [wanted] if isinstance(wanted, str) else wanted
        known = [s.name for s in sets]
        # Not as sets: a hostile list may hold what cannot be hashed.
        if not isinstance(names, Sequence) or not names or any(n not in known for n in names):
            raise RuntimeLoadError(
                f"option 'provider_set' must name one or more of {', '.join(known)}"
            )
        sets = [s for s in sets if s.name in names]
    return tuple(sets)


def _for_board(known: ProviderSet, target: str, machine: str) -> ProviderSet:
    if known.name.startswith("qnn") and not target.startswith(_QUALCOMM):
        if not _is_simulator(machine):
            return known
        target = f"{_QUALCOMM}{SIMULATED_SOC}"
    if known.name == "qnn-htp":
        known = _merged(known, {QNN: {"soc_model": target.removeprefix(_QUALCOMM)}})
    # Code is compiled for a chip; where that is not known, it is not shared.
    return msgspec.structs.replace(
        known, target=target if known.compiles or known.accelerated else ""
    )


def _custom(wanted: Any, listed: Sequence[str], sets: Sequence[ProviderSet]) -> ProviderSet:
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted:
        raise RuntimeLoadError("option 'providers' must be a list of execution providers")
    providers: list[tuple[str, dict[str, str]]] = []
    for item in wanted:
        pair = isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2
        name, settings = item if pair else (item, {})
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            raise RuntimeLoadError(
                "option 'providers' must hold names or pairs of a name and its options"
            )
        _check_listed(name, listed)
        providers.append((name, _checked_settings(name, settings)))
    alike = _alike(providers[0], sets)
    accelerated = any(name not in CPU_PROVIDERS for name, _ in providers)
    custom = ProviderSet(
        name="custom" if accelerated else "cpu",
        providers=tuple(providers),
        accelerated=accelerated,
        static=alike is not None and alike.static,
        compiles=alike is not None and alike.compiles,
        target=alike.target if alike is not None else "",
    )
    return _merged(custom, {})


def _alike(wanted: tuple[str, dict[str, str]], sets: Sequence[ProviderSet]) -> ProviderSet | None:
    """The set of the board that uses a provider in the same way."""
    name, settings = wanted
    found = [s for s in sets if s.providers[0][0] == name]
    for known in found:
        if known.providers[0][1].get("backend_type") == settings.get("backend_type"):
            return known
    return found[0] if found else None


def _checked_options(wanted: Any, listed: Sequence[str]) -> dict[str, dict[str, str]]:
    text = "option 'provider_options' must map execution providers to their options"
    if not isinstance(wanted, Mapping):
        raise RuntimeLoadError(text)
    checked: dict[str, dict[str, str]] = {}
    for name, settings in wanted.items():
        if not isinstance(settings, Mapping):
            raise RuntimeLoadError(text)
        if (name in _SETS or name in BY_PROVIDER) and name not in listed:
            continue  # Options for another board in the same fleet, or for another runtime.
        _check_listed(name, listed)
        checked[name] = _checked_settings(name, settings)
    return checked


def _checked_settings(provider: str, settings: Mapping[Any, Any]) -> dict[str, str]:
    """Options as texts; none may make the device load a library or write a file."""
    checked = {str(k): str(v) for k, v in settings.items()}
    for name in checked:
        if _FILES.search(name.lower()):
            raise RuntimeLoadError(
                f"option '{name[:80]}' of {provider} names files of the device, which a "
                "deployment may not"
            )
    return checked


def _check_listed(name: Any, listed: Sequence[str]) -> None:
    if name not in listed:
        raise RuntimeLoadError(
            f"execution provider '{str(name)[:80]}' is not available; this runtime has "
            f"{', '.join(listed)}"
        )


def _merged(known: ProviderSet, added: Mapping[str, Mapping[str, str]]) -> ProviderSet:
    providers = tuple((n, {**settings, **added.get(n, {})}) for n, settings in known.providers)
    soc = dict(providers).get(QNN, {}).get("soc_model")
    return msgspec.structs.replace(
        known, providers=providers, target=f"{_QUALCOMM}{soc}" if soc else known.target
    )


def _is_simulator(machine: str) -> bool:
    return machine in ("x86_64", "AMD64")
