from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from shoal_agent.boards.ascend import AscendBoard
from shoal_agent.boards.npusmi import NpuSmiReader
from shoal_shared.messages import Accelerator

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"
FP16 = ("fp16", "int8")


def asked(text: str) -> NpuSmiReader:
    """`npu-smi` that has answered with a table."""
    reader = NpuSmiReader([sys.executable, "-c", f"print({text!r})"])
    assert reader.latest(patience_s=60)
    return reader


def table(name: str) -> str:
    return (FIXTURES / name / "npu-smi.txt").read_text()


def board(name: str) -> AscendBoard:
    return AscendBoard(FIXTURES / name, asked(table(name)))


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def npu(name: str, *precisions: str, mib: int = 0) -> Accelerator:
    return Accelerator(kind="npu", name=name, precisions=precisions, memory_bytes=mib << 20)


@pytest.mark.parametrize(
    ("name", "model", "soc", "accelerators", "toolkits", "target"),
    [
        (
            "ascend-310",
            "Atlas 200 DK",
            "Ascend 310",
            [npu("Ascend 310", *FP16)],
            {"npu-driver": "21.0.3.1", "npu-firmware": "1.80.22.2.220", "cann": "5.0.4"},
            "ascend-310",
        ),
        (
            "ascend-310b",
            "Atlas 200I DK A2",
            "Ascend 310B4",
            [npu("Ascend 310B4", *FP16)],
            {"npu-driver": "23.0.rc3", "npu-firmware": "7.1.0.3.220", "cann": "7.0.RC1"},
            "ascend-310b4",
        ),
        (
            "ascend-310p",
            "Huawei Atlas 800",
            "Ascend 310P3",
            [npu("Ascend 310P3", *FP16, mib=44280), npu("Ascend 310P3", *FP16, mib=43693)],
            {"npu-driver": "25.2.0", "npu-firmware": "7.7.0.6.236", "cann": "8.2.RC1"},
            "ascend-310p3",
        ),
        (
            "ascend-910b",
            "Huawei Atlas 800T A2",
            "Ascend 910B4",
            [npu("Ascend 910B4", "fp32", "bf16", *FP16, mib=32768)] * 2,
            {"npu-driver": "24.1.1", "npu-firmware": "7.5.0.7.220", "cann": "8.0.0"},
            "ascend-910b4",
        ),
    ],
)
def test_what_the_board_is(
    name: str,
    model: str,
    soc: str,
    accelerators: list[Accelerator],
    toolkits: dict[str, str],
    target: str,
) -> None:
    facts = board(name).facts
    about = facts.description
    assert (about.family, about.model, about.soc) == ("ascend", model, soc)
    assert list(facts.accelerators) == accelerators
    assert (dict(facts.toolkits), facts.target) == (toolkits, target)
    assert facts.notes == ()


@pytest.mark.parametrize(
    ("name", "temperature", "power", "memory"),
    [
        ("ascend-310", 58.0, 12.8, None),
        ("ascend-310b", 37.0, 7.2, None),
        ("ascend-310p", 45.0, None, (1529 + 1412) << 20),
        ("ascend-910b", 30.0, 175.2, (26838 + 29356) << 20),
    ],
)
def test_how_the_board_is(
    name: str, temperature: float, power: float | None, memory: int | None
) -> None:
    found = board(name)
    reading = found.read()
    assert (reading.temperature_c, reading.power_w) == (temperature, power)
    assert reading.accelerator_load == 0
    assert reading.accelerator_memory_used_bytes == memory
    assert not found.is_throttled()


def test_the_busiest_chip_and_the_hottest_sensor_count(tmp_path: Path) -> None:
    busy = table("ascend-910b").replace("C2:00.0  | 0 ", "C2:00.0  | 64")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "71000\n")
    reading = AscendBoard(tmp_path, asked(busy)).read()
    assert reading.accelerator_load == 0.64
    assert reading.temperature_c == 71.0


def test_a_chip_in_alarm_is_told() -> None:
    reader = asked(table("ascend-310p").replace("OK   ", "Alarm", 1))
    (note,) = AscendBoard(FIXTURES / "ascend-310p", reader).facts.notes
    assert note.startswith("npu-smi says that an Ascend 310P3 is in state Alarm: ")


@pytest.mark.parametrize(
    "script", ["raise SystemExit(1)", "print('| nonsense |' * 10000)", "import os; os.abort()"]
)
def test_without_the_tool_bus_and_nodes_tell_the_chips(script: str) -> None:
    reader = NpuSmiReader([sys.executable, "-c", script])
    assert reader.latest(patience_s=60) is None
    found = AscendBoard(FIXTURES / "ascend-310p", reader)
    # Two on one card.
    assert [a.name for a in found.facts.accelerators] == ["Ascend 310P", "Ascend 310P"]
    assert any("npu-smi does not answer" in note for note in found.facts.notes)
    assert found.read().accelerator_load is None


def test_the_system_s_tool_is_not_asked_of_another_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "npu-smi", f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = AscendBoard(FIXTURES / "ascend-310p")
    assert [a.name for a in found.facts.accelerators] == ["Ascend 310P", "Ascend 310P"]
    found.read()
    assert not (tmp_path / "asked").exists()
    assert not any("npu-smi" in note for note in found.facts.notes)


@pytest.mark.parametrize(
    ("device", "name", "soc", "precisions"),
    [
        ("0xd803", "Ascend910", "Ascend 910_93", ("fp32", "bf16", *FP16)),
        ("0xd802", "910B3", "Ascend 910B3", ("fp32", "bf16", *FP16)),
        ("0xd801", "910A", "Ascend 910A", FP16),
        ("0xd801", "910B", "Ascend 910B", FP16),
        ("0xffff", "910B", "Ascend 910B", FP16),
    ],
)
def test_generations_of_the_910_are_told_apart(
    tmp_path: Path, device: str, name: str, soc: str, precisions: tuple[str, ...]
) -> None:
    put(tmp_path, "sys/bus/pci/devices/0000:c1:00.0/vendor", "0x19e5\n")
    put(tmp_path, "sys/bus/pci/devices/0000:c1:00.0/device", device + "\n")
    text = table("ascend-910b").replace("910B4    ", name.ljust(9))
    facts = AscendBoard(tmp_path, asked(text)).facts
    assert facts.description.soc == soc
    assert {a.precisions for a in facts.accelerators} == {precisions}


def test_cards_of_two_kinds_are_both_told(tmp_path: Path) -> None:
    for slot, device in (("01", "0xd500"), ("02", "0xd100")):
        put(tmp_path, f"sys/bus/pci/devices/0000:{slot}:00.0/vendor", "0x19e5\n")
        put(tmp_path, f"sys/bus/pci/devices/0000:{slot}:00.0/device", device + "\n")
    names = [a.name for a in AscendBoard(tmp_path).facts.accelerators]
    assert names == ["Ascend 310P", "Ascend 310"]


def test_a_missing_driver_and_toolkit_are_told_with_what_mends_them(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "ascend-310p/sys", tmp_path / "sys")
    found = AscendBoard.probe(tmp_path)
    assert found is not None
    driver, cann = found.facts.notes
    assert "install the NPU driver" in driver
    assert "install CANN 8.x" in cann


def test_a_container_with_some_other_chip_than_the_first(tmp_path: Path) -> None:
    put(tmp_path, "dev/davinci3", "")
    found = AscendBoard.probe(tmp_path)
    assert found is not None
    assert found.facts.accelerators == (npu("Ascend", *FP16),)
    assert (found.facts.description.soc, found.facts.target) == ("Ascend", "")


@pytest.mark.parametrize(
    ("model", "compatible"),
    [
        ("Huawei Ascend G7", "huawei,g7\0qcom,msm8916"),
        ("CSR SiRFatlas7", "sirf,atlas7"),
        ("Raspberry Pi 5", "raspberrypi,5-model-b\0brcm,bcm2712"),
    ],
)
def test_another_machine_is_none(tmp_path: Path, model: str, compatible: str) -> None:
    assert AscendBoard.probe(tmp_path) is None
    put(tmp_path, "proc/device-tree/model", model + "\0")
    put(tmp_path, "proc/device-tree/compatible", compatible + "\0")
    assert AscendBoard.probe(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"ascend310" + b"x" * 3_000_000])
def test_a_device_tree_that_says_nothing(tmp_path: Path, content: bytes) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(content)
    (tree / "model").mkdir()
    put(tmp_path, "dev/davinci_manager", "")
    found = AscendBoard.probe(tmp_path)
    assert found is not None
    assert found.facts.description.family == "ascend"
    assert len(found.facts.accelerators) == 1
    found.read()


@pytest.mark.parametrize("garbage", [b"", bytes(range(256)) * 64, b"9" * 3_000_000])
def test_garbage_in_every_file_never_raises(tmp_path: Path, garbage: bytes) -> None:
    root = shutil.copytree(FIXTURES / "ascend-910b", tmp_path / "root")
    for path in root.rglob("*"):
        if path.is_file():
            path.write_bytes(garbage)
    found = AscendBoard.probe(root)
    assert found is not None
    assert found.facts.toolkits == {}
    assert len(found.facts.description.model) <= 80
    found.read()
