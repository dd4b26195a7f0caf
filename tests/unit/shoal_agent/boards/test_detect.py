from __future__ import annotations

from pathlib import Path

import pytest

from shoal_agent.boards.base import Board
from shoal_agent.boards.detect import FAMILIES, detect
from shoal_agent.boards.generic import GenericBoard
from shoal_shared.messages import Capabilities, encode_document

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"
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
