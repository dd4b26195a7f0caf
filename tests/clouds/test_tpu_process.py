"""Targets of kind `tpu` as processes of this machine: refusals, and workers that go away."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from clouds.models import Shelf, Weights
from clouds.rig import eventually, only
from onnx import TensorProto, helper
from support import onnx_models

from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.offload.tpu.kind import open_target
from shoal_shared.oip import InferRequest, Tensor
from shoal_shared.signature import ModelSignature, TensorSpec

pytest.importorskip("jax", reason="needs shoal[tpu]: run `make test-clouds`")

from clouds.rigs.tpu import ended, pids

pytestmark = [
    only("tpu"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(200),
]

TIMEOUT_S = 30.0


def settings_of(folder: Path, **more: object) -> TargetSettings:
    options = {"launch": "process", "platform": "cpu", "folder": str(folder), **more}
    return TargetSettings(name="here", kind="tpu", options=options, max_replicas=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(folder: Path) -> AsyncIterator[CloudTarget]:
    opened = open_target(
        settings_of(folder, shapes={"wide": {"x": [7]}}),
    )
    try:
        yield opened
    finally:
        ended(folder)
        await opened.close()


async def started(target: CloudTarget, model: CloudModel, replicas: int = 1) -> None:
    await target.deploy(model)
    await target.scale(model.key, replicas)
    await until(target, model, replicas)


async def until(target: CloudTarget, model: CloudModel, replicas: int) -> None:
    async def there() -> bool:
        return (await target.health(model.key)).ready == replicas

    await eventually(f"{replicas} workers", there, 60)


async def test_an_operator_that_the_worker_lacks_is_refused_by_name(
    target: CloudTarget, models: Shelf
) -> None:
    path = onnx_models.save(
        models.folder / "unique.onnx",
        [helper.make_node("Unique", ["x"], ["y"], name="u5")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])],
    )
    model = dataclasses.replace(models.model("unique", Weights(1)), artifact=path, digest="")
    with pytest.raises(
        TargetError, match=r"Unique \(domain ai.onnx, opset 17, node 'u5'\)"
    ) as caught:
        await target.deploy(model)
    assert caught.value.fault is Fault.UNSUPPORTED
    with pytest.raises(TargetError) as caught:
        await target.health(model.key)
    assert caught.value.fault is Fault.NOT_DEPLOYED


async def test_other_bytes_than_those_of_the_digest_are_refused(
    target: CloudTarget, models: Shelf
) -> None:
    model = models.model("forged", Weights(1))
    model.artifact.write_bytes(model.artifact.read_bytes() + b"\0")
    try:
        with pytest.raises(TargetError, match="digest"):
            await target.deploy(model)
    finally:
        model.artifact.unlink()
    with pytest.raises(TargetError, match="cannot be read") as caught:
        await target.deploy(model)
    assert caught.value.fault is Fault.BROKEN


async def test_a_worker_that_is_killed_in_mid_request(
    target: CloudTarget, models: Shelf, folder: Path
) -> None:
    weights = Weights(2)
    model, question = models.model("killed", weights), weights.question(2)
    await started(target, model)
    try:
        [pid] = pids(folder)
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(target.infer(model.key, question.request, TIMEOUT_S))
        # It has the request, and never answers.
        await asyncio.wait({asked}, timeout=0.05)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TargetError) as caught:
            await asked
        assert caught.value.fault is Fault.UNREACHABLE
        with pytest.raises(TargetError) as caught:
            await target.infer(model.key, question.request, TIMEOUT_S)
        assert caught.value.fault is Fault.NOT_DEPLOYED
        health = await target.health(model.key)
        assert (health.ready, health.wanted) == (0, 1)
        assert "it was killed" in health.reason
        await until(target, model, 1)
        question.check(await target.infer(model.key, question.request, TIMEOUT_S))
        assert not (await target.health(model.key)).reason
    finally:
        await target.remove(model.key)


async def test_the_other_worker_goes_on(target: CloudTarget, models: Shelf, folder: Path) -> None:
    weights = Weights(3)
    model, question = models.model("two", weights), weights.question(2)
    await started(target, model, 2)
    try:
        os.kill(next(pids(folder)), signal.SIGKILL)
        answered = 0
        for _ in range(3):
            try:
                question.check(await target.infer(model.key, question.request, TIMEOUT_S))
                answered += 1
            except TargetError as error:
                assert error.fault is Fault.UNREACHABLE
        # At most one request finds out.
        assert answered >= 2
        await until(target, model, 2)
    finally:
        await target.remove(model.key)


async def test_one_that_is_told_to_stop_takes_nothing_more(
    target: CloudTarget, models: Shelf, folder: Path
) -> None:
    """As before a TPU is taken away."""
    weights = Weights(4)
    model, question = models.model("stopped", weights), weights.question()
    await started(target, model)
    try:
        question.check(await target.infer(model.key, question.request, TIMEOUT_S))
        os.kill(next(pids(folder)), signal.SIGTERM)

        async def refused() -> bool:
            try:
                await target.infer(model.key, question.request, TIMEOUT_S)
            except TargetError as error:
                assert error.fault in (Fault.UNREACHABLE, Fault.NOT_DEPLOYED)
                return True
            return False

        await eventually("nothing more is answered", refused, 10, 0.01)
        await until(target, model, 1)
    finally:
        await target.remove(model.key)


async def test_without_a_credential_the_token_is_kept_for_this_user_only(
    target: CloudTarget, folder: Path
) -> None:
    description = await target.describe()
    assert description.facts["platform"] == "cpu"
    kept = folder / "token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text() not in str(description)


async def test_open_dimensions_are_compiled_ahead(target: CloudTarget, models: Shelf) -> None:
    path = onnx_models.identity(models.folder / "wide.onnx", "FP32")
    spec = {"datatype": "FP32", "shape": (-1, -1)}
    model = dataclasses.replace(
        models.model("wide", Weights(5)),
        artifact=path,
        digest="",
        signature=ModelSignature(
            inputs=(TensorSpec(name="x", **spec),), outputs=(TensorSpec(name="y", **spec),)
        ),
    )
    await started(target, model)
    try:
        for shape in ((2, 7), (3, 5)):
            x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            request = InferRequest([Tensor("x", "FP32", x)])
            reply = await target.infer(model.key, request, TIMEOUT_S)
            np.testing.assert_array_equal(reply.outputs[0].data, x)
    finally:
        await target.remove(model.key)


async def test_a_python_without_jax_is_told(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o700)
    for python, said in ((fake, "has no jax"), (tmp_path / "none", "cannot be started")):
        target = open_target(settings_of(tmp_path / "workers", python=str(python)))
        with pytest.raises(TargetError, match=said) as caught:
            await target.describe()
        assert caught.value.fault is Fault.UNREACHABLE
        await target.close()
