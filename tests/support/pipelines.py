"""Fleets of real agents that compute sharded models, and requests that never cease."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from support import onnx_models
from support.processes import ControlPlane, Process, until
from support.relay import UNLIMITED, Relay

GROUP = "group"
"""Label by which a test's deployments find the test's boards."""

WIDTH = 256
LAYERS = 4


def chain(
    path: Path,
    *,
    layers: int = LAYERS,
    width: int = WIDTH,
    rows: int | str | None = None,
    seed: int = 0,
) -> Path:
    """`y` = relu(… relu(`x` W) …), FP32 [N, width] with 4 x `width`^2 bytes a layer; or of
    `rows` rows, no batch; a name leaves them open."""
    rng = np.random.default_rng(seed)
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes, weights = [], []
    for i, (before, after) in enumerate(itertools.pairwise(names)):
        matrix = rng.normal(size=(width, width), scale=(2 / width) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [after]))
    return onnx_models.save(
        path,
        nodes,
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, [1, rows, width] if rows else ["N", width]
            )
        ],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, [1, rows, width] if rows else ["N", width]
            )
        ],
        weights,
    )


def in_one_piece(path: Path) -> Path:
    """A chain inside of an If: no cut is possible."""
    inner = onnx.load(chain(path)).graph
    branches = []
    for name in ("then", "else"):
        outer = {"x"}
        nodes = [
            helper.make_node(
                node.op_type,
                [i if i in outer else f"{name}_{i}" for i in node.input],
                [f"{name}_{o}" for o in node.output],
            )
            for node in inner.node
        ]
        weights = []
        for tensor in inner.initializer:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.name = f"{name}_{tensor.name}"
            weights.append(copy)
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["N", WIDTH])
        branches.append(helper.make_graph(nodes, name, [], [output], weights))
    choice = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]
    )
    return onnx_models.save(path, [choice], list(inner.input), list(inner.output), [_flag(True)])


def _flag(value: bool) -> TensorProto:
    return numpy_helper.from_array(np.array(value), "flag")


def example(path: Path) -> np.ndarray:
    """An input of a chain."""
    [x] = onnx.load(path, load_external_data=False).graph.input
    shape = [dim.dim_value or 1 for dim in x.type.tensor_type.shape.dim]
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    """What the whole model computes, on this machine."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


class Board:
    """A process of `faultyboard.py`, whose link to the broker may be slowed down."""

    def __init__(
        self, folder: Path, name: str, plane: ControlPlane, group: str, memory_mib: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.link = Relay(plane.broker_port)
        self._fault = folder / f"{name}.fault"
        self.process = Process(
            [
                sys.executable,
                str(Path(__file__).with_name("faultyboard.py")),
                *("--device", name, "--label", f"{GROUP}={group}"),
                *("--memory-mib", str(memory_mib), "--fault", str(self._fault)),
                *("--broker", f"127.0.0.1:{self.link.port}"),
                *("--server", plane.url, "--state-dir", str(folder / name)),
            ],
            folder / f"{name}.log",
        )

    def fault(self, word: str) -> None:
        """From now on this is wrong with it; nothing if the word is empty."""
        written = self._fault.with_suffix(".new")
        written.write_text(word)
        written.replace(self._fault)

    def freeze(self) -> None:
        """It does nothing any more, but its session stays up."""
        os.killpg(self.process.child.pid, signal.SIGSTOP)

    def mend(self) -> None:
        """As it was at first."""
        self.fault("")
        self.link.bytes_per_s = UNLIMITED
        if self.process.child.poll() is None:
            os.killpg(self.process.child.pid, signal.SIGCONT)
        else:
            self.process.start()

    def close(self) -> None:
        self.process.kill()
        self.link.close()


class Group:
    """Boards on a control plane that others use, too, and one sharded model at a time."""

    def __init__(self, plane: ControlPlane, folder: Path, name: str) -> None:
        self.plane, self.folder, self.name = plane, folder, name
        self.boards: dict[str, Board] = {}
        self.model = ""
        self._models = itertools.count(1)

    def add(self, *names: str, memory_mib: int = 512) -> None:
        """Start boards and wait until they are online."""
        added = [
            Board(self.folder, f"{self.name}-{name}", self.plane, self.name, memory_mib)
            for name in names
        ]
        self.boards |= {board.name: board for board in added}
        self.wait_online(*added)

    def wait_online(self, *boards: Board) -> None:
        """Wait for some boards, or all."""
        for board in boards or self.boards.values():
            self.plane.wait_condition(board.name, "online")

    def deploy(self, path: Path, *options: str) -> dict[str, Any]:
        """Deploy a model on the group's boards, wait until it serves, and give its plan."""
        self.path, self.model = path, f"{self.name}-model-{next(self._models)}"
        self.plane.deploy(path, self.model, "--select", f"{GROUP}={self.name}", *options)
        return self.plan()

    def plan(self) -> dict[str, Any]:
        status, plan = self.plane.get(f"/api/v1/plans/{self.model}")
        assert status == 200, plan
        return plan

    def holders(self, stage: int) -> list[Board]:
        """The boards of a stage, as the plan has it now."""
        return [self.boards[name] for name in self.plan()["stages"][stage]["devices"]]

    def without(self, board: Board, timeout_s: float = 30.0) -> dict[str, Any]:
        """The plan once it is ready and a board is no part of it."""

        def left() -> dict[str, Any] | None:
            plan = self.plan()
            used = {device for stage in plan["stages"] for device in stage["devices"]}
            return plan if plan["state"] == "ready" and board.name not in used else None

        return until(left, f"a plan without {board.name}", timeout_s)

    def told(self) -> list[str]:
        """Events of the model."""
        body = self.plane.get("/api/v1/events?limit=200")[1]
        return [e["message"] for e in body["items"] if e["subject"] == self.model]

    def mend(self) -> None:
        """Remove what was deployed, and make every board work again."""
        self.plane.call("DELETE", f"/api/v1/deployments/{self.model}")
        for board in self.boards.values():
            board.mend()

    def close(self) -> None:
        for board in self.boards.values():
            board.close()


class Load:
    """Requests from several threads, each of which sends the next one when the last is answered."""

    def __init__(self, group: Group, threads: int) -> None:
        self.answers: list[tuple[float, int, Any]] = []
        self._plane, self._path = group.plane, f"/v2/models/{group.model}/infer"
        x = example(group.path)
        tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
        self._body = {"inputs": [tensor]}
        self._expected = reference(group.path, x).ravel()
        self._ending = threading.Event()
        self._senders = [threading.Thread(target=self._send) for _ in range(threads)]

    @property
    def count(self) -> int:
        return len(self.answers)

    def more(self, number: int, what: str, timeout_s: float = 30.0) -> None:
        """Wait for so many more answers."""
        wanted = self.count + number
        until(lambda: self.count >= wanted, f"{number} answers {what}", timeout_s)

    def begin(self) -> None:
        for sender in self._senders:
            sender.start()
        self.more(2 * len(self._senders), "before anything happened")

    def end(self) -> None:
        """Let every thread finish its request."""
        self._ending.set()
        for sender in self._senders:
            sender.join(60)

    def wrong(self) -> list[Any]:
        """Answers that are errors or not what the whole model computes."""
        return [(status, body) for _, status, body in self.answers if not self._right(status, body)]

    def longest_s(self) -> float:
        """The longest time that a request took."""
        return max(took for took, _, _ in self.answers)

    def _right(self, status: int, body: Any) -> bool:
        if status != 200:
            return False
        return np.allclose(body["outputs"][0]["data"], self._expected, rtol=0, atol=1e-4)

    def _send(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            status, body = self._plane.call("POST", self._path, self._body, timeout=60)
            self.answers.append((time.monotonic() - began, status, body))


@contextmanager
def load(group: Group, threads: int = 8) -> Iterator[Load]:
    """Requests to a group's model while the block runs; in the end all were answered or failed."""
    requests = Load(group, threads)
    try:
        requests.begin()
        yield requests
    finally:
        requests.end()
