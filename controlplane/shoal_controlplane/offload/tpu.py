"""Targets of kind `tpu`: Shoal's JAX worker, on GKE's TPU nodes or as processes of this machine.

Before anything is deployed, the model is read and compared with the worker's table of operators:
what it lacks is refused by name.
"""

from __future__ import annotations

import asyncio

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.offload.tpu_options import check_options, options_of
from shoal_controlplane.offload.tpu_worker import reader
from shoal_controlplane.offload.tpu_worker.errors import ModelError

__all__ = ["check_options", "check_runs", "open_target"]

FORMAT = "onnx"


def open_target(settings: TargetSettings) -> CloudTarget:
    """The target, not reached yet. Raises `InvalidError`."""
    options = options_of(settings.options)
    if options.launch == "process":
        from shoal_controlplane.offload.tpu_process import ProcessTarget

        return ProcessTarget(settings, options)
    try:
        from shoal_controlplane.offload.tpu_gke import GkeTarget
    except ImportError as error:
        raise InvalidError(
            f"launch gke needs packages that are not installed here ({error.name}): "
            "pip install 'shoal[tpu]'"
        ) from None
    return GkeTarget(settings, options)


async def check_runs(model: CloudModel) -> None:
    """Raises `TargetError` UNSUPPORTED, with the operator's name, unless the worker can run the
    model."""
    if model.format != FORMAT:
        raise TargetError(
            Fault.UNSUPPORTED, f"the TPU worker runs {FORMAT}, not {model.format[:40]}"
        )
    try:
        content = await asyncio.to_thread(model.artifact.read_bytes)
        await asyncio.to_thread(reader.parse, content, model.digest)
    except OSError as error:
        raise TargetError(
            Fault.BROKEN, f"the model's file cannot be read: {error.strerror or error}"
        ) from None
    except ModelError as error:
        raise TargetError(Fault.UNSUPPORTED, " ".join(str(error).split())) from None
