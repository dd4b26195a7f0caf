from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_controlplane.planner.placement import place
from shoal_controlplane.planner.snapshot import (
    DeploymentView,
    DeviceView,
    Limits,
    Placed,
    Snapshot,
    memory_estimate,
)

MB = 1_000_000
LIMITS = Limits(grace_s=5.0, failure_memory_s=600.0, goal_bytes=700)


def dev(name: str, **changes: Any) -> DeviceView:
    facts: dict[str, Any] = {
        "memory_bytes": 1000 * MB,
        "disk_bytes": 1000 * MB,
        "formats": frozenset({"onnx"}),
    }
    return DeviceView(id=name, **facts | changes)


def dep(name: str = "cat", **changes: Any) -> DeploymentView:
    facts: dict[str, Any] = {
        "key": (name, "1"),
        "formats": frozenset({"onnx"}),
        "file_bytes": 10 * MB,
        "disk_bytes": 10 * MB,
        "goal_bytes": 100,
    }
    return DeploymentView(name=name, **facts | changes)


def run(
    devices: list[DeviceView],
    deployments: DeploymentView | list[DeploymentView],
    assignment: dict[str, set[str]] | None = None,
) -> dict[str, Placed]:
    many = deployments if isinstance(deployments, list) else [deployments]
    return place(
        Snapshot(
            devices={d.id: d for d in devices},
            deployments=tuple(many),
            assignment={n: frozenset(d) for n, d in (assignment or {}).items()},
            limits=LIMITS,
        )
    )


def chosen(
    devices: list[DeviceView], deployment: DeploymentView, present: set[str] | None = None
) -> set[str]:
    return set(run(devices, deployment, {deployment.name: present or set()})["cat"].devices)


def test_replicas_spread_over_sites_before_devices() -> None:
    devices = [dev(f"a{n}", labels={"site": "a"}) for n in range(5)]
    devices += [dev("b1", labels={"site": "b"}), dev("c1", labels={"site": "c"})]
    found = chosen(devices, dep(replicas=4))
    assert {"b1", "c1"} < found
    assert len(found) == 4


def test_the_least_loaded_device_is_taken() -> None:
    devices = [dev("d1"), dev("d2"), dev("d3")]
    placed = run(devices, [dep("cat"), dep("dog"), dep("owl")])
    assert Counter(d for p in placed.values() for d in p.devices) == {"d1": 1, "d2": 1, "d3": 1}


def test_the_faster_board_is_taken_until_it_is_busier_than_it_is_faster() -> None:
    devices = [dev("slow", board="pi"), dev("fast", board="orin")]
    speeds = {"pi": 25.0, "orin": 10.0}
    many = [dep(f"m{n}", speed_ms=speeds) for n in range(4)]
    placed = run(devices, many)
    assert [set(placed[d.name].devices) for d in many] == [{"fast"}, {"fast"}, {"slow"}, {"fast"}]


def test_board_of_unknown_speed_counts_as_usual() -> None:
    devices = [dev("new", board="new"), dev("slow", board="pi"), dev("fast", board="orin")]
    speeds = {"pi": 30.0, "orin": 10.0}
    assert chosen(devices, dep(speed_ms=speeds, replicas=2)) == {"fast", "new"}


def test_more_free_memory_decides_between_equals() -> None:
    devices = [dev("d1", memory_bytes=200 * MB), dev("d2", memory_bytes=900 * MB)]
    assert chosen(devices, dep()) == {"d2"}


def test_what_holds_stays_although_better_ones_came() -> None:
    devices = [dev("d1", board="pi"), dev("d2", board="orin", labels={"site": "b"})]
    speeds = {"pi": 25.0, "orin": 10.0}
    assert chosen(devices, dep(speed_ms=speeds), {"d1"}) == {"d1"}


def test_running_model_stays_when_memory_gets_tight() -> None:
    tight = dev("d1", memory_bytes=10 * MB, disk_bytes=0, held={("cat", "1"): 40 * MB})
    assert chosen([tight, dev("d2")], dep(), {"d1"}) == {"d1"}
    assert chosen([replace(tight, held={}), dev("d2")], dep(), {"d1"}) == {"d2"}


def test_device_that_is_away_longer_than_the_grace_loses_its_replica() -> None:
    assert chosen([dev("d1", offline_s=4.9), dev("d2")], dep(), {"d1"}) == {"d1"}
    assert chosen([dev("d1", offline_s=5.1), dev("d2")], dep(), {"d1"}) == {"d2"}


def test_device_that_is_away_keeps_its_replica_where_no_other_fits() -> None:
    placed = run([dev("d1", offline_s=60.0)], dep(), {"cat": {"d1"}})["cat"]
    assert placed.devices == {"d1"}
    assert placed.reason == "no device that has a runtime for onnx is online"


def test_all_keeps_devices_that_are_away_listed() -> None:
    devices = [dev("d1", offline_s=60.0), dev("d2"), dev("d3", offline_s=60.0)]
    placed = run(devices, dep(replicas=None), {"cat": {"d1"}})["cat"]
    assert placed == Placed(frozenset({"d1", "d2"}), wanted=1)


def test_device_where_it_failed_is_avoided_while_another_fits() -> None:
    bad = dev("d1", failed={("cat", "1"): 1.0})
    assert chosen([bad, dev("d2")], dep(), {"d1"}) == {"d2"}
    assert chosen([bad, dev("d2", offline_s=1.0)], dep(), {"d1"}) == {"d1"}
    assert chosen([bad, dev("d2")], dep(replicas=2)) == {"d1", "d2"}
    forgiven = dev("d1", memory_bytes=2000 * MB, failed={("cat", "1"): 601.0})
    assert chosen([forgiven, dev("d2")], dep()) == {"d1"}


def test_failing_replica_does_not_wander_between_devices_that_failed() -> None:
    bad = [dev(f"d{n}", failed={("cat", "1"): float(n)}) for n in range(3)]
    placed = run(bad, dep(), {"cat": {"d2"}})["cat"]
    assert placed.devices == {"d2"}
    assert placed.reason == "it failed on 3 of the 3 devices that fit"


def test_fewer_replicas_keep_those_that_serve_and_the_spread() -> None:
    devices = [
        dev("a1", labels={"site": "a"}, offline_s=1.0),
        dev("a2", labels={"site": "a"}),
        dev("a3", labels={"site": "a"}),
        dev("b1", labels={"site": "b"}),
    ]
    assert chosen(devices, dep(replicas=2), {"a1", "a2", "a3", "b1"}) == {"a2", "b1"}


def test_cordoned_device_loses_its_replica() -> None:
    assert chosen([dev("d1", cordoned=True), dev("d2")], dep(), {"d1"}) == {"d2"}
    assert chosen([dev("d1", cordoned=True)], dep(), {"d1"}) == set()


def test_changed_selector_moves_replicas() -> None:
    devices = [dev("d1", labels={"site": "a"}), dev("d2", labels={"site": "b"})]
    assert chosen(devices, dep(select={"site": "b"}), {"d1"}) == {"d2"}


def test_deployments_of_one_model_share_its_memory() -> None:
    need = memory_estimate(10 * MB)
    small = dev("d1", memory_bytes=need)
    twins = [dep("a", key=("cat", "1")), dep("b", key=("cat", "1")), dep("c", key=("cat", "2"))]
    placed = run([small], twins)
    assert [len(placed[name].devices) for name in "abc"] == [1, 1, 0]


def test_missing_replica_never_takes_the_room_of_one_that_runs() -> None:
    need = memory_estimate(10 * MB)
    small = dev("d1", memory_bytes=need)
    placed = run([small], [dep("new"), dep("old")], {"old": {"d1"}})
    assert placed["old"].devices == {"d1"}
    assert placed["new"].devices == frozenset()


def test_new_version_needs_room_on_its_devices() -> None:
    device = dev("d1", memory_bytes=100 * MB, held={("cat", "1"): 40 * MB})
    v2 = dep(key=("cat", "2"), file_bytes=50 * MB)
    placed = run([device], v2, {"cat": {"d1"}})["cat"]
    assert placed.devices == frozenset()
    assert placed.reason == "needs 134 MB, the largest free is 100 MB"


def test_goal_document_is_a_limit() -> None:
    many = [dep(f"m{n}", goal_bytes=300) for n in range(3)]
    placed = run([dev("d1")], many)
    assert [len(placed[d.name].devices) for d in many] == [1, 1, 0]
    assert "goal document" in placed["m2"].reason


def test_any_of_a_models_files_will_do() -> None:
    both = dep(formats=frozenset({"onnx", "tflite"}), replicas=2)
    devices = [dev("d1"), dev("d2", formats=TFLITE), dev("d3", formats=frozenset({"om"}))]
    assert chosen(devices, both) == {"d1", "d2"}


def test_required_accelerator_keeps_other_devices_out() -> None:
    devices = [dev("d1", memory_bytes=9000 * MB), dev("d2", accelerated=True)]
    assert chosen(devices, dep(require_accelerator=True), {"d1"}) == {"d2"}
    assert chosen(devices, dep()) == {"d1"}


def test_memory_that_was_measured_on_a_board_counts_there() -> None:
    small = dev("d1", memory_bytes=30 * MB, board="orin")
    assert chosen([small], dep()) == set()
    assert chosen([small], dep(memory_bytes={"orin": 30 * MB})) == {"d1"}
    assert chosen([small], dep(memory_bytes={"pi": 30 * MB, "orin": 0})) == set()
    placed = run([small], dep(memory_bytes={"orin": 31 * MB}))["cat"]
    assert placed.reason == "needs 31 MB, the largest free is 30 MB"


def test_all_files_need_disk() -> None:
    placed = run([dev("d1", disk_bytes=25 * MB)], dep(disk_bytes=30 * MB))["cat"]
    assert placed.reason == "needs 30 MB of disk, the largest free is 25 MB"


BERLIN = {"site": "berlin"}
TFLITE = frozenset({"tflite"})
FAST = {"accelerated": True}


@pytest.mark.parametrize(
    ("devices", "deployment", "reason"),
    [
        ([], dep(), "no device has joined the fleet yet"),
        ([dev("d1")], dep(select=BERLIN), "no device has site=berlin"),
        ([dev("d1")], dep(formats=TFLITE), "no device has a runtime for tflite"),
        (
            [dev("d1", labels=BERLIN), dev("d2", formats=frozenset({"tflite"}))],
            dep(select=BERLIN, formats=TFLITE),
            "no device with site=berlin has a runtime for tflite",
        ),
        (
            [dev("d1", labels=BERLIN), dev("d2", labels=BERLIN, offline_s=9.0)],
            dep(select=BERLIN, replicas=2),
            "needs 2 devices with site=berlin, 1 is online",
        ),
        ([dev("d1")], dep(replicas=3), "needs 3 devices, there is 1"),
        (
            [dev("d1"), dev("d2", formats=frozenset())],
            dep(replicas=2),
            "needs 2 devices, 1 has a runtime for onnx",
        ),
        (
            [dev("d1"), dev("d2")],
            dep(require_accelerator=True),
            "needs a device with an accelerator, none of the 2 that have a runtime for onnx has "
            "one",
        ),
        (
            [dev("d1", labels=BERLIN), dev("d2", **FAST)],
            dep(require_accelerator=True, select=BERLIN),
            "needs a device with site=berlin and an accelerator, the one that has a runtime for "
            "onnx has none",
        ),
        (
            [dev("d1"), dev("d2", **FAST)],
            dep(require_accelerator=True, replicas=2),
            "needs 2 devices, 1 has a runtime for onnx and an accelerator",
        ),
        (
            [dev("d1"), dev("d2", cordoned=True, **FAST)],
            dep(require_accelerator=True),
            "every device that has a runtime for onnx and an accelerator is cordoned",
        ),
        (
            [dev("d1"), dev("d2", cordoned=True)],
            dep(replicas=2),
            "needs 2 devices, 1 is not cordoned",
        ),
        (
            [dev("d1", cordoned=True)],
            dep(),
            "every device that has a runtime for onnx is cordoned",
        ),
        (
            [dev("d1", memory_bytes=80 * MB), dev("d2", memory_bytes=50 * MB)],
            dep(file_bytes=43 * MB),
            "needs 120 MB, the largest free is 80 MB",
        ),
        (
            [dev("d1", disk_bytes=9_999_999)],
            dep(),
            "needs 10 MB of disk, the largest free is 9 MB",
        ),
    ],
)
def test_reasons(devices: list[DeviceView], deployment: DeploymentView, reason: str) -> None:
    assert run(devices, deployment)["cat"].reason == reason


KEYS = [("cat", "1"), ("dog", "1"), ("dog", "2")]
SITES = st.sampled_from([{}, {"site": "a"}, {"site": "b"}])


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    sizes = st.integers(0, 30).map(lambda n: n * 10 * MB)
    names = [f"d{n}" for n in range(draw(st.integers(0, 6)))]
    devices = {
        name: DeviceView(
            id=name,
            memory_bytes=draw(sizes),
            disk_bytes=draw(sizes),
            formats=draw(st.sampled_from([frozenset({"onnx"}), frozenset({"onnx", "tflite"})])),
            accelerated=draw(st.booleans()),
            labels=draw(SITES),
            board=draw(st.sampled_from(["pi", "orin"])),
            offline_s=draw(st.sampled_from([0.0, 0.0, 0.0, 3.0, 60.0])),
            cordoned=draw(st.sampled_from([False, False, False, True])),
            held={k: draw(sizes) for k in draw(st.lists(st.sampled_from(KEYS), max_size=1))},
            failed=dict.fromkeys(draw(st.lists(st.sampled_from(KEYS), max_size=1)), 1.0),
        )
        for name in names
    }
    deployments = []
    assignment = {}
    for n in range(draw(st.integers(0, 4))):
        key = draw(st.sampled_from(KEYS))
        deployments.append(
            DeploymentView(
                name=f"dep{n}",
                key=key,
                formats=frozenset({"tflite" if key == ("dog", "2") else "onnx"}),
                file_bytes={"cat": 10 * MB, "dog": 40 * MB}[key[0]],
                disk_bytes={"cat": 10 * MB, "dog": 70 * MB}[key[0]],
                require_accelerator=draw(st.sampled_from([False, False, True])),
                goal_bytes=400,
                replicas=draw(st.sampled_from([None, 1, 2, 3])),
                select=draw(SITES),
                speed_ms=draw(st.sampled_from([{}, {"pi": 9.0, "orin": 4.0}])),
            )
        )
        if names:
            assignment[f"dep{n}"] = frozenset(draw(st.lists(st.sampled_from(names), max_size=4)))
    return Snapshot(devices, tuple(deployments), assignment, LIMITS)


def fits(device: DeviceView, deployment: DeploymentView) -> bool:
    return (
        not device.cordoned
        and deployment.formats <= device.formats
        and (device.accelerated or not deployment.require_accelerator)
        and deployment.select.items() <= device.labels.items()
    )


@settings(max_examples=300)
@given(snapshots())
def test_placement_keeps_its_promises(snapshot: Snapshot) -> None:
    placed = place(snapshot)
    assert placed.keys() == {d.name for d in snapshot.deployments}
    models: dict[str, dict[tuple[str, str], DeploymentView]] = {n: {} for n in snapshot.devices}
    added: set[str] = set()
    shared: dict[str, set[tuple[str, str]]] = {n: set() for n in snapshot.devices}
    for deployment in snapshot.deployments:
        for name in snapshot.assignment.get(deployment.name, ()):
            shared[name].add(deployment.key)
    for deployment in snapshot.deployments:
        result = placed[deployment.name]
        present = snapshot.assignment.get(deployment.name, frozenset())
        for name in result.devices:
            assert fits(snapshot.devices[name], deployment)
            models[name][deployment.key] = deployment
            if name not in present:
                assert snapshot.devices[name].online
                if deployment.key not in snapshot.devices[name].held:
                    added.add(name)
        serving = {
            n
            for n in result.devices
            if snapshot.devices[n].offline_s <= 5
            and deployment.key not in snapshot.devices[n].failed
        }
        running = {
            name
            for name in present
            if fits(snapshot.devices[name], deployment)
            and deployment.key in snapshot.devices[name].held
            and deployment.key not in snapshot.devices[name].failed
            and snapshot.devices[name].offline_s <= 5
            and not shared[name] - {deployment.key}
        }
        if deployment.replicas is None or len(present) <= deployment.replicas:
            assert running <= result.devices, "what runs stays where it is"
        if deployment.replicas is not None:
            assert len(result.devices) <= deployment.replicas == result.wanted
        # A reason is given exactly where fewer can serve than are wanted.
        assert bool(result.reason) == (len(serving) < max(result.wanted, 1))
    for name, device in snapshot.devices.items():
        used = sum(
            device.held.get(key) or memory_estimate(d.file_bytes) for key, d in models[name].items()
        )
        goal_bytes = sum(d.goal_bytes for d in models[name].values())
        assert goal_bytes <= LIMITS.goal_bytes
        if name in added:
            assert used <= device.memory_bytes
            new = sum(d.disk_bytes for key, d in models[name].items() if key not in device.held)
            assert new <= device.disk_bytes


@settings(max_examples=200)
@given(snapshots(), st.randoms(use_true_random=False))
def test_placement_is_deterministic_and_sticky(snapshot: Snapshot, rng: Any) -> None:
    placed = place(snapshot)
    order = list(snapshot.devices)
    rng.shuffle(order)
    assert place(replace(snapshot, devices={n: snapshot.devices[n] for n in order})) == placed

    assignment = {name: p.devices for name, p in placed.items()}
    once = replace(snapshot, assignment=assignment)
    again = {name: p.devices for name, p in place(once).items()}
    for deployment in snapshot.deployments:
        devices = [snapshot.devices[n] for n in assignment[deployment.name]]
        # Only what is away or failed may give way, to room that became free in the first round.
        serving = {d.id for d in devices if d.offline_s <= 5 and deployment.key not in d.failed}
        assert serving <= again[deployment.name]

    stranger = DeviceView(
        "z", 10**12, 10**12, frozenset({"onnx", "tflite"}), accelerated=True, labels={"site": "q"}
    )
    grown = replace(once, devices={**snapshot.devices, "z": replace(stranger, cordoned=True)})
    assert {name: p.devices for name, p in place(grown).items()} == again
