"""The loop around saturation, by a clock that the test turns, and on a loop in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import pytest
from support.gateway import model, pipeline, replica
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.clouds import Level, NoClouds, Pressure
from shoal_controlplane.gateway.pressure import CHANGED, Pressures, items_per_s
from shoal_controlplane.gateway.router import Router
from shoal_controlplane.gateway.saturation import MAX_RHO, WINDOW_S
from shoal_controlplane.gateway.table import ServedModel
from shoal_shared.profiles import fit


class Told(NoClouds):
    def __init__(self) -> None:
        self.pressures: list[Pressure] = []
        self.error: Exception | None = None

    def demand(self, model: ServedModel, pressure: Pressure) -> None:
        self.pressures.append(pressure)
        if self.error is not None:
            raise self.error


class Watch:
    """One device that does 100 items a second, and all that is told of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.router = Router(rng=random.Random(1))
        self.model = model(replicas=(replica("d1", fit([(1, 10.0)])),), slo_ms=250.0)
        self.served = [self.model]
        self.clouds = Told()
        self.events: list[tuple[str, str, str, dict[str, Any]]] = []
        self.pressures = Pressures(
            self.router,
            lambda: self.served,
            self.clouds,
            lambda: self.now,
            record=lambda *event: self.events.append(event),
            wall_clock=lambda: 43390.0 + self.now,
        )

    def windows(self, count: int, edge: int = 0, cloud: int = 0, shed: int = 0) -> bool:
        """So many windows with so many items each; the requests stay on the device."""
        busy = True
        for _ in range(count):
            for _ in range(edge):
                ticket = self.router.pick("cat:1", self.model.replicas, 1, self.now)
                self.pressures.edge(self.model, 1, ticket)
            if cloud:
                self.pressures.turned_away(self.model, cloud)
                self.pressures.spilled(self.model, cloud, "aks-west")
            if shed:
                self.pressures.turned_away(self.model, shed)
                self.pressures.shed(self.model, shed)
            self.now += WINDOW_S
            busy = self.pressures.tick(self.now)
        return busy

    @property
    def picture(self) -> Any:
        return self.pressures.of("cat", "1")


def test_what_is_shown_and_told_when_it_is_full() -> None:
    watch = Watch()
    watch.windows(20, edge=3, cloud=6, shed=1)
    picture = watch.picture
    assert picture.level is Level.SATURATED
    assert (picture.edge, picture.spilled, picture.shed) == (0.3, {"aks-west": 0.6}, 0.1)
    assert picture.items_per_s == pytest.approx(200.0)
    assert picture.excess_per_s == pytest.approx(140.0)
    assert picture.rho > 1.4
    assert "spilling 60 % to aks-west, shedding 10 %" in picture.sentence
    ((kind, subject, message, data),) = watch.events
    assert (kind, subject, data["level"]) == (CHANGED, "cat:1", "saturated")
    assert message.startswith("cat:1 is saturated since 12:03:10: rho ")
    assert watch.clouds.pressures[0].level is Level.SATURATED
    assert watch.clouds.pressures[-1].excess_per_s == pytest.approx(140.0, rel=0.2)


def test_clouds_are_told_again_while_it_lasts_and_once_when_it_is_over() -> None:
    watch = Watch()
    watch.windows(40, cloud=20)
    assert 3 <= len(watch.clouds.pressures) <= 5
    watch.windows(100)
    assert [p.level for p in watch.clouds.pressures].count(Level.CALM) == 1
    assert watch.clouds.pressures[-1] == Pressure(Level.CALM)
    assert [event[3]["level"] for event in watch.events] == ["saturated", "calm"]
    assert watch.picture.since > 43390.0


def test_without_a_device_whatever_comes_is_too_much() -> None:
    watch = Watch()
    watch.served = [dataclasses.replace(watch.model, replicas=())]
    watch.windows(3, shed=1)
    assert watch.picture.level is Level.SATURATED
    assert watch.picture.rho == MAX_RHO


def test_an_ejected_device_is_no_capacity() -> None:
    watch = Watch()
    watch.windows(1, edge=1)
    for _ in range(2):
        watch.router.blame("d1", watch.now)
    watch.windows(3, shed=1)
    assert watch.picture.rho == MAX_RHO


def test_a_model_that_goes_is_forgotten_and_its_clouds_let_go() -> None:
    watch = Watch()
    watch.windows(5, cloud=20)
    watch.served = []
    watch.windows(1)
    assert watch.pressures.all() == {}
    assert watch.clouds.pressures[-1] == Pressure(Level.CALM)


def test_nothing_to_look_at_a_second_after_the_last_request() -> None:
    watch = Watch()
    watch.pressures.edge(watch.model, 1)
    assert watch.windows(20)
    assert not watch.windows(1)
    assert watch.picture.level is Level.CALM


def test_capacity_by_profile() -> None:
    assert items_per_s(replica("d", fit([(1, 10.0), (4, 20.0)])), 8) == pytest.approx(200.0)
    assert items_per_s(replica("d", fit([(1, 10.0), (4, 20.0)])), 0) == pytest.approx(100.0, 0.01)
    assert items_per_s(pipeline("p", 1, "a", "b"), 0) == pytest.approx(100.0, rel=1e-3)


@virtual_time
async def test_the_loop_sleeps_until_something_comes() -> None:
    loop = asyncio.get_running_loop()
    watch = Watch()
    pressures = Pressures(watch.router, lambda: watch.served, watch.clouds, loop.time)
    pressures.start()
    pressures.start()
    await asyncio.sleep(0)
    assert loop.timers == 0  # type: ignore[attr-defined]
    for _ in range(10):
        pressures.turned_away(watch.model, 20)
        await asyncio.sleep(WINDOW_S)
    assert pressures.of("cat", "1").level is Level.SATURATED
    await asyncio.sleep(5.0)
    assert pressures.of("cat", "1").level is Level.CALM
    assert loop.timers == 0  # type: ignore[attr-defined]
    await pressures.stop()


@virtual_time
async def test_the_loop_outlives_a_failure() -> None:
    loop = asyncio.get_running_loop()
    watch = Watch()
    pressures = Pressures(watch.router, lambda: watch.served, watch.clouds, loop.time)
    pressures.start()
    watch.clouds.error = RuntimeError("a fault")
    for _ in range(6):
        pressures.turned_away(watch.model, 20)
        await asyncio.sleep(WINDOW_S)
    watch.clouds.error = None
    told = len(watch.clouds.pressures)
    for _ in range(30):
        pressures.turned_away(watch.model, 20)
        await asyncio.sleep(WINDOW_S)
    assert len(watch.clouds.pressures) > told
    await pressures.stop()
