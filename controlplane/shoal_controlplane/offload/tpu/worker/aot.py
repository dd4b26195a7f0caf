"""Compiles models for a TPU ahead of time, without one: what would they cost there?

    python -m shoal_controlplane.offload.tpu.worker.aot MODEL… [--topology v5e:2x2] [--batches 1,8]

Needs the package `libtpu`, the compiler for TPUs. Figures are XLA's own estimates: operations,
bytes moved, and memory for code, weights, inputs, outputs and in between.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_controlplane.offload.tpu.worker import reader
from shoal_controlplane.offload.tpu.worker.errors import ModelError

_HEAD = (
    "model",
    "batch",
    "compiled s",
    "GFLOP",
    "MB moved",
    "MB weights+inputs",
    "MB outputs",
    "MB temporary",
    "MB code",
)
_ACCELERATORS = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}


@dataclass(frozen=True, slots=True)
class Row:
    """What XLA says of one model and batch size; sizes in bytes."""

    model: str
    batch: int
    compile_s: float
    flops: float
    moved: float
    arguments: int
    outputs: int
    temporary: int
    code: int

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of the table's head."""
        sizes = (self.moved, self.arguments, self.outputs, self.temporary, self.code)
        return (
            self.model,
            str(self.batch or "-"),
            f"{self.compile_s:.1f}",
            f"{self.flops / 1e9:.2f}",
            *(f"{size / 1e6:.2f}" for size in sizes),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="shoal-tpu-aot", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--topology", default="v5e:2x2", help="of the TPU, such as v5e:2x2")
    parser.add_argument("--batches", default="1,8", help="batch sizes, such as 1,8")
    parser.add_argument(
        "--open",
        default=640,
        type=int,
        metavar="N",
        help="the size of dimensions that a model leaves open, but for the batch",
    )
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("libtpu") is None:
        print(
            "compiling for a TPU needs its compiler (about 700 MB): pip install libtpu",
            file=sys.stderr,
        )
        return 1
    try:
        batches = [int(text) for text in options.batches.split(",")]
    except ValueError:
        parser.error(f"--batches {options.batches}: give numbers, such as 1,8")
    try:
        device = _device(options.topology)
        rows = [
            row
            for path in options.models
            for row in compile_for(device, path, batches, options.open)
        ]
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{device.device_kind}, topology {options.topology}, one chip a model")
    print(table(rows))
    return 0


def compile_for(device: Any, path: Path, batches: Sequence[int], size: int) -> list[Row]:
    """One row for each batch size; open dimensions have `size`. Raises `ModelError`."""
    import jax

    from shoal_controlplane.offload.tpu.worker.compile import CompiledModel

    read = reader.read(path)
    batched = read.signature.batchable
    model = CompiledModel(read, batches if batched else ())
    sharding = jax.sharding.SingleDeviceSharding(device)
    name = path.parent.name if path.name == "model.onnx" else path.stem
    rows = []
    for batch in batches if batched else [0]:
        shapes = tuple(
            tuple(
                (batch if i == 0 and batched else size) if n == -1 else n
                for i, n in enumerate(spec.shape)
            )
            for spec in read.signature.inputs
        )
        # It takes minutes.
        print(f"compiling {name}{f', batch {batch}' if batch else ''} …", file=sys.stderr)
        started = time.monotonic()
        try:
            compiled = model.lower(shapes, sharding, "tpu").compile()
        except jax.errors.JaxRuntimeError as error:
            said = (str(error).splitlines() or [""])[0]
            raise ModelError(f"{path} cannot be compiled for a TPU: {said[:300]}") from None
        took_s = time.monotonic() - started
        cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        rows.append(
            Row(
                name,
                batch,
                took_s,
                cost.get("flops", 0.0),
                cost.get("bytes accessed", 0.0),
                memory.argument_size_in_bytes,
                memory.output_size_in_bytes,
                memory.temp_size_in_bytes,
                memory.generated_code_size_in_bytes,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows under their head, in columns."""
    cells = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _device(topology: str) -> Any:
    """A chip of a topology that need not be here. Raises `ModelError`."""
    # libtpu would ask the cloud's metadata server what it runs on.
    kind = topology.partition(":")[0]
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS.get(kind, kind))
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

    from jax.experimental import topologies

    from shoal_controlplane.offload.tpu.worker.compile import configure

    configure("cpu")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ModelError(f"topology {topology} cannot be used: {said[:300]}") from None
    return found.devices[0]


if __name__ == "__main__":
    sys.exit(main())
