"""What happens when processes are killed, disks fill up and devices lie."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
import pytest
from support import onnx_models
from support.processes import (
    ControlPlane,
    Process,
    free_port,
    start_agent,
    start_mosquitto,
    until,
)

X = {"name": "x", "datatype": "FP32", "shape": [1, 256], "data": [0.5] * 256}


@pytest.fixture
def cleanup() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in reversed(processes):
        process.stop()


def infer(plane: ControlPlane, model: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    return plane.call("POST", f"/v2/models/{model}/infer", body or {"inputs": [X]})


def deployment(plane: ControlPlane, name: str) -> dict[str, Any]:
    return plane.get(f"/api/v1/deployments/{name}")[1]


def start(
    folder: Path, cleanup: list[Process], agents: int, *, external: bool = False
) -> tuple[ControlPlane, list[Process], Process | None]:
    port = free_port()
    broker = None
    if external:
        broker = start_mosquitto(folder, port)
        cleanup.append(broker)
    plane = ControlPlane(folder, broker_port=port, external_broker=external)
    cleanup.append(plane.process)
    boards = [start_agent(folder, f"board-{i}", plane) for i in range(agents)]
    cleanup.extend(boards)
    for i in range(agents):
        plane.wait_condition(f"board-{i}", "online")
    return plane, boards, broker


def test_no_request_is_lost_when_an_agent_is_killed(tmp_path: Path, cleanup: list[Process]) -> None:
    plane, boards, _ = start(tmp_path, cleanup, 2)
    plane.deploy(onnx_models.slow(tmp_path / "slow.onnx"), "slow", "--all")
    expected = infer(plane, "slow")[1]["outputs"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(infer, plane, "slow") for _ in range(200)]
        until(lambda: sum(r.done() for r in requests) > 20, "the first answers")
        boards[0].kill()
        answers = [request.result() for request in requests]
    assert [status for status, _ in answers] == [200] * 200
    assert all(body["outputs"] == expected for _, body in answers)
    assert {body["parameters"]["device"] for _, body in answers} == {"board-0", "board-1"}
    plane.wait_condition("board-0", "offline", timeout_s=5)


def test_replicas_move_when_a_device_leaves_and_status_says_so(
    tmp_path: Path, cleanup: list[Process]
) -> None:
    plane, boards, _ = start(tmp_path, cleanup, 2)
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    (first,) = [p["device"] for p in deployment(plane, "dense")["placements"]]
    boards[int(first[-1])].kill()
    until(
        lambda: (
            deployment(plane, "dense")["state"] == "ready"
            and [p["device"] for p in deployment(plane, "dense")["placements"]] != [first]
        ),
        "the replica on the other device",
        60,
    )
    assert infer(plane, "dense")[0] == 200


def test_a_killed_broker_costs_only_its_absence(tmp_path: Path, cleanup: list[Process]) -> None:
    plane, boards, broker = start(tmp_path, cleanup, 1, external=True)
    assert broker is not None
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    goal = plane.device("board-0")["goal"]
    broker.kill()
    until(lambda: plane.get("/readyz")[0] == 503, "the control plane noticing")
    status, body = infer(plane, "dense")
    assert status == 503
    assert "error" in body
    broker.start()
    until(lambda: infer(plane, "dense")[0] == 200, "answers after the broker's return", 60)
    device = plane.device("board-0")
    assert device["goal"] == device["goal_seen"] == goal
    assert boards[0].child.poll() is None
    assert boards[0].output.count("model ready") == 1, boards[0].output


def test_a_killed_embedded_broker_is_started_anew(tmp_path: Path, cleanup: list[Process]) -> None:
    plane, boards, _ = start(tmp_path, cleanup, 1)
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    goal = plane.device("board-0")["goal"]
    serve = psutil.Process(plane.process.child.pid)
    (broker,) = serve.children()
    broker.kill()
    until(lambda: [c.pid for c in serve.children()] not in ([], [broker.pid]), "a new broker")
    until(lambda: infer(plane, "dense")[0] == 200, "answers from the new broker", 60)
    assert plane.device("board-0")["goal_seen"] == goal
    assert boards[0].output.count("model ready") == 1, boards[0].output


def test_a_killed_control_plane_finds_everything_as_it_was(
    tmp_path: Path, cleanup: list[Process]
) -> None:
    plane, _, _ = start(tmp_path, cleanup, 1, external=True)
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    before = plane.device("board-0")
    placements = deployment(plane, "dense")["placements"]
    plane.process.kill()
    plane.process.start()
    plane.wait_ready()
    plane.wait_condition("board-0", "online")
    until(lambda: infer(plane, "dense")[0] == 200, "answers after the restart")
    # Long enough for a placement that forgot the past to show itself.
    until(lambda: deployment(plane, "dense")["state"] == "ready", "the deployment's state")
    after = plane.device("board-0")
    assert (after["goal"], after["goal_seen"]) == (before["goal"], before["goal"])
    assert after["replicas"] == before["replicas"]
    assert deployment(plane, "dense")["placements"] == placements


def test_a_device_serves_after_a_reboot_without_control_plane(
    tmp_path: Path, cleanup: list[Process]
) -> None:
    plane, boards, _ = start(tmp_path, cleanup, 1, external=True)
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    plane.process.kill()
    boards[0].kill()
    boards[0].start()
    status_file = tmp_path / "board-0" / "status.json"

    def serving() -> bool:
        status = json.loads(status_file.read_text())
        return status["pid"] == boards[0].child.pid and [m["state"] for m in status["models"]] == [
            "ready"
        ]

    until(serving, "the model from the journal")


def test_hostile_messages_cost_a_log_line_and_nothing_else(
    tmp_path: Path, cleanup: list[Process]
) -> None:
    plane, boards, _ = start(tmp_path, cleanup, 1)
    plane.deploy(onnx_models.dense(tmp_path / "dense.onnx", 256), "dense")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", plane.broker_port)
    client.loop_start()
    device = "shoal/v1/default/devices/board-0"
    payloads = [
        b"",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"v": 99, "state": "online", "boot_id": "x"}',
        b'{"v": 1, "state": "asleep", "boot_id": "x"}',
        b'{"v": 1, "goal": -1, "models": []}',
        b'{"v": 1, "goal": 0, "models": []}',
        b'{"v": 1, "seq": 1e999, "boot_id": "x"}',
        json.dumps({"v": 1, "boot_id": "x" * 20_000}).encode(),
        os.urandom(4096),
    ]
    for kind in ("status", "capabilities", "reported", "telemetry", "desired", "infer", "unknown"):
        for payload in payloads:
            client.publish(f"{device}/{kind}", payload, qos=1).wait_for_publish(5)
    for topic in (
        "shoal/v1/default/devices/../status",
        "shoal/v1/default/gateways/nobody/replies",
        "shoal/v1/default/devices//status",
    ):
        client.publish(topic, b"{}", qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()
    until(lambda: infer(plane, "dense")[0] == 200, "answers in spite of it all")
    for process in (plane.process, boards[0]):
        assert process.child.poll() is None
        assert "Traceback" not in process.output
    dropped = [line for line in plane.process.output.splitlines() if "message dropped" in line]
    assert 1 <= len(dropped) <= 10, "one line, and then few more of the same"


def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path, cleanup: list[Process]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(small)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("a file system of 80 MB cannot be mounted: run as root")
    try:
        plane, _, _ = start(tmp_path, cleanup, 0)
        agent = start_agent(small, "board-9", plane)
        cleanup.append(agent)
        plane.wait_condition("board-9", "online")
        plane.deploy(onnx_models.dense(tmp_path / "tiny.onnx", 256), "tiny")
        # The agent keeps 64 MiB free; what is left beside them is less than the next model.
        (small / "filler").write_bytes(bytes(14 * 1024 * 1024))
        big = onnx_models.dense(tmp_path / "big.onnx", 1024, 1024)
        assert plane.shoal("model", "push", str(big), "--name", "big").returncode == 0
        done = plane.shoal("deployment", "create", "big", "--no-wait")
        assert done.returncode == 0, done.stderr
        told = until(
            lambda: "disk" in (reason := deployment(plane, "big")["reason"]) and reason,
            "the reason",
        )
        assert "room" in told
        assert infer(plane, "tiny")[0] == 200
        assert not list(small.rglob("*.part"))
        agent.stop()
        cleanup.remove(agent)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
