"""Targets of kind `kserve`: AKS or any Kubernetes, or KServe's server on this machine."""

from __future__ import annotations

import sys

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.kserve.objects import object_name
from shoal_controlplane.offload.kserve.options import KserveOptions, check_options, options_of
from shoal_controlplane.offload.local.target import Launch, ProcessTarget
from shoal_controlplane.offload.local.workers import Program
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Fault,
    TargetError,
    TargetSettings,
)

__all__ = ["check_options", "check_runs", "open_target"]

FORMATS = ("onnx",)
# KServe's library has no names for other types.
_NO_DATATYPE = "BF16"


def open_target(settings: TargetSettings) -> CloudTarget:
    """The target that `settings` describe; nothing is reached yet. Raises `InvalidError`."""
    options = options_of(settings.options)
    if options.launch == "process":
        return ProcessTarget(settings, _launch(options), options.folder)
    try:
        from shoal_controlplane.offload.kserve.cluster import KserveTarget
        from shoal_controlplane.offload.kserve.nodepools import NodePool
    except ImportError as error:
        raise InvalidError(
            f"launch cluster needs packages that are not installed here ({error.name}): "
            "pip install 'shoal[kserve]'"
        ) from None
    pool = NodePool(options.aks) if options.aks is not None else None
    return KserveTarget(settings, options, pool)


def _launch(options: KserveOptions) -> Launch:
    program = Program(
        options.python or sys.executable,
        "shoal_controlplane.offload.kserve.server",
        "SHOAL_SERVER_TOKEN",
    )

    def arguments(model: CloudModel) -> list[str]:
        return [
            f"--path={model.artifact}",
            f"--name={object_name(model.key)}",
            f"--digest={model.digest}",
            f"--threads={options.threads}",
            # Nothing stands before it that would have to notice.
            "--drain-s=0",
        ]

    return Launch(
        program,
        package="kserve",
        remedy="install 'shoal[kserve-server]' there",
        check=check_runs,
        arguments=arguments,
        path=lambda key: f"/v2/models/{object_name(key)}",
    )


async def check_runs(model: CloudModel) -> None:
    """Raises `TargetError` UNSUPPORTED unless the server can run the model."""
    if model.format not in FORMATS:
        raise TargetError(
            Fault.UNSUPPORTED,
            f"targets of kind kserve run {', '.join(FORMATS)}, not {model.format}",
        )
    for spec in (*model.signature.inputs, *model.signature.outputs):
        if spec.datatype == _NO_DATATYPE:
            raise TargetError(
                Fault.UNSUPPORTED, f"KServe's server has no {spec.datatype}, which '{spec.name}' is"
            )
