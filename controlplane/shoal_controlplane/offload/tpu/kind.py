"""Targets of kind `tpu`: Shoal's JAX worker, on GKE's TPU nodes or as processes of this machine.

Before anything is deployed, the model is read and compared with the worker's table of operators:
what it lacks is refused by name.
"""

from __future__ import annotations

import asyncio
import sys

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.local.target import Launch, ProcessTarget
from shoal_controlplane.offload.local.workers import Program
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.offload.tpu.options import (
    TOKEN_VARIABLE,
    WORKER,
    TpuOptions,
    check_options,
    options_of,
    worker_arguments,
)
from shoal_controlplane.offload.tpu.worker import reader
from shoal_controlplane.offload.tpu.worker.errors import ModelError

__all__ = ["check_options", "check_runs", "open_target"]

FORMAT = "onnx"
_PORT = 8476  # of libtpu, the first one


def open_target(settings: TargetSettings) -> CloudTarget:
    """The target, not reached yet. Raises `InvalidError`."""
    options = options_of(settings.options)
    if options.launch == "process":
        return ProcessTarget(settings, _launch(options), options.folder)
    try:
        from shoal_controlplane.offload.tpu.gke import GkeTarget
    except ImportError as error:
        raise InvalidError(
            f"launch gke needs packages that are not installed here ({error.name}): "
            "pip install 'shoal[tpu]'"
        ) from None
    return GkeTarget(settings, options)


def _launch(options: TpuOptions) -> Launch:
    program = Program(
        options.python or sys.executable,
        WORKER,
        TOKEN_VARIABLE,
        kept=("JAX_", "LC_", "LIBTPU_", "TPU_", "XLA_"),
        chips=options.chips if options.platform == "tpu" else 0,
        chip_environment=_chip_environment,
    )

    def arguments(model: CloudModel) -> list[str]:
        named = [str(model.artifact), f"--name={model.name}", f"--version={model.version}"]
        return named + worker_arguments(model, options)

    return Launch(
        program,
        package="jax",
        remedy="install 'shoal[tpu]' there, on a TPU 'jax[tpu]', too",
        check=check_runs,
        arguments=arguments,
        path=lambda key: f"/v2/models/{key[0]}/versions/{key[1]}",
        facts={"platform": options.platform},
    )


def _chip_environment(chip: int) -> dict[str, str]:
    """A worker sees this one of the machine's chips."""
    return {
        "TPU_VISIBLE_CHIPS": str(chip),
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{_PORT + chip}",
        "TPU_PROCESS_PORT": str(_PORT + chip),
        "CLOUD_TPU_TASK_ID": "0",
    }


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
