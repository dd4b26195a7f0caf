from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fleet import (
    OFFLINE,
    ONLINE,
    FakeClock,
    capabilities,
    replica,
    reported,
    status,
    telemetry,
)

from shoal_controlplane.devices.live import CONFIRM_S, SETTLE_S, Device, LiveFleet
from shoal_shared.messages import Desired
from shoal_shared.profiles import fit
from shoal_shared.status import DeviceCondition


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fleet(clock: FakeClock) -> LiveFleet:
    return LiveFleet(clock, clock.wall)


def device(fleet: LiveFleet, name: str = "d1") -> Device:
    found = fleet.get(name)
    assert found is not None
    return found


def test_who_speaks_becomes_a_device(fleet: LiveFleet, clock: FakeClock) -> None:
    assert fleet.observe("d1", status())
    assert device(fleet).condition is DeviceCondition.ONLINE
    assert device(fleet).first_seen == clock.wall()


def test_late_will_of_an_earlier_boot_is_ignored(fleet: LiveFleet) -> None:
    fleet.observe("d1", status(boot="old"))
    fleet.observe("d1", status(boot="new"))
    fleet.observe("d1", status(OFFLINE, boot="old"))
    assert device(fleet).online
    fleet.observe("d1", status(OFFLINE, boot="new"))
    assert not device(fleet).online


def test_late_and_replayed_telemetry_is_dropped(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    fleet.observe("d1", telemetry(5, cpu_load=0.5))
    fleet.observe("d1", telemetry(5, cpu_load=0.9))
    fleet.observe("d1", telemetry(4, cpu_load=0.9))
    fleet.observe("d1", telemetry(9, boot="old", cpu_load=0.9))
    known = device(fleet).telemetry
    assert known is not None
    assert (known.seq, known.cpu_load) == (5, 0.5)


def test_new_boot_starts_telemetry_anew(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    fleet.observe("d1", telemetry(5))
    fleet.observe("d1", status(boot="b2"))
    assert device(fleet).telemetry is None
    fleet.observe("d1", telemetry(0, boot="b2"))
    known = device(fleet).telemetry
    assert known is not None
    assert known.seq == 0


def test_telemetry_overtaken_by_the_will_does_not_revive(
    fleet: LiveFleet, clock: FakeClock
) -> None:
    fleet.observe("d1", status())
    fleet.observe("d1", status(OFFLINE))
    fleet.observe("d1", telemetry(1))
    assert not device(fleet).online
    clock.advance(SETTLE_S + 0.1)
    fleet.observe("d1", telemetry(2))
    assert device(fleet).online


def test_after_a_restart_the_device_is_offline_until_heard(
    fleet: LiveFleet, clock: FakeClock
) -> None:
    stored = Device("d1", 1.0, 2.0, 0.0, presence=ONLINE, boot_id="b1")
    fleet.load([stored])
    assert not device(fleet).online
    assert device(fleet).since == clock.now
    fleet.observe("d1", status(), retained=True)
    assert device(fleet).online
    assert device(fleet).last_seen == 2.0, "a retained message is no sign of life"


def test_report_on_an_older_goal_of_the_same_boot_is_dropped(fleet: LiveFleet) -> None:
    fleet.observe("d1", reported(replica(), goal=3))
    fleet.observe("d1", reported(goal=2))
    assert len(device(fleet).replicas) == 1
    fleet.observe("d1", reported(goal=2, boot="b2"))
    assert device(fleet).replicas == ()


def test_replicas_are_live_only_online_and_from_this_boot(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    fleet.observe("d1", reported(replica()))
    assert len(device(fleet).live_replicas) == 1
    fleet.observe("d1", status(boot="b2"))
    assert device(fleet).live_replicas == ()
    assert len(device(fleet).replicas) == 1
    fleet.observe("d1", reported(replica(), boot="b2"))
    fleet.observe("d1", status(OFFLINE, boot="b2"))
    assert device(fleet).live_replicas == ()


def test_labels_of_the_operator_win(fleet: LiveFleet) -> None:
    fleet.observe("d1", capabilities(labels={"site": "berlin", "rack": "1"}))
    fleet.edit("d1", {"site": "paris"}, cordoned=False, revision=2)
    assert device(fleet).labels == {"site": "paris", "rack": "1"}


def test_cordon_shows_only_while_online(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    fleet.edit("d1", {}, cordoned=True, revision=2)
    assert device(fleet).condition is DeviceCondition.CORDONED
    fleet.observe("d1", status(OFFLINE))
    assert device(fleet).condition is DeviceCondition.OFFLINE
    assert fleet.conditions() == {"online": 0, "offline": 1, "cordoned": 0}


def test_fleet_is_bounded(clock: FakeClock) -> None:
    fleet = LiveFleet(clock, clock.wall, max_devices=2)
    assert fleet.observe("d1", status())
    assert fleet.observe("d2", status())
    assert not fleet.observe("d3", status())
    assert fleet.observe("d1", telemetry())
    assert len(fleet) == 2


def test_silent_after_an_outage_counts_as_offline(fleet: LiveFleet, clock: FakeClock) -> None:
    for name in ("d1", "d2", "d3", "d4"):
        fleet.observe(name, status())
    fleet.expect_all()
    fleet.observe("d1", status(), retained=True)
    fleet.observe("d2", telemetry(0))
    # d3 rebooted and died during the outage: the will of a boot that we never saw.
    fleet.observe("d3", status(OFFLINE, boot="b7"), retained=True)
    fleet.sweep()
    assert device(fleet, "d4").online, "it still has time"
    clock.advance(CONFIRM_S)
    fleet.sweep()
    assert [d.online for d in fleet] == [True, True, False, False]


def test_a_device_that_throttles_is_slowed_until_it_is_measured_anew(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    fleet.observe("d1", reported(replica()))
    fleet.observe("d1", telemetry(0))
    assert not device(fleet).slowed
    fleet.observe("d1", telemetry(1, throttled=True))
    assert device(fleet).slowed and device(fleet).throttled
    fleet.observe("d1", reported(replica(memory_bytes=7)))
    assert device(fleet).slowed, "a report of the same speed is no measurement"
    fleet.observe("d1", reported(replica(profile=fit([(1, 30.0)]))))
    assert not device(fleet).slowed
    fleet.observe("d1", telemetry(2, throttled=True))
    assert not device(fleet).slowed, "it has been measured since it began"
    fleet.observe("d1", telemetry(3))
    fleet.observe("d1", telemetry(4, throttled=True))
    assert device(fleet).slowed
    fleet.observe("d1", telemetry(5))
    assert not device(fleet).slowed
    fleet.observe("d1", telemetry(6, throttled=True))
    fleet.observe("d1", status(boot="b2"))
    assert not device(fleet).slowed


def test_listeners_hear_every_change_once(fleet: LiveFleet) -> None:
    heard: list[tuple[Device | None, Device | None]] = []
    fleet.listen(lambda before, after: heard.append((before, after)))
    fleet.observe("d1", status())
    fleet.remove("d1")
    fleet.remove("d1")
    assert [(b is None, a is None) for b, a in heard] == [(True, False), (False, True)]


def test_only_more_than_telemetry_is_worth_a_write(fleet: LiveFleet) -> None:
    fleet.observe("d1", status())
    assert [d.id for d in fleet.take_unsaved(10)] == ["d1"]
    fleet.observe("d1", telemetry(1))
    fleet.observe("d1", capabilities())
    assert len(fleet.take_unsaved(10)) == 1
    fleet.observe("d1", telemetry(2))
    fleet.observe("d1", capabilities())
    assert fleet.take_unsaved(10) == []
    fleet.put_back([device(fleet)])
    assert len(fleet.take_unsaved(10)) == 1


def test_goals_are_no_message_of_a_device(fleet: LiveFleet) -> None:
    with pytest.raises(TypeError, match="Desired"):
        fleet.observe("d1", Desired(goal=1))
    assert len(fleet) == 0


messages = st.one_of(
    st.builds(status, st.sampled_from([ONLINE, OFFLINE]), st.sampled_from(["a", "b"])),
    st.builds(telemetry, st.integers(0, 5), st.sampled_from(["a", "b"])),
    st.builds(lambda g, b: reported(goal=g, boot=b), st.integers(0, 3), st.sampled_from(["a"])),
)


@given(st.lists(st.tuples(messages, st.floats(0, 3)), max_size=30))
def test_telemetry_never_runs_backwards_within_a_boot(steps: list) -> None:
    clock = FakeClock()
    fleet = LiveFleet(clock, clock.wall)
    for message, pause in steps:
        before = fleet.get("d1")
        fleet.observe("d1", message)
        after = device(fleet)
        if before and before.telemetry and after.telemetry and before.boot_id == after.boot_id:
            assert after.telemetry.seq >= before.telemetry.seq
        if after.telemetry is not None:
            assert after.telemetry.boot_id == after.boot_id
        clock.advance(pause)
