from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal_agent.boards.base import BoardFacts
from shoal_agent.boards.jetson import JetsonBoard
from shoal_agent.boards.tegrastats import TegraStats, TegrastatsReader
from shoal_shared.messages import Accelerator, Capabilities, encode_document

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"


def gpu(name: str, capability: str, precisions: str) -> Accelerator:
    return Accelerator(
        kind="gpu",
        name=name,
        compute_capability=capability,
        precisions=tuple(precisions.split()),
    )


MAXWELL = gpu("Maxwell GPU", "5.3", "fp32 fp16")
PASCAL = gpu("Pascal GPU", "6.2", "fp32 fp16")
VOLTA = gpu("Volta GPU", "7.2", "fp32 fp16 int8")
AMPERE = gpu("Ampere GPU", "8.7", "fp32 tf32 fp16 int8")
BLACKWELL = gpu("Blackwell GPU", "11.0", "fp32 tf32 fp16 int8 fp8 fp4")
DLAS = tuple(
    Accelerator(kind="dla", name=f"DLA {n}", precisions=("fp16", "int8")) for n in range(2)
)


@dataclass(frozen=True)
class Expected:
    model: str
    soc: str
    accelerators: tuple[Accelerator, ...]
    toolkits: str
    """l4t, jetpack, cuda, tensorrt, cudnn; "-" for none."""
    power_mode: str
    target: str
    megabytes: int
    temperature_c: float
    power_w: float
    load: float | None


BOARDS = {
    "jetson-nano": Expected(
        "NVIDIA Jetson Nano Developer Kit 4GB",
        "Tegra210 (X1)",
        (MAXWELL,),
        "32.7.1 4.6.1 10.2 8.2.1 8.2.1.32",
        "MAXN",
        "nvidia-sm53",
        3964,
        45.5,
        2.532,
        0.37,
    ),
    "jetson-tx2": Expected(
        "NVIDIA Jetson TX2 (quill)",
        "Tegra186 (Parker)",
        (PASCAL,),
        "32.7.6 4.6.6 10.2 8.2.1 8.2.1",
        "MAXP_CORE_ARM",
        "nvidia-sm62",
        7852,
        37.5,
        3.056,
        0.0,
    ),
    "jetson-xavier-nx": Expected(
        "NVIDIA Jetson Xavier NX Developer Kit 8GB",
        "Tegra194 (Xavier)",
        (VOLTA, *DLAS),
        "35.4.1 5.1.2 11.4 8.5.2 8.6.0.166",
        "MODE_15W_6CORE",
        "nvidia-sm72",
        6854,
        41.5,
        5.153,
        0.501,
    ),
    "jetson-agx-xavier": Expected(
        "NVIDIA Jetson AGX Xavier (Jetson-AGX) 32GB",
        "Tegra194 (Xavier)",
        (VOLTA, *DLAS),
        "32.5.0 4.5 10.2 7.1.3 8.0.0.180",
        "MODE_30W_ALL",
        "nvidia-sm72",
        31918,
        38.75,
        5.258,
        0.0,
    ),
    "jetson-orin-nano": Expected(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super 8GB",
        "Tegra234 (Orin)",
        (AMPERE,),
        "36.4.3 6.2 12.6 10.3.0.30 9.3.0.75",
        "MAXN_SUPER",
        "nvidia-sm87",
        7620,
        50.218,
        9.25,
        0.125,
    ),
    "jetson-orin-nx": Expected(
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit 16GB",
        "Tegra234 (Orin)",
        (AMPERE, *DLAS),
        "36.3.0 6.0 12.2 8.6.2.3 8.9.4.25",
        "25W",
        "nvidia-sm87",
        15656,
        62.5,
        14.88,
        0.998,
    ),
    "jetson-agx-orin": Expected(
        "NVIDIA Jetson AGX Orin Developer Kit 64GB",
        "Tegra234 (Orin)",
        (AMPERE, *DLAS),
        "39.2.0 7.2 - - -",
        "MODE_50W",
        "nvidia-sm87",
        62817,
        52.968,
        13.929,
        0.12,
    ),
    "jetson-agx-thor": Expected(
        "NVIDIA Jetson AGX Thor Developer Kit",
        "Tegra264 (Thor)",
        (BLACKWELL,),
        "38.2.0 7.0 13.0 - -",
        "120W",
        "nvidia-sm110",
        125772,
        55.1,
        13.02,
        None,
    ),
}
TOOLKITS = ("l4t", "jetpack", "cuda", "tensorrt", "cudnn")


def probe(root: Path) -> JetsonBoard:
    board = JetsonBoard.probe(root)
    assert board is not None
    return board


def put(root: Path, path: str, text: str | bytes) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """An Orin Nano of one's own, to change."""
    return shutil.copytree(FIXTURES / "jetson-orin-nano", tmp_path / "orin")


@pytest.mark.parametrize("name", BOARDS)
def test_facts(name: str) -> None:
    expected, facts = BOARDS[name], probe(FIXTURES / name).facts
    assert facts.description.family == "jetson"
    assert facts.description.model == expected.model
    assert facts.description.soc == expected.soc
    assert not facts.description.simulated
    assert facts.accelerators == expected.accelerators
    versions = zip(TOOLKITS, expected.toolkits.split(), strict=True)
    assert facts.toolkits == {name: version for name, version in versions if version != "-"}
    assert facts.power_mode == expected.power_mode
    assert facts.target == expected.target
    assert facts.memory_bytes == expected.megabytes << 20
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.notes == ()


@pytest.mark.parametrize("name", BOARDS)
def test_readings(name: str) -> None:
    expected, board = BOARDS[name], probe(FIXTURES / name)
    reading = board.read()
    assert reading.temperature_c == expected.temperature_c
    assert reading.power_w == expected.power_w
    assert reading.accelerator_load == expected.load
    assert reading.accelerator_memory_used_bytes is None
    assert not board.is_throttled()
    assert 0 <= reading.cpu_load <= 1
    assert reading.memory_used_bytes > 0


@pytest.mark.parametrize("name", BOARDS)
def test_every_fixture_tells_its_source(name: str) -> None:
    assert len((FIXTURES / name / "SOURCE.md").read_text()) > 200


def test_a_pc_is_not_a_jetson(tmp_path: Path) -> None:
    assert JetsonBoard.probe(tmp_path) is None
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B\0")
    put(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    put(tmp_path, "etc/nv_tegra_release", "nonsense")
    assert JetsonBoard.probe(tmp_path) is None


@pytest.mark.parametrize(
    ("part", "kib", "model", "dlas"),
    [
        ("p3767-0004", 3_500_000, "NVIDIA Jetson Orin Nano 4GB", 0),
        ("p3767-0003", 7_600_000, "NVIDIA Jetson Orin Nano 8GB", 0),
        ("p3767-0001", 7_600_000, "NVIDIA Jetson Orin NX 8GB", 1),
        ("p3767-0000", 16_000_000, "NVIDIA Jetson Orin NX 16GB", 2),
        ("p3701-0004", 31_000_000, "NVIDIA Jetson AGX Orin 32GB", 2),
        ("p9999-0000", 31_000_000, "NVIDIA Jetson", 0),
    ],
)
def test_part_and_memory_tell_the_module(
    tmp_path: Path, part: str, kib: int, model: str, dlas: int
) -> None:
    put(tmp_path, "proc/device-tree/compatible", f"acme,carrier+{part}\0nvidia,tegra234\0")
    put(tmp_path, "proc/meminfo", f"MemTotal:       {kib} kB\n")
    facts = probe(tmp_path).facts
    assert facts.description.model == model
    assert [a.kind for a in facts.accelerators] == ["gpu"] + ["dla"] * dlas


@pytest.mark.parametrize(
    ("model", "soc", "named"),
    [
        ("NVIDIA Jetson Nano 2GB Developer Kit", "Tegra210 (X1)", ""),
        ("NVIDIA Jetson TX2 NX Developer Kit", "Tegra186 (Parker)", ""),
        ("NVIDIA Jetson Xavier NX Developer Kit", "Tegra194 (Xavier)", " 16GB"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "Tegra234 (Orin)", " 32GB"),
        ("NVIDIA Jetson Something", "", ""),
    ],
)
def test_the_model_tells_the_chip_where_nothing_else_does(
    tmp_path: Path, model: str, soc: str, named: str
) -> None:
    put(tmp_path, "proc/device-tree/model", model + "\0")
    put(tmp_path, "proc/meminfo", "MemTotal:       16000000 kB\n")
    description = probe(tmp_path).facts.description
    assert (description.model, description.soc) == (model + named, soc)


def test_older_releases_name_the_chip_by_its_generation(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0000\0nvidia,tegra23x\0")
    assert probe(tmp_path).facts.target == "nvidia-sm87"


def assert_it_says_little(facts: BoardFacts) -> None:
    assert facts.description.family == "jetson"
    assert facts.description.model == "NVIDIA Jetson"
    assert facts.description.soc == ""
    assert facts.accelerators == (Accelerator(kind="gpu", name="NVIDIA GPU"),)
    assert facts.target == ""
    assert facts.power_mode == ""
    assert any("does not name a chip" in note for note in facts.notes)


def test_a_device_tree_that_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", "\0")
    put(tmp_path, "proc/device-tree/compatible", "")
    put(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    facts = probe(tmp_path).facts
    assert_it_says_little(facts)
    assert facts.toolkits == {"l4t": "36.4.3", "jetpack": "6.2"}


@pytest.mark.parametrize("text", ["# R3", "# R36 (release), REV", "# R36 (release), REVISION: x"])
def test_a_truncated_release(orin: Path, text: str) -> None:
    put(orin, "etc/nv_tegra_release", text)
    assert probe(orin).facts.toolkits["l4t"] == "36.4.3"  # The package's.
    (orin / "var/lib/dpkg/status").unlink()
    facts = probe(orin).facts
    assert facts.toolkits == {"cuda": "12.6"}
    assert any("/etc/nv_tegra_release" in note for note in facts.notes)


def test_only_a_truncated_release_is_left(tmp_path: Path) -> None:
    put(tmp_path, "etc/nv_tegra_release", "# R3")
    assert_it_says_little(probe(tmp_path).facts)


def test_every_file_is_garbage(orin: Path) -> None:
    garbage = bytes(range(256)) * 64
    for file in orin.rglob("*"):
        if file.is_file() and file.name != "compatible":
            file.write_bytes(garbage)
    board = probe(orin)
    facts, reading = board.facts, board.read()
    assert facts.target == "nvidia-sm87"
    assert facts.toolkits == {}
    assert reading.power_w is None
    assert reading.accelerator_load is None
    assert reading.temperature_c is None
    assert not board.is_throttled()


def test_every_file_is_huge(orin: Path) -> None:
    for path in ("proc/device-tree/model", "etc/nv_tegra_release", "etc/nvpmodel.conf"):
        put(orin, path, b"A" * (3 << 20))
    put(orin, "var/lib/nvpmodel/status", "pmode:" + "9" * 5000)
    put(orin, "usr/local/cuda/version.json", '{"cuda":{"version":"' + "1" * (2 << 20))
    facts = probe(orin).facts
    capabilities = Capabilities(
        agent_version="1",
        board=facts.description,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        disk_free_bytes=0,
        accelerators=facts.accelerators,
        toolkits=dict(facts.toolkits),
        power_mode=facts.power_mode,
        notes=facts.notes,
    )
    assert len(encode_document(capabilities)) < 2000


def test_every_file_but_one_is_a_folder(orin: Path) -> None:
    for file in [file for file in orin.rglob("*") if file.is_file()]:
        if file.name != "compatible":
            file.unlink()
            file.mkdir()
    board = probe(orin)
    assert board.facts.toolkits == {}
    assert board.facts.description.model == "NVIDIA Jetson Orin Nano 8GB"
    assert board.read().power_w is None


def test_a_mode_without_a_name_is_told_by_its_number(orin: Path) -> None:
    put(orin, "var/lib/nvpmodel/status", "pmode:0009")
    assert probe(orin).facts.power_mode == "mode 9"


def test_a_package_that_was_removed_does_not_count(orin: Path) -> None:
    status = orin / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("install ok installed", "deinstall ok half"))
    assert probe(orin).facts.toolkits == {"l4t": "36.4.3", "jetpack": "6.2", "cuda": "12.6"}


def test_toolkits_of_a_container_are_told_by_headers(orin: Path) -> None:
    (orin / "var/lib/dpkg/status").unlink()
    put(
        orin,
        "usr/include/NvInferVersion.h",
        "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 13\n"
        "#define TRT_PATCH_ENTERPRISE 3\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n",
    )
    toolkits = probe(orin).facts.toolkits
    assert toolkits["tensorrt"] == "10.13.3"
    assert "cudnn" not in toolkits


def test_a_container_without_the_runtime_is_told_what_to_do(orin: Path) -> None:
    shutil.rmtree(orin / "dev/nvgpu")
    asked: list[str] = []

    def cuda() -> tuple[tuple[Accelerator, ...], str]:
        asked.append("cuda")
        return (), ""

    (note,) = JetsonBoard(orin, cuda=cuda).facts.notes
    assert "/dev/nvgpu" in note
    assert "--runtime nvidia" in note
    assert asked == []
    put(orin, "dev/nvhost-gpu", "")
    (orin / "dev/nvmap").unlink()
    (note,) = probe(orin).facts.notes
    assert "/dev/nvmap is missing" in note


def test_what_cuda_says_takes_the_tables_place() -> None:
    found = (Accelerator(kind="gpu", name="Orin", compute_capability="8.7"),)
    board = JetsonBoard(FIXTURES / "jetson-orin-nx", cuda=lambda: (found, ""))
    assert board.facts.accelerators == (*found, *DLAS)


def test_cuda_is_asked_once_and_why_it_fails_is_told(orin: Path) -> None:
    asked: list[str] = []

    def cuda() -> tuple[tuple[Accelerator, ...], str]:
        asked.append("cuda")
        return (), "PyCUDA gave no answer within 10 s."

    board = JetsonBoard(orin, cuda=cuda)
    assert asked == []
    assert board.facts.accelerators == (AMPERE,)
    assert board.facts.notes == ("PyCUDA gave no answer within 10 s.",)
    assert asked == ["cuda"]


def test_too_high_a_current_counts_as_throttled(orin: Path) -> None:
    board = probe(orin)
    assert not board.is_throttled()
    put(orin, "sys/class/hwmon/hwmon3/oc3_event_cnt", "3\n")
    assert [board.is_throttled(), board.is_throttled()] == [True, False]
    put(orin, "sys/class/hwmon/hwmon3/oc1_event_cnt", "2\n")
    board.read()
    assert [board.is_throttled(), board.is_throttled()] == [True, False]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/class/thermal/cooling_device2/cur_state", "1\n"),
        ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "49000\n"),
    ],
)
def test_heat_counts_as_throttled(orin: Path, path: str, text: str) -> None:
    put(orin, "sys/class/thermal/thermal_zone0/trip_point_0_type", "passive\n")
    board = probe(orin)
    put(orin, "sys/class/thermal/cooling_device0/cur_state", "3\n")  # The fan.
    assert not board.is_throttled()
    put(orin, path, text)
    assert board.is_throttled()


def test_a_rail_that_cannot_be_read_makes_no_total(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "jetson-agx-xavier", tmp_path / "xavier")
    (root / "sys/bus/i2c/drivers/ina3221x/1-0041/iio:device1/in_power2_input").unlink()
    assert probe(root).read().power_w is None


def test_the_monitor_of_the_input_goes_before_the_sum(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "jetson-agx-thor", tmp_path / "thor")
    monitor = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
    put(root, f"{monitor}/label", "VIN\n")
    put(root, f"{monitor}/power1_input", "28906000\n")
    assert probe(root).read().power_w == 28.906


def test_links_are_followed_as_the_kernel_sets_them(tmp_path: Path) -> None:
    monitor, counter = "sys/devices/i2c-1/1-0040", "sys/devices/soctherm-oc-event/hwmon/hwmon3"
    put(tmp_path, "proc/device-tree/compatible", "nvidia,p3767-0000\0nvidia,tegra234\0")
    for name, value in (("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "1500")):
        put(tmp_path, f"{monitor}/hwmon/hwmon1/{name}", value + "\n")
    put(tmp_path, f"{counter}/oc1_event_cnt", "0\n")
    for link, target in (
        ("sys/bus/i2c/drivers/ina3221/1-0040", monitor),
        ("sys/class/hwmon/hwmon3", counter),
    ):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(tmp_path / target)
    board = probe(tmp_path)
    assert board.read().power_w == 7.5
    put(tmp_path, f"{counter}/oc1_event_cnt", "1\n")
    assert board.is_throttled()


class Recorded(TegrastatsReader):
    """Says what it was given, without a program."""

    def __init__(self, stats: TegraStats) -> None:
        super().__init__((), lambda: 0.0)
        self.stats = stats
        self.calls = 0

    def latest(self) -> TegraStats:
        self.calls += 1
        return self.stats


def test_tegrastats_says_what_the_files_leave_open(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "jetson-agx-thor", tmp_path / "thor")
    stats = Recorded(TegraStats(0.87, {"tj": 66.625, "cpu": 58.25}, {"VIN": 124.486}))
    reading = JetsonBoard(root, tegrastats=stats).read()
    assert (reading.accelerator_load, reading.temperature_c) == (0.87, 55.1)
    assert reading.power_w == 13.02
    shutil.rmtree(root / "sys")
    reading = JetsonBoard(root, tegrastats=stats).read()
    assert (reading.accelerator_load, reading.temperature_c) == (0.87, 66.625)
    assert reading.power_w == 124.486


def test_tegrastats_is_left_alone_where_the_files_say_all(orin: Path) -> None:
    stats = Recorded(TegraStats(0.5))
    assert JetsonBoard(orin, tegrastats=stats).read().accelerator_load == 0.125
    assert stats.calls == 0


def test_tegrastats_is_found_below_the_root_and_ended(tmp_path: Path) -> None:
    root = shutil.copytree(FIXTURES / "jetson-agx-thor", tmp_path / "thor")
    fifo, arguments = tmp_path / "ready", root / "arguments"
    os.mkfifo(fifo)
    put(
        root,
        "usr/bin/tegrastats",
        f'#!/bin/sh\necho "$@" > {arguments}\necho "GR3D_FREQ 42%@[1574]"\necho > {fifo}\n'
        "exec sleep 60\n",
    )
    (root / "usr/bin/tegrastats").chmod(0o755)
    board = probe(root)
    try:
        board.read()
        fifo.read_text()  # Waits until the line was printed.
        assert arguments.read_text() == "--interval 1000\n"
        loads = (board.read().accelerator_load for _ in range(100_000))
        assert next(load for load in loads if load is not None) == 0.42
    finally:
        board.close()
