from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.boards.tegrastats import (
    TegraStats,
    TegrastatsReader,
    parse_tegrastats,
    total_power,
)

# As boards printed them, found in the tests and notes of public projects; see the fixtures.
NANO = (
    "RAM 2594/3956MB (lfb 12x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [12%@1479,4%@1479,5%@1479,3%@1479] EMC_FREQ 8% GR3D_FREQ 37% PLL@39C CPU@41C "
    "PMIC@100C GPU@38C AO@45.5C thermal@40.25C "
    "POM_5V_IN 2532/2698 POM_5V_GPU 0/123 POM_5V_CPU 401/452"
)
TX2 = (
    "RAM 2344/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,off,1%@345] "
    "EMC_FREQ 4%@1600 GR3D_FREQ 0%@624 APE 150 MTS fg 0% bg 0% PLL@37.5C MCPU@37.5C PMIC@100C "
    "Tboard@32C GPU@35C BCPU@37.5C thermal@36.5C Tdiode@34.25C VDD_SYS_GPU 152/152 "
    "VDD_SYS_SOC 687/687 VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 VDD_SYS_CPU 152/152 "
    "VDD_SYS_DDR 883/883"
)
R28 = "RAM 1004/7852MB (lfb 7x2MB) cpu [0%@350,off] EMC 17%@40 APE 150 GR3D 61%@114"
XAVIER = (
    "CPU [0%@1190,1%@1190] EMC_FREQ 0%@1331 GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 AUX@36C "
    "CPU@36.5C thermal@35.7C Tboard@37C AO@35C GPU@35C Tdiode@38.75C PMIC@50C "
    "GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW "
    "SYS5V 2768mW/2768mW"
)
ORIN_R39 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] "
    "EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDLA0 off PVA0_FREQ off APE 174 "
    "cpu@52.968C/52.968C soc2@48.406C/48.406C cv0@-256C gpu@47.625C/47.625C "
    "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW "
    "VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR_R38 = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972] "
    "GR3D_FREQ @[1000,1000,1000] VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW "
    "VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
THOR_R39 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,off] EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C "
    "tj@66.625C/66.625C gpu@56.937C/66.625C soc012@55.375C/58.781C "
    "VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW "
    "VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW FUTURE_TOKEN value"
)


@pytest.mark.parametrize(
    ("line", "load", "hottest", "power"),
    [
        (NANO, 0.37, 45.5, 2.532),
        (TX2, 0.0, 37.5, 3.056),
        (R28, 0.61, None, None),
        (XAVIER, 0.0, 38.75, 5.258),
        (ORIN_R39, 0.12, 52.968, 13.907),
        (THOR_R38, None, None, 15.004),
        (THOR_R39, 0.87, 66.625, 124.486),
        ("", None, None, None),
        ("sudo: a password is required", None, None, None),
    ],
    ids=["nano", "tx2", "r28", "xavier", "orin-r39", "thor-r38", "thor-r39", "empty", "error"],
)
def test_lines_of_every_release(
    line: str, load: float | None, hottest: float | None, power: float | None
) -> None:
    stats = parse_tegrastats(line)
    assert stats.gpu_load == load
    assert max(stats.temperatures_c.values(), default=None) == hottest
    assert total_power(stats.power_w) == power


def test_each_field_is_named_as_printed() -> None:
    stats = parse_tegrastats(NANO)
    assert stats.temperatures_c == {
        "PLL": 39.0,
        "CPU": 41.0,
        "GPU": 38.0,
        "AO": 45.5,
        "thermal": 40.25,
    }
    assert stats.power_w == {"POM_5V_IN": 2.532, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.401}


def test_rails_that_do_not_tell_the_total_are_not_added() -> None:
    assert total_power({"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": 3.0}) is None
    assert total_power({"VDD_GPU": -1.0, "VDD_CPU_SOC_MSS": 0.2, "VIN_SYS_5V0": 0.3}) == 0.0


@given(st.one_of(st.text(), st.text("GR3D_FREQ VIN@0123456789.-%mWC/[]", max_size=200)))
def test_any_text_is_taken_apart(line: str) -> None:
    stats = parse_tegrastats(line)
    assert stats.gpu_load is None or 0 <= stats.gpu_load <= 1
    assert all(-40 < celsius < 150 for celsius in stats.temperatures_c.values())
    assert all(math.isfinite(watts) for watts in stats.power_w.values())


@given(st.floats(0, 100), st.integers(0, 200_000), st.integers(-300, 300))
def test_what_is_printed_is_read(load: float, milliwatts: int, celsius: int) -> None:
    line = f"GR3D_FREQ {int(load)}%@1300 tj@{celsius}C VDD_IN {milliwatts}mW/0mW"
    stats = parse_tegrastats(line)
    assert stats.gpu_load == int(load) / 100
    assert total_power(stats.power_w) == milliwatts / 1000
    assert stats.temperatures_c == ({"tj": celsius} if -40 < celsius < 150 else {})


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@contextmanager
def reading(script: str, clock: ManualClock) -> Iterator[TegrastatsReader]:
    reader = TegrastatsReader(("/bin/sh", "-c", script), clock)
    try:
        yield reader
    finally:
        reader.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.01)


def test_the_last_line_counts(clock: ManualClock) -> None:
    script = f"printf '%s\\n%s\\n' '{NANO}' '{ORIN_R39}'; exec sleep 60"
    with reading(script, clock) as reader:
        eventually(lambda: reader.latest() == parse_tegrastats(ORIN_R39))


def test_an_old_line_does_not_count(clock: ManualClock) -> None:
    with reading(f"echo '{NANO}'; exec sleep 60", clock) as reader:
        eventually(lambda: reader.latest().gpu_load == 0.37)
        clock.now += 6
        assert reader.latest() == TegraStats()


def test_garbage_says_nothing(clock: ManualClock, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"head -c 100000 /dev/urandom | tr -d '%@/'; touch {done}; exec sleep 60"
    with reading(script, clock) as reader:
        assert reader.latest() == TegraStats()
        eventually(done.exists)
        assert reader.latest() == TegraStats()


def test_a_program_that_hangs_is_ended(clock: ManualClock, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with reading(f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 60", clock) as reader:
        assert reader.latest() == TegraStats()
        eventually(note.exists)
        pid = int(note.read_text())
        os.kill(pid, 0)
        reader.close()
        eventually(lambda: not is_alive(pid))
        clock.now += 1000
        assert reader.latest() == TegraStats()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_that_ends_is_tried_again_once_a_minute(
    clock: ManualClock, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"

    def count() -> int:
        return len(starts.read_text()) if starts.exists() else 0

    with reading(f"printf x >> {starts}", clock) as reader:
        reader.latest()
        eventually(lambda: count() == 1)
        clock.now += 59
        eventually(lambda: not any(t.name == "tegrastats" for t in threading.enumerate()))
        reader.latest()
        assert not any(t.name == "tegrastats" for t in threading.enumerate())
        clock.now += 1
        reader.latest()
        eventually(lambda: count() == 2)


def test_a_program_that_is_missing_says_nothing(clock: ManualClock, tmp_path: Path) -> None:
    reader = TegrastatsReader((str(tmp_path / "none"),), clock)
    assert reader.latest() == TegraStats()
    reader.close()
