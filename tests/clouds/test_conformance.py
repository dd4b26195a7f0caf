"""What every kind of target does alike, seen on a place that runs for real."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math

import pytest
from clouds.models import Shelf, Weights
from clouds.rig import KIND, Rig, eventually, fault_of, healthy

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.kinds import kind_of
from shoal_controlplane.offload.target import CloudModel, Fault, Price, TargetError

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(not KIND, reason="needs the packages of a cloud: run `make test-clouds`"),
]

TIMEOUT_S = 30.0


async def test_it_says_what_it_is(rig: Rig) -> None:
    description = await rig.target.describe()
    assert description.where
    json.dumps(dict(description.facts))
    text = f"{description.where} {description.facts}"
    assert not any(secret in text for secret in rig.secrets)


async def test_its_price_is_known(rig: Rig) -> None:
    price = rig.target.price()
    assert math.isfinite(price.per_replica_hour)
    assert price.per_replica_hour >= 0
    assert math.isfinite(price.per_request)
    assert price.per_request >= 0
    if rig.settings.price != Price():
        assert price == rig.settings.price


async def test_options_in_full_are_options(rig: Rig) -> None:
    kind = kind_of(rig.settings.kind)
    full = kind.check_options(rig.settings.options)
    json.dumps(dict(full))
    assert kind.check_options(full) == full


async def test_an_unknown_option_is_refused_by_its_name(rig: Rig) -> None:
    kind = kind_of(rig.settings.kind)
    with pytest.raises(InvalidError, match="moonbeam"):
        kind.check_options({**rig.settings.options, "moonbeam": 1})


async def test_answers_are_right(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    question = weights.question(items=1)
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_a_batch_is_answered(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    for items in (2, 5, 8):
        question = weights.question(items, seed=items)
        question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_only_what_was_asked_for_comes_back(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    for outputs in (("s",), ("y",), ("s", "y")):
        question = weights.question(3, seed=3, outputs=outputs)
        question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_sixteen_at_once(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    questions = [weights.question(1 + i % 4, seed=i) for i in range(16)]
    replies = await asyncio.gather(
        *(rig.target.infer(deployed.key, q.request, TIMEOUT_S) for q in questions)
    )
    for question, reply in zip(questions, replies, strict=True):
        question.check(reply)


async def test_deployed_twice_is_deployed_once(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    await rig.target.deploy(deployed)
    health = await rig.target.health(deployed.key)
    assert (health.ready, health.wanted) == (1, 1)
    question = weights.question(2)
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_another_process_goes_on_with_what_is_deployed(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    again = kind_of(rig.settings.kind).open_target(rig.settings)
    try:
        await again.deploy(deployed)
        assert (await again.health(deployed.key)).ready == 1
        question = weights.question(2)
        question.check(await again.infer(deployed.key, question.request, TIMEOUT_S))
    finally:
        await again.close()
    # What one closed still works for the other.
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_a_timeout_ends_in_time(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    question = weights.question()
    call = rig.target.infer(deployed.key, question.request, 1e-6)
    assert (await fault_of(rig, call, within_s=5)).fault is Fault.TIMEOUT
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_silence_ends_in_time(rig: Rig, deployed: CloudModel, weights: Weights) -> None:
    if rig.stalled is None:
        pytest.skip("this place cannot be made to hang")
    question = weights.question()
    async with rig.stalled():
        call = rig.target.infer(deployed.key, question.request, 0.3)
        assert (await fault_of(rig, call, within_s=5)).fault is Fault.TIMEOUT
        cancelled = asyncio.ensure_future(
            rig.target.infer(deployed.key, question.request, TIMEOUT_S)
        )
        await asyncio.wait({cancelled}, timeout=0.05)
        cancelled.cancel()
        await asyncio.wait({cancelled}, timeout=5)
        assert cancelled.cancelled()

    async def answers() -> bool:
        try:
            question.check(await rig.target.infer(deployed.key, question.request, 5.0))
        except TargetError:
            return False
        return True

    await eventually("it answers again", answers, rig.patience_s)


async def test_wrong_credentials_are_told_without_them(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    request = weights.question().request
    calls = (
        rig.refused.describe(),
        rig.refused.deploy(deployed),
        rig.refused.scale(deployed.key, 0),
        rig.refused.health(deployed.key),
        rig.refused.remove(deployed.key),
    )
    for call in calls:
        error = await fault_of(rig, call)
        assert error.fault is Fault.CREDENTIALS, (call, error)
    # It could not deploy the model, so it may not know of it.
    error = await fault_of(rig, rig.refused.infer(deployed.key, request, TIMEOUT_S))
    assert error.fault in (Fault.CREDENTIALS, Fault.NOT_DEPLOYED)
    assert (await rig.target.health(deployed.key)).ready == 1


async def test_a_credential_that_expires_is_told_without_it(
    rig: Rig, deployed: CloudModel, weights: Weights
) -> None:
    if rig.revoked is None:
        pytest.skip("replicas ask for no credential there")
    question = weights.question()
    async with rig.revoked():
        error = await fault_of(rig, rig.target.infer(deployed.key, question.request, TIMEOUT_S))
        assert error.fault is Fault.CREDENTIALS
    question.check(await rig.target.infer(deployed.key, question.request, TIMEOUT_S))


async def test_a_model_that_it_does_not_have(rig: Rig, weights: Weights) -> None:
    unknown = ("never-deployed", "7")
    call = rig.target.infer(unknown, weights.question().request, TIMEOUT_S)
    assert (await fault_of(rig, call)).fault is Fault.NOT_DEPLOYED
    assert (await fault_of(rig, rig.target.health(unknown))).fault is Fault.NOT_DEPLOYED
    assert (await fault_of(rig, rig.target.scale(unknown, 1))).fault is Fault.NOT_DEPLOYED
    await rig.target.remove(unknown)


async def test_a_format_that_it_cannot_run(rig: Rig, models: Shelf) -> None:
    model = models.model("mystery", Weights(3), format="mystery")
    assert (await fault_of(rig, rig.target.deploy(model))).fault is Fault.UNSUPPORTED
    await rig.target.remove(model.key)


async def test_from_nothing_to_two_and_back(rig: Rig, models: Shelf) -> None:
    own = Weights(4)
    model, question = models.model("scaled", own), own.question(4)
    target = rig.target
    await target.deploy(model)
    try:
        if rig.can_scale_to_zero:
            health = await healthy(rig, model.key, 0)
            assert health.wanted == 0
        for replicas in range(1, rig.most_replicas + 1):
            await target.scale(model.key, replicas)
            health = await healthy(rig, model.key, replicas)
            assert health.wanted == replicas
            assert not health.reason
            question.check(await target.infer(model.key, question.request, TIMEOUT_S))
        await target.scale(model.key, 0)
        if rig.can_scale_to_zero:
            await healthy(rig, model.key, 0)
            error = await fault_of(rig, target.infer(model.key, question.request, TIMEOUT_S))
            assert error.fault is Fault.NOT_DEPLOYED
            await target.scale(model.key, 1)
            await healthy(rig, model.key, 1)
            question.check(await target.infer(model.key, question.request, TIMEOUT_S))
    finally:
        await target.remove(model.key)
    await target.remove(model.key)
    error = await fault_of(rig, target.infer(model.key, question.request, TIMEOUT_S))
    assert error.fault is Fault.NOT_DEPLOYED


async def test_versions_and_contents_are_told_apart(rig: Rig, models: Shelf) -> None:
    one, two, three = Weights(5), Weights(6), Weights(7)
    first, second = models.model("told", one), models.model("told", two, version="2")
    target = rig.target

    async def ready(model: CloudModel) -> None:
        await target.deploy(model)
        await target.scale(model.key, 1)
        await healthy(rig, model.key, 1)

    try:
        await ready(first)
        await ready(second)
        for model, own in ((first, one), (second, two)):
            question = own.question(3)
            question.check(await target.infer(model.key, question.request, TIMEOUT_S))

        # The same version with other bytes replaces what is there.
        third = dataclasses.replace(models.model("told", three), version="1")
        assert third.digest != first.digest
        await ready(third)
        question = three.question(3)

        async def replaced() -> bool:
            try:
                question.check(await target.infer(third.key, question.request, TIMEOUT_S))
            except (TargetError, AssertionError):
                return False
            return True

        await eventually("the new weights answer", replaced, rig.patience_s)
        await target.remove(first.key)
        question = two.question(3)
        question.check(await target.infer(second.key, question.request, TIMEOUT_S))
    finally:
        await target.remove(first.key)
        await target.remove(second.key)
