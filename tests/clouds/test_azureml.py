"""Azure ML: what its suite of its own has to show beyond the conformance of all kinds."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from clouds.models import Shelf, Weights
from clouds.rig import Rig, eventually, fault_of, healthy, only
from clouds.rigs.azureml import WRONG, options, private
from support import azure
from support.azure_replies import Answer

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.kinds import kind_of
from shoal_controlplane.offload.target import (
    CloudModel,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)

pytestmark = [only("azureml"), pytest.mark.timeout(200)]

PATIENCE_S = 60.0
WORDS = "Not a single instance could be started: the image is broken"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[azure.Azure]:
    with azure.running(tmp_path / "azure") as running:
        yield running
        assert not running.unknown


@pytest.fixture
def model(models: Shelf) -> CloudModel:
    return models.model("net", Weights(11))


def settings(place: azure.Azure, secret: str | None = None, **more: Any) -> TargetSettings:
    text = place.secret if secret is None else secret
    reference = private(place.folder / "credential", text)
    return TargetSettings("here", "azureml", options(place, **more), reference, Price(), 2)


@asynccontextmanager
async def opened(place: azure.Azure, secret: str | None = None, **more: Any) -> AsyncIterator[Rig]:
    given = settings(place, secret, **more)
    target = kind_of("azureml").open_target(given)
    try:
        yield Rig(given, target, target, (place.secret, place.sas, WRONG), patience_s=PATIENCE_S)
    finally:
        await target.close()


async def told(rig: Rig, model: CloudModel, words: str) -> Health:
    """Wait for these words in the reason."""
    seen = Health(-1, -1)

    async def there() -> bool:
        nonlocal seen
        seen = await rig.target.health(model.key)
        return words in seen.reason

    await eventually(words, there, PATIENCE_S)
    return seen


async def endpoint_of(rig: Rig, place: azure.Azure, model: CloudModel) -> str:
    """The model's endpoint, once Azure has created it."""
    await rig.target.deploy(model)

    async def there() -> bool:
        states = [e["properties"]["provisioningState"] for e in place.arm.endpoints.values()]
        return states == ["Succeeded"]

    await eventually("the endpoint", there, PATIENCE_S)
    return next(iter(place.arm.endpoints))


async def fails(call: Awaitable[object]) -> TargetError:
    with pytest.raises(TargetError) as caught:
        await call
    return caught.value


async def registered(place: azure.Azure) -> None:
    async def there() -> bool:
        return bool(place.arm.assets.models)

    await eventually("the model is registered", there, PATIENCE_S)


async def test_new_contents_get_traffic_once_they_are_healthy_and_the_old_ones_go(
    place: azure.Azure,
    models: Shelf,
    model: CloudModel,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    old, new = Weights(11), Weights(12)
    async with opened(place) as rig:
        await rig.target.deploy(model)
        await rig.target.scale(model.key, 1)
        await healthy(rig, model.key, 1)
        (first,) = (name for _, name in place.arm.deployments)

        place.arm.gate.clear()
        await rig.target.deploy(models.model("net", new))

        async def begun() -> bool:
            return len(place.arm.deployments) == 2

        await eventually("the new deployment", begun, PATIENCE_S)
        question = old.question(3)
        question.check(await rig.target.infer(model.key, question.request, 30))
        assert place.arm.traffic_ever[-1] == {first: 100}
        place.arm.gate.set()

        async def replaced() -> bool:
            return len(place.arm.deployments) == 1

        await eventually("the old deployment goes", replaced, PATIENCE_S)
        ((_, second),) = place.arm.deployments
        assert second != first
        assert place.arm.traffic_ever == [{}, {first: 100}, {second: 100}]
        await healthy(rig, model.key, 1)
        question = new.question(3)
        question.check(await rig.target.infer(model.key, question.request, 30))

        # The key is rotated while it is in use.
        endpoint = next(iter(place.arm.endpoints))
        place.arm.rotate(endpoint)
        replies = await asyncio.gather(
            *(rig.target.infer(model.key, question.request, 30) for _ in range(4))
        )
        for reply in replies:
            question.check(reply)
        assert sum(s.endswith("/listKeys") for s in place.seen) == 2

        await rig.target.remove(model.key)

        async def gone() -> bool:
            return not place.arm.endpoints and not place.blobs

        await eventually("nothing stays", gone, PATIENCE_S)
        assert all(m["properties"]["isArchived"] for m in place.arm.assets.models.values())
    out, err = capfd.readouterr()
    for secret in place.secrets:
        assert secret not in caplog.text
        assert secret not in out + err


async def test_tokens_instead_of_keys(place: azure.Azure, model: CloudModel) -> None:
    place.token_s = 60  # so short that it is not kept
    async with opened(place, auth_mode="aad_token") as rig:
        await rig.target.deploy(model)
        await rig.target.scale(model.key, 1)
        await healthy(rig, model.key, 1)
        place.expire()
        question = Weights(11).question(2)
        question.check(await rig.target.infer(model.key, question.request, 30))
    assert not any(s.endswith("/listKeys") for s in place.seen)


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (401, "InvalidAuthenticationToken", Fault.CREDENTIALS),
        (403, "AuthorizationFailed", Fault.CREDENTIALS),
        (409, "Conflict", Fault.CONFLICT),
        (429, "TooManyRequests", Fault.THROTTLED),
        (500, "InternalServerError", Fault.BROKEN),
        (503, "ServiceUnavailable", Fault.UNREACHABLE),
    ],
)
async def test_what_azure_answers_instead(
    place: azure.Azure, model: CloudModel, status: int, code: str, fault: Fault
) -> None:
    async with opened(place) as rig:
        place.fail("workspaces/vision", status, code, WRONG, 99, {"retry-after": "17"})
        for call in (rig.target.describe(), rig.target.health(model.key), rig.target.deploy(model)):
            error = await fault_of(rig, call) if fault is Fault.CREDENTIALS else await fails(call)
            assert code in str(error)
            assert error.fault is fault
            if status == 429:
                assert error.retry_after_s == 17


async def test_trouble_that_passes_is_overcome(place: azure.Azure, model: CloudModel) -> None:
    place.fail("PUT .*/models/", 503, "ServiceUnavailable", "try later", times=2)
    async with opened(place) as rig:
        await rig.target.deploy(model)
        await registered(place)


async def test_the_subscription_at_its_quota(place: azure.Azure, model: CloudModel) -> None:
    place.arm.quota = 0
    async with opened(place) as rig:
        await endpoint_of(rig, place, model)
        await registered(place)

        async def refused() -> bool:
            try:
                await rig.target.scale(model.key, 1)
            except TargetError as error:
                assert error.fault is Fault.QUOTA
                assert "Not enough quota" in str(error)
                return True
            return False

        await eventually("the quota is told", refused, PATIENCE_S)
        health = await rig.target.health(model.key)
        assert (health.ready, health.wanted) == (0, 1)
        assert "Not enough quota" in health.reason


async def test_a_deployment_that_fails_says_why(place: azure.Azure, model: CloudModel) -> None:
    place.arm.failing += [("UserError", WORDS), ("UserError", "again")]
    async with opened(place) as rig:
        await rig.target.deploy(model)
        await rig.target.scale(model.key, 1)
        health = await told(rig, model, WORDS)
        assert (health.ready, health.wanted) == (0, 1)
        error = await fault_of(rig, rig.target.infer(model.key, Weights(11).question().request, 5))
        assert error.fault is Fault.NOT_DEPLOYED
        # It is not tried for ever, but when someone asks.
        assert len(place.arm.failing) == 1
        await rig.target.scale(model.key, 1)
        await told(rig, model, "again")


async def test_nobody_waits_for_a_slow_change(place: azure.Azure, model: CloudModel) -> None:
    place.arm.gate.clear()
    async with opened(place) as rig, asyncio.timeout(30):
        await rig.target.deploy(model)
        await rig.target.scale(model.key, 1)
        health = await rig.target.health(model.key)
        assert (health.ready, health.wanted) == (0, 1)
        assert "creating" in health.reason
        await rig.target.remove(model.key)


async def test_an_azure_that_hangs_ends_in_time(
    place: azure.Azure, model: CloudModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = importlib.import_module("shoal_controlplane.offload.azureml.session")
    monkeypatch.setattr(session, "READ_S", 0.2)
    free = threading.Event()
    place.faults.append(azure.Fault("workspaces/vision", Answer(500), 99, free))
    async with opened(place) as rig:
        try:
            for call in (rig.target.describe(), rig.target.deploy(model)):
                assert (await fault_of(rig, call)).fault is Fault.TIMEOUT
        finally:
            free.set()


@pytest.mark.parametrize("reached", [True, False])
async def test_storage_that_cannot_be_used_is_told_without_its_signature(
    place: azure.Azure, model: CloudModel, reached: bool
) -> None:
    more = {} if reached else {"storage_url": "https://127.0.0.1:9/{account}"}
    async with opened(place, **more) as rig:
        if reached:
            place.fail("PUT /shoalstore", 403, "AuthenticationFailed", place.sas, 99)
        await rig.target.deploy(model)
        health = await told(rig, model, "refuses" if reached else "cannot be reached")
        assert place.sas not in health.reason
    assert not place.arm.assets.models


async def test_an_endpoint_of_somebody_else_is_left_alone(
    place: azure.Azure, model: CloudModel
) -> None:
    async with opened(place) as rig:
        name = await endpoint_of(rig, place, model)
    place.arm.endpoints[name]["tags"] = {"team": "other"}
    async with opened(place) as rig:
        for call in (
            rig.target.deploy(model),
            rig.target.health(model.key),
            rig.target.remove(model.key),
        ):
            assert (await fault_of(rig, call)).fault is Fault.CONFLICT
    assert name in place.arm.endpoints


async def test_a_secret_that_is_rotated_counts_at_once(
    place: azure.Azure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(place, secret=WRONG) as rig:
        error = await fault_of(rig, rig.target.describe())
        assert error.fault is Fault.CREDENTIALS
        assert "AADSTS7000215" in str(error)
        private(place.folder / "credential", place.secret)
        assert "vision" in (await rig.target.describe()).where
    # Microsoft Entra repeated the wrong one here.
    for secret in (WRONG, *place.secrets):
        assert secret not in caplog.text


async def test_a_secret_that_others_may_read_is_not_used(place: azure.Azure) -> None:
    async with opened(place) as rig:
        (place.folder / "credential").chmod(0o644)
        error = await fault_of(rig, rig.target.describe())
    assert error.fault is Fault.CREDENTIALS
    assert "chmod 600" in str(error)
    assert not any("token" in s for s in place.seen)


async def test_a_managed_identity(place: azure.Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{place.url}/{azure.TENANT}/msi")
    monkeypatch.setenv("IDENTITY_HEADER", place.secret)
    given = TargetSettings("here", "azureml", options(place), "identity")
    target = kind_of("azureml").open_target(given)
    try:
        assert "vision" in (await target.describe()).where
    finally:
        await target.close()


async def test_certificates_that_do_not_verify_are_refused(
    place: azure.Azure, tmp_path: Path, model: CloudModel
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, authority = azure.certificates(other)
    async with opened(place, ca_file=authority) as rig:
        for call in (rig.target.describe(), rig.target.deploy(model)):
            error = await fault_of(rig, call)
            assert error.fault in (Fault.UNREACHABLE, Fault.CREDENTIALS)
            assert "certificate" in str(error).lower()
    assert not place.seen


@pytest.mark.parametrize("address", ["https://nowhere.invalid", "https://127.0.0.1:9"])
async def test_an_azure_that_is_not_there(place: azure.Azure, address: str) -> None:
    async with opened(place, resource_manager=address) as rig:
        error = await fault_of(rig, rig.target.describe())
    assert error.fault is Fault.UNREACHABLE


def test_what_cannot_be_opened(place: azure.Azure, tmp_path: Path) -> None:
    kind = kind_of("azureml")
    given = options(place)
    for credential, more, words in (
        ("", {}, "needs a credential"),
        ("hunter2", {}, "reference"),
        ("env:SECRET", {"tenant": ""}, "tenant"),
        ("env:SECRET", {"ca_file": str(tmp_path / "none.pem")}, "ca_file"),
    ):
        with pytest.raises(InvalidError, match=words) as caught:
            kind.open_target(TargetSettings("x", "azureml", {**given, **more}, credential))
        assert "hunter2" not in str(caught.value)
