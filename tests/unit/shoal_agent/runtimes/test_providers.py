from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.boards.base import BoardFacts
from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.providers import (
    CANN,
    CPU,
    CUDA,
    QNN,
    TENSORRT,
    board_sets,
    simulator_note,
    with_options,
)
from shoal_shared.messages import Board as BoardDescription

GPU, NPU, HTP = (TENSORRT, CUDA, CPU), (CANN, CPU), (QNN, CPU)


def facts(target: str) -> BoardFacts:
    board = BoardDescription(family="generic", model="a board")
    return BoardFacts(description=board, cores=4, memory_bytes=1 << 30, target=target)


def named(sets: tuple[ProviderSet, ...], name: str) -> ProviderSet:
    return next(s for s in sets if s.name == name)


@pytest.mark.parametrize(
    ("listed", "target", "machine", "names"),
    [
        (GPU, "nvidia-sm87", "aarch64", ["tensorrt", "cuda", "cpu"]),
        (NPU, "ascend-310b4", "aarch64", ["cann", "cpu"]),
        (HTP, "qualcomm-soc69", "aarch64", ["qnn-htp", "qnn-gpu", "cpu"]),
        (HTP, "", "x86_64", ["qnn-htp", "cpu"]),
        ((CPU,), "", "x86_64", ["cpu"]),
    ],
)
def test_sets_of_boards_come_with_the_cpu_last(listed, target, machine, names) -> None:
    sets = board_sets(listed, facts(target), machine)
    assert [s.name for s in sets] == names
    assert [s.accelerated for s in sets] == [True] * (len(sets) - 1) + [False]
    assert {s.target for s in sets[:-1]} <= {target or "qualcomm-soc57"}
    assert sets[-1] == ProviderSet(name="cpu", providers=((CPU, {}),))
    assert all(s.providers[-1] == (CPU, {}) for s in sets)


def test_qnn_is_told_the_chip_and_needs_fixed_shapes() -> None:
    htp, gpu, _ = board_sets(HTP, facts("qualcomm-soc69"), "aarch64")
    assert dict(htp.providers)[QNN]["soc_model"] == "69"
    assert dict(htp.providers)[QNN]["backend_type"] == "htp"
    assert (htp.static, htp.compiles, gpu.static, gpu.compiles) == (True, True, True, False)


def test_the_simulator_is_told_a_chip_and_the_operator_that_it_is_one() -> None:
    htp = board_sets(HTP, None, "x86_64")[0]
    assert dict(htp.providers)[QNN]["soc_model"] == "57"
    assert htp.target == "qualcomm-soc57"
    assert "simulator of chip 57" in (simulator_note(HTP, "x86_64") or "")
    assert simulator_note(HTP, "aarch64") is None
    assert simulator_note(GPU, "x86_64") is None


def test_an_unknown_chip_is_not_made_up() -> None:
    htp = board_sets(HTP, facts(""), "aarch64")[0]
    assert "soc_model" not in dict(htp.providers)[QNN]
    assert htp.target == ""


def test_options_of_a_provider_are_added_wherever_it_is_used() -> None:
    sets = board_sets(GPU, facts("nvidia-sm87"), "aarch64")
    changed = with_options(
        sets, GPU, {"provider_options": {CUDA: {"device_id": 1}, TENSORRT: {"trt_fp16_enable": 0}}}
    )
    assert dict(named(changed, "tensorrt").providers)[CUDA] == {"device_id": "1"}
    assert dict(named(changed, "tensorrt").providers)[TENSORRT]["trt_fp16_enable"] == "0"
    assert dict(named(changed, "cuda").providers)[CUDA] == {"device_id": "1"}
    assert named(changed, "cpu") == named(sets, "cpu")


@pytest.mark.parametrize("provider", [QNN, "TFLiteGpuDelegate"])
def test_options_for_another_board_or_runtime_do_no_harm(provider: str) -> None:
    sets = board_sets(GPU, facts("nvidia-sm87"), "aarch64")
    assert with_options(sets, GPU, {"provider_options": {provider: {"a": "1"}}}) == sets


def test_another_chip_is_another_target() -> None:
    sets = board_sets(HTP, None, "x86_64")
    changed = with_options(sets, HTP, {"provider_options": {QNN: {"soc_model": "69"}}})
    assert changed[0].target == "qualcomm-soc69"


@pytest.mark.parametrize("wanted", ["cuda", ["cuda"]])
def test_sets_are_restricted_by_name(wanted: Any) -> None:
    sets = board_sets(GPU, facts("nvidia-sm87"), "aarch64")
    assert [s.name for s in with_options(sets, GPU, {"provider_set": wanted})] == ["cuda"]


def test_the_preferred_set_stays_first_however_it_is_asked_for() -> None:
    sets = board_sets(GPU, facts("nvidia-sm87"), "aarch64")
    found = with_options(sets, GPU, {"provider_set": ["cpu", "tensorrt"]})
    assert [s.name for s in found] == ["tensorrt", "cpu"]


def test_own_providers_replace_all_sets_and_keep_what_they_need() -> None:
    sets = board_sets(HTP, facts("qualcomm-soc69"), "aarch64")
    (npu,) = with_options(sets, HTP, {"providers": [[QNN, {"backend_type": "htp"}], CPU]})
    assert (npu.name, npu.accelerated, npu.static, npu.compiles) == ("custom", True, True, True)
    assert npu.providers == ((QNN, {"backend_type": "htp"}), (CPU, {}))
    assert npu.target == "qualcomm-soc69"
    (gpu,) = with_options(sets, HTP, {"providers": [[QNN, {"backend_type": "gpu"}]]})
    assert (gpu.static, gpu.compiles) == (True, False)
    (other,) = with_options(
        sets, HTP, {"providers": [[QNN, {"backend_type": "htp", "soc_model": 57}]]}
    )
    assert other.target == "qualcomm-soc57"
    (cpu,) = with_options(sets, HTP, {"providers": [CPU]})
    assert (cpu.name, cpu.accelerated) == ("cpu", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": CPU}, "must be a list"),
        ({"providers": []}, "must be a list"),
        ({"providers": None}, "must be a list"),
        ({"providers": [7]}, "names or pairs"),
        ({"providers": [[CPU, 3]]}, "names or pairs"),
        ({"providers": [[CUDA, {}]]}, "'CUDAExecutionProvider' is not available"),
        ({"provider_options": {QNN: {"backend_path": "/tmp/x.so"}}}, "a deployment may not"),
        ({"providers": [[QNN, {"op_packages": "/tmp/x.so:x"}]]}, "a deployment may not"),
        ({"provider_options": [QNN]}, "must map execution providers"),
        ({"provider_options": {QNN: "57"}}, "must map execution providers"),
        ({"provider_options": {"Qnn": {}}}, "'Qnn' is not available"),
        ({"provider_set": "npu"}, "one or more of qnn-htp, cpu"),
        ({"provider_set": []}, "one or more of"),
        ({"provider_set": [["cpu"]]}, "one or more of"),
        ({"provider_set": {"cpu": 1}}, "one or more of"),
        ({"provider_set": 1}, "one or more of"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_sentence(options, message) -> None:
    with pytest.raises(RuntimeLoadError, match=message) as caught:
        with_options(board_sets(HTP, None, "x86_64"), HTP, options)
    assert "\n" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(HTP),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["providers", "provider_options", "provider_set"]), _JSON))
def test_whatever_the_options_are_there_are_sets_or_one_sentence(options: dict[str, Any]) -> None:
    try:
        sets = with_options(board_sets(HTP, None, "x86_64"), HTP, options)
    except RuntimeLoadError as error:
        assert "\n" not in str(error)
    else:
        assert sets
        for found in sets:
            assert all(type(v) is str for _, s in found.providers for v in s.values())
