from __future__ import annotations

from dataclasses import replace

from support.fleet import OFFLINE, ONLINE, capabilities, replica, reported, telemetry

from shoal_controlplane.devices.changes import changes
from shoal_controlplane.devices.live import Device
from shoal_shared.status import ReplicaState

AWAY = Device("d1", 0.0, 0.0, 0.0, boot_id="b1")
HERE = replace(AWAY, presence=ONLINE)


def kinds(before: Device | None, after: Device | None) -> list[str]:
    return [kind for kind, _, _ in changes(before, after)]


def test_presence() -> None:
    assert kinds(None, HERE) == ["device.online"]
    assert kinds(None, AWAY) == []
    assert kinds(AWAY, HERE) == ["device.online"]
    assert kinds(HERE, replace(HERE, presence=OFFLINE)) == ["device.offline"]


def test_telemetry_and_free_disk_are_no_news() -> None:
    known = replace(HERE, capabilities=capabilities(disk_free_bytes=1))
    assert kinds(HERE, known) == ["device.changed"]
    assert kinds(known, replace(known, capabilities=capabilities(disk_free_bytes=2))) == []
    assert kinds(known, replace(known, telemetry=telemetry())) == []


def test_what_the_operator_does() -> None:
    assert kinds(HERE, replace(HERE, cordoned=True)) == ["device.changed"]
    assert kinds(HERE, replace(HERE, operator_labels={"a": "b"})) == ["device.changed"]
    assert kinds(HERE, None) == ["device.changed"]


def test_replicas_become_ready_and_fail() -> None:
    loading = replace(HERE, reported=reported(replica(ReplicaState.LOADING)))
    ready = replace(HERE, reported=reported(replica()))
    failed = replace(HERE, reported=reported(replica(ReplicaState.FAILED, reason="no memory")))
    assert kinds(HERE, loading) == []
    assert kinds(loading, ready) == ["replica.ready"]
    assert kinds(ready, replace(ready, reported=reported(replica(), goal=2))) == []
    [(kind, message, data)] = changes(loading, failed)
    assert kind == "replica.failed"
    assert message == "cat:1 failed on d1: no memory"
    assert data["deployment"] == "cat"
