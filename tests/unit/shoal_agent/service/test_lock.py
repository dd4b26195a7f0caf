from __future__ import annotations

from pathlib import Path

import pytest

from shoal_agent.service.lock import StateError, StateLock, is_locked


def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    assert not is_locked(folder)
    lock = StateLock(folder)
    assert is_locked(folder)
    with pytest.raises(StateError, match="another agent runs on the state folder"):
        StateLock(folder)
    lock.release()
    assert not is_locked(folder)
    StateLock(folder).release()


def test_a_folder_that_cannot_be_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        StateLock(file / "below")
