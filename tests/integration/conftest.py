"""A control plane, a broker and an agent as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import onnx_models
from support.processes import ControlPlane, free_port, start_agent, start_mosquitto


@dataclass(frozen=True)
class Endpoint:
    """Where the models of the suite are served."""

    http: str
    grpc: str
    plane: ControlPlane


# One worker a broker, so that the processes are started once.
PARAMS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker))
    for broker in ("embedded", "mosquitto")
]


@pytest.fixture(scope="session", params=PARAMS)
def endpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """Identity models of every datatype, `add` and `labels`, on one device."""
    folder = tmp_path_factory.mktemp(f"endpoint-{request.param}")
    port = free_port()
    external = request.param == "mosquitto"
    processes = [start_mosquitto(folder, port)] if external else []
    try:
        plane = ControlPlane(folder, broker_port=port, external_broker=external)
        processes.append(plane.process)
        processes.append(start_agent(folder, "board-1", plane))
        plane.wait_condition("board-1", "online")
        for datatype in sorted(onnx_models.ELEMENT_TYPES):
            name = f"identity-{datatype.lower()}"
            plane.deploy(onnx_models.identity(folder / f"{name}.onnx", datatype), name)
        plane.deploy(onnx_models.add(folder / "add.onnx"), "add")
        plane.deploy(_labelled(folder), "labels")
        yield Endpoint(f"127.0.0.1:{plane.port}", f"127.0.0.1:{plane.grpc_port}", plane)
    finally:
        for process in reversed(processes):
            process.stop()


def _labelled(folder: Path) -> Path:
    """A folder as Triton's model repository holds it, with a label file."""
    model = folder / "labels"
    (model / "1").mkdir(parents=True)
    onnx_models.identity(model / "1" / "model.onnx", "FP32", ("N", 3))
    (model / "labels.txt").write_text("cat\ndog\nfish\n")
    (model / "config.pbtxt").write_text(
        'name: "labels"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }]\n'
        'output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }]\n'
    )
    return model
