"""The TPU worker as processes of this machine, on its CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from clouds.rig import Rig

from shoal_controlplane.offload.target import Price, TargetSettings
from shoal_controlplane.offload.tpu.kind import open_target

VARIABLE = "SHOAL_TEST_TPU_TOKEN"
TOKEN = "the-right-token-of-the-tpu"
WRONG_VARIABLE = "SHOAL_TEST_TPU_WRONG_TOKEN"
WRONG = "the-wrong-token-of-the-tpu"


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """See `clouds.rig`."""
    os.environ[VARIABLE], os.environ[WRONG_VARIABLE] = TOKEN, WRONG
    settings = TargetSettings(
        name="tpu",
        kind="tpu",
        options={"launch": "process", "platform": "cpu", "folder": str(folder / "workers")},
        credential=f"env:{VARIABLE}",
        price=Price(per_replica_hour=1.2),
        max_replicas=2,
    )
    refused_settings = TargetSettings(
        name="refused", kind="tpu", options=settings.options, credential=f"env:{WRONG_VARIABLE}"
    )
    target, refused = open_target(settings), open_target(refused_settings)

    @contextlib.asynccontextmanager
    async def stalled() -> AsyncIterator[None]:
        stopped = list(pids(folder / "workers"))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def revoked() -> AsyncIterator[None]:
        os.environ[VARIABLE] = WRONG
        try:
            yield
        finally:
            os.environ[VARIABLE] = TOKEN

    try:
        yield Rig(
            settings=settings,
            target=target,
            refused=refused,
            secrets=(TOKEN, WRONG),
            stalled=stalled,
            revoked=revoked,
        )
    finally:
        ended(folder / "workers")
        await target.close()
        await refused.close()


def pids(folder: Path) -> Iterator[int]:
    """The processes of all workers that a folder knows."""
    for path in folder.glob("*.json"):
        for replica in json.loads(path.read_text())["replicas"]:
            yield replica["pid"]


def ended(folder: Path) -> None:
    """End all workers that a folder knows."""
    for pid in pids(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
