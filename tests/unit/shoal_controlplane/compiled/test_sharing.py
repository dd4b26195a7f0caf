"""Two devices and the real routes between them, over a socket."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from support.compiled import KEY, CompiledRoom
from support.loopback import serving

from shoal_agent.updates.compiled import SharedCompiledCode


async def test_a_sibling_needs_not_compile(tmp_path: Path) -> None:
    room = CompiledRoom(tmp_path)
    with serving(room.app) as url:
        first, second = (
            SharedCompiledCode(tmp_path / name, url, name, rng=random.Random(1), margin_bytes=0)
            for name in ("first", "second")
        )
        folder, origin = await first.obtain(KEY)
        assert folder is not None
        assert origin == ""
        code = random.Random(2).randbytes(1_000_000)
        (folder / "engine").write_bytes(code)
        await first.offer(KEY)
        await asyncio.gather(*first._uploads.values())

        folder, origin = await second.obtain(KEY)
        assert folder is not None
        assert (origin, (folder / "engine").read_bytes()) == ("shared", code)
        before = await room.service.get(KEY.hex)
        assert before.device == "first"

        await second.reject(KEY, "golden outputs differ")
        folder, origin = await second.obtain(KEY)
        assert folder is not None
        assert origin == ""
        (folder / "engine").write_bytes(b"better")
        await second.offer(KEY)
        await asyncio.gather(*second._uploads.values())
        after = await room.service.get(KEY.hex)
        assert after.device == "second"
        assert before.digest not in room.store
    room.database.close()
