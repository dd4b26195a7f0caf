from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal_simulators.profiles import PROFILES
from shoal_simulators.spec import SpecError, VirtualDevice, parse_fleet


def test_a_fleet_from_text() -> None:
    devices = parse_fleet("jetson-orin-nano=2, ascend-310")
    assert [d.name for d in devices] == ["jetson-orin-nano-1", "jetson-orin-nano-2", "ascend-310-1"]
    assert [d.board for d in devices] == ["jetson-orin-nano", "jetson-orin-nano", "ascend-310"]


def test_a_fleet_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[device]]\nboard = "ascend-310"\nname = "press-1"\nlabels = { site = "berlin" }\n'
        '[[device]]\nboard = "jetson-nano"\ncount = 2\nmemory_mb = 140\n'
    )
    assert parse_fleet(str(path)) == [
        VirtualDevice("press-1", "ascend-310", {"site": "berlin"}),
        VirtualDevice("jetson-nano-1", "jetson-nano", memory_mb=140),
        VirtualDevice("jetson-nano-2", "jetson-nano", memory_mb=140),
    ]


def test_a_board_has_its_own_memory_or_that_of_its_kind() -> None:
    usual, small = VirtualDevice("a", "jetson-nano"), VirtualDevice("b", "jetson-nano", {}, 140)
    assert usual.profile == PROFILES["jetson-nano"]
    assert small.profile == replace(PROFILES["jetson-nano"], memory_bytes=140_000_000)


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
        'board = "ascend-310"\nmemory_mb = 1000000000000',
        'board = "ascend-310"\ncount = true',
    ],
)
def test_wrong_tables_are_told(table: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f"[[device]]\n{table}\n")
    with pytest.raises(SpecError):
        parse_fleet(str(path))
