from __future__ import annotations

from dataclasses import replace

import pytest
from support.fleet import OFFLINE, ONLINE, capabilities, replica, reported, telemetry

from shoal_controlplane.devices.changes import changes
from shoal_controlplane.devices.fallback import MAX_REASON, fell_back, reason
from shoal_controlplane.devices.live import Device
from shoal_shared.messages import Accelerator, Board, RuntimeInfo
from shoal_shared.placement import Placement, Proof, of_nodes
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


ON_CPU = of_nodes({"CPUExecutionProvider": 97})
ON_NPU = of_nodes({"QNNExecutionProvider": 90, "CPUExecutionProvider": 7})
CANN = RuntimeInfo(
    name="onnxruntime",
    version="1.24.4",
    formats=("onnx",),
    providers=("CANNExecutionProvider", "CPUExecutionProvider"),
)
ASCEND = replace(HERE, id="ascend-1", capabilities=capabilities(runtimes=(CANN,)))
NOTE = "libascendcl.so not found: install CANN 8.x"


def test_a_model_on_the_cpu_of_a_device_with_an_accelerator_is_news_once() -> None:
    fallen = replica(placement=ON_CPU, notes=(NOTE,))
    loading = replace(ASCEND, reported=reported(replica(ReplicaState.LOADING)))
    ready = replace(ASCEND, reported=reported(fallen))
    assert kinds(loading, ready) == ["replica.ready", "device.fallback"]
    [_, (_, message, data)] = changes(loading, ready)
    assert message == f"ascend-1 serves cat:1 on the CPU: {NOTE}"
    assert data["reason"] == NOTE and data["model"] == "cat"
    again = replace(ready, reported=reported(fallen, goal=2))
    assert kinds(ready, again) == []
    assert kinds(ready, replace(ready, telemetry=telemetry())) == []
    mended = replace(ready, reported=reported(replica(placement=ON_NPU), goal=3))
    assert kinds(again, mended) == []
    assert kinds(mended, again) == ["device.fallback"]
    # What it can do may be heard after what it does.
    unknown = replace(ready, capabilities=None)
    assert kinds(unknown, ready) == ["device.changed", "device.fallback"]


GPU = (Accelerator(kind="gpu", name="Orin"),)
VIRTUAL = Board(family="jetson", model="x", simulated=True)


@pytest.mark.parametrize(
    ("able", "placement", "expected"),
    [
        (capabilities(runtimes=(CANN,)), ON_CPU, True),
        (capabilities(accelerators=GPU), ON_CPU, True),
        (capabilities(), ON_CPU, False),
        (capabilities(accelerators=GPU, board=VIRTUAL), ON_CPU, False),
        (capabilities(runtimes=(CANN,)), ON_NPU, False),
        (capabilities(runtimes=(CANN,)), of_nodes({"QNN": 1, "CPU": 1}), True),
        (capabilities(runtimes=(CANN,)), Placement(accelerated=1.0, proof=Proof.LISTED), False),
        (capabilities(runtimes=(CANN,)), None, False),
        (None, ON_CPU, False),
    ],
)
def test_what_counts_as_a_fallback(able, placement, expected) -> None:
    device = replace(HERE, capabilities=able)
    assert fell_back(device, replica(placement=placement)) is expected
    assert not fell_back(device, replica(ReplicaState.LOADING, placement=placement))


def test_why_a_model_fell_back_is_always_said() -> None:
    two = replica(placement=ON_CPU, notes=("one", "two"))
    assert reason(ASCEND, two) == "one; two"
    assert len(reason(ASCEND, replica(notes=("x" * 2000,)))) == MAX_REASON
    assert reason(ASCEND, replica()) == "the device gave no reason"
    gpu = replace(HERE, capabilities=capabilities(accelerators=GPU))
    assert reason(gpu, replica()) == "no runtime of the device uses its Orin"
