from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2

from shoal_controlplane.gateway.grpc.descriptor import (
    ENUMS,
    MESSAGES,
    PACKAGE,
    POOL,
    SERVICE,
    message_class,
)

TRITON: Any = service_pb2.DESCRIPTOR.pool


def described(field: Any) -> dict[str, Any]:
    """What decides how a field lies on the wire and what it is called."""
    return {
        "number": field.number,
        "name": field.name,
        "type": field.type,
        "repeated": field.is_repeated,
        "message": field.message_type.full_name if field.message_type else None,
        "enum": field.enum_type.full_name if field.enum_type else None,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
        "packed": field.is_packed,
        "presence": field.has_presence,
    }


def messages() -> list[str]:
    """All our messages, the entries of maps among them."""
    found = []
    for path in MESSAGES:
        message: Any = message_class(path).DESCRIPTOR
        found += [
            message.full_name,
            *(f"{message.full_name}.{n.name}" for n in message.nested_types),
        ]
    return sorted(set(found))


@pytest.mark.parametrize("name", messages())
def test_every_field_is_tritons(name: str) -> None:
    ours: Any = POOL.FindMessageTypeByName(name)
    theirs: Any = TRITON.FindMessageTypeByName(name)
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry
    known = {field.name: described(field) for field in theirs.fields}
    assert {f.name: described(f) for f in ours.fields} == {
        f.name: known.get(f.name) for f in ours.fields
    }


@pytest.mark.parametrize(
    "name", [n for n in service_pb2.DESCRIPTOR.message_types_by_name if n in MESSAGES]
)
def test_no_field_of_the_service_is_left_out(name: str) -> None:
    left_out = {"ModelStatistics": {"memory_usage", "response_stats"}}
    theirs = {f.name for f in service_pb2.DESCRIPTOR.message_types_by_name[name].fields}
    ours = {f.name for f in message_class(name).DESCRIPTOR.fields}
    assert theirs - ours <= left_out.get(name, set())


@pytest.mark.parametrize("name", ENUMS)
def test_every_enum_is_tritons(name: str) -> None:
    ours: Any = POOL.FindEnumTypeByName(f"{PACKAGE}.{name}")
    theirs: Any = TRITON.FindEnumTypeByName(f"{PACKAGE}.{name}")
    assert [(v.name, v.number) for v in ours.values] == [(v.name, v.number) for v in theirs.values]


def test_service_has_tritons_name() -> None:
    assert SERVICE in {s.full_name for s in service_pb2.DESCRIPTOR.services_by_name.values()}


def test_our_file_is_not_in_the_default_pool() -> None:
    assert POOL is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("shoal/inference.proto")


def test_bytes_of_either_side_are_read_by_the_other() -> None:
    ours = message_class("ModelInferRequest")(
        model_name="m", id="7", raw_input_contents=[b"\0\1", b""]
    )
    ours.parameters["timeout"].int64_param = -5
    ours.inputs.add(name="x", datatype="FP32", shape=[2, -1]).contents.fp32_contents.append(1.5)
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert str(theirs) == str(ours)

    config = model_config_pb2.ModelConfig(name="m", max_batch_size=3)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_BF16, dims=[-1])
    config.dynamic_batching.max_queue_delay_microseconds = 9  # a field that we do not have
    read = message_class("ModelConfig").FromString(config.SerializeToString())
    assert (read.input[0].data_type, read.max_batch_size) == (14, 3)
