"""A model run or quantised on this machine's CPU, each in a child process: see `referencechild`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

import msgspec

from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.referencechild import FRAME
from shoal_shared.oip import (
    InferReply,
    InferRequest,
    OipError,
    Tensor,
    decode_reply,
    encode_request,
)
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array, datatype_of

LOAD_S = 300.0
RUN_S = 120.0
QUANTIZE_S = 3600.0

_LIBRARIES = {
    "onnx": (("onnxruntime",), "cpu"),
    "tflite": (("ai_edge_litert", "tflite_runtime"), "tflite"),
}
"""By format: modules of which any will do, and the extra that brings one."""


class ReferenceFailedError(CliError):
    """The model cannot be run here."""


class RuntimeMissingError(ReferenceFailedError):
    """The runtime of that format is not installed here."""


class ReferenceModel:
    """A model on the CPU; use it as a context manager. Every method raises `ReferenceFailedError`.

    With `threads` = 1 the same inputs give the same bits on every run, 0 takes every core.
    """

    def __init__(self, file: Path, format_name: str, threads: int = 0) -> None:
        require_runtime(format_name)
        self._child = _Child("run", str(file), format_name, str(threads))
        try:
            reply = self._child.receive(LOAD_S)
            self.signature = msgspec.convert(reply.parameters["signature"], ModelSignature)
        except BaseException:
            self._child.close()
            raise

    def __enter__(self) -> ReferenceModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        self._child.send(inputs)
        return {tensor.name: tensor.data for tensor in self._child.receive(RUN_S).outputs}


def require_runtime(format_name: str) -> None:
    """Raise `RuntimeMissingError` unless models of that format can be run here."""
    modules, extra = _LIBRARIES[format_name]
    if not any(find_spec(module) for module in modules):
        raise RuntimeMissingError(
            f"{modules[0]} is not installed here: pip install 'shoal[{extra}]'"
        )


def format_of(file: Path) -> str:
    """Format of a model file by its name, as the command finds models."""
    return "tflite" if file.suffix.lower() == ".tflite" else "onnx"


def quantize_model(
    file: Path,
    out: Path,
    activation: str,
    weight: str,
    per_channel: bool,
    samples: Iterable[Mapping[str, Array]],
) -> str:
    """Write a QDQ model to `out`, calibrated with `samples`; a remark, empty if there is none.

    `activation` is "uint8", "int8" or "uint16", `weight` "uint8" or "int8".
    Raises `ReferenceFailedError`, also if the quantizer crashes or takes more than `QUANTIZE_S`.
    """
    require_runtime("onnx")
    child = _Child("quantize", str(file), str(out), activation, weight, str(int(per_channel)))
    try:
        with child.limit(QUANTIZE_S):
            for sample in samples:
                child.send(sample)
            child.end()
            parameters = child.receive(QUANTIZE_S).parameters
    finally:
        child.close()
    reason = parameters.get("unprepared")
    return f"the model could not be simplified before ({reason})" if reason else ""


class _Child:
    """The child process and its frames."""

    def __init__(self, *arguments: str) -> None:
        # -P: nothing in the working directory can pose as a module.
        command = (sys.executable, "-P", "-m", "shoal_controlplane.cli.referencechild", *arguments)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        self._late = False

    def send(self, inputs: Mapping[str, Array]) -> None:
        """Send one set of inputs; that the child is gone, `receive` will tell."""
        tensors = [Tensor(name, datatype_of(array), array) for name, array in inputs.items()]
        buffers, header = encode_request(InferRequest(tensors))
        try:
            self._stdin.write(FRAME.pack(header, sum(len(buffer) for buffer in buffers)))
            for buffer in buffers:
                self._stdin.write(buffer)
            self._stdin.flush()
        except BrokenPipeError:
            pass

    def end(self) -> None:
        """Say that no inputs will follow."""
        try:
            self._stdin.close()
        except BrokenPipeError:
            pass

    def receive(self, limit_s: float) -> InferReply:
        """The next reply. Raises `ReferenceFailedError` for an error, and where none comes."""
        with self.limit(limit_s):
            head = self._stdout.read(FRAME.size)
            header, length = FRAME.unpack(head) if len(head) == FRAME.size else (0, 0)
            body = self._stdout.read(length)
        if not body or len(body) < length:
            if self._late:
                raise ReferenceFailedError(f"the model took longer than {limit_s:g} s on the CPU")
            raise ReferenceFailedError("the model made its runtime crash: it is damaged or hostile")
        try:
            reply = decode_reply(body, header)
        except OipError as error:
            raise ReferenceFailedError(f"the runtime's answer cannot be read ({error})") from None
        if reply.error:
            raise ReferenceFailedError(reply.error)
        return reply

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Kill the child if what is within takes longer: its pipes then end."""
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()
        self.end()
        self._stdout.close()

    def _kill(self) -> None:
        self._late = True
        self._process.kill()
