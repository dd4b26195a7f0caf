"""Which files may run in which ways, decided without a file or a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.serving.variants import choose
from shoal_shared.messages import ModelGoal, VariantGoal

CPU = ProviderSet(name="cpu", providers=(("CPUExecutionProvider", {}),))
HTP = ProviderSet(
    name="qnn-htp",
    providers=(("QNNExecutionProvider", {}),),
    accelerated=True,
    compiles=True,
    target="qualcomm-soc57",
)
SETS = {"onnx": (HTP, CPU)}


def sets_for(fmt: str, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
    if fmt not in SETS:
        raise RuntimeLoadError(f"no runtime for {fmt} models is installed")
    return SETS[fmt]


def variant(name: str, fmt: str = "onnx", target: str = "") -> VariantGoal:
    return VariantGoal(name=name, digest=f"sha256:{name}", size=1, format=fmt, target=target)


def goal(*variants: VariantGoal, **more: Any) -> ModelGoal:
    values = {"digest": "sha256:r", "size": 1, "format": "onnx", "variants": variants} | more
    return ModelGoal(deployment="d", model="m", version="1", **values)


def pairs(candidates: Any) -> list[tuple[str, str]]:
    return [(c.file.name, c.provider_set.name) for c in candidates]


def test_accelerators_and_the_cpu_are_kept_apart() -> None:
    choice = choose(goal(variant("int8")), sets_for)
    assert pairs(choice.fast) == [("reference", "qnn-htp"), ("int8", "qnn-htp")]
    assert pairs(choice.slow) == [("reference", "cpu"), ("int8", "cpu")]
    assert choice.refused == ()
    assert [f.name for f in choice.files] == ["reference", "int8"]


def test_compiled_files_go_to_their_chip_only() -> None:
    here, elsewhere = variant("ctx", target="qualcomm-soc57"), variant("x", target="qualcomm-soc69")
    choice = choose(goal(here, elsewhere), sets_for)
    assert ("ctx", "qnn-htp") in pairs(choice.fast)
    assert "ctx" not in dict(pairs(choice.slow))
    assert choice.refused == (
        "variant 'x' is compiled for qualcomm-soc69, but this board is qualcomm-soc57",
    )
    assert "x" not in [f.name for f in choice.files]


def test_formats_without_a_runtime_are_refused_with_its_remedy() -> None:
    choice = choose(goal(variant("lite", "tflite")), sets_for)
    assert choice.refused == ("lite: no runtime for tflite models is installed",)
    alone = choose(goal(format="tflite"), sets_for)
    assert (alone.all, alone.refused) == ((), ("no runtime for tflite models is installed",))


@pytest.mark.parametrize("has_accelerator", [True, False])
def test_a_required_accelerator_leaves_out_the_cpu(has_accelerator: bool) -> None:
    sets = (HTP, CPU) if has_accelerator else (CPU,)
    choice = choose(goal(require_accelerator=True), lambda *_: sets)
    assert choice.slow == ()
    assert bool(choice.fast) is has_accelerator
    assert (
        "no runtime on this device uses an accelerator, which is required" in choice.refused
    ) is (not has_accelerator)
