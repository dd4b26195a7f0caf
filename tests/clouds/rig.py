"""What the conformance suite needs of a place where a kind of target runs for real.

`clouds/rigs/KIND.py` offers

    @asynccontextmanager
    async def rig(folder: Path) -> AsyncIterator[Rig]: ...

which starts the place (its files in `folder`, all on the loopback interface) and stops it again,
whatever happened. `make test-clouds` runs the suite in the environment of each kind.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from shoal_controlplane.offload.target import (
    CloudTarget,
    Fault,
    Health,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey

KIND = os.environ.get("SHOAL_CLOUD", "")
"""The kind of target whose packages this environment has."""


@dataclass(frozen=True)
class Rig:
    """A place that runs.

    `target` was opened from `settings` by its kind; `refused` is one for the same place whose
    credentials are wrong. None of `secrets`, right ones and wrong ones, may appear in an error.
    `can_scale_to_zero` says whether a deployed model can be without replicas there. `stalled`,
    where there is one, is a block within which replicas take connections but do not answer;
    `revoked`, where replicas ask for a credential, one within which that of `target` is wrong.
    """

    settings: TargetSettings
    target: CloudTarget
    refused: CloudTarget
    secrets: tuple[str, ...]
    can_scale_to_zero: bool = True
    most_replicas: int = 2
    patience_s: float = 90.0
    stalled: Callable[[], AbstractAsyncContextManager[None]] | None = None
    revoked: Callable[[], AbstractAsyncContextManager[None]] | None = None


def only(kind: str) -> pytest.MarkDecorator:
    """Mark for tests of one kind."""
    return pytest.mark.skipif(
        kind != KIND, reason=f"needs the packages of {kind}: run `make test-clouds`"
    )


async def eventually(
    what: str, ask: Callable[[], Awaitable[bool]], patience_s: float, pause_s: float = 0.1
) -> None:
    """Ask until the answer is yes; fails with `what` when it takes too long."""
    end = time.monotonic() + patience_s
    while not await ask():
        assert time.monotonic() < end, f"not within {patience_s:.0f} s: {what}"
        await asyncio.sleep(pause_s)


async def healthy(rig: Rig, model: ModelKey, replicas: int) -> Health:
    """Wait until exactly so many replicas are ready."""
    seen = Health(-1, -1, "never asked")

    async def there() -> bool:
        nonlocal seen
        seen = await rig.target.health(model)
        return seen.ready == replicas

    try:
        await eventually(f"{replicas} replicas of {model}", there, rig.patience_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; last seen: {seen}") from None
    return seen


async def fault_of(rig: Rig, call: Awaitable[object], within_s: float = 30.0) -> TargetError:
    """The error that `call` must end with, which gives no secret away."""
    async with asyncio.timeout(within_s):
        with pytest.raises(TargetError) as caught:
            await call
    error = caught.value
    text = f"{error} {error!r} {error.__cause__!r}"
    for secret in rig.secrets:
        assert secret not in text, f"the error gives the secret away: {error.fault}"
    assert isinstance(error.fault, Fault)
    assert str(error)
    assert "\n" not in str(error), f"not one sentence: {error}"
    return error
