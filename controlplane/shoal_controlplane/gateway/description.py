"""Models and server as the protocol describes them, for HTTP and gRPC alike.

Pure functions; the answers have the protocol's JSON form, whose keys are also the fields of the
gRPC messages.

Source: Open Inference Protocol v2, "Server Metadata" and "Model Metadata"; Triton's protocol
extension "model configuration" and its `model_config.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version as installed_version
from typing import Any, Final

from shoal_controlplane.gateway.table import ServedModel
from shoal_shared.signature import TensorSpec

SERVER_NAME: Final = "shoal"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
"""Extensions that are served in full; shared memory, tracing and log settings are not."""


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    return {
        "name": SERVER_NAME,
        "version": installed_version("shoal"),
        "extensions": list(EXTENSIONS),
    }


def metadata(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """Inputs and outputs of a model; -1 in a shape is any size, the batch dimension included."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": model.platform,
        "inputs": [_tensor_metadata(spec) for spec in model.signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.signature.outputs],
    }


def config(model: ServedModel) -> dict[str, Any]:
    """A model as Triton's ModelConfig: `dims` are without the batch dimension.

    An instance is a replica on a device.
    """
    description: dict[str, Any] = {
        "name": model.name,
        "platform": model.platform,
        "backend": model.platform.partition("_")[0],
        "version_policy": {"all": {}},
        "max_batch_size": model.max_batch,
        "input": [_tensor_config(spec, model) for spec in model.signature.inputs],
        "output": [
            {
                **_tensor_config(spec, model),
                "label_filename": "labels.txt" if spec.name in model.labels else "",
            }
            for spec in model.signature.outputs
        ],
        "instance_group": [{"name": model.name, "kind": "KIND_AUTO", "count": len(model.replicas)}],
    }
    if model.max_batch > 0:
        description["dynamic_batching"] = {}
    return description


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec, model: ServedModel) -> dict[str, Any]:
    dims: Sequence[int] = spec.shape[1:] if model.max_batch > 0 else spec.shape
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}
