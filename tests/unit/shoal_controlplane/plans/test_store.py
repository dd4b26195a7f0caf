from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plans import digest_of

from shoal_controlplane.database import Database
from shoal_controlplane.deployments.deployment import AUTO, Deployment
from shoal_controlplane.deployments.store import DeploymentStore
from shoal_controlplane.migrations import migrate
from shoal_controlplane.planner.cuts.analysis import BoundaryTensor, StageFile
from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.plan import Part, Plan, Wiring
from shoal_controlplane.plans.store import PlanStore, cut_key

SHAPES = {"x": (1, 4), "a": (2,)}
CURRENT = Wiring(
    epoch=7, devices=(("a",), ("b",)), stage_ms=(1.5, 2.0), bottleneck_ms=2.0, latency_ms=4.25
)
PLAN = Plan(
    name="cat",
    model="cat",
    version="1",
    digest=digest_of("cat"),
    asked="all of it",
    parts=(
        Part(
            first=0,
            last=3,
            digest=digest_of("part"),
            size=12,
            shapes={"x": (1, 4)},
            passes=("skip",),
            memory_bytes=5,
        ),
    ),
    current=CURRENT,
    fallbacks={"a": CURRENT},
    credits=3,
    compression="fp16",
    created_at=12.5,
)
DEPLOYMENT = Deployment(
    name="cat",
    model="cat",
    version="1",
    replicas=1,
    select={},
    created_at=1.0,
    shards=AUTO,
    objective=Objective.LATENCY,
    shapes=SHAPES,
)


def file(first: int, last: int, text: str) -> StageFile:
    tensor = BoundaryTensor("x", "FP32", (1, 4), 16)
    return StageFile(first, last, "f", digest_of(text), 3, (tensor,), ("y",), ("skip",))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """As `shoal serve` makes it."""
    url = f"sqlite:///{tmp_path / 'shoal.db'}"

    opened = Database(url)
    migrate(opened.engine)
    yield opened
    opened.close()


async def loaded(database: Database) -> PlanStore:
    store = PlanStore(database)
    await store.load()
    return store


async def test_plans_survive_a_restart(database: Database) -> None:
    deployments = DeploymentStore(database)
    await deployments.put(DEPLOYMENT)
    store = await loaded(database)
    await store.put(PLAN)
    assert (await loaded(database)).plans == {"cat": PLAN}
    await store.delete("cat")
    await store.delete("cat")
    assert store.plans == (await loaded(database)).plans == {}


async def test_a_plan_goes_with_its_deployment(database: Database) -> None:
    deployments = DeploymentStore(database)
    await deployments.put(DEPLOYMENT)
    store = await loaded(database)
    await store.put(PLAN)
    await deployments.put(DEPLOYMENT)
    assert (await loaded(database)).plans == {"cat": PLAN}, "but not with a change of it"
    await deployments.delete("cat")
    assert (await loaded(database)).plans == {}


async def test_sharded_deployments_survive_a_restart(database: Database) -> None:
    deployments = DeploymentStore(database)
    await deployments.put(DEPLOYMENT)
    again = DeploymentStore(database)
    await again.load()
    assert again.deployments == {"cat": DEPLOYMENT}


async def test_parts_are_kept_by_model_and_shapes(database: Database) -> None:
    store = await loaded(database)
    key = cut_key("m1", SHAPES)
    assert key == cut_key("m1", dict(reversed(SHAPES.items())))
    first, second = file(0, 2, "a"), file(2, 4, "b")
    await store.add_parts(key, (first, second))
    await store.add_parts(cut_key("m1", {"x": (2, 4)}), (file(0, 2, "c"),))
    again = await loaded(database)
    for held in (store, again):
        assert held.parts(key) == {(0, 2): first, (2, 4): second}
        assert held.parts(cut_key("m2", SHAPES)) == {}
        assert held.ranges("m1", SHAPES) == {digest_of("a"): (0, 2), digest_of("b"): (2, 4)}
        assert held.digests() == {digest_of("a"), digest_of("b"), digest_of("c")}
    await store.add_parts(key, (file(0, 2, "anew"),))
    assert (await loaded(database)).ranges("m1", SHAPES)[digest_of("anew")] == (0, 2)


async def test_parts_of_models_that_are_gone(database: Database) -> None:
    store = await loaded(database)
    await store.add_parts(cut_key("m1", SHAPES), (file(0, 2, "shared"), file(2, 4, "own")))
    await store.add_parts(cut_key("m2", SHAPES), (file(0, 2, "shared"),))
    assert await store.keep_parts({"m1", "m2"}) == set()
    assert await store.keep_parts({"m2"}) == {digest_of("own")}, "the other is still referred to"
    assert store.digests() == (await loaded(database)).digests() == {digest_of("shared")}
    assert await store.keep_parts(()) == {digest_of("shared")}
    assert (await loaded(database)).digests() == set()
