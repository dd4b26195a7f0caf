"""What the doctor finds."""

from __future__ import annotations

import shlex
import sys

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check. `remedy` is the command that mends it; `blocks` says that nothing runs before."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""
    blocks: bool = False


def pip(arguments: str) -> str:
    """A command for the environment that this agent runs in."""
    return f"{shlex.quote(sys.executable)} -m pip {arguments}"
