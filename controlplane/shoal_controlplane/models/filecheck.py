"""The child process that reads a strange model file: `python -m … PATH FORMAT`.

It prints one JSON object, `{"findings": …}` or `{"error": "…"}`. Its memory and processor time
are limited before the file is opened, so a hostile file can hurt nobody else.
"""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.findings import Findings

_BASE_MEMORY = 2 * 1024**3
_COPIES = 4
"""The bytes of the file, the message that Python holds, and the checker's own two."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found: `error` is one sentence where there are no findings."""

    findings: Findings | None = None
    error: str = ""


def check_file(path: Path, format_name: str) -> Outcome:
    """Read a model file of a known format, in this process."""
    try:
        if format_name == "tflite":
            return Outcome(findings=_tflite(path))
        from shoal_controlplane.models.onnxfile import read_onnx

        return Outcome(findings=read_onnx(path))
    except InvalidError as error:
        # Names out of the file must not steer the terminal that shows the sentence.
        return Outcome(error="".join(c if c.isprintable() else "?" for c in str(error)))
    except MemoryError:
        return Outcome(error="The model needs too much memory to be checked.")


def _tflite(path: Path) -> Findings:
    from shoal_controlplane.models.tflitefile import read_tflite

    if path.stat().st_size == 0:
        raise InvalidError("The file is empty.")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        return read_tflite(view)


def main(argv: list[str]) -> int:
    path, format_name, cpu_seconds = Path(argv[1]), argv[2], int(argv[3])
    memory = _BASE_MEMORY + _COPIES * path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcome = check_file(path, format_name)
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
