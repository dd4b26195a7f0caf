"""Every way that tritonclient has to ask, behind one signature; and tensors to ask with.

A way takes (endpoint, model, inputs, outputs or None, options of the client's infer) and returns
the client's result or raises its exception.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

WAIT_S = 30

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
DATATYPES = ["BOOL", *INTEGERS, *FLOATS, "BF16", "BYTES"]


@dataclass(frozen=True)
class In:
    name: str
    datatype: str
    array: Any
    binary: bool = True


@dataclass(frozen=True)
class Out:
    name: str
    binary: bool = True
    classes: int = 0


Ask = Callable[..., Any]


def http_tensors(
    inputs: Sequence[In], outputs: Sequence[Out] | None
) -> tuple[list[Any], list[Any] | None]:
    tensors = []
    for i in inputs:
        tensor = triton_http.InferInput(i.name, list(i.array.shape), i.datatype)
        tensors.append(tensor.set_data_from_numpy(i.array, binary_data=i.binary))
    if outputs is None:
        return tensors, None
    return tensors, [
        triton_http.InferRequestedOutput(o.name, binary_data=o.binary, class_count=o.classes)
        for o in outputs
    ]


def grpc_tensors(
    inputs: Sequence[In], outputs: Sequence[Out] | None
) -> tuple[list[Any], list[Any] | None]:
    tensors = []
    for i in inputs:
        tensor = triton_grpc.InferInput(i.name, list(i.array.shape), i.datatype)
        tensor.set_data_from_numpy(i.array)
        tensors.append(tensor)
    if outputs is None:
        return tensors, None
    return tensors, [
        triton_grpc.InferRequestedOutput(o.name, class_count=o.classes) for o in outputs
    ]


@cache
def http_client(address: str) -> Any:
    """One for all tests: gevent's clients may be collected in their own thread only."""
    return triton_http.InferenceServerClient(address)


def http_sync(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    tensors, wanted = http_tensors(inputs, outputs)
    client = http_client(endpoint.http)
    return client.infer(model, tensors, outputs=wanted, **options)


def http_async(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    tensors, wanted = http_tensors(inputs, outputs)
    client = http_client(endpoint.http)
    return client.async_infer(model, tensors, outputs=wanted, **options).get_result()


def http_aio(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    async def ask() -> Any:
        tensors, wanted = http_tensors(inputs, outputs)
        async with triton_http_aio.InferenceServerClient(endpoint.http) as client:
            return await client.infer(model, tensors, outputs=wanted, **options)

    return asyncio.run(ask())


def grpc_sync(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    tensors, wanted = grpc_tensors(inputs, outputs)
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        return client.infer(model, tensors, outputs=wanted, **options)


def grpc_callback(
    endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any
) -> Any:
    tensors, wanted = grpc_tensors(inputs, outputs)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        client.async_infer(model, tensors, partial(into, answers), outputs=wanted, **options)
        return result_of(answers.get(timeout=WAIT_S))


def grpc_aio(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    async def ask() -> Any:
        tensors, wanted = grpc_tensors(inputs, outputs)
        async with triton_grpc_aio.InferenceServerClient(endpoint.grpc) as client:
            return await client.infer(model, tensors, outputs=wanted, **options)

    return asyncio.run(ask())


def grpc_stream(endpoint: Any, model: str, inputs: Any, outputs: Any = None, **options: Any) -> Any:
    tensors, wanted = grpc_tensors(inputs, outputs)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        client.start_stream(partial(into, answers))
        client.async_stream_infer(model, tensors, outputs=wanted, **options)
        answer = answers.get(timeout=WAIT_S)
        client.stop_stream()
        return result_of(answer)


def into(answers: queue.Queue[tuple[Any, Any]], result: Any, error: Any) -> None:
    answers.put((result, error))


def result_of(answer: tuple[Any, Any]) -> Any:
    result, error = answer
    if error is not None:
        raise error
    return result


OVER_HTTP: list[Ask] = [http_sync, http_async, http_aio]
OVER_GRPC: list[Ask] = [grpc_sync, grpc_callback, grpc_aio, grpc_stream]
UNARY_GRPC: list[Ask] = [grpc_sync, grpc_callback, grpc_aio]

every_way = pytest.mark.parametrize("ask", OVER_HTTP + OVER_GRPC, ids=lambda f: f.__name__)
over_http = pytest.mark.parametrize("ask", OVER_HTTP, ids=lambda f: f.__name__)
over_unary_grpc = pytest.mark.parametrize("ask", UNARY_GRPC, ids=lambda f: f.__name__)
both = pytest.mark.parametrize("ask", [http_sync, grpc_sync], ids=lambda f: f.__name__)


def sample(datatype: str) -> Any:
    """A [2, 3] array with the datatype's edges, as tritonclient takes it."""
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BYTES":
        words = [b"", b"a", "été".encode(), b"x" * 300, b"\xe2\x82\xac", b"line\nline"]
        return np.array(words, dtype=object).reshape(2, 3)
    if datatype == "BF16":
        values = np.array([[0.0, -0.0, 1.5], [-2.0, 3.0e38, 1e-38]], np.float32)
        return values.astype(triton_to_np_dtype("BF16"))
    if datatype in FLOATS:
        info = np.finfo(FLOATS[datatype])
        return np.array([[0, -0.0, 0.1], [info.max, info.min, info.tiny]], FLOATS[datatype])
    dtype = np.dtype(datatype.lower())
    bounds = np.iinfo(dtype)
    return np.array([[bounds.min, bounds.max, 0], [1, 2, 3]], dtype)


def as_bf16(array: Any) -> Any:
    """A BF16 sample as it comes back: tritonclient holds it as float32, and cuts off its lower
    half on the way, up to the release that took bfloat16 from ml_dtypes."""
    if array.dtype != np.float32:
        return array
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def identity(endpoint: Any, datatype: str) -> str:
    return f"identity-{datatype.lower()}"


def rows(array: Any, name: str = "x", binary: bool = True) -> In:
    return In(name, "FP32", np.asarray(array, np.float32), binary)


def add_inputs(count: int = 1) -> list[In]:
    return [rows([[1, 2, 3, 4]] * count, "a"), rows([[10, 20, 30, 40]] * count, "b")]


def failure(ask: Ask, *args: Any, **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        ask(*args, **options)
    assert "\n" not in caught.value.message()
    assert "Traceback" not in caught.value.message()
    return caught.value
