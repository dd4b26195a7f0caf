from __future__ import annotations

from pathlib import Path

import pytest

from shoal_agent.boards.base import Board
from shoal_agent.boards.detect import detect
from shoal_agent.boards.generic import GenericBoard
from shoal_shared.messages import Accelerator


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B\0")
    put(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48500\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "61000\n")
    put(tmp_path, "sys/class/thermal/thermal_zone2/temp", "-274000\n")
    put(tmp_path, "sys/class/thermal/thermal_zone3/temp", "nonsense")
    put(tmp_path, "sys/class/thermal/thermal_zone1/trip_point_0_type", "passive\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/trip_point_0_temp", "80000\n")
    put(tmp_path, "sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n")
    put(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "0\n")
    put(tmp_path, "sys/class/thermal/cooling_device1/type", "pwm-fan\n")
    put(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "3\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "5\n")
    return tmp_path


def test_the_device_tree_names_the_board(root: Path) -> None:
    facts = GenericBoard(root).facts
    assert facts.description.model == "Raspberry Pi 5 Model B"
    assert facts.description.soc == "brcm,bcm2712"
    assert facts.description.family == "generic"
    assert not facts.description.simulated
    assert facts.cores >= 1
    assert facts.memory_bytes > 2**20


def test_a_pc_is_named_by_its_maker(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/dmi/id/sys_vendor", "Acme\n")
    put(tmp_path, "sys/class/dmi/id/product_name", "Box\n")
    put(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Fast CPU\n")
    description = GenericBoard(tmp_path).facts.description
    assert (description.model, description.soc) == ("Acme Box", "Fast CPU")


def test_the_hottest_plausible_sensor_counts(root: Path) -> None:
    board = GenericBoard(root)
    reading = board.read()
    assert reading.temperature_c == 61.0
    assert not board.is_throttled()
    assert 0 <= reading.cpu_load <= 1
    assert reading.memory_used_bytes > 0
    assert reading.power_w is None


def test_a_board_without_sensors_says_so(tmp_path: Path) -> None:
    board = GenericBoard(tmp_path)
    assert board.read().temperature_c is None
    assert not board.is_throttled()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/class/thermal/thermal_zone1/temp", "80000"),
        ("sys/class/thermal/cooling_device0/cur_state", "2"),
        ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "6"),
    ],
)
def test_each_sign_of_throttling_is_seen(root: Path, path: str, text: str) -> None:
    board = GenericBoard(root)
    assert not board.is_throttled()
    put(root, path, text)
    assert board.is_throttled()


def test_a_throttle_count_is_told_once_and_not_to_a_reading(root: Path) -> None:
    board = GenericBoard(root)
    put(root, "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "9")
    board.read()
    assert [board.is_throttled() for _ in range(2)] == [True, False]


def test_families_are_asked_in_order_and_generic_is_last(root: Path) -> None:
    special = GenericBoard(root)

    def never(_: Path) -> Board | None:
        return None

    def always(_: Path) -> Board | None:
        return special

    assert detect(root, (never, always, GenericBoard.probe)) is special
    assert detect(root, (never,)).facts.description.family == "generic"


def test_gpus_that_cuda_sees_are_the_machines(tmp_path: Path) -> None:
    gpu = Accelerator(kind="gpu", name="RTX", memory_bytes=2**33, compute_capability="8.6")
    facts = GenericBoard.probe(tmp_path, cuda=lambda: ((gpu,), "")).facts
    assert (facts.accelerators, facts.target, facts.notes) == ((gpu,), "nvidia-sm86", ())
    broken = GenericBoard.probe(tmp_path, cuda=lambda: ((), "PyCUDA finds no GPU.")).facts
    assert (broken.accelerators, broken.notes) == ((), ("PyCUDA finds no GPU.",))
    assert GenericBoard.probe(tmp_path).facts.accelerators == ()
