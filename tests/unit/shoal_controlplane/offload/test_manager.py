"""Targets and the models on them, from nothing to ready and back, and every fault on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from support.targets import (
    ScriptedTarget,
    cloud_model,
    hanging,
    question,
    raising,
    served_model,
)
from support.virtual_time import virtual_time

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.gateway.clouds import Level, Pressure
from shoal_controlplane.offload.manager import CloudManager, TargetPlan, WantedModel
from shoal_controlplane.offload.placing import Timing
from shoal_controlplane.offload.pool import CloudPool
from shoal_controlplane.offload.scaling import ScalingSettings
from shoal_controlplane.offload.state import ModelOnTarget, State, TargetPicture
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Description,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey

KEY = ("m", "1")
TIMING = Timing(deploy_s=60, call_s=10, patience_s=100)
SCALING = ScalingSettings(utilisation=0.5, down_s=10, idle_s=60, hurry_s=15)
RISING = Pressure(Level.RISING)
CALM = Pressure(Level.CALM)


def now() -> float:
    return asyncio.get_running_loop().time()


class World:
    """A manager, and targets by script that it opens."""

    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.pool = CloudPool(clock)
        self.events: list[tuple[str, State, str]] = []
        self.targets: dict[str, ScriptedTarget] = {}
        self.opened: list[ScriptedTarget] = []
        self.scripts: dict[str, Callable[[ScriptedTarget], None]] = {}
        self.manager = CloudManager(
            self.pool,
            clock,
            opener=self._open,
            changed=self._changed,
            scaling=SCALING,
            timing=TIMING,
            rng=random.Random(1),
        )
        self._pressing: asyncio.Task[None] | None = None

    async def _open(self, settings: TargetSettings) -> CloudTarget:
        target = ScriptedTarget(settings)
        before = self.targets.get(settings.name)
        if before is not None and before.settings.options == settings.options:
            # The same place: what is there is there.
            target.deployed, target.replicas = before.deployed, before.replicas
        if settings.name in self.scripts:
            self.scripts[settings.name](target)
        self.targets[settings.name] = target
        self.opened.append(target)
        return target

    def _changed(self, target: str, model: ModelKey, state: State, sentence: str) -> None:
        assert model[0].startswith("m")
        self.events.append((target, state, sentence))

    async def begin(self, *plans: TargetPlan, models: Iterable[CloudModel] | None = None) -> World:
        names = tuple(plan.settings.name for plan in plans)
        self.manager.set_targets(plans)
        self.manager.set_wanted(WantedModel(model, names) for model in (models or [cloud_model()]))
        await self.manager.start()
        return self

    def press(self, pressure: Pressure, *targets: str) -> None:
        """Say so every second from now on."""
        if self._pressing is not None:
            self._pressing.cancel()
        model = served_model(*targets)

        async def repeat() -> None:
            while True:
                self.pool.demand(model, pressure)
                await asyncio.sleep(1)

        self._pressing = asyncio.ensure_future(repeat())

    async def end(self) -> None:
        if self._pressing is not None:
            self._pressing.cancel()
        await self.manager.stop()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
        assert all(target.closed for target in self.opened)

    def picture(self, name: str = "a") -> TargetPicture:
        return next(p for p in self.manager.pictures() if p.name == name)

    def model(self, name: str = "a") -> ModelOnTarget:
        (model,) = self.picture(name).models
        return model

    def states(self, name: str = "a") -> list[State]:
        return [state for target, state, _ in self.events if target == name]

    def options(self, *names: str) -> list[str]:
        return [o.target for o in self.pool.options(served_model(*names), 1, 16, now())]


def plan(
    name: str = "a",
    *,
    price: Price | None = None,
    cap: float | None = None,
    most: int = 4,
    where: str = "x",
) -> TargetPlan:
    settings = TargetSettings(
        name, "kserve", {"where": where}, price=price or Price(), max_replicas=most
    )
    return TargetPlan(settings, cap)


@virtual_time
async def test_from_cold_to_ready_to_cold() -> None:
    world = await World().begin(plan())
    await asyncio.sleep(5)
    target = world.targets["a"]
    assert world.model().state is State.COLD
    assert world.picture().where == "nowhere, a"
    assert world.options("a") == []
    assert target.calls["scale"] == 0

    world.press(RISING, "a")
    await asyncio.sleep(0.2)
    assert world.model().state is State.WARMING
    assert len(target.replicas[KEY]) == 1
    await asyncio.sleep(4)
    model = world.model()
    assert model.state is State.READY
    assert (model.ready, model.wanted) == (1, 1)
    # It was measured before anyone was sent there.
    assert model.p95_ms is not None
    assert model.mean_ms == pytest.approx(20, rel=0.3)
    assert world.options("a") == ["a"]

    world.press(Pressure(Level.SATURATED, model.items_per_s), "a")
    await asyncio.sleep(6)
    assert world.model().ready == 2
    assert target.calls["scale"] == 2

    world.press(CALM, "a")
    await asyncio.sleep(20)
    assert len(target.replicas[KEY]) == 1
    assert world.options("a") == ["a"]
    await asyncio.sleep(60)
    assert target.replicas[KEY] == []
    assert world.model().state is State.COLD
    assert world.options("a") == []
    assert world.states() == [State.COLD, State.WARMING, State.READY, State.COLD]
    await world.end()
    assert KEY in target.deployed


@virtual_time
async def test_a_deployment_that_goes_takes_its_model_with_it() -> None:
    world = await World().begin(plan(), models=[cloud_model(), cloud_model("m2")])
    await asyncio.sleep(2)
    world.manager.set_wanted([WantedModel(cloud_model("m2"), ("a",))])
    target = world.targets["a"]
    target.on_remove = raising(Fault.UNREACHABLE)
    await asyncio.sleep(2)
    assert KEY in target.deployed
    target.on_remove = None
    await asyncio.sleep(10)
    assert list(target.deployed) == [("m2", "1")]
    assert [m.model for m in world.picture().models] == ["m2"]
    # And may come back, even while it is on its way out.
    target.on_remove = hanging
    world.manager.set_wanted([])
    await asyncio.sleep(1)
    world.manager.set_wanted([WantedModel(cloud_model("m2"), ("a",))])
    target.on_remove = None
    await asyncio.sleep(70)
    assert list(target.deployed) == [("m2", "1")]
    assert world.model().state is State.COLD
    await world.end()


@virtual_time
async def test_another_digest_replaces() -> None:
    world = await World().begin(plan())
    world.press(RISING, "a")
    await asyncio.sleep(5)
    new = cloud_model(digest="sha256:bb")
    world.manager.set_wanted([WantedModel(new, ("a",))])
    await asyncio.sleep(5)
    target = world.targets["a"]
    assert target.deployed[KEY] == new
    assert target.calls["deploy"] == 2
    assert world.model().state is State.READY
    # The same again does nothing.
    world.manager.set_wanted([WantedModel(cloud_model(digest="sha256:bb"), ("a",))])
    await asyncio.sleep(5)
    assert target.calls["deploy"] == 2
    await world.end()


@virtual_time
async def test_a_target_that_is_removed_keeps_nothing() -> None:
    world = await World().begin(plan("a"), plan("b"))
    world.press(RISING, "a", "b")
    await asyncio.sleep(5)
    world.manager.set_targets([plan("b")])
    await asyncio.sleep(1)
    assert world.targets["a"].deployed == {}
    assert world.targets["a"].closed
    assert [p.name for p in world.manager.pictures()] == ["b"]
    await asyncio.sleep(5)
    assert world.options("a", "b") == ["b"]
    await world.end()


@virtual_time
async def test_a_removed_target_that_hangs_is_given_up() -> None:
    world = await World().begin(plan("a"))
    await asyncio.sleep(2)
    world.targets["a"].on_remove = hanging
    world.manager.set_targets([])
    await asyncio.sleep(60 * 5 + 40)
    assert world.targets["a"].closed
    await world.end()


@virtual_time
async def test_another_place_under_the_same_name() -> None:
    world = await World().begin(plan("a", where="x"))
    await asyncio.sleep(2)
    old = world.targets["a"]
    world.manager.set_targets([plan("a", where="y")])
    await asyncio.sleep(2)
    assert old.deployed == {}
    assert old.closed
    assert KEY in world.targets["a"].deployed
    await world.end()


@virtual_time
async def test_another_price_or_limit_keeps_what_runs() -> None:
    world = await World().begin(plan("a"))
    world.press(RISING, "a")
    await asyncio.sleep(5)
    old = world.targets["a"]
    world.manager.set_targets([plan("a", price=Price(per_request=0.5), cap=100.0, most=1)])
    await asyncio.sleep(1)
    assert world.options("a") == ["a"]
    assert world.picture().price.per_request == 0.5
    assert world.picture().cap_per_hour == 100.0
    assert world.targets["a"] is not old
    assert old.calls["remove"] == 0
    assert not old.closed  # requests under way may end
    await asyncio.sleep(31)
    assert old.closed
    assert world.targets["a"].calls["deploy"] == 1
    await world.end()


@virtual_time
async def test_settings_that_change_while_it_is_opened() -> None:
    world = World()
    gate = asyncio.Event()

    async def slowly(settings: TargetSettings) -> CloudTarget:
        await gate.wait()
        return await world._open(settings)

    clock = asyncio.get_running_loop().time
    world.manager = CloudManager(world.pool, clock, opener=slowly)
    await world.begin(plan("a", most=1))
    await asyncio.sleep(1)
    world.manager.set_targets([plan("a", most=3)])
    gate.set()
    await asyncio.sleep(1)
    assert [target.settings.max_replicas for target in world.opened] == [1, 3]
    assert world.opened[0].closed
    assert world.picture().max_replicas == 3
    assert world.model().state is State.COLD
    await world.end()


@virtual_time
async def test_after_a_restart_it_goes_on_with_what_runs() -> None:
    world = await World().begin(plan())
    world.press(Pressure(Level.SATURATED, 150.0), "a")
    await asyncio.sleep(6)
    running = len(world.targets["a"].replicas[KEY])
    assert running >= 2
    left = world.targets["a"]
    await world.end()

    again = World()
    again.targets["a"] = left
    await again.begin(plan())
    await asyncio.sleep(3)
    assert again.model().ready == running
    assert again.options("a") == ["a"]
    assert again.targets["a"].calls["scale"] == 0
    # Nobody needs them any longer.
    await asyncio.sleep(120)
    assert again.targets["a"].replicas[KEY] == []
    await again.end()


@virtual_time
async def test_nothing_of_one_target_blocks_another() -> None:
    world = World()

    def hang(target: ScriptedTarget) -> None:
        target.on_describe = target.on_deploy = target.on_health = hanging

    world.scripts["a"] = hang
    await world.begin(plan("a"), plan("b"))
    world.press(RISING, "a", "b")
    await asyncio.sleep(30)
    assert world.options("a", "b") == ["b"]
    assert world.model("b").state is State.READY
    assert "did not end within 10 s" in world.picture("a").trouble
    assert world.model("a").state is State.DEPLOYING
    await asyncio.sleep(40)
    assert world.model("a").state is State.FAILED
    assert "did not end within 60 s" in world.model("a").sentence
    world.targets["a"].on_deploy = world.targets["a"].on_health = None
    world.targets["a"].on_describe = None
    await asyncio.sleep(130)
    assert world.model("a").state in (State.READY, State.COLD)
    await world.end()


@pytest.mark.parametrize(
    "fault", [Fault.UNREACHABLE, Fault.CONFLICT, Fault.THROTTLED, Fault.BROKEN, Fault.TIMEOUT]
)
def test_a_deployment_that_fails_is_tried_again(fault: Fault) -> None:
    @virtual_time
    async def run() -> None:
        world = World()
        world.scripts["a"] = lambda t: setattr(t, "on_deploy", raising(fault, "not now"))
        await world.begin(plan())
        await asyncio.sleep(100)
        target = world.targets["a"]
        assert world.model().state is State.FAILED
        assert world.model().sentence == "not now"
        assert 3 <= target.calls["deploy"] <= 10
        target.on_deploy = None
        await asyncio.sleep(61)
        assert world.model().state is State.COLD
        assert world.states() == [State.FAILED, State.COLD]
        await world.end()

    run()


@virtual_time
async def test_what_it_can_never_run_is_not_tried_again() -> None:
    world = World()
    world.scripts["a"] = lambda t: setattr(
        t, "on_deploy", raising(Fault.UNSUPPORTED, "it has no operator Foo")
    )
    await world.begin(plan())
    world.press(RISING, "a")
    await asyncio.sleep(1000)
    assert world.targets["a"].calls["deploy"] == 1
    assert world.model().state is State.FAILED
    assert "Foo" in world.model().sentence
    # Other bytes may do.
    world.targets["a"].on_deploy = None
    world.manager.set_wanted([WantedModel(cloud_model(digest="sha256:bb"), ("a",))])
    await asyncio.sleep(10)
    assert world.model().state is State.READY
    await world.end()


@virtual_time
async def test_wrong_credentials_from_the_start_and_right_ones_later() -> None:
    world = World()

    def refuse(target: ScriptedTarget) -> None:
        refusal = raising(Fault.CREDENTIALS, "aks answered 401")
        target.on_describe = target.on_deploy = target.on_health = refusal

    world.scripts["a"] = refuse
    await world.begin(plan("a"), plan("b"))
    world.press(RISING, "a", "b")
    await asyncio.sleep(10)
    assert world.picture("a").trouble == "aks answered 401"
    assert world.model("a").state is State.EJECTED
    assert world.options("a", "b") == ["b"]
    target = world.targets["a"]
    target.on_describe = target.on_deploy = target.on_health = None
    await asyncio.sleep(65)
    assert world.picture("a").trouble == ""
    assert world.model("a").state is State.COLD
    await world.end()


@virtual_time
async def test_credentials_that_expire_while_it_serves() -> None:
    world = await World().begin(plan())
    world.press(RISING, "a")
    await asyncio.sleep(5)
    target = world.targets["a"]
    refusal = raising(Fault.CREDENTIALS, "aks answered 403")
    target.on_infer = target.on_health = target.on_describe = refusal
    with pytest.raises(TargetError):
        await world.pool.infer("a", served_model("a"), question(), 1, now() + 1)
    assert world.options("a") == []
    await asyncio.sleep(20)
    assert world.model().state is State.EJECTED
    assert world.model().sentence == "aks answered 403"
    target.on_infer = target.on_health = target.on_describe = None
    await asyncio.sleep(65)
    assert world.options("a") == ["a"]
    await world.end()


@virtual_time
async def test_a_key_that_only_answers_refuse_stays_ejected_longer_each_time() -> None:
    world = await World().begin(plan())
    world.press(RISING, "a")
    await asyncio.sleep(5)
    target = world.targets["a"]
    target.on_infer = raising(Fault.CREDENTIALS, "aks answered 403")
    before = target.calls["infer"]
    with pytest.raises(TargetError):
        await world.pool.infer("a", served_model("a"), question(), 1, now() + 1)
    await asyncio.sleep(120)
    assert world.options("a") == []
    assert target.calls["infer"] - before < 12
    await world.end()


@virtual_time
async def test_a_pool_of_nodes_at_its_quota() -> None:
    world = World()
    world.scripts["a"] = lambda t: setattr(t, "most", 1)
    await world.begin(plan("a"), plan("b"))
    world.press(Pressure(Level.SATURATED, 300.0), "a", "b")
    await asyncio.sleep(10)
    # What it has is used, the rest goes to the other.
    assert world.targets["a"].replicas[KEY] == [] or len(world.targets["a"].replicas[KEY]) == 1
    assert world.model("b").state is State.READY
    assert "b" in world.options("a", "b")
    assert world.targets["a"].calls["scale"] < 6
    await world.end()


@virtual_time
async def test_no_node_at_all() -> None:
    world = World()
    world.scripts["a"] = lambda t: setattr(t, "most", 0)
    await world.begin(plan("a"))
    world.press(RISING, "a")
    await asyncio.sleep(30)
    assert world.model().state is State.FAILED
    assert "limit of 0" in world.model().sentence
    assert world.targets["a"].calls["scale"] < 8
    world.targets["a"].most = 5
    await asyncio.sleep(125)
    assert world.model().state is State.READY
    await world.end()


@virtual_time
async def test_a_replica_that_never_gets_ready_is_given_up_and_another_target_helps() -> None:
    world = World()

    def stuck(target: ScriptedTarget) -> None:
        target.never_ready, target.ready_reason = True, "the image cannot be pulled"

    world.scripts["a"] = stuck
    await world.begin(plan("a"), plan("b"))
    world.press(RISING, "a", "b")
    await asyncio.sleep(10)
    assert world.model("a").state is State.WARMING
    assert "image cannot be pulled" in world.model("a").sentence
    assert world.targets["b"].replicas[KEY] == []
    await asyncio.sleep(20)
    assert world.options("a", "b") == ["b"]
    # What does not get ready is not wanted for ever.
    await asyncio.sleep(80)
    assert world.targets["a"].replicas[KEY] == []
    await world.end()

    world = World()
    world.scripts["a"] = stuck
    await world.begin(plan("a"))
    world.press(RISING, "a")
    await asyncio.sleep(110)
    assert world.model("a").state is State.FAILED
    assert "image cannot be pulled" in world.model("a").sentence
    assert world.targets["a"].replicas[KEY] == []
    await world.end()


@virtual_time
async def test_pre_empted_in_the_middle_of_a_request() -> None:
    world = await World().begin(plan("a"), plan("b"))
    world.press(RISING, "a", "b")
    await asyncio.sleep(5)
    target = world.targets["a"]

    async def lost() -> None:
        await asyncio.sleep(0.01)
        target.lose_replicas(KEY)
        raise TargetError(Fault.UNREACHABLE, "the connection was closed")

    target.on_infer = lost
    model = served_model("a", "b")
    with pytest.raises(TargetError) as caught:
        await world.pool.infer("a", model, question(), 1, now() + 1)
    assert caught.value.fault is Fault.UNREACHABLE
    target.on_infer = None
    await asyncio.sleep(0.2)
    # The health check that followed at once saw it.
    assert world.options("a", "b") == []
    assert world.model("a").state is State.WARMING
    await asyncio.sleep(5)
    assert world.options("a", "b") == ["a"]
    await world.end()


@virtual_time
async def test_an_ejected_target_is_probed_by_a_request_of_ours() -> None:
    world = await World().begin(plan("a"))
    world.press(RISING, "a")
    await asyncio.sleep(5)
    target = world.targets["a"]
    target.on_infer = raising(Fault.BROKEN, "aks answered 500")
    for _ in range(2):
        with pytest.raises(TargetError):
            await world.pool.infer("a", served_model("a"), question(), 1, now() + 1)
    await asyncio.sleep(0.1)
    assert world.model().state is State.EJECTED
    assert "aks answered 500" in world.model().sentence
    await asyncio.sleep(3)
    assert world.options("a") == []
    target.on_infer = None
    await asyncio.sleep(10)
    assert world.options("a") == ["a"]
    assert world.states()[-2:] == [State.EJECTED, State.READY]
    await world.end()


@virtual_time
async def test_the_budget_stops_replicas_and_later_lets_them_run_again() -> None:
    world = await World().begin(plan("a", price=Price(per_replica_hour=60.0), cap=30.0))
    world.press(RISING, "a")
    await asyncio.sleep(5)
    assert world.model().state is State.READY
    # 5 in the bucket, 0.5 gained and 1 spent a minute: not for long.
    await asyncio.sleep(700)
    assert world.targets["a"].replicas[KEY] == []
    picture = world.picture()
    assert world.model().state is State.OVER_BUDGET
    assert "its budget of 30 an hour" in world.model().sentence
    assert picture.left is not None
    assert picture.left >= 0
    assert picture.spent_last_hour == pytest.approx(picture.spent)
    await asyncio.sleep(7200)
    picture = world.picture()
    assert picture.spent_last_hour <= 30.0 * 7 / 6 + 1
    # It is used whenever that can be paid.
    assert picture.spent > 30.0
    assert picture.left is not None
    assert picture.left >= -1.0
    await world.end()


@virtual_time
async def test_two_models_share_the_budget_of_their_target() -> None:
    models = [cloud_model("m"), cloud_model("m2")]
    world = await World().begin(
        plan("a", price=Price(per_replica_hour=10.0), cap=10.0, most=4), models=models
    )
    for model in models:
        world.pool.demand(served_model("a", name=model.name), Pressure(Level.SATURATED, 1000.0))
    await asyncio.sleep(2)
    replicas = world.targets["a"].replicas
    running = sum(len(started) for started in replicas.values())
    # A sixth of the cap in the bucket pays three for five minutes.
    assert 1 <= running <= 3
    await world.end()


@virtual_time
async def test_a_target_whose_packages_are_not_installed_says_so() -> None:
    world = World()

    async def refuse(settings: TargetSettings) -> CloudTarget:
        raise InvalidError("targets of kind ray need packages that are not installed here")

    clock = asyncio.get_running_loop().time
    world.manager = CloudManager(world.pool, clock, opener=refuse)
    await world.begin(plan())
    await asyncio.sleep(5)
    assert "not installed" in world.picture().trouble
    assert world.model().state is State.FAILED
    assert "not installed" in world.model().sentence
    await world.end()


@virtual_time
async def test_a_fault_of_an_sdk_does_not_end_the_loop() -> None:
    world = World()

    async def fall() -> None:
        raise KeyError("token")

    world.scripts["a"] = lambda t: setattr(t, "on_deploy", fall)
    await world.begin(plan())
    await asyncio.sleep(5)
    assert world.model().state is State.FAILED
    assert world.model().sentence == "the deployment failed: KeyError"
    world.targets["a"].on_deploy = None
    await asyncio.sleep(61)
    assert world.model().state is State.COLD
    await world.end()


@virtual_time
async def test_a_model_that_vanished_there_is_deployed_again() -> None:
    world = await World().begin(plan())
    world.press(RISING, "a")
    await asyncio.sleep(5)
    target = world.targets["a"]
    target.deployed.clear()
    target.replicas.clear()
    with pytest.raises(TargetError):
        await world.pool.infer("a", served_model("a"), question(), 1, now() + 1)
    await asyncio.sleep(5)
    assert target.calls["deploy"] == 2
    assert world.options("a") == ["a"]
    await world.end()


@virtual_time
async def test_a_kind_that_cannot_be_without_replicas() -> None:
    world = World()

    def always_one(target: ScriptedTarget) -> None:
        async def health(model: ModelKey) -> Health:
            target.calls["health"] += 1
            return Health(1, 1)

        target.health = health  # type: ignore[method-assign]

    world.scripts["a"] = always_one
    await world.begin(plan("a", price=Price(per_replica_hour=36.0)))
    await asyncio.sleep(300)
    # It is there anyway, so it may be used; and its cost is counted.
    assert world.model().state is State.READY
    assert world.targets["a"].calls["scale"] <= 1
    assert world.picture().spent == pytest.approx(36.0 * 300 / 3600, rel=0.05)
    await world.end()


@virtual_time
async def test_targets_before_the_models_and_models_before_the_targets() -> None:
    world = World()
    await world.manager.start()
    world.manager.set_wanted([WantedModel(cloud_model(), ("a",))])
    await asyncio.sleep(1)
    assert world.manager.pictures() == ()
    world.manager.set_targets([plan()])
    await asyncio.sleep(1)
    assert world.model().state is State.COLD
    await world.end()
    assert world.manager.pictures() == ()


@virtual_time
async def test_a_description_may_change() -> None:
    world = await World().begin(plan())
    await asyncio.sleep(1)
    target = world.targets["a"]

    async def describe() -> Description:
        return Description("elsewhere", {"nodes": 3})

    target.describe = describe  # type: ignore[method-assign]
    await asyncio.sleep(61)
    assert world.picture().where == "elsewhere"
    assert world.picture().facts == {"nodes": 3}
    assert replace(world.picture(), models=()).trouble == ""
    await world.end()


@virtual_time
async def test_replicas_that_were_fixed_by_hand() -> None:
    world = await World().begin(plan("a"), plan("b"))
    world.manager.set_pins({("a", KEY): 2})
    await asyncio.sleep(6)
    assert world.model("a").ready == 2
    # They serve before anything else gets warm, and stay when nobody needs them.
    world.press(RISING, "a", "b")
    await asyncio.sleep(30)
    assert world.targets["b"].replicas[KEY] == []
    world.press(CALM, "a", "b")
    await asyncio.sleep(300)
    assert world.model("a").ready == 2
    # None at all, however full the devices are.
    world.manager.set_pins({("a", KEY): 0})
    world.press(Pressure(Level.SATURATED, 500.0), "a", "b")
    await asyncio.sleep(10)
    assert world.targets["a"].replicas[KEY] == []
    assert world.options("a", "b") == ["b"]
    # Never more than the target may have.
    world.manager.set_pins({("a", KEY): 99})
    await asyncio.sleep(10)
    assert world.model("a").ready == 4
    # And back to what is needed.
    world.manager.set_pins({})
    world.press(CALM, "a", "b")
    await asyncio.sleep(200)
    assert world.targets["a"].replicas[KEY] == []
    await world.end()


@virtual_time
async def test_what_was_fixed_by_hand_is_bound_by_the_budget() -> None:
    world = await World().begin(plan("a", price=Price(per_replica_hour=60.0), cap=6.0))
    world.manager.set_pins({("a", KEY): 2})
    await asyncio.sleep(5)
    assert world.targets["a"].replicas[KEY] == []
    assert world.model().state is State.OVER_BUDGET
    await world.end()
