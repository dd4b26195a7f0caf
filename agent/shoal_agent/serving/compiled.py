"""Compiled code, as the serving side asks for it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from shoal_shared.compiled import CompileKey


class CompiledCode(Protocol):
    """Compiled code by key, in folders that devices of the same kind share."""

    async def obtain(self, key: CompileKey) -> tuple[Path | None, str]:
        """A folder and where its content is from: "here", "shared", or "" if it is empty; None
        where there is no place to keep it."""

    async def offer(self, key: CompileKey) -> None:
        """The folder holds code that was compiled here and passed: share it."""

    async def reject(self, key: CompileKey, reason: str) -> None:
        """What the folder holds is bad: empty it, and replace what is shared."""

    async def collect(self, keep: Collection[str]) -> None:
        """Drop folders of model files whose digests are not in `keep`."""

    async def close(self) -> None:
        """End what goes on in the background."""


class NoCompiledCode:
    """Keeps nothing: for runtimes that compile nothing. What is compiled is compiled in vain."""

    async def obtain(self, key: CompileKey) -> tuple[Path | None, str]:
        return None, ""

    async def offer(self, key: CompileKey) -> None:
        pass

    async def reject(self, key: CompileKey, reason: str) -> None:
        pass

    async def collect(self, keep: Collection[str]) -> None:
        pass

    async def close(self) -> None:
        pass


_conforms: type[CompiledCode] = NoCompiledCode
