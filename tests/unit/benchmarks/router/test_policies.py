from __future__ import annotations

import random
from collections import Counter

from shoal_bench.router.policies import (
    JoinShortestQueue,
    Omniscient,
    PowerOfTwo,
    RoundRobin,
    Shoal,
    Weighted,
    WeightedLeastRequest,
)
from shoal_bench.router.prequal import Prequal, PrequalSettings
from shoal_bench.router.scenario import Scenario
from shoal_bench.router.simulation import Device, Simulation

FLEET = (1.0, 2.0, 4.0)


def devices() -> list[Device]:
    return [Device(ms) for ms in FLEET]


def simulation(count: int = 50) -> Simulation:
    arrivals = tuple(float(10 * i) for i in range(count))
    return Simulation(Scenario(FLEET, arrivals, (1.0,) * count, (0,) * count, ((1.0,) * 3,)))


def test_round_robin_visits_all_in_turn() -> None:
    policy = RoundRobin(devices(), random.Random(1))
    picks = [policy.pick(i, 0) for i in range(6)]
    assert picks[:3] == picks[3:]
    assert set(picks) == {0, 1, 2}


def test_weighted_is_proportional_to_capacity() -> None:
    policy = Weighted(devices(), random.Random(1))
    counts = Counter(policy.pick(i, 0) for i in range(700))
    assert [round(counts[i] / 100) for i in range(3)] == [4, 2, 1]


def test_join_shortest_queue_forgets_what_was_answered() -> None:
    policy = JoinShortestQueue(devices(), random.Random(1))
    assert {policy.pick(i, 0) for i in range(3)} == {0, 1, 2}
    policy.answered(0, 1, 5, 1, 0)
    assert policy.pick(3, 5) == 1
    policy.dropped(1, 2, 5)
    assert policy.pick(4, 5) == 2


def test_power_of_two_takes_the_shorter_of_two() -> None:
    policy = PowerOfTwo(devices()[:2], random.Random(1))
    first = policy.pick(0, 0)
    assert policy.pick(1, 0) == 1 - first


def test_weighted_least_request_counts_time_not_requests() -> None:
    policy = WeightedLeastRequest(devices(), random.Random(1))
    assert [policy.pick(i, 0) for i in range(3)] == [0, 0, 1]


def test_omniscient_counts_what_is_on_its_way() -> None:
    sim = simulation()
    policy = Omniscient(sim)
    assert policy.pick(0, 0) == 0
    sim.travelling[0] = 1
    sim.devices[0].in_flight = 2
    assert policy.pick(1, 0) == 1


def test_shoal_refuses_what_cannot_be_in_time() -> None:
    policy = Shoal(devices(), 1, deadline_ms=2.0)
    picks = [policy.pick(i, 0) for i in range(5)]
    assert picks[0] == 0
    assert None in picks
    refused = picks.index(None)
    # The refused request does not count as in flight: an answer makes room again.
    for request in range(refused):
        policy.answered(request, picks[request] or 0, 0.001, 1.0, 0)
    assert policy.pick(99, 0.001) == 0


def test_shoal_learns_from_replies() -> None:
    policy = Shoal(devices(), 1)
    now = 0.0
    for request in range(20):
        picked = policy.pick(request, now)
        assert picked is not None
        service = 20.0 if picked == 0 else FLEET[picked]
        now += service
        policy.answered(request, picked, now, service, 0)
    assert policy.pick(99, now) == 1


def test_prequal_asks_before_it_chooses() -> None:
    sim = simulation()
    # Three probes a request for three devices: all are known from the second request on.
    picks: list[int] = []

    class Recording(Prequal):
        def pick(self, request: int, now: float) -> int:
            picks.append(super().pick(request, now))
            return picks[-1]

    sim.run([Recording(sim, random.Random(1))])
    assert set(picks[1:]) == {0}


def test_prequal_avoids_hot_devices_before_slow_ones() -> None:
    sim = simulation(0)
    sim.devices[0].in_flight = 9
    for device, latency in zip(sim.devices, (1.0, 50.0, 60.0), strict=True):
        for tag in range(1, 11):
            device.record(tag, latency)
    policy = Prequal(sim, random.Random(1), PrequalSettings(quantile=0.5))
    policy.pick(0, 0.0)
    sim.run([])
    assert policy.pick(1, 1.0) == 1


def test_prequal_uses_a_probe_only_so_often() -> None:
    sim = simulation(0)
    policy = Prequal(sim, random.Random(1), PrequalSettings(probes=2, reuse=1))
    policy.pick(0, 0.0)
    sim.run([])
    first = policy.pick(1, 1.0)
    # One probe is left, too few to compare: from here it is chance.
    assert {policy.pick(i, 1.0) for i in range(2, 40)} - {first}
