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


def printing(path: Path) -> NpuSmiReader:
    """`npu-smi` that prints a recorded table."""
    script = f"import pathlib; print(pathlib.Path({str(path)!r}).read_text())"
    return NpuSmiReader([sys.executable, "-c", script])


def board(name: str) -> AscendBoard:
    return AscendBoard(FIXTURES / name, printing(FIXTURES / name / "npu-smi.txt"))


@pytest.mark.parametrize(
    ("name", "model", "soc", "accelerators", "toolkits", "target"),
    [
        (
            "ascend-310",
            "Atlas 200 DK",
            "Ascend 310",
            [Accelerator(kind="npu", name="Ascend 310", precisions=FP16)],
            {"npu-driver": "21.0.4", "npu-firmware": "1.82.22.2.220", "cann": "6.0.1"},
            "ascend-310",
        ),
        (
            "ascend-310b",
            "Atlas 200I DK A2",
            "Ascend 310B4",
            [Accelerator(kind="npu", name="Ascend 310B4", precisions=(*FP16, "int4"))],
            {"npu-driver": "23.0.rc3", "npu-firmware": "7.1.0.3.220", "cann": "7.0.RC1"},
            "ascend-310b4",
        ),
        (
            "ascend-310p",
            "Huawei Atlas 800",
            "Ascend 310P3",
            [
                Accelerator(
                    kind="npu", name="Ascend 310P3", precisions=FP16, memory_bytes=44280 << 20
                )
            ]
            * 2,
            {"npu-driver": "24.1.rc2", "npu-firmware": "7.3.0.2.220", "cann": "8.0.RC2"},
            "ascend-310p3",
        ),
        (
            "ascend-910b",
            "Huawei Atlas 800T A2",
            "Ascend 910B2",
            [
                Accelerator(
                    kind="npu",
                    name="Ascend 910B2",
                    precisions=("fp32", "bf16", "fp16", "int8"),
                    memory_bytes=65536 << 20,
                )
            ]
            * 2,
            {"npu-driver": "23.0.7", "npu-firmware": "7.1.0.11.220", "cann": "8.0.0"},
            "ascend-910b2",
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


@pytest.mark.parametrize(
    ("name", "temperature", "power", "load", "memory"),
    [
        ("ascend-310", 52.0, 12.8, 0.12, None),
        ("ascend-310b", 37.0, 7.2, 0.0, None),
        ("ascend-310p", 44.0, None, 0.23, (1864 + 1391) << 20),
        ("ascend-910b", 37.0, 195.2, 0.64, (29954 + 29951) << 20),
    ],
)
def test_how_the_board_is(
    name: str, temperature: float, power: float | None, load: float, memory: int | None
) -> None:
    reading = board(name).read()
    assert (reading.temperature_c, reading.power_w) == (temperature, power)
    assert reading.accelerator_load == load
    assert reading.accelerator_memory_used_bytes == memory
    assert not reading.throttled


def test_a_chip_in_alarm_is_told() -> None:
    (note,) = board("ascend-310p").facts.notes
    assert note.startswith("npu-smi says that an Ascend 310P3 is in state Alarm: ")


@pytest.mark.parametrize(
    "script", ["raise SystemExit(1)", "print('| nonsense |' * 10000)", "import os; os.abort()"]
)
def test_without_the_tool_the_bus_tells_the_chips(script: str) -> None:
    reader = NpuSmiReader([sys.executable, "-c", script])
    found = AscendBoard(FIXTURES / "ascend-310p", reader)
    assert [a.name for a in found.facts.accelerators] == ["Ascend 310P", "Ascend 310P"]
    assert any("npu-smi does not answer" in note for note in found.facts.notes)
    assert found.read().accelerator_load is None


def test_a_missing_driver_and_toolkit_are_told_with_what_mends_them(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "ascend-310p/sys", tmp_path / "sys")
    found = AscendBoard.probe(tmp_path)
    assert found is not None
    driver, cann = found.facts.notes
    assert "install the NPU driver" in driver
    assert "install CANN 8.x" in cann


def test_another_machine_is_none(tmp_path: Path) -> None:
    assert AscendBoard.probe(tmp_path) is None
    assert AscendBoard.probe(FIXTURES / "jetson-nano") is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"ascend310" + b"x" * 3_000_000])
def test_a_device_tree_that_says_nothing(tmp_path: Path, content: bytes) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(content)
    (tree / "model").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/davinci_manager").touch()
    found = AscendBoard.probe(tmp_path)
    assert found is not None
    assert found.facts.description.family == "ascend"
    found.read()
