"""The child process that reads a strange model and cuts it: a `Job` comes in, an `Answer` goes out.

Its memory and processor time are limited before the file is opened.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec

from shoal_controlplane.planner.cuts.analysis import CutError
from shoal_controlplane.planner.cuts.cutter import Answer, Job, analyse_model, extract_stages

_BASE_MEMORY = 2 * 1024**3
_COPIES = 5
"""The model that Python holds, a stage of it, that stage's bytes, and the checker's own two."""


def answer(job: Job) -> Answer:
    """Do a job in this process; what is wrong becomes the answer's sentence."""
    path = Path(job.path)
    try:
        if job.folder is None:
            return Answer(analysis=analyse_model(path, job.shapes))
        return Answer(stages=extract_stages(path, job.shapes, job.bounds, Path(job.folder)))
    except CutError as error:
        # Names out of the file must not steer the terminal that shows the sentence.
        return Answer(error="".join(c if c.isprintable() else "?" for c in str(error)))
    except OSError as error:
        return Answer(error=f"The stages cannot be written: {error.strerror}.")
    except (MemoryError, RecursionError):
        return Answer(error="The model needs too much memory to be cut.")


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    path = Path(job.path)
    size = path.stat().st_size if path.is_file() else 0
    memory = _BASE_MEMORY + _COPIES * size
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (job.cpu_seconds, job.cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(msgspec.json.encode(answer(job)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
