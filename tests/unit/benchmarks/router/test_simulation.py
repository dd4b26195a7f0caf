from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_bench.router.scenario import Scenario, draw
from shoal_bench.router.simulation import UNANSWERED, Device, Simulation

FOREVER = ((1.0,) * 3,)


class Fixed:
    """Sends everything to one device, and remembers what it is told."""

    def __init__(self, device: int | None) -> None:
        self.device = device
        self.answers: list[tuple[int, float, float, int]] = []
        self.drops: list[int] = []

    def pick(self, request: int, now: float) -> int | None:
        return self.device

    def answered(self, request: int, device: int, now: float, service: float, depth: int) -> None:
        self.answers.append((request, now, service, depth))

    def dropped(self, request: int, device: int, now: float) -> None:
        self.drops.append(request)


def scenario(arrivals: list[float], jitter: float = 1.0) -> Scenario:
    count = len(arrivals)
    return Scenario((10.0, 1.0, 1.0), tuple(arrivals), (jitter,) * count, (0,) * count, FOREVER)


def test_first_come_first_served_with_the_network_around() -> None:
    policy = Fixed(0)
    sojourn = Simulation(scenario([0, 1, 2]), hop_ms=0.5).run([policy])
    assert sojourn == [11, 20, 29]
    # The depth is what was left when the device answered, the service pure computing.
    assert policy.answers == [(0, 11, 10, 2), (1, 21, 10, 1), (2, 31, 10, 0)]


def test_devices_work_at_the_same_time() -> None:
    two = Scenario((10.0, 10.0), (0.0, 0.0), (1.0, 1.0), (0, 1), ((1.0, 1.0),))
    assert Simulation(two, hop_ms=0).run([Fixed(0), Fixed(1)]) == [10, 10]


def test_a_slow_phase_slows_what_starts_in_it() -> None:
    slow = Scenario((10.0,), (149.0, 151.0), (1.0, 1.0), (0, 0), ((1.0,), (3.0,)))
    assert Simulation(slow, hop_ms=0).run([Fixed(0)]) == [10, 38]


def test_devices_drop_what_has_expired() -> None:
    policy = Fixed(0)
    sojourn = Simulation(scenario([0, 1, 2]), hop_ms=0, deadline_ms=15).run([policy])
    assert sojourn == [10, 19, UNANSWERED]
    assert policy.drops == [2]


def test_a_device_goes_on_after_everything_that_waited_has_expired() -> None:
    arrivals = [0.0, 1.0, 2.0, 50.0]
    sojourn = Simulation(scenario(arrivals), hop_ms=0, deadline_ms=5).run([Fixed(0)])
    assert sojourn == [10, UNANSWERED, UNANSWERED, 10]


def test_refused_requests_stay_unanswered() -> None:
    assert Simulation(scenario([0, 1])).run([Fixed(None)]) == [UNANSWERED] * 2


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=30), st.floats(0, 2))
def test_waits_follow_lindleys_recursion(gaps: list[float], hop: float) -> None:
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    # With ten requests or more, the first tenth is warm-up.
    sojourn = Simulation(scenario(arrivals), hop_ms=hop).run([Fixed(0)])
    free, expected = 0.0, []
    for arrival in arrivals:
        free = max(free, arrival + hop) + 10
        expected.append(free + hop - arrival)
    assert sojourn == pytest.approx(expected[len(arrivals) // 10 :])


@given(st.integers(0, 20), st.integers(1, 3))
def test_every_request_is_answered_once(seed: int, gateways: int) -> None:
    drawn = draw(0.7, seed, 200, gateways)
    policies = [Fixed(number % len(drawn.fleet)) for number in range(gateways)]
    simulation = Simulation(drawn)
    sojourn = simulation.run(policies)
    assert all(ms < math.inf for ms in sojourn)
    answered = sorted(request for policy in policies for request, *_ in policy.answers)
    assert answered == list(range(200))
    assert not any(simulation.travelling)
    assert not any(device.in_flight for device in simulation.devices)


def test_probes_take_the_way_there_and_back() -> None:
    simulation = Simulation(scenario([0.0, 5.0]), hop_ms=1)
    heard: list[tuple[int, float, float]] = []
    simulation.probe(0, 0.5, lambda *answer: heard.append(answer))
    simulation.run([Fixed(0)])
    # Read at 1.5, when the first request is there; no latency is known yet.
    assert heard == [(1, 20.0, 2.5)]


def test_a_probe_tells_the_latency_at_a_like_number_in_flight() -> None:
    device = Device(1.0)
    for tag, latency in ((1, 5.0), (1, 7.0), (1, 6.0), (4, 40.0)):
        device.record(tag, latency)
    assert device.probe() == (0, 6.0)
    device.in_flight = 5
    assert device.probe() == (5, 40.0)
