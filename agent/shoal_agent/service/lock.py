"""One agent a state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_NAME = "agent.lock"


class StateError(Exception):
    """The state folder cannot be used; the text is one plain sentence."""


class StateLock:
    """Holds the folder until `release` or the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Create the folder if need be, and lock it. Raises `StateError`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(
                f"state folder {folder} cannot be written ({error.strerror}): run as a user who "
                "may, or name another with --state-dir"
            ) from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise StateError(
                f"another agent runs on the state folder {folder}: stop it, or name another "
                "folder with --state-dir"
            ) from None

    def release(self) -> None:
        os.close(self._handle)


def is_locked(folder: Path) -> bool:
    """Whether an agent runs on the folder."""
    try:
        handle = os.open(folder / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
