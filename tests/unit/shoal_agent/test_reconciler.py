from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.reconciler import Plan, Reconciler, plan
from shoal_agent.serving.resident import Loaded
from shoal_agent.serving.service import ServingError
from shoal_agent.updates.fetch import FetchError
from shoal_agent.updates.goals import Key, Slot, key_of, same_settings
from shoal_agent.updates.journal import Entry
from shoal_shared.messages import Desired, GoldenGoal, ModelGoal, RoleGoal, VariantGoal
from shoal_shared.profiles import fit
from shoal_shared.status import ReplicaState

LOADED = Loaded(("CPUExecutionProvider",), 1000, fit([(1, 2.0)]))
FILES = {"sha256:0": Path("/artifact")}


def goal(model: str = "m", version: str = "1", **more: object) -> ModelGoal:
    values: dict[str, object] = {
        "deployment": "d",
        "digest": "sha256:" + f"{hash((model, version)) & 0xFFFF:064x}",
        "size": 10,
        "format": "onnx",
    } | more
    return ModelGoal(model=model, version=version, **values)  # type: ignore[arg-type]


def ready(g: ModelGoal) -> Slot:
    return Slot(g, state=ReplicaState.READY, files=FILES, loaded=LOADED)


def slots(*items: Slot) -> dict[Key, Slot]:
    return {key_of(s.goal): s for s in items}


# The pure part.


def test_nothing_is_done_where_all_is_as_wanted() -> None:
    g = goal()
    assert plan([g], slots(ready(g)), 0.0) == Plan()
    renamed = msgspec.structs.replace(g, deployment="other")
    assert plan([renamed], slots(ready(g)), 0.0) == Plan()


def test_a_version_makes_way_only_when_its_successor_serves() -> None:
    old, new = goal(version="1"), goal(version="2")
    there = slots(ready(old))
    assert plan([new], there, 0.0) == Plan(add=(new,))
    there |= slots(Slot(new))
    assert plan([new], there, 0.0) == Plan(fetch=key_of(new))
    there |= slots(Slot(new, files=FILES))
    assert plan([new], there, 0.0) == Plan(load=key_of(new))
    there |= slots(Slot(new, files=FILES, state=ReplicaState.FAILED, retry_at=9.0))
    assert plan([new], there, 0.0) == Plan(wake_at=9.0)
    there |= slots(ready(new))
    assert plan([new], there, 0.0) == Plan(unload=key_of(old))


def test_a_model_that_is_gone_frees_its_memory_before_another_loads() -> None:
    a, b = goal("a"), goal("b")
    there = slots(ready(a), Slot(b, files=FILES))
    assert plan([b], there, 0.0) == Plan(unload=key_of(a))


def test_other_settings_of_a_version_are_taken_up_while_it_serves() -> None:
    old, new = goal(max_batch=1), goal(max_batch=8)
    assert plan([new], slots(ready(old)), 0.0) == Plan(change=(new,))
    other = goal(digest="sha256:" + "9" * 64)
    assert plan([other], slots(ready(old)), 0.0) == Plan(unload=key_of(old))
    assert plan([new], slots(Slot(old, files=FILES)), 0.0) == Plan(drop=(key_of(old),))


def test_what_is_on_the_device_comes_before_what_needs_the_network() -> None:
    far, near = goal("far"), goal("near")
    assert plan([far, near], slots(Slot(far), Slot(near, local=True)), 0.0).fetch == key_of(near)


def test_a_fetch_for_nothing_is_cancelled_and_a_load_is_waited_for() -> None:
    a, b = goal("a"), goal("b")
    there = slots(Slot(a, busy=True), Slot(b, files=FILES, busy=True))
    assert plan([], there, 0.0) == Plan(cancel=(key_of(a),))


KEYS = st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from([1, 4]))
WANTED = st.lists(KEYS, max_size=5).map(lambda ks: [goal(m, v, max_batch=b) for m, v, b in ks])


@given(st.lists(WANTED, min_size=1, max_size=4), st.data())
def test_every_sequence_of_goals_converges_without_needless_steps(
    goals: list[list[ModelGoal]], data: st.DataObject
) -> None:
    """Effects end in any order, goals change at any time; the invariants hold throughout."""
    there: dict[Key, Slot] = {}
    steps = 0
    for number, wanted in enumerate(goals):
        last = number == len(goals) - 1
        while True:
            steps += 1
            assert steps < 500
            step = plan(wanted, there, float(steps))
            perform(step, there, wanted)
            busy = [s for s in there.values() if s.busy]
            assert len([s for s in busy if s.files is None]) <= 1
            assert len([s for s in busy if s.files is not None]) <= 1
            if step == Plan() and not busy:
                break
            if not last and data.draw(st.booleans()):
                break
            if busy:
                finish(data.draw(st.sampled_from(busy)), there, steps, data.draw(st.booleans()))
    first: dict[Key, ModelGoal] = {}
    for g in goals[-1]:
        first.setdefault(key_of(g), g)
    assert set(there) == set(first)
    assert all(s.loaded and same_settings(s.goal, first[k]) for k, s in there.items())


def perform(step: Plan, there: dict[Key, Slot], wanted: list[ModelGoal]) -> None:
    for key in step.cancel:
        there[key].busy = False
    for key in step.drop:
        assert there[key].loaded is None
        del there[key]
    for g in step.add:
        there[key_of(g)] = Slot(g)
    for g in step.change:
        slot = there[key_of(g)]
        assert slot.loaded
        assert not slot.busy
        slot.goal, slot.files, slot.stale, slot.retry_at = g, None, True, 0.0
    for started in filter(None, (step.fetch, step.load, step.unload)):
        assert not there[started].busy
        there[started].busy = True
    if step.unload:
        slot = there[step.unload]
        slot.stale = False
        assert not any(g == slot.goal for g in wanted[:1])
        successors = [g for g in wanted if g.model == slot.goal.model]
        serving = [s for s in map(there.get, map(key_of, successors)) if s and s.loaded]
        assert not successors or serving


def finish(slot: Slot, there: dict[Key, Slot], now: int, fails: bool) -> None:
    slot.busy = False
    if slot.loaded is not None and not slot.stale:
        slot.loaded = None
        slot.state = ReplicaState.QUEUED
    elif fails and slot.failures < 3:
        slot.failures += 1
        if slot.stale and slot.files is not None:
            slot.loaded, slot.stale = None, False
        slot.state, slot.retry_at = ReplicaState.FAILED, now + 2.0
    elif slot.files is None:
        slot.files = FILES
    else:
        slot.loaded, slot.state, slot.stale = LOADED, ReplicaState.READY, False


# The loop.


@dataclass
class World:
    """Fakes that do at once what they are asked, or what the test says."""

    events: list[str] = field(default_factory=list)
    fetch_errors: list[FetchError] = field(default_factory=list)
    load_errors: list[Exception] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    collected: list[set[str]] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    entry: Entry | None = None
    roles: list[tuple[RoleGoal, ...]] = field(default_factory=list)
    now: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take_roles(self, roles: tuple[RoleGoal, ...]) -> None:
        self.roles.append(roles)
        self.changed.set()

    def has(self, digest: str, size: int) -> bool:
        return digest in self.stored

    async def obtain(self, digest: str, size: int, keep: Collection[str]) -> Path:
        assert digest in keep
        self.events.append(f"fetch {digest[-4:]}")
        self.changed.set()
        try:
            if digest in self.held:
                await self.held[digest].wait()
        except asyncio.CancelledError:
            self.cancelled.append(digest)
            raise
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)
        self.stored.add(digest)
        return Path("/") / digest

    async def collect(self, keep: Collection[str]) -> None:
        self.collected.append(set(keep))
        self.changed.set()

    def needed_files(self, g: ModelGoal) -> tuple[VariantGoal, ...]:
        if g.model in self.unfit:
            raise ServingError(self.unfit[g.model])
        return tuple(f for f in g.files if f.format == "onnx")

    async def load(
        self,
        g: ModelGoal,
        files: Mapping[str, Path],
        on_state: Callable[[ReplicaState], None],
    ) -> Loaded:
        golden = {g.golden.digest} if g.golden else set()
        assert set(files) == {f.digest for f in self.needed_files(g)} | golden
        self.events.append(f"load {g.model}:{g.version}")
        on_state(ReplicaState.PROFILING)
        await asyncio.sleep(0)
        if self.load_errors:
            raise self.load_errors.pop(0)
        return LOADED

    async def unload(self, model: str, version: str) -> None:
        self.events.append(f"unload {model}:{version}")

    async def read(self) -> Entry | None:
        return self.entry

    async def write(self, entry: Entry) -> None:
        self.entry = entry
        self.events.append(f"journal {entry.desired.goal}")


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(
        world,
        world,
        world,
        clock=lambda: world.now,
        rng=random.Random(1),
        on_change=world.changed.set,
        on_roles=world.take_roles,
    )
    await reconciler.restore()
    task = asyncio.create_task(reconciler.run())
    yield reconciler
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def until(world: World, condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            world.changed.clear()
            await world.changed.wait()

    await asyncio.wait_for(wait(), 10)


def states(reconciler: Reconciler) -> dict[str, str]:
    return {f"{r.model}:{r.version}": r.state.value for r in reconciler.reports()}


async def test_a_goal_is_journalled_then_fetched_loaded_and_reported(world: World) -> None:
    g = goal()
    async with running(world) as reconciler:
        assert (reconciler.goal, reconciler.reports()) == (0, ())
        reconciler.offer(Desired(goal=5, models=(g,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        (report,) = reconciler.reports()
        assert reconciler.goal == 5
        assert (report.deployment, report.providers) == ("d", ("CPUExecutionProvider",))
        assert report.profile == LOADED.profile
    assert world.events == ["journal 5", f"fetch {g.digest[-4:]}", "load m:1"]


async def test_a_goal_that_runs_already_does_nothing(world: World) -> None:
    g = goal()
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(g,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        del world.events[:]
        reconciler.offer(Desired(goal=1, models=(g,)))
        reconciler.offer(Desired(goal=2, models=(msgspec.structs.replace(g, deployment="e"),)))
        await until(world, lambda: reconciler.goal == 2)
        assert [r.deployment for r in reconciler.reports()] == ["e"]
        assert states(reconciler) == {"m:1": "ready"}
    assert world.events == ["journal 2"]


async def test_late_and_unusable_goals_are_ignored_with_a_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=7))
        await until(world, lambda: reconciler.goal == 7)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            reconciler.offer(Desired(goal=6, models=(goal(),)))
            reconciler.offer(Desired(goal=7, models=(goal(),)))
            reconciler.offer(Desired(goal=8, models=(goal(model="../x"),)))
            reconciler.offer(Desired(goal=8, models=(goal(digest="sha256:xyz"),)))
        assert reconciler.goal == 7
        assert [r.getMessage() for r in caplog.records] == ["ignored a goal document"] * 4
    assert world.events == ["journal 7"]


async def test_after_a_reboot_the_journal_is_the_goal(world: World) -> None:
    g = goal()
    world.entry = Entry(desired=Desired(goal=3, models=(g,)))
    world.stored.add(g.digest)
    async with running(world) as reconciler:
        assert reconciler.goal == 3
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        reconciler.offer(Desired(goal=3, models=(g,)))
        reconciler.offer(Desired(goal=2))
    assert world.events == [f"fetch {g.digest[-4:]}", "load m:1"]


async def test_a_failure_says_why_and_is_retried_after_a_pause(world: World) -> None:
    world.fetch_errors = [FetchError("no room")]
    world.load_errors = [ServingError("bad graph"), ServingError("bad graph")]
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "failed"})
        assert reconciler.reports()[0].reason == "no room"
        (slot,) = reconciler._slots.values()
        for failures, low, high in ((1, 30, 60), (2, 60, 120), (3, 120, 240)):
            assert slot.failures == failures
            assert low <= slot.retry_at - world.now <= high
            world.now = slot.retry_at
            reconciler._wake.set()
            await until(world, lambda n=failures: slot.failures != n)  # type: ignore[misc]
        assert states(reconciler) == {"m:1": "ready"}
        assert reconciler.reports()[0].reason == ""


async def test_a_new_goal_retries_at_once(world: World) -> None:
    world.load_errors = [ServingError("bad graph")]
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "failed"})
        reconciler.offer(Desired(goal=2, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})


async def test_an_error_nobody_foresaw_fails_one_model_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.load_errors = [ZeroDivisionError("oops")]
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal("a"), goal("b"))))
        await until(world, lambda: states(reconciler) == {"a:1": "failed", "b:1": "ready"})
        assert "ZeroDivisionError: oops" in reconciler.reports()[0].reason
    assert "effect failed" in caplog.text


async def test_a_new_version_takes_over_and_the_old_artifact_stays_for_the_way_back(
    world: World,
) -> None:
    one, two, three = (goal(version=v) for v in "123")
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(one,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        reconciler.offer(Desired(goal=2, models=(two,)))
        await until(world, lambda: states(reconciler) == {"m:2": "ready"})
        await until(world, lambda: world.collected[-1:] == [{one.digest, two.digest}])
        reconciler.offer(Desired(goal=3, models=(three,)))
        await until(world, lambda: states(reconciler) == {"m:3": "ready"})
        await until(world, lambda: world.collected[-1:] == [{two.digest, three.digest}])
    work = [e for e in world.events if not e.startswith(("journal", "fetch"))]
    assert work == ["load m:1", "load m:2", "unload m:1", "load m:3", "unload m:2"]


async def test_a_fetch_that_is_no_longer_wanted_ends(world: World) -> None:
    slow, other = goal("slow"), goal("other")
    world.held[slow.digest] = asyncio.Event()
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(slow,)))
        await until(world, lambda: states(reconciler) == {"slow:1": "fetching"})
        reconciler.offer(Desired(goal=2, models=(other,)))
        await until(world, lambda: states(reconciler) == {"other:1": "ready"})
    assert world.cancelled == [slow.digest]


async def test_a_missing_artifact_does_not_keep_the_others_waiting(world: World) -> None:
    """After a reboot without a network, what is there serves."""
    far, near = goal("far"), goal("near")
    world.held[far.digest] = asyncio.Event()
    world.stored.add(near.digest)
    world.entry = Entry(desired=Desired(goal=1, models=(far, near)))
    async with running(world) as reconciler:
        await until(world, lambda: states(reconciler) == {"far:1": "fetching", "near:1": "ready"})
    assert world.cancelled == [far.digest]


async def test_what_serving_learns_later_is_reported(world: World) -> None:
    g = goal()
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(g,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        world.changed.clear()
        reconciler.refresh([(g, LOADED)])
        assert not world.changed.is_set()
        learnt = Loaded(LOADED.providers, 2000, fit([(1, 9.0)]))
        reconciler.refresh([(g, learnt), (goal("unknown"), learnt)])
        assert world.changed.is_set()
        assert reconciler.reports()[0].profile == learnt.profile


FP16 = VariantGoal(name="fp16", digest="sha256:" + "1" * 64, size=5, format="onnx")
LITE = VariantGoal(name="lite", digest="sha256:" + "2" * 64, size=5, format="tflite")
GOLDEN = GoldenGoal(digest="sha256:" + "3" * 64, size=7, absolute=0.1, relative=0.0)


async def test_what_the_device_may_try_is_fetched_and_nothing_else(world: World) -> None:
    g = goal(variants=(FP16, LITE), golden=GOLDEN)
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(g,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        await until(world, lambda: len(world.collected) > 0)
    assert world.stored == {g.digest, FP16.digest, GOLDEN.digest}
    assert world.collected[-1] == {g.digest, FP16.digest, LITE.digest, GOLDEN.digest}


async def test_a_goal_that_nothing_here_can_run_fails_before_anything_is_fetched(
    world: World,
) -> None:
    world.unfit["m"] = "no runtime on this device uses an accelerator, which is required"
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "failed"})
        (report,) = reconciler.reports()
    assert report.reason == world.unfit["m"]
    assert not world.stored


async def test_a_new_variant_is_made_ready_while_the_old_one_serves(world: World) -> None:
    plain, more = goal(), goal(variants=(FP16,))
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(plain,)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        world.held[FP16.digest] = asyncio.Event()
        reconciler.offer(Desired(goal=2, models=(more,)))
        await until(world, lambda: f"fetch {FP16.digest[-4:]}" in world.events)
        assert states(reconciler) == {"m:1": "ready"}
        world.held[FP16.digest].set()
        await until(world, lambda: world.events.count("load m:1") == 2)
        assert states(reconciler) == {"m:1": "ready"}
    assert "unload m:1" not in world.events


async def test_a_change_that_fails_is_tried_again_without_the_old_one(world: World) -> None:
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        world.load_errors = [ServingError("no room for both")]
        reconciler.offer(Desired(goal=2, models=(goal(max_batch=2),)))
        await until(world, lambda: world.events.count("load m:1") == 3)
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
    work = [e for e in world.events if "load" in e]
    assert work == ["load m:1", "load m:1", "unload m:1", "load m:1"]


async def test_a_change_that_cannot_be_fetched_leaves_what_serves(world: World) -> None:
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        world.fetch_errors = [FetchError("the server is away")]
        reconciler.offer(Desired(goal=2, models=(goal(variants=(FP16,)),)))
        await until(world, lambda: not world.fetch_errors)
        assert states(reconciler) == {"m:1": "ready"}
    assert world.events.count("load m:1") == 1


async def test_what_may_no_longer_run_here_stops(world: World) -> None:
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),)))
        await until(world, lambda: states(reconciler) == {"m:1": "ready"})
        world.unfit["m"] = "no runtime on this device uses an accelerator, which is required"
        reconciler.offer(Desired(goal=2, models=(goal(require_accelerator=True),)))
        await until(world, lambda: states(reconciler) == {"m:1": "failed"})
    assert world.events[-1] == "unload m:1"


def role(epoch: int = 1, **changes: object) -> RoleGoal:
    values: dict[str, object] = {"plan": "p", "stage": 0, "model": "m", "version": "1"} | changes
    return RoleGoal(epoch=epoch, **values)  # type: ignore[arg-type]


async def test_roles_are_taken_up_before_their_goal_is_reported(world: World) -> None:
    seen: list[tuple[int, int]] = []
    async with running(world) as reconciler:
        reconciler._on_change = lambda: seen.append((reconciler.goal, len(world.roles)))
        reconciler.offer(Desired(goal=5, models=(goal(),), roles=(role(),)))
        await until(world, lambda: bool(world.roles))
        reconciler.offer(Desired(goal=6, models=(goal(),)))
        await until(world, lambda: len(world.roles) == 2)
        assert world.roles == [(role(),), ()]
        # Not before they are remembered, nor after the goal's number is out.
        assert world.events[0] == "journal 5"
        await until(world, lambda: reconciler.goal == 6)
    assert {goals: min(n for g, n in seen if g == goals) for goals, _ in seen} == {5: 1, 6: 2}


async def test_roles_of_the_journal_are_taken_up_at_once(world: World) -> None:
    world.entry = Entry(desired=Desired(goal=3, models=(goal(),), roles=(role(),)))
    async with running(world):
        assert world.roles == [(role(),)]


async def test_a_goal_with_a_bad_role_is_ignored_as_a_whole(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(world) as reconciler:
        reconciler.offer(Desired(goal=1, models=(goal(),), roles=(role(), role(2, credits=0))))
        reconciler.offer(Desired(goal=1, models=(goal("other"),), roles=(role(),)))
        assert [str(r.__dict__["fields"]["reason"]) for r in caplog.records] == [
            "credits of stage 0 of plan p is not between 1 and 1024",
            "stage 0 of plan p runs a model that the document does not hold",
        ]
        reconciler.offer(Desired(goal=2))
        await until(world, lambda: reconciler.goal == 2)
    assert world.roles == [()]
