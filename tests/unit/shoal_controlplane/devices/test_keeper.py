from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from support.fleet import (
    FakeClock,
    capabilities,
    open_database,
    replica,
    reported,
    status,
    telemetry,
)

from shoal_controlplane.database import Database
from shoal_controlplane.devices import keeper as keeper_module
from shoal_controlplane.devices.keeper import FleetKeeper
from shoal_controlplane.devices.live import LiveFleet
from shoal_controlplane.devices.tables import save_edited


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


async def test_fleet_survives_a_restart(database: Database) -> None:
    clock = FakeClock()
    fleet = LiveFleet(clock, clock.wall)
    keeper = FleetKeeper(fleet, database)
    await keeper.start()
    fleet.observe("d1", status())
    fleet.observe("d1", capabilities(labels={"note": "a\x00b"}))
    fleet.observe("d1", reported(replica(), goal=7))
    fleet.observe("d1", telemetry())
    await keeper.stop()

    clock.advance(100)
    again = LiveFleet(clock, clock.wall)
    await FleetKeeper(again, database).start()
    before, after = fleet.get("d1"), again.get("d1")
    assert before is not None
    assert after is not None
    assert after.reported == before.reported
    assert after.capabilities == before.capabilities
    assert (after.first_seen, after.last_seen) == (before.first_seen, before.last_seen)
    assert not after.online
    assert after.telemetry is None


async def test_saving_leaves_what_the_operator_set(database: Database) -> None:
    clock = FakeClock()
    fleet = LiveFleet(clock, clock.wall)
    keeper = FleetKeeper(fleet, database)
    fleet.observe("d1", status())
    device = fleet.get("d1")
    assert device is not None
    # The operator's change is in the database, but not yet in memory.
    await database.run(lambda s: save_edited(s, device, {"site": "berlin"}, True, 2))
    await keeper.save()
    again = LiveFleet(clock, clock.wall)
    await FleetKeeper(again, database).start()
    loaded = again.get("d1")
    assert loaded is not None
    assert (loaded.operator_labels, loaded.cordoned, loaded.revision) == (
        {"site": "berlin"},
        True,
        2,
    )


async def test_many_devices_are_saved_in_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "BATCH", 2)
    clock = FakeClock()
    fleet = LiveFleet(clock, clock.wall)
    for n in range(5):
        fleet.observe(f"d{n}", status())
    await FleetKeeper(fleet, database).save()
    again = LiveFleet(clock, clock.wall)
    await FleetKeeper(again, database).start()
    assert len(again) == 5


async def test_what_could_not_be_saved_is_saved_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    fleet = LiveFleet(clock, clock.wall)
    keeper = FleetKeeper(fleet, database)
    fleet.observe("d1", status())

    def broken(*_args: object, **_kwargs: object) -> None:
        raise OperationalError("insert", {}, OSError("disk full"))

    with monkeypatch.context() as patch:
        patch.setattr(keeper_module, "save_observed", broken)
        with pytest.raises(OperationalError):
            await keeper.save()
    await keeper.save()
    again = LiveFleet(clock, clock.wall)
    await FleetKeeper(again, database).start()
    assert again.get("d1") is not None
