"""What an unmodified tritonclient learns about the server and its models.

The `endpoint` fixture has `http` and `grpc`, each "host:port", before an agent that serves:

- `identity-<datatype>` for every datatype that is not in `endpoint.missing`: x -> y [-1, -1]
- `add`: FP32 a, b [-1, 4] -> sum
- `labels`: FP32 identity x -> y [-1, 3] with the labels cat, dog, fish
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from support.triton import (
    DATATYPES,
    In,
    add_inputs,
    failure,
    grpc_sync,
    http_client,
    http_sync,
    identity,
    sample,
)
from tritonclient.utils import InferenceServerException

Api = Callable[..., Any]


def _blocking(module: Any, address: str, method: str, *args: Any, **options: Any) -> Any:
    if module is triton_http:
        return getattr(http_client(address), method)(*args, **options)
    if method.startswith("get_"):
        options["as_json"] = True
    with module.InferenceServerClient(address) as client:
        return getattr(client, method)(*args, **options)


def _awaiting(module: Any, address: str, method: str, *args: Any, **options: Any) -> Any:
    async def ask() -> Any:
        if module is triton_grpc_aio and method.startswith("get_"):
            options["as_json"] = True
        async with module.InferenceServerClient(address) as client:
            answer: Awaitable[Any] = getattr(client, method)(*args, **options)
            return await answer

    return asyncio.run(ask())


@pytest.fixture(params=["http", "http_aio", "grpc", "grpc_aio"])
def api(request: pytest.FixtureRequest, endpoint: Any) -> Api:
    """Calls a method of one of the four clients; answers are JSON."""
    call, module, address = {
        "http": (_blocking, triton_http, endpoint.http),
        "http_aio": (_awaiting, triton_http_aio, endpoint.http),
        "grpc": (_blocking, triton_grpc, endpoint.grpc),
        "grpc_aio": (_awaiting, triton_grpc_aio, endpoint.grpc),
    }[request.param]
    return partial(call, module, address)


def numbers(values: Sequence[Any]) -> list[int]:
    """JSON made of a gRPC answer has 64-bit integers as strings."""
    return [int(v) for v in values]


def test_health(api: Api) -> None:
    assert api("is_server_live")
    assert api("is_server_ready")
    assert api("is_model_ready", "add")
    assert not api("is_model_ready", "no-such-model")
    assert not api("is_model_ready", "add", "999")


def test_server_metadata(api: Api) -> None:
    server = api("get_server_metadata")
    assert server["name"] == "shoal"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])


def test_model_metadata(api: Api) -> None:
    model = api("get_model_metadata", "add")
    assert model["name"] == "add"
    assert len(model["versions"]) == 1
    assert model["platform"]
    tensors = [(t["name"], t["datatype"], numbers(t["shape"])) for t in model["inputs"]]
    assert tensors == [("a", "FP32", [-1, 4]), ("b", "FP32", [-1, 4])]
    assert [t["name"] for t in model["outputs"]] == ["sum"]
    with pytest.raises(InferenceServerException, match="no-such-model"):
        api("get_model_metadata", "no-such-model")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_model_metadata_of_every_datatype(endpoint: Any, api: Api, datatype: str) -> None:
    model = api("get_model_metadata", identity(endpoint, datatype))
    assert [t["datatype"] for t in (*model["inputs"], *model["outputs"])] == [datatype] * 2


def test_model_config(api: Api) -> None:
    config = api("get_model_config", "labels")
    config = config.get("config", config)
    assert config["name"] == "labels"
    assert config["max_batch_size"] > 1
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert numbers(config["input"][0]["dims"]) == [3]
    assert config["output"][0]["label_filename"]
    with pytest.raises(InferenceServerException, match="no-such-model"):
        api("get_model_config", "no-such-model")


def test_statistics_grow(endpoint: Any, api: Api) -> None:
    def figures() -> dict[str, int]:
        (entry,) = api("get_inference_statistics", "add")["model_stats"]
        assert entry["name"] == "add"
        stats = entry["inference_stats"]
        return {
            "items": int(entry["inference_count"]),
            "success": int(stats["success"]["count"]),
            "fail": int(stats.get("fail", {}).get("count", 0)),
            "compute_ns": int(stats["compute_infer"]["ns"]),
            "last": int(entry["last_inference"]),
        }

    http_sync(endpoint, "add", add_inputs())
    before = figures()
    for _ in range(3):
        grpc_sync(endpoint, "add", add_inputs(2))
    failure(http_sync, endpoint, "add", add_inputs(), timeout=1)
    after = figures()
    assert after["items"] == before["items"] + 6
    assert after["success"] == before["success"] + 3
    assert after["fail"] == before["fail"] + 1
    assert after["compute_ns"] > before["compute_ns"]
    assert after["last"] >= before["last"] > 0


def test_statistics_of_all_models(api: Api) -> None:
    names = {entry["name"] for entry in api("get_inference_statistics")["model_stats"]}
    assert {"add", "labels", "identity-fp32"} <= names


def test_repository_index(api: Api) -> None:
    index = api("get_model_repository_index")
    entries = index if isinstance(index, list) else index["models"]
    states = {entry["name"]: entry["state"] for entry in entries}
    assert states["add"] == "READY"


def test_unload_and_load(endpoint: Any, api: Api) -> None:
    tensor = In("x", "INT16", sample("INT16"))
    try:
        api("unload_model", "identity-int16")
        assert not api("is_model_ready", "identity-int16")
        failure(http_sync, endpoint, "identity-int16", [tensor])
    finally:
        api("load_model", "identity-int16")
    assert api("is_model_ready", "identity-int16")
    result = grpc_sync(endpoint, "identity-int16", [tensor])
    np.testing.assert_array_equal(result.as_numpy("y"), tensor.array)


def test_loading_what_is_not_there(api: Api) -> None:
    with pytest.raises(InferenceServerException, match="no-such-model"):
        api("load_model", "no-such-model")
