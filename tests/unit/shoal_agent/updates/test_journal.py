from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoal_agent.updates.journal import Entry, FileJournal
from shoal_shared.messages import Desired, ModelGoal

ENTRY = Entry(
    desired=Desired(
        goal=4,
        models=(
            ModelGoal(
                deployment="d",
                model="m",
                version="1",
                digest="sha256:" + "a" * 64,
                size=3,
                format="onnx",
                options={"providers": ["CPUExecutionProvider"]},
            ),
        ),
    ),
    previous=("sha256:" + "b" * 64,),
)


async def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal.json")
    assert await journal.read() is None
    await journal.write(ENTRY)
    assert await journal.read() == ENTRY
    assert [p.name for p in tmp_path.iterdir()] == ["journal.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"{}",
        b'{"v":2,"desired":{"goal":1}}',
        b'{"desired":{"goal":-1}}',
        msgspec.json.encode(ENTRY)[:-20],
    ],
)
async def test_a_damaged_journal_is_none_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content)
    assert await FileJournal(path).read() is None
    assert caplog.records[0].getMessage().startswith("journal")


async def test_a_full_disk_keeps_the_old_entry_and_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = FileJournal(tmp_path / "journal.json")
    await journal.write(ENTRY)
    (tmp_path / "journal.json.tmp").mkdir()
    await journal.write(Entry(desired=Desired(goal=5)))
    assert await journal.read() == ENTRY
    assert "goal not remembered" in caplog.text
