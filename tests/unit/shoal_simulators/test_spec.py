from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal_simulators.profiles import PROFILES
from shoal_simulators.spec import SpecError, VirtualDevice, parse_fleet, slowed


def test_a_fleet_from_text() -> None:
    devices = parse_fleet("jetson-orin-nano=2, ascend-310")
    assert [d.name for d in devices] == ["jetson-orin-nano-1", "jetson-orin-nano-2", "ascend-310-1"]
    assert [d.board for d in devices] == ["jetson-orin-nano", "jetson-orin-nano", "ascend-310"]


def test_a_fleet_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[device]]\nboard = "ascend-310"\nname = "press-1"\nlabels = { site = "berlin" }\n'
        '[[device]]\nboard = "jetson-nano"\ncount = 2\nmemory_mb = 140\nspeed = 0.5\n'
    )
    assert parse_fleet(str(path)) == [
        VirtualDevice("press-1", "ascend-310", {"site": "berlin"}),
        VirtualDevice("jetson-nano-1", "jetson-nano", memory_mb=140, speed=0.5),
        VirtualDevice("jetson-nano-2", "jetson-nano", memory_mb=140, speed=0.5),
    ]


def test_a_board_has_its_own_memory_or_that_of_its_kind() -> None:
    usual, small = VirtualDevice("a", "jetson-nano"), VirtualDevice("b", "jetson-nano", {}, 140)
    assert usual.profile == PROFILES["jetson-nano"]
    assert small.profile == replace(PROFILES["jetson-nano"], memory_bytes=140_000_000)


def test_a_board_may_be_slower_than_its_kind() -> None:
    usual, slow = PROFILES["jetson-nano"], VirtualDevice("a", "jetson-nano", speed=0.25).profile
    assert slow.milliseconds(3, 1e9) == pytest.approx(4 * usual.milliseconds(3, 1e9))


def test_a_whole_fleet_may_be_slower() -> None:
    half = VirtualDevice("a", "jetson-nano", speed=0.5)
    assert slowed([half], 0.1) == [replace(half, speed=0.05)]
    for speed in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(SpecError, match="of their speed"):
            slowed([half], speed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no device"),
        ("toaster=1", "no board is called 'toaster'"),
        ("ascend-310=x", "BOARD=COUNT"),
        ("ascend-310=-1", "BOARD=COUNT"),
        ("ascend-310=1001", "at most 1000"),
        ("ascend-310=1,ascend-310=1", "two devices"),
        ("missing.toml", "cannot read"),
    ],
)
def test_what_is_no_fleet_is_told(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_fleet(text)


@pytest.mark.parametrize(
    "table",
    [
        'board = "ascend-310"\ncolour = "red"',
        'board = "ascend-310"\nname = "a/b"',
        'board = "ascend-310"\nname = "a"\ncount = 2',
        'board = "ascend-310"\ncount = "2"',
        'board = "ascend-310"\nlabels = { site = 1 }',
        "board = 1",
        'board = "ascend-310"\nmemory_mb = 0',
        'board = "ascend-310"\nmemory_mb = -5',
        'board = "ascend-310"\nmemory_mb = 1.5',
        'board = "ascend-310"\nmemory_mb = "140"',
        'board = "ascend-310"\nmemory_mb = true',
        'board = "ascend-310"\nspeed = 0',
        'board = "ascend-310"\nspeed = 1.5',
        'board = "ascend-310"\nspeed = nan',
        'board = "ascend-310"\nspeed = true',
        'board = "ascend-310"\nspeed = "half"',
        'board = "ascend-310"\nmemory_mb = 1000000000000',
        'board = "ascend-310"\ncount = true',
    ],
)
def test_wrong_tables_are_told(table: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f"[[device]]\n{table}\n")
    with pytest.raises(SpecError):
        parse_fleet(str(path))
