"""Azure ML on the loopback interface: the unmodified SDKs, KServe's model server as instances."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from clouds.rig import Rig
from support import azure, azure_assets

from shoal_controlplane.offload.kinds import kind_of
from shoal_controlplane.offload.target import Price, TargetSettings

WRONG = "wrong-secret-Zm9yZ2V0IG1l"


def options(running: azure.Azure, **more: Any) -> Mapping[str, Any]:
    """Options for a loopback Azure."""
    return {
        "subscription": azure_assets.SUBSCRIPTION,
        "resource_group": azure_assets.GROUP,
        "workspace": azure_assets.WORKSPACE,
        "tenant": azure.TENANT,
        "client": azure.CLIENT,
        "resource_manager": running.url,
        "authority": running.url,
        "storage_url": f"{running.url}/{{account}}",
        "ca_file": running.ca_file,
        "poll_s": 0.1,
        **more,
    }


def private(path: Path, text: str) -> str:
    """A reference to a file with a secret."""
    path.touch(mode=0o600)
    path.write_text(text)
    return f"file:{path}"


@asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    kind = kind_of("azureml")
    with azure.running(folder / "azure") as running:

        def settings(name: str, secret: str) -> TargetSettings:
            return TargetSettings(
                name,
                "azureml",
                options(running),
                private(folder / name, secret),
                Price(per_replica_hour=0.26),
                max_replicas=2,
            )

        right = settings("right", running.secret)
        target, refused = kind.open_target(right), kind.open_target(settings("wrong", WRONG))

        @asynccontextmanager
        async def stalled() -> AsyncIterator[None]:
            running.scoring.resumed.clear()
            try:
                yield
            finally:
                running.scoring.resumed.set()

        @asynccontextmanager
        async def revoked() -> AsyncIterator[None]:
            # Both keys are new, and who asks for them may no longer have them.
            running.fail("/listKeys", 403, "AuthorizationFailed", times=1_000_000)
            for endpoint in running.arm.keys:
                running.arm.rotate(endpoint)
            try:
                yield
            finally:
                running.faults.clear()

        try:
            yield Rig(
                right,
                target,
                refused,
                (running.secret, running.sas, WRONG),
                stalled=stalled,
                revoked=revoked,
            )
        finally:
            await target.close()
            await refused.close()
            assert not running.unknown, f"asked for what Azure is not played for: {running.unknown}"
