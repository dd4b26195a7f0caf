from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from shoal_agent.boards.base import Board
from shoal_agent.boards.detect import FAMILIES, detect
from shoal_agent.boards.generic import GenericBoard
from shoal_shared.messages import Capabilities, encode_document

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"
CONTRIBUTING = Path(__file__).parents[4] / "CONTRIBUTING.md"
CHIPS = {"qcs6490": "snapdragon", "qcs8550": "snapdragon"}
"""Fixtures that are named after a chip; the others begin with their family."""
BOARDS = sorted(path.name for path in FIXTURES.iterdir())


def family_of(name: str) -> str:
    first = name.partition("-")[0]
    return CHIPS.get(first, first)


def test_there_are_fixtures_of_every_family() -> None:
    assert len(BOARDS) >= 12
    assert {family_of(name) for name in BOARDS} >= {"jetson", "ascend", "snapdragon"}
    assert all((FIXTURES / name / "SOURCE.md").exists() for name in BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_every_fixture_is_its_own_family(name: str) -> None:
    facts = detect(FIXTURES / name).facts
    assert facts.description.family == family_of(name)
    assert facts.accelerators
    # What is found fits into the document that tells it.
    encode_document(
        Capabilities(
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
    )


def test_a_machine_of_no_family_is_generic(tmp_path: Path) -> None:
    assert isinstance(detect(tmp_path), GenericBoard)


def test_a_family_that_fails_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(root: Path) -> Board | None:
        raise ValueError("the device tree says nonsense")

    assert isinstance(detect(tmp_path, (broken, *FAMILIES)), GenericBoard)
    assert "a board could not be read" in caplog.text


def test_the_board_that_contributing_shows_works(tmp_path: Path) -> None:
    section = CONTRIBUTING.read_text().split("## Add a board")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    (tmp_path / "rockchip.py").write_text(code[1])
    module = runpy.run_path(str(tmp_path / "rockchip.py"))
    files = re.findall(r"^ {6}((?:proc|sys)/\S+) +(.+)$", section, re.MULTILINE)
    assert len(files) == 3
    for path, text in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("<0>", "\0"))
    board = detect(tmp_path, (module["RockchipBoard"].probe, *FAMILIES))
    description = board.facts.description
    assert (description.family, description.model) == ("rockchip", "Radxa ROCK 5B")
    assert board.read().accelerator_load == 0.37
    (tmp_path / "sys/class/devfreq/fdab0000.npu/load").write_text("garbage")
    assert board.read().accelerator_load is None
