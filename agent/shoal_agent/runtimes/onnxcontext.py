"""Folders with code that QNN compiled, in ONNX Runtime's own format ("EP Context Design").

A folder holds an ONNX file with a single EPContext node, the code beside it, so that it is mapped
and not copied, and by provider the number of nodes that the code was made of.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from shoal_agent.runtimes.wire import BYTES, WireError, fields, within
from shoal_shared.placement import CPU_PROVIDERS

_CONTEXT = "model_ctx.onnx"
_NODES = "placement.json"
_COMPILED = b"EPContext"
_GRAPH, _NODE, _OP_TYPE = 7, 1, 4  # ModelProto.graph, GraphProto.node, NodeProto.op_type

_counts = msgspec.json.Decoder(dict[str, Annotated[int, msgspec.Meta(ge=0)]])


class ContextFolder:
    """One folder, which is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def context(self) -> Path:
        """The ONNX file to load."""
        return self._folder / _CONTEXT

    @property
    def is_filled(self) -> bool:
        return self.context.exists()

    def nodes(self, seen: Mapping[str, int]) -> dict[str, int]:
        """Nodes of the model by provider, where a session of the context has those of `seen`:
        what the CPU has is counted in the session, and the rest when it was compiled."""
        try:
            made_of = _counts.decode((self._folder / _NODES).read_bytes())
        except (OSError, msgspec.DecodeError):
            made_of = {}
        return {name: made_of.get(name, n) if _is_fast(name) else n for name, n in seen.items()}

    @contextmanager
    def filling(self, nodes: Mapping[str, int]) -> Iterator[Path]:
        """Where to write the context; afterwards it is put into place with all that lies beside
        it, and with the counts that `nodes` has by then. Raises `OSError`; what is not complete is
        never seen."""
        with tempfile.TemporaryDirectory(prefix=".compile-", dir=self._folder) as folder:
            made = Path(folder)
            yield made / _CONTEXT
            if not (made / _CONTEXT).exists():
                return  # Nothing of the model went to the accelerator.
            fast = {name: n for name, n in nodes.items() if _is_fast(name)}
            (made / _NODES).write_bytes(msgspec.json.encode(fast))
            # The context comes last: it is what tells that all is there.
            for file in sorted(made.iterdir(), key=lambda f: f.name == _CONTEXT):
                shutil.move(file, self._folder / file.name)


def is_context(path: Path) -> bool:
    """Whether an ONNX file holds code that was compiled already. What cannot be read does not."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return any(
            data[kind.value : kind.end].tobytes() == _COMPILED
            for graph in fields(data, 0, len(data))
            if (graph.number, graph.kind) == (_GRAPH, BYTES)
            for node in within(data, graph, _NODE)
            for kind in within(data, node, _OP_TYPE)
        )
    except (OSError, ValueError, WireError):
        return False


def _is_fast(provider: str) -> bool:
    return provider not in CPU_PROVIDERS
