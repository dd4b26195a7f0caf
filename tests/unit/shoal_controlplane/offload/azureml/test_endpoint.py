"""An Azure ML endpoint on its way to what is wanted, against Azure as a few dictionaries."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shoal_controlplane.offload.azureml import endpoint as azureml_endpoint
from shoal_controlplane.offload.azureml import plan
from shoal_controlplane.offload.azureml.endpoint import Endpoint
from shoal_controlplane.offload.azureml.plan import Deployed, Observed
from shoal_controlplane.offload.target import CloudModel, Fault, TargetError
from shoal_shared.signature import ModelSignature

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
MODEL = CloudModel("net", "1", "onnx", Path("x"), ONE, "", ModelSignature(inputs=(), outputs=()), 0)


class FakeAzure:
    """Carries out each change at its next look; `errors` are what the next calls raise."""

    def __init__(self) -> None:
        self.seen = Observed()
        self.assets: set[str] = set()
        self.asked: list[str] = []
        self.errors: dict[str, list[TargetError]] = {}
        self.failing = ""
        self.keys = ["key-1"]
        self.upload = threading.Event()
        self.upload.set()
        self.sight = threading.Event()
        self.sight.set()
        self.tidying = threading.Event()
        self.tidying.set()

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.errors.get(what):
            raise self.errors[what].pop(0)

    def observe(self, endpoint: str, model: str) -> Observed:
        self._ask("observe")
        assert self.sight.wait(30)
        now = self.seen
        settled = tuple(
            replace(d, state="Failed" if self.failing and d.busy else plan.SUCCEEDED)
            for d in now.deployments
        )
        self.seen = replace(now, state=now.state and plan.SUCCEEDED, deployments=settled)
        return now

    def create_endpoint(self, endpoint: str, model: str) -> None:
        self._ask("create_endpoint")
        self.seen = Observed("Creating", "https://e.example/score")

    def delete_endpoint(self, endpoint: str) -> None:
        self._ask("delete_endpoint")
        self.seen = Observed()

    def set_traffic(self, endpoint: str, traffic: dict[str, int]) -> None:
        self._ask("set_traffic")
        self.seen = replace(self.seen, state="Updating", traffic=traffic)

    def create_deployment(
        self, endpoint: str, deployment: str, model: CloudModel, instances: int
    ) -> None:
        self._ask("create_deployment")
        assert model.digest in self.assets
        made = Deployed(deployment, model.version, model.digest, "Creating", instances)
        self.seen = replace(self.seen, deployments=(*self.seen.deployments, made))

    def scale_deployment(self, endpoint: str, deployment: str, instances: int) -> None:
        self._ask("scale_deployment")
        self._set(lambda d: replace(d, state="Updating", instances=instances), deployment)

    def delete_deployment(self, endpoint: str, deployment: str) -> None:
        self._ask("delete_deployment")
        rest = tuple(d for d in self.seen.deployments if d.name != deployment)
        self.seen = replace(self.seen, deployments=rest)

    def failure(self, name: str) -> str:
        return self.failing

    def key(self, endpoint: str) -> str:
        self._ask("key")
        return self.keys[-1]

    def is_registered(self, asset: str, digest: str) -> bool:
        self._ask("is_registered")
        return digest in self.assets

    def register(self, asset: str, model: CloudModel) -> None:
        self._ask("register")
        assert self.upload.wait(30)
        self.assets.add(model.digest)

    def forget(self, asset: str, digest: str) -> None:
        self._ask("forget")
        assert self.tidying.wait(30)
        self.assets.discard(digest)

    def _set(self, change: Callable[[Deployed], Deployed], name: str) -> None:
        changed = tuple(change(d) if d.name == name else d for d in self.seen.deployments)
        self.seen = replace(self.seen, deployments=changed)


@pytest.fixture
def azure() -> FakeAzure:
    return FakeAzure()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


@pytest.fixture
def endpoint(azure: FakeAzure, pool: ThreadPoolExecutor) -> Endpoint:
    return Endpoint("shoal-net", "net", azure, 0.001, pool, pool)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def at_rest(endpoint: Endpoint) -> None:
    async with asyncio.timeout(20):
        while endpoint._driver is not None and not endpoint._driver.done():
            await asyncio.wait({endpoint._driver})


async def test_from_nothing_to_two_and_to_nothing(endpoint: Endpoint, azure: FakeAzure) -> None:
    await endpoint.want(MODEL)
    await at_rest(endpoint)
    assert azure.seen.state == plan.SUCCEEDED
    assert not azure.seen.deployments
    await until(lambda: bool(azure.assets))
    for replicas in (1, 2):
        assert await endpoint.scale("1", replicas)
        await at_rest(endpoint)
        await endpoint.look()
        health = endpoint.health("1")
        assert health is not None
        assert (health.ready, health.wanted, health.reason) == (replicas, replicas, "")
    assert endpoint.url == "https://e.example/v2/models/net"
    await endpoint.scale("1", 0)
    await at_rest(endpoint)
    assert (azure.seen.deployments, azure.seen.traffic) == ((), {})
    assert azure.assets == {ONE}
    await endpoint.drop("1")
    await at_rest(endpoint)
    assert azure.seen == Observed()
    assert not azure.assets
    assert endpoint.health("1") is None


async def test_other_contents_replace_what_is_there(endpoint: Endpoint, azure: FakeAzure) -> None:
    await endpoint.want(MODEL)
    await endpoint.scale("1", 2)
    await at_rest(endpoint)
    await endpoint.want(replace(MODEL, digest=TWO))
    await at_rest(endpoint)
    (now,) = azure.seen.deployments
    assert (now.digest, now.instances, azure.seen.traffic) == (TWO, 2, {now.name: 100})
    assert azure.assets == {TWO}


async def test_what_is_dropped_while_something_is_tidied_up_goes_too(
    endpoint: Endpoint, azure: FakeAzure
) -> None:
    await endpoint.want(MODEL)
    await endpoint.scale("1", 1)
    await at_rest(endpoint)
    azure.tidying.clear()
    await endpoint.want(replace(MODEL, digest=TWO))
    await until(lambda: "forget" in azure.asked)
    dropping = asyncio.create_task(endpoint.drop("1"))
    await asyncio.sleep(0.02)
    azure.tidying.set()
    await dropping
    await at_rest(endpoint)
    assert azure.seen == Observed()
    assert not azure.assets


async def test_another_process_finds_what_is_there(
    endpoint: Endpoint, azure: FakeAzure, pool: ThreadPoolExecutor
) -> None:
    await endpoint.want(MODEL)
    await endpoint.scale("1", 2)
    await at_rest(endpoint)
    changes = len([a for a in azure.asked if a != "observe"])
    again = Endpoint("shoal-net", "net", azure, 0.001, pool, pool)
    await again.want(MODEL)
    await at_rest(again)
    health = again.health("1")
    assert health is not None
    assert (health.ready, health.wanted) == (2, 2)
    assert [a for a in azure.asked if a != "observe"][changes:] == ["is_registered", "key"]


async def test_an_error_of_the_first_step_is_the_callers(
    endpoint: Endpoint, azure: FakeAzure
) -> None:
    azure.errors["observe"] = [TargetError(Fault.CREDENTIALS, "refused")]
    with pytest.raises(TargetError, match="refused"):
        await endpoint.want(MODEL)
    assert endpoint.health("1") is None
    assert not await endpoint.scale("1", 1)


async def test_what_passes_is_tried_again(endpoint: Endpoint, azure: FakeAzure) -> None:
    azure.errors["register"] = [TargetError(Fault.UNREACHABLE, "storage is away")] * 2
    azure.errors["create_deployment"] = [TargetError(Fault.CONFLICT, "busy")]
    await endpoint.want(MODEL)
    await endpoint.scale("1", 1)
    await at_rest(endpoint)
    assert not azure.errors["register"]
    assert len(azure.seen.deployments) == 1
    health = endpoint.health("1")
    assert health is not None
    assert not health.reason


async def test_what_does_not_pass_is_not_tried_again(endpoint: Endpoint, azure: FakeAzure) -> None:
    azure.errors["create_deployment"] = [TargetError(Fault.QUOTA, "no quota")] * 2
    await endpoint.want(MODEL)
    await until(lambda: bool(azure.assets))
    # Whether the first step of what is left is the caller's depends on how far the task has come.
    with contextlib.suppress(TargetError):
        await endpoint.scale("1", 1)
    await at_rest(endpoint)
    health = endpoint.health("1")
    assert health is not None
    assert (health.ready, health.wanted, health.reason) == (0, 1, "no quota")
    assert azure.asked.count("create_deployment") == 1


async def test_it_gives_up_on_what_never_passes(
    endpoint: Endpoint, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azureml_endpoint, "MAX_FAILURES", 3)
    azure.errors["register"] = [TargetError(Fault.UNREACHABLE, "storage is away")] * 99
    await endpoint.want(MODEL)
    await endpoint.scale("1", 1)
    await until(lambda: endpoint._driver is not None and endpoint._driver.done())
    health = endpoint.health("1")
    assert health is not None
    assert health.reason == "storage is away"
    assert not azure.seen.deployments


async def test_a_failed_deployment_says_why_until_someone_asks_again(
    endpoint: Endpoint, azure: FakeAzure
) -> None:
    azure.failing = "the image is broken"
    await endpoint.want(MODEL)
    await endpoint.scale("1", 1)
    await at_rest(endpoint)
    health = endpoint.health("1")
    assert health is not None
    assert "the image is broken" in health.reason
    azure.failing = ""
    await endpoint.scale("1", 1)
    await at_rest(endpoint)
    assert azure.seen.deployments[0].state == plan.SUCCEEDED


async def test_a_model_that_goes_during_its_upload_leaves_nothing(
    endpoint: Endpoint, azure: FakeAzure
) -> None:
    azure.upload.clear()
    await endpoint.want(MODEL)
    await endpoint.drop("1")
    await until(lambda: azure.seen == Observed())
    azure.upload.set()
    await at_rest(endpoint)
    assert not azure.assets


async def test_a_key_is_asked_for_once_for_all(endpoint: Endpoint, azure: FakeAzure) -> None:
    assert await asyncio.gather(*(endpoint.key() for _ in range(5))) == ["key-1"] * 5
    assert azure.asked.count("key") == 1
    azure.keys.append("key-2")
    fresh = await asyncio.gather(*(endpoint.key(used="key-1") for _ in range(5)))
    assert fresh == ["key-2"] * 5
    assert azure.asked.count("key") == 2
    # Azure has no other: it is not asked again and again.
    assert await asyncio.gather(*(endpoint.key(used="key-2") for _ in range(5))) == ["key-2"] * 5
    assert azure.asked.count("key") == 3


async def test_an_azure_that_hangs_is_left_in_time(
    endpoint: Endpoint, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def soon(*args: object, **_: object) -> object:
        return await call(*args, limit_s=0.02)  # type: ignore[arg-type]

    call, free = azureml_endpoint.call, threading.Event()
    monkeypatch.setattr(azureml_endpoint, "call", soon)
    monkeypatch.setattr(azure, "observe", lambda *_: free.wait(30))
    try:
        with pytest.raises(TargetError) as caught:
            await endpoint.look()
    finally:
        free.set()
    assert caught.value.fault is Fault.TIMEOUT


async def test_a_caller_who_does_not_wait_gets_what_it_asked_for(
    endpoint: Endpoint, azure: FakeAzure
) -> None:
    await endpoint.want(MODEL)
    await at_rest(endpoint)
    azure.sight.clear()
    looks = azure.asked.count("observe")
    asked = asyncio.create_task(endpoint.scale("1", 1))
    await until(lambda: azure.asked.count("observe") > looks)
    asked.cancel()
    await asyncio.wait({asked})
    azure.sight.set()
    assert asked.cancelled()
    await until(lambda: len(azure.seen.deployments) == 1)
    await at_rest(endpoint)


async def test_closing_ends_its_tasks(endpoint: Endpoint, azure: FakeAzure) -> None:
    azure.upload.clear()
    await endpoint.want(MODEL)
    await endpoint.scale("1", 1)
    try:
        await endpoint.close()
    finally:
        azure.upload.set()
    assert endpoint._driver is not None
    assert endpoint._driver.cancelled()


@pytest.mark.parametrize("address", ["", "http://e.example/score"])
async def test_an_address_without_tls_is_not_used(
    endpoint: Endpoint, azure: FakeAzure, address: str
) -> None:
    azure.seen = Observed(plan.SUCCEEDED, address)
    await endpoint.look()
    with pytest.raises(TargetError, match="https"):
        _ = endpoint.url
