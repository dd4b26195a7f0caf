"""NVIDIA GPUs as CUDA sees them, through PyCUDA where it is installed.

Asked in a child process (`python -m shoal_agent.boards.cuda` prints JSON), because a broken
driver crashes or hangs whoever loads it. Everything works without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from shoal_shared.messages import Accelerator

CudaQuery = Callable[[], tuple[tuple[Accelerator, ...], str]]
"""Accelerators as CUDA sees them, and why there are none."""

_TIMEOUT_S = 10.0
_COPY_BYTES = 16 << 20
_COPIES = 4


class CudaDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. `integrated` GPUs share the system's memory of `memory_bytes`."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    integrated: bool
    transfer_bytes_per_s: float | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    devices: tuple[CudaDevice, ...] = ()
    error: str = ""


def precisions(capability: tuple[int, int]) -> tuple[str, ...]:
    """What a GPU of a compute capability computes in at a useful rate.

    From the hardware and precision matrix of the TensorRT support matrix and CUDA's table of
    arithmetic throughput.
    """
    known = (
        ("fp32", True),
        ("tf32", capability >= (8, 0)),
        ("fp16", capability >= (7, 0) or capability in {(5, 3), (6, 0), (6, 2)}),
        ("int8", capability >= (7, 0) or capability == (6, 1)),
        ("fp8", capability >= (8, 9)),
        ("fp4", capability >= (10, 0)),
    )
    return tuple(name for name, there in known if there)


def no_cuda() -> tuple[tuple[Accelerator, ...], str]:
    """For machines that are not to be asked."""
    return (), ""


def cuda_accelerators(
    command: Sequence[str] | None = None, timeout_s: float = _TIMEOUT_S
) -> tuple[tuple[Accelerator, ...], str]:
    """Accelerators as CUDA describes them, and one sentence on why there are none.

    Both are empty where PyCUDA is not installed, which costs nothing. Else this blocks until
    the child process ends, at most about `timeout_s`. `command` takes the child's place.
    """
    if command is None:
        if importlib.util.find_spec("pycuda") is None:
            return (), ""
        command = (sys.executable, "-m", "shoal_agent.boards.cuda")
    try:
        answer = msgspec.json.decode(_last_line(command, timeout_s), type=_Answer)
    except _QueryError as error:
        return (), str(error)
    except msgspec.DecodeError as error:
        return (), f"PyCUDA's answer cannot be read: {error}."
    if answer.error:
        return (), f"PyCUDA cannot be used: {answer.error}"
    if not answer.devices:
        return (), "PyCUDA finds no GPU."
    return tuple(_accelerator(device) for device in answer.devices), ""


def _accelerator(device: CudaDevice) -> Accelerator:
    major, minor = device.capability
    return Accelerator(
        kind="gpu",
        name=device.name,
        memory_bytes=0 if device.integrated else device.memory_bytes,
        precisions=precisions(device.capability),
        compute_capability=f"{major}.{minor}",
        transfer_bytes_per_s=device.transfer_bytes_per_s,
    )


class _QueryError(Exception):
    """The child gave no answer; the text is one sentence."""


def _last_line(command: Sequence[str], timeout_s: float) -> bytes:
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise _QueryError(f"PyCUDA cannot be asked: {error}.") from None
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        try:  # A process that hangs inside a driver may outlive even this: don't wait for it.
            child.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            pass
        raise _QueryError(f"PyCUDA gave no answer within {timeout_s:g} s.") from None
    if child.returncode != 0:
        raise _QueryError(f"PyCUDA's process ended with status {child.returncode}.")
    lines = output.splitlines()  # Drivers print warnings, too.
    if not lines:
        raise _QueryError("PyCUDA gave no answer.")
    return lines[-1]


def main() -> None:
    """Ask CUDA in this process and print the answer as one line of JSON."""
    sys.stdout.write(msgspec.json.encode(_ask()).decode() + "\n")


def _ask() -> _Answer:
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:  # Also where the driver's own library is missing.
        return _Answer(error=f"{error}.")
    try:
        driver.init()
        devices = [driver.Device(index) for index in range(driver.Device.count())]
        return _Answer(devices=tuple(_describe(driver, device) for device in devices))
    except driver.Error as error:
        return _Answer(error=f"{error}.")


def _describe(driver: Any, device: Any) -> CudaDevice:
    major, minor = device.compute_capability()
    return CudaDevice(
        name=str(device.name()),
        capability=(int(major), int(minor)),
        memory_bytes=int(device.total_memory()),
        integrated=bool(device.get_attribute(driver.device_attribute.INTEGRATED)),
        transfer_bytes_per_s=_transfer_rate(driver, device),
    )


def _transfer_rate(driver: Any, device: Any) -> float | None:
    """Bytes per second from pinned memory of the host; None where memory is short."""
    try:
        context = device.make_context()
    except driver.Error:
        return None
    try:
        host = driver.pagelocked_empty(_COPY_BYTES, np.uint8)
        host.fill(1)
        target = driver.mem_alloc(_COPY_BYTES)
        stream, start, end = driver.Stream(), driver.Event(), driver.Event()
        driver.memcpy_htod_async(target, host, stream)
        start.record(stream)
        for _ in range(_COPIES):
            driver.memcpy_htod_async(target, host, stream)
        end.record(stream)
        end.synchronize()
        seconds = start.time_till(end) / 1000
        return _COPIES * _COPY_BYTES / seconds if seconds > 0 else None
    except driver.Error:
        return None
    finally:
        context.pop()


if __name__ == "__main__":
    main()
