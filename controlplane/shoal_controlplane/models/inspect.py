"""Inspection of uploaded model files, each in a child process with a time limit."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.filecheck import Outcome
from shoal_controlplane.models.findings import Findings

TIMEOUT_S = 120.0
FORMATS = ("onnx", "tflite")
PLATFORMS = {"onnx": "onnxruntime_onnx", "tflite": "tflite"}
"""Names of the formats in the Open Inference Protocol's metadata; ONNX's is Triton's."""

_decoder = msgspec.json.Decoder(Outcome)


def format_of(path: Path, filename: str = "") -> str:
    """Format of a model file by its first bytes, else by the name that it had.

    Raises `InvalidError` where neither tells; what the file really is, `inspect` finds out.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:] == b"TFL3" or filename.lower().endswith(".tflite"):
        return "tflite"
    # An ONNX file begins with its field 1, ir_version, a small number, or lacks any mark.
    if head[:1] == b"\x08" or filename.lower().endswith(".onnx"):
        return "onnx"
    raise InvalidError("The file is neither an ONNX nor a TFLite model.")


async def inspect(path: Path, format_name: str, timeout_s: float = TIMEOUT_S) -> Findings:
    """Check a model file and read its signature, without trusting it.

    Raises `InvalidError` with one sentence, also if the check crashes or takes too long.
    """
    if format_name not in FORMATS:
        raise InvalidError(f"The format '{format_name[:40]}' is not one of {', '.join(FORMATS)}.")
    # -P: nothing in the working directory can pose as a module.
    command = (sys.executable, "-P", "-m", "shoal_controlplane.models.filecheck")
    child = await asyncio.create_subprocess_exec(
        *command,
        str(path),
        format_name,
        str(int(timeout_s) + 1),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate()
    except TimeoutError:
        raise InvalidError(f"The model could not be checked within {timeout_s:g} s.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        outcome = _decoder.decode(output)
    except msgspec.DecodeError:
        raise InvalidError("The model made its check crash: it is damaged or hostile.") from None
    if outcome.findings is None:
        raise InvalidError(outcome.error)
    return outcome.findings
