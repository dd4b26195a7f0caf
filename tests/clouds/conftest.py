"""The place of the kind that this environment can run, and the models."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from clouds.models import Shelf, Weights, shelf
from clouds.rig import KIND, Rig, healthy

from shoal_controlplane.offload.target import CloudModel


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """Runs for the whole session."""
    if not KIND:
        pytest.skip("needs the packages of a cloud: run `make test-clouds`")
    module: Any = importlib.import_module(f"clouds.rigs.{KIND}")
    opened: asyncio.Future[Rig] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold() -> None:
        # In one task, since the start and the end of a fixture are two.
        async with module.rig(tmp_path_factory.mktemp(KIND)) as running:
            opened.set_result(running)
            await done.wait()

    task = asyncio.create_task(hold())
    await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    yield opened.result()
    done.set()
    await task


@pytest.fixture(scope="session")
def weights() -> Weights:
    return Weights(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf(tmp_path_factory.mktemp("artifacts")) as shelved:
        yield shelved


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def deployed(rig: Rig, models: Shelf, weights: Weights) -> AsyncIterator[CloudModel]:
    """A model with one replica that is ready, for tests that leave it so. Its name has whatever a
    name may have."""
    model = models.model("Conformance_1.x-", weights)
    await rig.target.deploy(model)
    await rig.target.scale(model.key, 1)
    await healthy(rig, model.key, 1)
    yield model
    await rig.target.remove(model.key)
