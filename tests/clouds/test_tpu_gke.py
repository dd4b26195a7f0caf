"""Targets of kind `tpu` on a real Kubernetes control plane: their pods run the real worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from clouds.models import Shelf, Weights
from clouds.rig import eventually, only

from shoal_controlplane.offload.kserve import objects as kserve_objects
from shoal_controlplane.offload.target import CloudModel, CloudTarget, Fault, TargetError
from shoal_controlplane.offload.tpu.options import (
    ACCELERATOR,
    RESOURCE,
    TOPOLOGY,
    options_of,
    worker_arguments,
)

pytest.importorskip("kubernetes", reason="needs shoal[tpu]: run `make test-clouds`")
pytest.importorskip("jax", reason="needs shoal[tpu]: run `make test-clouds`")

from clouds.rigs.kserve import Cluster, cluster

from shoal_controlplane.offload.tpu.gke import worker_deployment
from shoal_controlplane.offload.tpu.kind import open_target

pytestmark = [
    only("tpu"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

IMAGE = "registry.example.com/shoal/tpu-worker:0.1.0"
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(found: Cluster, model: CloudModel, **more: object) -> AsyncIterator[CloudTarget]:
    settings = found.settings()
    options = {
        "kubeconfig": settings.options["kubeconfig"],
        "image": IMAGE,
        "cpu": "500m",
        "memory": "1Gi",
        **more,
    }
    target = open_target(type(settings)(name="gke", kind="tpu", options=options))
    try:
        await target.deploy(model)
        yield target
    finally:
        await target.remove(model.key)
        await target.close()


async def reason(target: CloudTarget, model: CloudModel, part: str) -> str:
    """Wait until the health of a model says why."""

    async def told() -> bool:
        return part in (await target.health(model.key)).reason

    await eventually(f"health says {part!r}", told, 90)
    return (await target.health(model.key)).reason


def dropped(made: Any, taken: Any) -> Iterator[str]:
    """Keys that the API server did not know."""
    if isinstance(made, list) and isinstance(taken, list):
        made, taken = dict(enumerate(made)), dict(enumerate(taken))
    if isinstance(made, dict) and isinstance(taken, dict):
        for key, value in made.items():
            if key in taken:
                yield from dropped(value, taken[key])
            else:
                yield str(key)


async def test_from_nothing_to_one_and_back(found: Cluster, models: Shelf) -> None:
    weights = Weights(31)
    model, question = models.model("on-gke", weights), weights.question(3)

    async def ready(replicas: int) -> bool:
        return (await target.health(model.key)).ready == replicas

    async with opened(found, model, platform="cpu") as target:
        assert (await target.health(model.key)).wanted == 0
        await target.scale(model.key, 1)
        await eventually("a worker is ready", lambda: ready(1), 90)
        question.check(await target.infer(model.key, question.request, TIMEOUT_S))
        await target.deploy(model)
        assert (await target.health(model.key)).wanted == 1
        # The node is taken away.
        await asyncio.to_thread(found.machines.restart)

        async def answers() -> bool:
            try:
                question.check(await target.infer(model.key, question.request, TIMEOUT_S))
            except TargetError as error:
                assert error.fault in (Fault.UNREACHABLE, Fault.NOT_DEPLOYED)
                return False
            return True

        await eventually("it answers again", answers, 60)
        await target.scale(model.key, 0)
        await eventually("no worker is left", lambda: ready(0), 60)
        with pytest.raises(TargetError) as caught:
            await target.infer(model.key, question.request, TIMEOUT_S)
        assert caught.value.fault is Fault.NOT_DEPLOYED


async def test_a_tpu_is_asked_for_where_gke_has_them(found: Cluster, models: Shelf) -> None:
    model = models.model("on-tpu", Weights(32))
    async with opened(found, model, accelerator="tpu-v6e-slice", topology="2x2", chips=4) as target:
        await target.scale(model.key, 1)
        said = await reason(target, model, "node(s) didn't match")
        assert said.startswith("quota: ")
        # What is no TPU in truth ends the worker with a sentence.
        labels = {ACCELERATOR: "tpu-v6e-slice", TOPOLOGY: "2x2"}
        await asyncio.to_thread(found.machines.add_node, "tpu-1", labels, {"cpu": 8, RESOURCE: 4})
        said = await reason(target, model, "JAX finds no device here")
        assert "again and again" in said


async def test_the_deployment_is_taken_whole(found: Cluster, models: Shelf) -> None:
    model = models.model("whole-tpu", Weights(33))
    options = options_of({"image": IMAGE, "shapes": {"whole-tpu": {"a": [8]}}})
    plain = kserve_objects.deployment(model, options.cluster(), 1)
    made = worker_deployment(plain, worker_arguments(model, options), options)
    made["metadata"]["namespace"] = "shoal"
    taken = await asyncio.to_thread(found.api.apply, made, True)
    assert not list(dropped(made, taken))
    pod = taken["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {ACCELERATOR: "tpu-v5-lite-podslice", TOPOLOGY: "1x1"}
    [container] = pod["containers"]
    assert container["resources"]["limits"][RESOURCE] == "1"
    assert "--batches=1,4" in container["args"]
    assert "--shape=a=8" in container["args"]


async def test_changed_arguments_change_the_mark(models: Shelf) -> None:
    model = models.model("marked", Weights(34))
    options = options_of({"image": IMAGE})
    marks = set()
    for arguments in (["--batches=1"], ["--batches=1,2"]):
        for replicas in (0, 1):
            plain = kserve_objects.deployment(model, options.cluster(), replicas)
            made = worker_deployment(plain, arguments, options)
            marks.add(made["metadata"]["annotations"][kserve_objects.SPEC])
    assert len(marks) == 2


async def test_without_an_image_there_is_nothing_to_run(found: Cluster, models: Shelf) -> None:
    model = models.model("imageless", Weights(35))
    with pytest.raises(TargetError, match="option image") as caught:
        async with opened(found, model, image=""):
            pass
    assert caught.value.fault is Fault.UNSUPPORTED
