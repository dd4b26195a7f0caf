"""An unmodified tritonclient infers on a real fleet, in every way that it can ask.

The `endpoint` fixture has `http` and `grpc`, each "host:port", before an agent that serves:

- `identity-<datatype>` for every datatype: x -> y [-1, -1]
- `add`: FP32 a, b [-1, 4] -> sum
- `labels`: FP32 identity x -> y [-1, 3] with the labels cat, dog, fish

`endpoint.plane.deploy(path, name)` adds a model; the suite does so for one with two outputs.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from support import onnx_models
from support.triton import (
    DATATYPES,
    FLOATS,
    OVER_HTTP,
    WAIT_S,
    Ask,
    In,
    Out,
    add_inputs,
    as_bf16,
    both,
    every_way,
    failure,
    grpc_stream,
    grpc_tensors,
    http_aio,
    http_client,
    http_sync,
    http_tensors,
    identity,
    into,
    over_http,
    over_unary_grpc,
    result_of,
    rows,
    sample,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from shoal_controlplane.gateway.grpc.descriptor import SERVICE, message_class

# Datatypes and forms


@every_way
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype(endpoint: Any, ask: Ask, datatype: str) -> None:
    array = sample(datatype)
    expected = as_bf16(array) if datatype == "BF16" else array
    result = ask(endpoint, identity(endpoint, datatype), [In("x", datatype, array)])
    answer = result.as_numpy("y")
    assert answer.dtype == expected.dtype
    np.testing.assert_array_equal(answer, expected)


@over_http
@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BF16"])
@pytest.mark.parametrize("forms", ["json-json", "json-binary", "binary-json"])
def test_every_datatype_as_json(endpoint: Any, ask: Ask, datatype: str, forms: str) -> None:
    binary_in, binary_out = (form == "binary" for form in forms.split("-"))
    array = sample(datatype)
    model = identity(endpoint, datatype)
    result = ask(endpoint, model, [In("x", datatype, array, binary_in)], [Out("y", binary_out)])
    output = result.get_output("y")
    assert ("data" in output) is not binary_out
    assert output["shape"] == [2, 3]
    answer = result.as_numpy("y")
    if datatype == "BYTES" and not binary_out:
        answer = np.vectorize(str.encode, otypes=[object])(answer)
    np.testing.assert_array_equal(answer, array)


@over_http
def test_bf16_as_json_output(endpoint: Any, ask: Ask) -> None:
    array = sample("BF16")
    tensor = In("x", "BF16", array)
    result = ask(endpoint, identity(endpoint, "BF16"), [tensor], [Out("y", binary=False)])
    np.testing.assert_array_equal(result.as_numpy("y"), as_bf16(array))


CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.mark.parametrize("datatype", CONTENTS)
def test_every_datatype_as_typed_contents(endpoint: Any, datatype: str) -> None:
    array = sample(datatype)
    request = service_pb2.ModelInferRequest(model_name=identity(endpoint, datatype))
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[2, 3])
    getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    with grpc.insecure_channel(endpoint.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        result = triton_grpc.InferResult(stub.ModelInfer(request, timeout=WAIT_S))
        np.testing.assert_array_equal(result.as_numpy("y"), array)
        request.raw_input_contents.append(b"")
        with pytest.raises(grpc.RpcError, match="raw_input_contents"):
            stub.ModelInfer(request, timeout=WAIT_S)


@every_way
@pytest.mark.parametrize(
    "array",
    [
        np.array([[b"\x00zero", b""]], dtype=object),
        np.array([["text", "für"]], dtype=object),
        np.array([[b"fixed", b"size"]]),
        np.array([[b"x" * 100_000]], dtype=object),
    ],
    ids=["zero", "str", "numpy-bytes", "long"],
)
def test_bytes_in_every_form(endpoint: Any, ask: Ask, array: Any) -> None:
    result = ask(endpoint, identity(endpoint, "BYTES"), [In("x", "BYTES", array)])
    expected = [e.encode() if isinstance(e, str) else bytes(e) for e in array.ravel()]
    assert result.as_numpy("y").shape == array.shape
    assert result.as_numpy("y").ravel().tolist() == expected


@every_way
def test_bytes_that_onnx_cannot_take_are_refused(endpoint: Any, ask: Ask) -> None:
    tensor = In("x", "BYTES", np.array([[b"\xff\xfe"]], dtype=object))
    error = failure(ask, endpoint, identity(endpoint, "BYTES"), [tensor])
    assert "UTF-8" in error.message()


@every_way
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_zero_size(endpoint: Any, ask: Ask, shape: tuple[int, int], datatype: str) -> None:
    array = np.empty(shape, object if datatype == "BYTES" else np.float32)
    result = ask(endpoint, identity(endpoint, datatype), [In("x", datatype, array)])
    assert result.as_numpy("y").shape == shape


@every_way
@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_infinities(endpoint: Any, ask: Ask, datatype: str) -> None:
    array = np.array([[np.nan, np.inf, -np.inf]], FLOATS[datatype])
    result = ask(endpoint, identity(endpoint, datatype), [In("x", datatype, array)])
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_nan_is_null_in_json(endpoint: Any) -> None:
    result = http_sync(endpoint, "identity-fp32", [rows([[np.nan, 1.0]])], [Out("y", False)])
    assert result.get_output("y")["data"] == [None, 1.0]
    assert np.isnan(result.as_numpy("y")[0, 0])


@every_way
def test_large_tensor(endpoint: Any, ask: Ask) -> None:
    array = np.arange(8_000_000 // 4, dtype=np.float32).reshape(1, -1)
    result = ask(endpoint, "identity-fp32", [rows(array)], [Out("y")])
    np.testing.assert_array_equal(result.as_numpy("y"), array)


# Compression


@pytest.mark.parametrize("ask", [http_sync, http_aio], ids=lambda f: f.__name__)
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_http_compression(
    endpoint: Any, ask: Ask, request_: str | None, response: str | None, binary: bool
) -> None:
    array = np.arange(30_000, dtype=np.float32).reshape(3, -1)
    result = ask(
        endpoint,
        "identity-fp32",
        [rows(array, binary=binary)],
        [Out("y", binary)],
        request_compression_algorithm=request_,
        response_compression_algorithm=response,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), array)


@over_unary_grpc
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_grpc_compression(endpoint: Any, ask: Ask, algorithm: str) -> None:
    array = np.zeros((3, 10_000), np.float32)
    result = ask(endpoint, "identity-fp32", [rows(array)], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_grpc_stream_compression(endpoint: Any) -> None:
    tensors, _ = grpc_tensors([rows(np.zeros((3, 10_000)))], None)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        client.start_stream(partial(into, answers), compression_algorithm="gzip")
        client.async_stream_infer("identity-fp32", tensors)
        assert result_of(answers.get(timeout=WAIT_S)).as_numpy("y").shape == (3, 10_000)
        client.stop_stream()


@pytest.mark.parametrize("accepted", [None, "gzip", "deflate", "br", "gzip;q=0"])
def test_no_encoding_that_was_not_asked_for(endpoint: Any, accepted: str | None) -> None:
    data = [0.0] * 60_000
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(data)], "data": data}
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    host, _, port = endpoint.http.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
    body = json.dumps({"inputs": [tensor]})
    connection.request("POST", "/v2/models/identity-fp32/infer", body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 200
    assert response.headers.get("Content-Encoding") in (None, accepted)


# Outputs


@every_way
def test_two_inputs(endpoint: Any, ask: Ask) -> None:
    result = ask(endpoint, "add", add_inputs(2))
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]] * 2


@pytest.fixture(scope="session")
def two(endpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """FP32 x [-1, 3] -> plus = x + 1, minus = x - 1."""

    def value(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3])

    path = onnx_models.save(
        tmp_path_factory.mktemp("two") / "two.onnx",
        [
            onnx.helper.make_node("Add", ["x", "one"], ["plus"]),
            onnx.helper.make_node("Sub", ["x", "one"], ["minus"]),
        ],
        [value("x")],
        [value("plus"), value("minus")],
        [onnx.numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    endpoint.plane.deploy(path, "two")
    return "two"


@every_way
@pytest.mark.parametrize("names", [["plus"], ["minus"], ["minus", "plus"], None])
def test_requested_outputs(endpoint: Any, two: str, ask: Ask, names: list[str] | None) -> None:
    outputs = None if names is None else [Out(name) for name in names]
    result = ask(endpoint, two, [rows([[1, 2, 3]])], outputs)
    response = result.get_response()
    given = response["outputs"] if isinstance(response, dict) else response.outputs
    returned = [o["name"] if isinstance(o, dict) else o.name for o in given]
    assert returned == (names or ["plus", "minus"])
    for name, expected in (("plus", [[2, 3, 4]]), ("minus", [[0, 1, 2]])):
        if name in returned:
            assert result.as_numpy(name).tolist() == expected
        else:
            assert result.as_numpy(name) is None


@over_http
@pytest.mark.parametrize("first", [True, False])
def test_outputs_of_both_forms_in_one_answer(
    endpoint: Any, two: str, ask: Ask, first: bool
) -> None:
    outputs = [Out("minus", first), Out("plus", not first)]
    result = ask(endpoint, two, [rows([[1, 2, 3]], binary=False)], outputs)
    assert ("data" in result.get_output("minus")) is not first
    assert ("data" in result.get_output("plus")) is first
    assert result.as_numpy("minus").tolist() == [[0, 1, 2]]
    assert result.as_numpy("plus").tolist() == [[2, 3, 4]]


@over_http
def test_no_outputs_means_all_of_them_binary(endpoint: Any, two: str, ask: Ask) -> None:
    result = ask(endpoint, two, [rows([[1, 2, 3]])])  # the client sets binary_data_output
    for output in result.get_response()["outputs"]:
        assert output["parameters"]["binary_data_size"] == 12
        assert output["shape"] == [1, 3]


@every_way
def test_classification(endpoint: Any, ask: Ask) -> None:
    scores = rows([[0.5, 0.25, 2.0], [4.0, -1.0, 3.0]])
    result = ask(endpoint, "labels", [scores], [Out("y", classes=2)])
    answer = result.as_numpy("y")
    assert answer.shape == (2, 2)
    parts = [[e.decode().split(":") for e in row] for row in answer]
    assert [[(float(s), int(i), label) for s, i, label in row] for row in parts] == [
        [(2.0, 2, "fish"), (0.5, 0, "cat")],
        [(4.0, 0, "cat"), (3.0, 2, "fish")],
    ]


@every_way
def test_classification_without_labels(endpoint: Any, ask: Ask) -> None:
    result = ask(endpoint, "identity-fp32", [rows([[1, 5, 2]])], [Out("y", classes=1)])
    score, index = result.as_numpy("y").ravel()[0].decode().split(":")[:2]
    assert (float(score), int(index)) == (5.0, 1)


@over_http
def test_classification_as_json(endpoint: Any, ask: Ask) -> None:
    outputs = [Out("y", binary=False, classes=1)]
    result = ask(endpoint, "labels", [rows([[0, 1, 0]])], outputs)
    output = result.get_output("y")
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    assert output["data"][0].endswith(":1:dog")


# Ids, parameters, deadlines


@every_way
def test_ids_models_and_versions_are_echoed(endpoint: Any, ask: Ask) -> None:
    result = ask(endpoint, "add", add_inputs(), request_id="request-7")
    response = result.get_response()
    if not isinstance(response, dict):
        response = {k: getattr(response, k) for k in ("id", "model_name", "model_version")}
    assert response["id"] == "request-7"
    assert response["model_name"] == "add"
    version = response["model_version"]
    again = ask(endpoint, "add", add_inputs(), model_version=version)
    assert again.as_numpy("sum").tolist() == [[11, 22, 33, 44]]


@every_way
def test_request_parameters(endpoint: Any, ask: Ask) -> None:
    result = ask(
        endpoint,
        "add",
        add_inputs(),
        priority=2,
        timeout=20_000_000,
        sequence_id=77,
        sequence_start=True,
        sequence_end=True,
        parameters={"text": "t", "number": 3, "flag": True},
    )
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]


@every_way
def test_a_deadline_that_cannot_be_met(endpoint: Any, ask: Ask) -> None:
    error = failure(ask, endpoint, "add", add_inputs(), timeout=1)
    if ask in OVER_HTTP:
        assert error.status() in ("504", "429")
    elif ask is not grpc_stream:
        assert error.status() in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")
    assert ask(endpoint, "add", add_inputs()).as_numpy("sum").tolist() == [[11, 22, 33, 44]]


@over_unary_grpc
def test_the_calls_own_deadline(endpoint: Any, ask: Ask) -> None:
    large = [rows(np.zeros((1, 2_000_000)))]  # its way alone takes longer
    error = failure(ask, endpoint, "identity-fp32", large, client_timeout=1e-6)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert ask(endpoint, "add", add_inputs(), client_timeout=20).as_numpy("sum") is not None


@both
def test_a_timeout_must_be_a_number(endpoint: Any, ask: Ask) -> None:
    error = failure(ask, endpoint, "add", add_inputs(), parameters={"timeout": "soon"})
    assert "timeout" in error.message()


# Errors


@every_way
@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "part"),
    [
        ("no-such-model", [rows([[1.0]])], None, "no-such-model"),
        ("add", [rows([[1, 2, 3, 4]], "a")], None, "'b' is missing"),
        ("add", [*add_inputs(), rows([[1.0]], "c")], None, "'c'"),
        ("add", [rows([[1, 2, 3, 4]], "a"), rows([[1, 2, 3]], "b")], None, "shape"),
        ("add", [rows([1, 2, 3, 4], "a"), rows([1, 2, 3, 4], "b")], None, "shape"),
        ("add", [add_inputs()[0], In("b", "INT32", np.ones((1, 4), np.int32))], None, "INT32"),
        ("add", [add_inputs()[0], add_inputs()[0]], None, "more than once"),
        ("add", [add_inputs(1)[0], add_inputs(2)[1]], None, "batch"),
        ("add", add_inputs(), [Out("nothing")], "'nothing'"),
        ("labels", [rows([[1, 2, 3]])], [Out("y", classes=-1)], "y"),
    ],
    ids=[
        "model", "missing", "extra", "shape", "rank", "datatype", "twice", "batch", "output",
        "classes",
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(
    endpoint: Any, ask: Ask, model: str, inputs: Any, outputs: Any, part: str
) -> None:
    error = failure(ask, endpoint, model, inputs, outputs)
    assert part in error.message()
    missing = model == "no-such-model"
    if ask in OVER_HTTP:
        assert error.status() == ("404" if missing else "400")
    elif ask is not grpc_stream:
        assert error.status() == f"StatusCode.{'NOT_FOUND' if missing else 'INVALID_ARGUMENT'}"


@every_way
def test_unknown_version(endpoint: Any, ask: Ask) -> None:
    error = failure(ask, endpoint, "add", add_inputs(), model_version="999")
    assert "999" in error.message()


def test_shared_memory_is_refused_in_a_sentence(endpoint: Any) -> None:
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        error = failure(client.register_system_shared_memory, "region", "/key", 64)
        assert error.status() == "StatusCode.UNIMPLEMENTED"
        tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
        tensor.set_shared_memory("region", 4)
        assert "shared memory" in failure(client.infer, "identity-fp32", [tensor]).message()
    client = http_client(endpoint.http)
    failure(client.register_system_shared_memory, "region", "/key", 64)
    tensor = triton_http.InferInput("x", [1, 1], "FP32")
    tensor.set_shared_memory("region", 4)
    assert "shared memory" in failure(client.infer, "identity-fp32", [tensor]).message()


# Many at once


def test_answers_of_concurrent_requests_do_not_mix(endpoint: Any) -> None:
    async def over(module: Any, address: str, tensors: Callable[..., Any]) -> list[Any]:
        async with module.InferenceServerClient(address) as client:

            async def one(i: int) -> Any:
                inputs, _ = tensors([rows(np.full((1 + i % 3, 3), i))], None)
                return (await client.infer("labels", inputs)).as_numpy("y")

            return await asyncio.gather(*(one(i) for i in range(60)))

    for answers in (
        asyncio.run(over(triton_http_aio, endpoint.http, http_tensors)),
        asyncio.run(over(triton_grpc_aio, endpoint.grpc, grpc_tensors)),
    ):
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, np.full((1 + i % 3, 3), i, np.float32))


def test_stream_keeps_its_order_and_survives_errors(endpoint: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        client.start_stream(partial(into, answers))
        for i in range(40):
            tensors, _ = grpc_tensors([rows([[i, i, i]])], None)
            model = "no-such-model" if i == 20 else "labels"
            client.async_stream_infer(
                model, tensors, request_id=str(i), enable_empty_final_response=True
            )
        client.stop_stream()  # waits for what was sent
    assert answers.qsize() == 40
    for i in range(40):
        result, error = answers.get_nowait()
        if i == 20:
            assert "no-such-model" in error.message()
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(i)
        assert response.parameters["triton_final_response"].bool_param
        assert result.as_numpy("y").tolist() == [[i, i, i]]


def test_stream_of_the_aio_client(endpoint: Any) -> None:
    async def ask() -> list[Any]:
        async def requests() -> Any:
            for i in range(10):
                tensors, _ = grpc_tensors([rows([[i, i, i]])], None)
                yield {"model_name": "labels", "inputs": tensors, "request_id": str(i)}

        async with triton_grpc_aio.InferenceServerClient(endpoint.grpc) as client:
            return [answer async for answer in client.stream_infer(requests())]

    answers = asyncio.run(ask())
    assert [error for _, error in answers] == [None] * 10
    assert [result.get_response().id for result, _ in answers] == [str(i) for i in range(10)]


def test_our_messages_and_tritonclients_live_in_one_process(endpoint: Any) -> None:
    tensors, _ = grpc_tensors([rows([[1, 2, 3]])], None)
    ours = message_class("ModelInferRequest")(model_name="labels")
    ours.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend(
        [1, 2, 3]
    )
    with grpc.insecure_channel(endpoint.grpc) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message_class("ModelInferResponse").FromString,
        )
        our_answer = call(ours, timeout=WAIT_S)
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        their_answer = client.infer("labels", tensors).get_response()
    assert type(our_answer) is not type(their_answer)
    assert list(our_answer.raw_output_contents) == list(their_answer.raw_output_contents)
