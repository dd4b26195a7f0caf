from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shoal_agent.boards import socs
from shoal_agent.boards.snapdragon import SnapdragonBoard
from shoal_shared.messages import Accelerator

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"


def gpu(name: str) -> Accelerator:
    return Accelerator(kind="gpu", name=f"Adreno {name}", precisions=("fp32", "fp16"))


def npu(name: str, *precisions: str) -> Accelerator:
    return Accelerator(kind="npu", name=f"Hexagon {name}", precisions=precisions)


BOARDS = {
    "snapdragon-845": ("SDM845 (Snapdragon 845)", gpu("630"), npu("v65 DSP", "int8"), ""),
    "snapdragon-865": ("QRB5165 (Snapdragon 865)", gpu("650"), npu("v66 DSP", "int8"), ""),
    "snapdragon-888": (
        "SM8350 (Snapdragon 888)",
        gpu("660"),
        npu("v68 HTP", "int8", "int16"),
        "qualcomm-soc30",
    ),
    "snapdragon-8gen1": (
        "SM8450 (Snapdragon 8 Gen 1)",
        gpu("730"),
        npu("v69 HTP", "int8", "int16", "fp16"),
        "qualcomm-soc36",
    ),
    "snapdragon-8gen2": (
        "SM8550 (Snapdragon 8 Gen 2)",
        gpu("740"),
        npu("v73 HTP", "int8", "int16", "fp16"),
        "qualcomm-soc43",
    ),
    "snapdragon-8gen3": (
        "SM8650 (Snapdragon 8 Gen 3)",
        gpu("750"),
        npu("v75 HTP", "int8", "int16", "fp16"),
        "qualcomm-soc57",
    ),
    "snapdragon-8elite": (
        "SM8750 (Snapdragon 8 Elite)",
        gpu("830"),
        npu("v79 HTP", "int8", "int16", "fp16"),
        "qualcomm-soc69",
    ),
    "snapdragon-x-elite": (
        "X1E80100 (Snapdragon X Elite)",
        gpu("X1-85"),
        npu("v73 HTP", "int8", "int16", "fp16"),
        "qualcomm-soc60",
    ),
    "qcs6490-rb3gen2": (
        "QCS6490 (Dragonwing QCS6490)",
        gpu("643"),
        npu("v68 HTP", "int8", "int16"),
        "qualcomm-soc93",
    ),
}


@pytest.mark.parametrize("name", BOARDS)
def test_what_the_board_is(name: str) -> None:
    soc, *accelerators, target = BOARDS[name]
    found = SnapdragonBoard.probe(FIXTURES / name)
    assert found is not None
    facts = found.facts
    assert (facts.description.family, facts.description.soc) == ("snapdragon", soc)
    assert list(facts.accelerators) == accelerators
    assert (facts.target, facts.notes) == (target, ())


def test_models_are_named_as_the_board_prints_them() -> None:
    facts = SnapdragonBoard(FIXTURES / "qcs6490-rb3gen2").facts
    assert facts.description.model == "Qualcomm Technologies, Inc. Robotics RB3gen2"


def test_the_newest_sdk_counts() -> None:
    assert SnapdragonBoard(FIXTURES / "snapdragon-8gen3").facts.toolkits == {"qnn": "2.31.0.250130"}


@pytest.mark.parametrize(
    ("name", "temperature", "power", "load"),
    [
        ("snapdragon-8gen2", 58.1, 5.47, 431023 / 1000210),
        ("snapdragon-8gen3", 50.3, None, 0.37),
        ("snapdragon-845", 43.2, None, None),
    ],
)
def test_how_the_board_is(
    name: str, temperature: float, power: float | None, load: float | None
) -> None:
    reading = SnapdragonBoard(FIXTURES / name).read()
    assert (reading.temperature_c, reading.power_w) == (temperature, power)
    assert reading.accelerator_load == load


def test_an_npu_without_its_driver_is_told_and_does_not_count() -> None:
    facts = SnapdragonBoard(FIXTURES / "qcs8550-aim300").facts
    assert [a.kind for a in facts.accelerators] == ["gpu"]
    (note,) = facts.notes
    assert note.startswith("the Hexagon v73 HTP has no FastRPC device node, so it cannot be used")


@pytest.mark.parametrize(
    ("group", "joined"), [("fastrpc", "fastrpc"), ("render", "render"), ("root", "fastrpc")]
)
def test_a_node_that_this_user_may_not_use_is_told(
    monkeypatch: pytest.MonkeyPatch, group: str, joined: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "group", lambda path: group)
    (note,) = SnapdragonBoard(FIXTURES / "snapdragon-888").facts.notes
    assert f"may not use /dev/fastrpc-cdsp: sudo usermod -aG {joined} $(id -un)" in note


def test_a_chip_that_is_not_known_is_told(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "snapdragon-888/sys", tmp_path / "sys")
    (tmp_path / "sys/devices/soc0/soc_id").write_text("9999\n")
    (tmp_path / "sys/devices/soc0/machine").write_text("SM9999\n")
    found = SnapdragonBoard.probe(tmp_path)
    assert found is not None
    assert (found.facts.description.soc, found.facts.target) == ("SM9999", "")
    assert "add it to boards/socs.py" in found.facts.notes[0]


def test_a_board_is_known_by_its_device_tree_alone(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "snapdragon-8gen3/proc", tmp_path / "proc")
    found = SnapdragonBoard.probe(tmp_path)
    assert found is not None
    assert found.facts.description.soc == "SM8650 (Snapdragon 8 Gen 3)"


def test_another_machine_is_none(tmp_path: Path) -> None:
    assert SnapdragonBoard.probe(tmp_path) is None
    assert SnapdragonBoard.probe(FIXTURES / "jetson-nano") is None


@pytest.mark.parametrize("garbage", [b"", b"\xff\x00\xff", b"nan", b"1e400", b"x" * 3_000_000])
def test_garbage_in_every_file_never_raises(tmp_path: Path, garbage: bytes) -> None:
    shutil.copytree(FIXTURES / "snapdragon-8gen2", tmp_path / "root")
    for path in (tmp_path / "root").rglob("*"):
        if path.is_file() and path.name != "family":
            path.write_bytes(garbage)
    found = SnapdragonBoard.probe(tmp_path / "root")
    assert found is not None
    found.read()
    assert len(found.facts.description.model) <= 80


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/class/power_supply/battery/current_now", "-1350"),  # mA
        ("sys/class/power_supply/battery/current_now", "nan"),
        ("sys/class/power_supply/battery/voltage_now", "1e300"),
        ("sys/class/power_supply/battery/status", "Charging"),
    ],
)
def test_power_that_cannot_be_is_not_told(tmp_path: Path, path: str, text: str) -> None:
    root = shutil.copytree(FIXTURES / "snapdragon-8gen2", tmp_path / "root")
    (root / path).write_text(text + "\n")
    assert SnapdragonBoard(root).read().power_w is None


@pytest.mark.parametrize("text", ["\u00b2 \u00b3", "9" * 5000 + " 1", "-1 5", "1 2 3", "nan nan"])
def test_a_load_that_is_no_pair_of_counts_is_not_told(tmp_path: Path, text: str) -> None:
    root = shutil.copytree(FIXTURES / "snapdragon-8gen2", tmp_path / "root")
    (root / "sys/class/kgsl/kgsl-3d0/gpubusy").write_text(text)
    (root / "sys/class/kgsl/kgsl-3d0/gpu_busy_percentage").write_text(text)
    assert SnapdragonBoard(root).read().accelerator_load is None


def test_a_gpu_at_rest_counts_no_ticks(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "snapdragon-8gen2", tmp_path / "root")
    (root / "sys/class/kgsl/kgsl-3d0/gpubusy").write_text("      0       0\n")
    assert SnapdragonBoard(root).read().accelerator_load == 0


def test_heat_that_slows_the_processor_counts_as_throttled(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "snapdragon-8gen2", tmp_path / "root")
    device = root / "sys/class/thermal/cooling_device0"
    device.mkdir()
    (device / "type").write_text("cpufreq-cpu7\n")
    (device / "cur_state").write_text("0\n")
    board = SnapdragonBoard(root)
    assert not board.is_throttled()
    (device / "cur_state").write_text("3\n")
    assert board.is_throttled()


def test_the_table_has_each_chip_once() -> None:
    numbers = [number for soc in socs.SOCS for number in soc.ids]
    assert len(numbers) == len(set(numbers))
    assert len(socs.BY_PART) == len(socs.SOCS)
    htp = [soc for soc in socs.SOCS if soc.has_htp and soc.ids]
    assert all(soc.qnn for soc in htp)
    # QNN's number stands for what code is compiled for: the same number, the same Hexagon.
    assert len({(soc.qnn, soc.hexagon) for soc in htp}) == len({soc.qnn for soc in htp})
