from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
from tritonclient.grpc import InferInput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient

from shoal_controlplane.errors import ConflictError, DomainError, InvalidError
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.descriptor import MESSAGES, SERVICE, message_class
from shoal_controlplane.gateway.grpc.server import GrpcServer
from shoal_controlplane.gateway.grpc.servicer import MAX_IN_FLIGHT

CODE = grpc.StatusCode


def method(world: Any, name: str) -> Any:
    answer = f"{name}Response"
    return world.channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=_serialize,
        response_deserializer=message_class(answer).FromString if answer in MESSAGES else None,
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def stream(world: Any) -> Any:
    return world.channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=_serialize,
        response_deserializer=message_class("ModelStreamInferResponse").FromString,
    )


def request(kind: str, **more: Any) -> Any:
    return message_class(f"{kind}Request")(**more)


def infer(model: str = "identity-fp32", value: float = 1.5, **more: Any) -> Any:
    raw = np.full((1, 1), value, "<f4").tobytes()
    message = request("ModelInfer", model_name=model, raw_input_contents=[raw], **more)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    return message


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert "\n" not in (error.details() or "")
    return error


async def test_health_and_metadata(served_grpc: Any) -> None:
    assert (await method(served_grpc, "ServerLive")(request("ServerLive"))).live
    assert (await method(served_grpc, "ServerReady")(request("ServerReady"))).ready
    server = await method(served_grpc, "ServerMetadata")(request("ServerMetadata"))
    assert (server.name, "statistics" in server.extensions) == ("shoal", True)
    model = await method(served_grpc, "ModelMetadata")(request("ModelMetadata", name="add"))
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("a", "FP32", [-1, 4]),
        ("b", "FP32", [-1, 4]),
    ]
    assert list(model.versions) == ["1"]
    answer = await method(served_grpc, "ModelConfig")(request("ModelConfig", name="add"))
    assert (answer.config.max_batch_size, list(answer.config.output[0].dims)) == (1024, [4])


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("add", "", True),
        ("add", "1", True),
        ("add", "9", False),
        ("idle", "", False),
        ("no", "", False),
    ],
)
async def test_model_ready(served_grpc: Any, name: str, version: str, ready: bool) -> None:
    ask = request("ModelReady", name=name, version=version)
    assert (await method(served_grpc, "ModelReady")(ask)).ready is ready


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_unknown_model_is_not_found(served_grpc: Any, name: str) -> None:
    error = await failure(method(served_grpc, name)(request(name, name="no", version="2")))
    assert error.code() is CODE.NOT_FOUND
    assert "no:2" in (error.details() or "")


async def test_infer_returns_outputs_id_and_device(served_grpc: Any) -> None:
    answer = await method(served_grpc, "ModelInfer")(infer(id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("identity-fp32", "1", "seven")
    assert answer.parameters["device"].string_param == "board-1"
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 1])
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1.5]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(served_grpc: Any, compression: Any) -> None:
    message = request("ModelInfer", model_name="identity-uint8", raw_input_contents=[bytes(9000)])
    message.inputs.add(name="x", datatype="UINT8", shape=[1, 9000])
    answer = await method(served_grpc, "ModelInfer")(message, compression=compression)
    assert answer.raw_output_contents[0] == bytes(9000)


async def test_statistics_count(served_grpc: Any) -> None:
    ask = method(served_grpc, "ModelStatistics")
    for _ in range(3):
        await method(served_grpc, "ModelInfer")(infer())
    served_grpc.fleet.error = GatewayError(GatewayStatus.INTERNAL, "it broke")
    await failure(method(served_grpc, "ModelInfer")(infer()))
    (stats,) = (await ask(request("ModelStatistics", name="identity-fp32"))).model_stats
    assert (stats.name, stats.version, stats.inference_count) == ("identity-fp32", "1", 3)
    assert stats.inference_stats.success.count == 3
    assert stats.inference_stats.fail.count == 1
    assert stats.inference_stats.compute_infer.ns == 3 * 700_000
    assert stats.batch_stats[0].batch_size == 1
    models = len(served_grpc.gateway.table.all())
    assert len((await ask(request("ModelStatistics"))).model_stats) == models


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GatewayError(GatewayStatus.INVALID, "no"), CODE.INVALID_ARGUMENT),
        (GatewayError(GatewayStatus.NOT_FOUND, "no"), CODE.NOT_FOUND),
        (GatewayError(GatewayStatus.TOO_LARGE, "no"), CODE.RESOURCE_EXHAUSTED),
        (GatewayError(GatewayStatus.EXHAUSTED, "no"), CODE.RESOURCE_EXHAUSTED),
        (GatewayError(GatewayStatus.INTERNAL, "no"), CODE.INTERNAL),
        (GatewayError(GatewayStatus.UNSUPPORTED, "no"), CODE.UNIMPLEMENTED),
        (GatewayError(GatewayStatus.UNAVAILABLE, "no"), CODE.UNAVAILABLE),
        (GatewayError(GatewayStatus.DEADLINE, "no"), CODE.DEADLINE_EXCEEDED),
        (InvalidError("no"), CODE.INVALID_ARGUMENT),
        (ConflictError("no"), CODE.FAILED_PRECONDITION),
        (DomainError("no"), CODE.INTERNAL),
    ],
)
async def test_errors_keep_their_kind_and_text(served_grpc: Any, error: Any, code: Any) -> None:
    served_grpc.fleet.error = error
    answer = await failure(method(served_grpc, "ModelInfer")(infer()))
    assert (answer.code(), answer.details()) == (code, "no")


async def test_every_gateway_status_has_a_code(served_grpc: Any) -> None:
    for status in GatewayStatus:
        served_grpc.fleet.error = GatewayError(status, "no")
        answer = await failure(method(served_grpc, "ModelInfer")(infer()))
        assert answer.details() == "no"


async def test_overload_says_when_to_come_back(served_grpc: Any) -> None:
    served_grpc.fleet.error = GatewayError(GatewayStatus.EXHAUSTED, "busy", retry_after_s=1.25)
    answer = await failure(method(served_grpc, "ModelInfer")(infer()))
    trailing = dict(answer.trailing_metadata())
    assert trailing == {"retry-after": "2", "grpc-retry-pushback-ms": "1250"}


async def test_a_bug_of_ours_becomes_internal_without_a_traceback(served_grpc: Any) -> None:
    served_grpc.fleet.error = ZeroDivisionError("secret detail")
    with structlog.testing.capture_logs() as logs:
        answer = await failure(method(served_grpc, "ModelInfer")(infer()))
    assert answer.code() is CODE.INTERNAL
    assert "secret" not in (answer.details() or "")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("request failed", "error")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff", CODE.INVALID_ARGUMENT),
        (gzip.compress(b"x" * 300, mtime=0)[:-9], CODE.INVALID_ARGUMENT),
        (gzip.compress(bytes(5 * 1024 * 1024), mtime=0), CODE.RESOURCE_EXHAUSTED),
        (bytes(5 * 1024 * 1024), CODE.RESOURCE_EXHAUSTED),
    ],
)
async def test_hostile_bytes(served_grpc: Any, data: bytes, code: Any) -> None:
    answer = await failure(method(served_grpc, "ModelInfer")(data))
    assert answer.code() is code
    assert (await method(served_grpc, "ServerLive")(request("ServerLive"))).live


async def test_what_is_not_offered_is_said_so(served_grpc: Any) -> None:
    for name in (
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "TraceSetting",
        "Nonsense",
    ):
        answer = await failure(method(served_grpc, name)(b""))
        assert answer.code() is CODE.UNIMPLEMENTED
        assert name in (answer.details() or "")
    answer = await failure(served_grpc.channel.unary_unary("/other.Service/Method")(b""))
    assert answer.code() is CODE.UNIMPLEMENTED


async def test_every_method_of_triton_is_served_or_refused_by_us(served_grpc: Any) -> None:
    for m in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if m.name == "ModelStreamInfer":
            continue
        try:
            await method(served_grpc, m.name)(b"")
        except grpc.aio.AioRpcError as error:
            assert error.details() != "Method not found!"
            assert error.code() in (CODE.UNIMPLEMENTED, CODE.NOT_FOUND)


async def test_the_calls_deadline_reaches_the_gateway(served_grpc: Any) -> None:
    await method(served_grpc, "ModelInfer")(infer(), timeout=5)
    assert 0 < served_grpc.fleet.time_left < 6  # gRPC rounds up
    message = infer()
    message.parameters["timeout"].int64_param = 2_000_000
    await method(served_grpc, "ModelInfer")(message, timeout=5)
    assert 0 < served_grpc.fleet.time_left < 3


async def test_cancelling_the_call_cancels_the_request(served_grpc: Any) -> None:
    served_grpc.fleet.gate = asyncio.Event()
    call = method(served_grpc, "ModelInfer")(infer())
    await served_grpc.fleet.entered.wait()
    call.cancel()
    await served_grpc.fleet.cancelled.wait()
    assert served_grpc.fleet.in_flight == 0


async def test_stream_answers_in_order_and_concurrently(served_grpc: Any) -> None:
    served_grpc.fleet.gate = asyncio.Event()
    call = stream(served_grpc)()
    for i in range(20):
        await call.write(infer(value=i, id=str(i)))
    await call.done_writing()
    await served_grpc.fleet.until(lambda n: n == 20)
    served_grpc.fleet.gate.set()
    answers = [answer.infer_response async for answer in call]
    assert [a.id for a in answers] == [str(i) for i in range(20)]
    assert [np.frombuffer(a.raw_output_contents[0], "<f4")[0] for a in answers] == list(range(20))
    assert all(a.parameters["triton_final_response"].bool_param for a in answers)


async def test_stream_goes_on_after_an_error(served_grpc: Any) -> None:
    async def requests() -> AsyncIterator[Any]:
        yield infer(id="a")
        yield infer("no", id="b")
        yield b"\xff\xff"
        yield infer(id="d")

    answers = [answer async for answer in stream(served_grpc)(requests())]
    assert [bool(a.error_message) for a in answers] == [False, True, True, False]
    assert [a.infer_response.id for a in answers] == ["a", "b", "", "d"]
    assert "no" in answers[1].error_message


async def test_a_bug_of_ours_ends_only_its_request_of_a_stream(served_grpc: Any) -> None:
    served_grpc.fleet.error = ZeroDivisionError("secret detail")
    call = stream(served_grpc)()
    with structlog.testing.capture_logs() as logs:
        await call.write(infer(id="a"))
        answer = await call.read()
    assert answer.error_message
    assert "secret" not in answer.error_message
    assert len(logs) == 1
    served_grpc.fleet.error = None
    await call.write(infer(id="b"))
    assert not (await call.read()).error_message
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize("count", [5, MAX_IN_FLIGHT + 20])
async def test_cancelling_a_stream_cancels_its_requests(served_grpc: Any, count: int) -> None:
    served_grpc.fleet.gate = asyncio.Event()
    call = stream(served_grpc)()
    for _ in range(count):
        await call.write(infer())
    await served_grpc.fleet.until(lambda n: n >= min(count, MAX_IN_FLIGHT + 2))
    call.cancel()
    await served_grpc.fleet.until(lambda n: n == 0)
    assert served_grpc.fleet.cancelled.is_set()


async def test_a_stream_has_a_bounded_number_in_flight(served_grpc: Any) -> None:
    total = 2 * MAX_IN_FLIGHT

    async def requests() -> AsyncIterator[Any]:
        for i in range(total):
            yield infer(id=str(i))

    served_grpc.fleet.gate = asyncio.Event()
    call = stream(served_grpc)(requests())
    await served_grpc.fleet.until(lambda n: n >= MAX_IN_FLIGHT)
    served_grpc.fleet.gate.set()
    assert len([a async for a in call]) == total
    assert served_grpc.fleet.most_in_flight <= MAX_IN_FLIGHT + 2


async def test_repository(served_grpc: Any) -> None:
    index = method(served_grpc, "RepositoryIndex")
    every = (await index(request("RepositoryIndex"))).models
    assert [(m.name, m.version, m.state, m.reason) for m in every] == [
        ("add", "1", "READY", ""),
        ("old", "1", "UNAVAILABLE", "unloaded"),
    ]
    ready = (await index(request("RepositoryIndex", ready=True))).models
    assert [m.name for m in ready] == ["add"]
    await method(served_grpc, "RepositoryModelLoad")(
        request("RepositoryModelLoad", model_name="add")
    )
    unload = request("RepositoryModelUnload", model_name="add")
    unload.parameters["unload_dependents"].bool_param = False
    await method(served_grpc, "RepositoryModelUnload")(unload)
    assert served_grpc.repository.calls == [("load", "add"), ("unload", "add")]


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_repository_refusals(served_grpc: Any, name: str) -> None:
    call = method(served_grpc, name)
    error = await failure(call(request(name, model_name="no")))
    assert (error.code(), "'no'" in (error.details() or "")) == (CODE.NOT_FOUND, True)
    error = await failure(call(request(name, model_name="add", repository_name="r")))
    assert error.code() is CODE.UNIMPLEMENTED
    with_config = request(name, model_name="add")
    with_config.parameters["config"].string_param = "{}"
    error = await failure(call(with_config))
    assert error.code() is CODE.UNIMPLEMENTED
    assert served_grpc.repository.calls == []


async def test_an_unmodified_triton_client(served_grpc: Any) -> None:
    async with InferenceServerClient(served_grpc.address) as client:
        assert await client.is_server_ready()
        array = np.array([["été".encode(), b"\xff\x00"]], dtype=object)
        tensor = InferInput("x", [1, 2], "BYTES")
        tensor.set_data_from_numpy(array)
        result = await client.infer("identity-bytes", [tensor])
        np.testing.assert_array_equal(result.as_numpy("y"), array)


async def test_a_taken_port_is_one_sentence(served_grpc: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await GrpcServer(served_grpc.gateway, "127.0.0.1", port).start()


async def test_ipv6_and_stop_twice(served_grpc: Any) -> None:
    server = GrpcServer(served_grpc.gateway, "::1", 0)
    try:
        port = await server.start()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        assert await channel.unary_unary(f"/{SERVICE}/ServerLive")(b"")
    await server.stop(0)
    await server.stop(0)
