"""`python -m shoal_controlplane.offload.tpu.worker`: serve one model until SIGTERM.

The bearer token comes from the environment variable SHOAL_TPU_TOKEN. Exit codes: 0 after SIGTERM,
1 where the model or the device cannot be used, 2 for wrong usage, 3 where an operator is lacking.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from shoal_controlplane.offload.tpu.worker import reader
from shoal_controlplane.offload.tpu.worker.batcher import Batcher
from shoal_controlplane.offload.tpu.worker.compile import CompiledModel, configure
from shoal_controlplane.offload.tpu.worker.errors import ModelError, UnsupportedError
from shoal_controlplane.offload.tpu.worker.server import Worker

TOKEN = "SHOAL_TPU_TOKEN"  # noqa: S105  # the variable's name
MAX_MODEL = 8 * 1024**3

_LOCKED = 64 * 1024**3

UNUSABLE = 1
LACKING = 3

_log = logging.getLogger("shoal.tpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    token = os.environ.get(TOKEN, "").strip()
    if not token and not (options.fd is None and is_loopback(options.host)):
        parser.error(f"set {TOKEN}: only on the loopback interface may the token be left out")
    remote = options.model.startswith(("http://", "https://"))
    if remote and not options.digest:
        parser.error("name the digest of a model that comes from elsewhere: --digest sha256:…")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return asyncio.run(_serve(options, token))
    except UnsupportedError as error:
        _log.error("%s", error)
        return LACKING
    except (ModelError, OSError) as error:
        _log.error("%s", error)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal-tpu-worker", description=__doc__)
    parser.add_argument("model", help="path or http(s) address of an ONNX file")
    parser.add_argument("--digest", default="", help="sha256:… that the file must have")
    parser.add_argument("--name", required=True, help="the model's name in requests")
    parser.add_argument("--version", default="1")
    parser.add_argument(
        "--batches",
        type=_sizes,
        default=(),
        help="batch sizes to compile, such as 1,4,8; without any, requests run as they are",
    )
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        default=[],
        metavar="INPUT=N,N",
        help="sizes of an item of an input with open dimensions, to compile it ahead",
    )
    parser.add_argument("--platform", default="", help="cpu or tpu; left out, the best there is")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fd", type=int, help="a listening socket, instead of host and port")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if not all(0 < size <= 65536 for size in sizes):
        raise ValueError(text)
    return sizes


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    if not name:
        raise ValueError(text)
    return name, _sizes(sizes)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """Tells the worker as soon as it has to stop: what is under way is finished, but nothing new
    begins on connections that are still open."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.stopping = True
        # Once is enough: with the second SIGINT uvicorn would drop what is under way.
        self.should_exit = True


async def _serve(options: argparse.Namespace, token: str) -> int:
    failure: list[str] = []

    def failed(reason: str) -> None:
        failure.append(reason)
        worker.stopping = True
        server.should_exit = True

    worker = Worker(options.name, options.version, token, failed)
    config = uvicorn.Config(
        worker.app(),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=30,
    )
    server = _Server(config, worker)
    sockets = None if options.fd is None else [socket.socket(fileno=options.fd)]
    serving = asyncio.create_task(server.serve(sockets))
    loading = asyncio.create_task(asyncio.to_thread(_load, options))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        # Compilers know no end before the end: leave them behind.
        os._exit(0)
    try:
        worker.batcher = Batcher(loading.result())
    except BaseException:
        server.should_exit = True
        await serving
        raise
    _log.info("ready: %s:%s on %s", options.name, options.version, worker.batcher.model.device)
    await serving
    worker.batcher.close()
    if failure:
        _log.error("%s", failure[0])
        return UNUSABLE
    return 0


def _load(options: argparse.Namespace) -> CompiledModel:
    _lift_memory_lock()
    configure(options.platform)
    model = CompiledModel(_read(options.model, options.digest), options.batches)
    shapes: Mapping[str, tuple[int, ...]] = dict(options.shape)
    model.warm(shapes)
    return model


def _lift_memory_lock() -> None:
    """Memory that a TPU reaches must be locked: allow as much as this process may."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (_LOCKED, _LOCKED))
    except (ValueError, OSError):
        return


def _read(source: str, digest: str) -> reader.Model:
    if not source.startswith(("http://", "https://")):
        return reader.read(Path(source), digest)
    try:
        with urllib.request.urlopen(source, timeout=60) as answer:  # noqa: S310  # checked above
            content = answer.read(MAX_MODEL + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ModelError(f"cannot fetch the model: {getattr(error, 'reason', error)}") from None
    if len(content) > MAX_MODEL:
        raise ModelError(f"the model has more than {MAX_MODEL} bytes")
    return reader.parse(content, digest)


if __name__ == "__main__":
    # What JAX leaves running in threads does not keep the process.
    code = main()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit(code)
