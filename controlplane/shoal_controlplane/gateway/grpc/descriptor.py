"""Messages of `inference.GRPCInferenceService`, with Triton's field numbers.

The descriptors live in a pool of their own: generated code of tritonclient or kserve registers
the same names in protobuf's default pool, and two files with one name may not share a pool.

Source: Triton's `grpc_service.proto` and `model_config.proto`. Of `ModelConfig` only what Shoal
fills is here; protobuf readers take absent fields for their defaults.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"

Fields = tuple[tuple[int, str, str], ...]

_NAME_VERSION: Final[Fields] = ((1, "name", "string"), (2, "version", "string"))
_PARAMETERS: Final = "map InferParameter"

MESSAGES: Final[dict[str, Fields]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ((1, "live", "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ((1, "ready", "bool"),),
    "ModelReadyRequest": _NAME_VERSION,
    "ModelReadyResponse": ((1, "ready", "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*_NAME_VERSION, (3, "extensions", "repeated string")),
    "ModelMetadataRequest": _NAME_VERSION,
    "ModelMetadataResponse": (
        (1, "name", "string"),
        (2, "versions", "repeated string"),
        (3, "platform", "string"),
        (4, "inputs", "repeated ModelMetadataResponse.TensorMetadata"),
        (5, "outputs", "repeated ModelMetadataResponse.TensorMetadata"),
    ),
    "ModelMetadataResponse.TensorMetadata": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "shape", "repeated int64"),
    ),
    "InferParameter": (
        (1, "bool_param", "oneof parameter_choice bool"),
        (2, "int64_param", "oneof parameter_choice int64"),
        (3, "string_param", "oneof parameter_choice string"),
        (4, "double_param", "oneof parameter_choice double"),
        (5, "uint64_param", "oneof parameter_choice uint64"),
    ),
    "InferTensorContents": (
        (1, "bool_contents", "repeated bool"),
        (2, "int_contents", "repeated int32"),
        (3, "int64_contents", "repeated int64"),
        (4, "uint_contents", "repeated uint32"),
        (5, "uint64_contents", "repeated uint64"),
        (6, "fp32_contents", "repeated float"),
        (7, "fp64_contents", "repeated double"),
        (8, "bytes_contents", "repeated bytes"),
    ),
    "ModelInferRequest": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", _PARAMETERS),
        (5, "inputs", "repeated ModelInferRequest.InferInputTensor"),
        (6, "outputs", "repeated ModelInferRequest.InferRequestedOutputTensor"),
        (7, "raw_input_contents", "repeated bytes"),
    ),
    "ModelInferRequest.InferInputTensor": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "shape", "repeated int64"),
        (4, "parameters", _PARAMETERS),
        (5, "contents", "InferTensorContents"),
    ),
    "ModelInferRequest.InferRequestedOutputTensor": (
        (1, "name", "string"),
        (2, "parameters", _PARAMETERS),
    ),
    "ModelInferResponse": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", _PARAMETERS),
        (5, "outputs", "repeated ModelInferResponse.InferOutputTensor"),
        (6, "raw_output_contents", "repeated bytes"),
    ),
    "ModelInferResponse.InferOutputTensor": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "shape", "repeated int64"),
        (4, "parameters", _PARAMETERS),
        (5, "contents", "InferTensorContents"),
    ),
    "ModelStreamInferResponse": (
        (1, "error_message", "string"),
        (2, "infer_response", "ModelInferResponse"),
    ),
    "ModelConfigRequest": _NAME_VERSION,
    "ModelConfigResponse": ((1, "config", "ModelConfig"),),
    "ModelConfig": (
        (1, "name", "string"),
        (2, "platform", "string"),
        (3, "version_policy", "ModelVersionPolicy"),
        (4, "max_batch_size", "int32"),
        (5, "input", "repeated ModelInput"),
        (6, "output", "repeated ModelOutput"),
        (7, "instance_group", "repeated ModelInstanceGroup"),
        (11, "dynamic_batching", "oneof scheduling_choice ModelDynamicBatching"),
        (17, "backend", "string"),
    ),
    "ModelVersionPolicy": ((2, "all", "oneof policy_choice ModelVersionPolicy.All"),),
    "ModelVersionPolicy.All": (),
    "ModelInput": (
        (1, "name", "string"),
        (2, "data_type", "DataType"),
        (4, "dims", "repeated int64"),
    ),
    "ModelOutput": (
        (1, "name", "string"),
        (2, "data_type", "DataType"),
        (3, "dims", "repeated int64"),
        (4, "label_filename", "string"),
    ),
    "ModelInstanceGroup": (
        (1, "name", "string"),
        (2, "count", "int32"),
        (4, "kind", "ModelInstanceGroup.Kind"),
    ),
    "ModelDynamicBatching": (),
    "ModelStatisticsRequest": _NAME_VERSION,
    "ModelStatisticsResponse": ((1, "model_stats", "repeated ModelStatistics"),),
    "ModelStatistics": (
        (1, "name", "string"),
        (2, "version", "string"),
        (3, "last_inference", "uint64"),
        (4, "inference_count", "uint64"),
        (5, "execution_count", "uint64"),
        (6, "inference_stats", "InferStatistics"),
        (7, "batch_stats", "repeated InferBatchStatistics"),
    ),
    "InferStatistics": (
        (1, "success", "StatisticDuration"),
        (2, "fail", "StatisticDuration"),
        (3, "queue", "StatisticDuration"),
        (4, "compute_input", "StatisticDuration"),
        (5, "compute_infer", "StatisticDuration"),
        (6, "compute_output", "StatisticDuration"),
        (7, "cache_hit", "StatisticDuration"),
        (8, "cache_miss", "StatisticDuration"),
    ),
    "InferBatchStatistics": (
        (1, "batch_size", "uint64"),
        (2, "compute_input", "StatisticDuration"),
        (3, "compute_infer", "StatisticDuration"),
        (4, "compute_output", "StatisticDuration"),
    ),
    "StatisticDuration": ((1, "count", "uint64"), (2, "ns", "uint64")),
    "ModelRepositoryParameter": (
        (1, "bool_param", "oneof parameter_choice bool"),
        (2, "int64_param", "oneof parameter_choice int64"),
        (3, "string_param", "oneof parameter_choice string"),
        (4, "bytes_param", "oneof parameter_choice bytes"),
    ),
    "RepositoryIndexRequest": ((1, "repository_name", "string"), (2, "ready", "bool")),
    "RepositoryIndexResponse": ((1, "models", "repeated RepositoryIndexResponse.ModelIndex"),),
    "RepositoryIndexResponse.ModelIndex": (
        *_NAME_VERSION,
        (3, "state", "string"),
        (4, "reason", "string"),
    ),
    "RepositoryModelLoadRequest": (
        (1, "repository_name", "string"),
        (2, "model_name", "string"),
        (3, "parameters", "map ModelRepositoryParameter"),
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        (1, "repository_name", "string"),
        (2, "model_name", "string"),
        (3, "parameters", "map ModelRepositoryParameter"),
    ),
    "RepositoryModelUnloadResponse": (),
}
"""Message -> (number, name, type). A type is a scalar, a message or an enum of these tables,
behind `repeated`, `oneof NAME`, or `map` (from string)."""

ENUMS: Final[dict[str, tuple[str, ...]]] = {
    "DataType": (
        "TYPE_INVALID",
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_UINT16",
        "TYPE_UINT32",
        "TYPE_UINT64",
        "TYPE_INT8",
        "TYPE_INT16",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_FP32",
        "TYPE_FP64",
        "TYPE_STRING",
        "TYPE_BF16",
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}
"""Enum -> names of its values, numbered from 0."""

# protobuf carries no types of its own.
_pb2: Any = descriptor_pb2
_pool: Any = descriptor_pool
_factory: Any = message_factory

_F = _pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _F.TYPE_BOOL,
    "int32": _F.TYPE_INT32,
    "int64": _F.TYPE_INT64,
    "uint32": _F.TYPE_UINT32,
    "uint64": _F.TYPE_UINT64,
    "float": _F.TYPE_FLOAT,
    "double": _F.TYPE_DOUBLE,
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
}


def _file() -> Any:
    """The tables as the file that a protobuf compiler would have made of them."""
    file = _pb2.FileDescriptorProto(name="shoal/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for path, fields in MESSAGES.items():
        outer, _, name = path.rpartition(".")
        message = made[outer].nested_type.add() if outer else file.message_type.add()
        message.name = name
        made[path] = message
        for field in fields:
            _add_field(message, path, *field)
    for path, values in ENUMS.items():
        outer, _, name = path.rpartition(".")
        enum = made[outer].enum_type.add() if outer else file.enum_type.add()
        enum.name = name
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    return file


def _add_field(message: Any, path: str, number: int, name: str, kind: str) -> None:
    words = kind.split()
    field = message.field.add(name=name, number=number, label=_F.LABEL_OPTIONAL)
    if words[0] == "repeated":
        field.label = _F.LABEL_REPEATED
    elif words[0] == "oneof":
        choices = [oneof.name for oneof in message.oneof_decl]
        if words[1] not in choices:
            message.oneof_decl.add(name=words[1])
            choices.append(words[1])
        field.oneof_index = choices.index(words[1])
    elif words[0] == "map":
        # A map is a repeated message of key and value whose name derives from the field's.
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, path, 1, "key", "string")
        _add_field(entry, path, 2, "value", words[-1])
        field.label = _F.LABEL_REPEATED
        words[-1] = f"{path}.{entry.name}"
    if words[-1] in _SCALARS:
        field.type = _SCALARS[words[-1]]
    else:
        field.type = _F.TYPE_ENUM if words[-1] in ENUMS else _F.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{words[-1]}"


POOL: Final = _pool.DescriptorPool()
POOL.AddSerializedFile(_file().SerializeToString())

_CLASSES: Final[dict[str, Any]] = {
    path: _factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{path}"))
    for path in MESSAGES
}


def message_class(name: str) -> Any:
    """Class of a message by its name in `MESSAGES`. It is Any to the
    type checker, as its fields come to be at run time."""
    return _CLASSES[name]
