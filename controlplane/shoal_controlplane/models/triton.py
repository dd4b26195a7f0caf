"""Triton's `config.pbtxt`: what a model-repository folder says about its model.

Source: `ModelConfig` in Triton's `model_config.proto`. Fields that are not known here are read
over, but must be well formed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models import pbtext
from shoal_controlplane.models.pbtext import Message, Word
from shoal_shared.signature import ModelSignature, TensorSpec

MAX_BATCH = 65_536

T = TypeVar("T", str, int)

_WHAT = "config.pbtxt"
_DATATYPES = {
    "TYPE_BOOL": "BOOL",
    "TYPE_UINT8": "UINT8",
    "TYPE_UINT16": "UINT16",
    "TYPE_UINT32": "UINT32",
    "TYPE_UINT64": "UINT64",
    "TYPE_INT8": "INT8",
    "TYPE_INT16": "INT16",
    "TYPE_INT32": "INT32",
    "TYPE_INT64": "INT64",
    "TYPE_FP16": "FP16",
    "TYPE_FP32": "FP32",
    "TYPE_FP64": "FP64",
    "TYPE_BF16": "BF16",
    "TYPE_STRING": "BYTES",
}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output. `dims` lack the batch dimension where `max_batch_size` is above 0;
    they are empty where the config gives none, or reshapes them for the model."""

    name: str
    datatype: str
    dims: tuple[int, ...] = ()
    label_file: str = ""


@dataclass(frozen=True)
class TritonConfig:
    """What a config says; empty, or None for `max_batch_size`, where it says nothing."""

    name: str = ""
    platform: str = ""
    max_batch_size: int | None = None
    inputs: tuple[TritonTensor, ...] = field(default=())
    outputs: tuple[TritonTensor, ...] = field(default=())


def parse_config(text: str) -> TritonConfig:
    """Read a config. Raises `InvalidError` with one sentence."""
    root = pbtext.parse(text, _WHAT)
    batch = _single(root, "max_batch_size", int)
    if batch is not None and not 0 <= batch <= MAX_BATCH:
        raise InvalidError(f"{_WHAT}: max_batch_size must lie between 0 and {MAX_BATCH}.")
    return TritonConfig(
        name=_single(root, "name", str) or "",
        platform=_single(root, "platform", str) or _single(root, "backend", str) or "",
        max_batch_size=batch,
        inputs=tuple(_tensor(block) for block in _blocks(root, "input")),
        outputs=tuple(_tensor(block) for block in _blocks(root, "output")),
    )


def check_config(config: TritonConfig, name: str, signature: ModelSignature) -> None:
    """Raise `InvalidError` if a config contradicts the model that it is to describe."""
    if config.name not in ("", name):
        raise InvalidError(f"{_WHAT} is for the model '{config.name[:80]}', not for '{name}'.")
    batched = bool(config.max_batch_size)
    if batched and not signature.batchable:
        raise InvalidError(
            f"{_WHAT}: max_batch_size is {config.max_batch_size}, but the model's first dimension "
            "is fixed: set it to 0."
        )
    for tensor in config.inputs:
        _check_tensor(tensor, signature.inputs, batched)
    for tensor in config.outputs:
        _check_tensor(tensor, signature.outputs, batched)


def _check_tensor(tensor: TritonTensor, specs: tuple[TensorSpec, ...], batched: bool) -> None:
    own = next((spec for spec in specs if spec.name == tensor.name), None)
    if own is None:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidError(
            f"{_WHAT}: the model has no '{tensor.name[:80]}' there, only {names[:200]}."
        )
    shape = own.shape[1:] if batched else own.shape
    pairs = zip(tensor.dims, shape, strict=False)
    same = len(tensor.dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in pairs)
    if tensor.datatype not in ("", own.datatype) or not (same or not tensor.dims):
        raise InvalidError(
            f"{_WHAT}: '{tensor.name[:80]}' is {tensor.datatype} {list(tensor.dims)}, but in the "
            f"model {own.datatype} {list(shape)}."
        )


def _tensor(block: Message) -> TritonTensor:
    name = _single(block, "name", str)
    if not name:
        raise InvalidError(f"{_WHAT}: an input or output has no name.")
    datatype = _single(block, "data_type", Word)
    if datatype is not None and datatype not in _DATATYPES:
        raise InvalidError(f"{_WHAT}: '{name[:80]}' has the unknown type {datatype[:40]}.")
    dims = block.get("dims", [])
    if not all(isinstance(dim, int) and dim >= -1 for dim in dims):
        raise InvalidError(f"{_WHAT}: dims of '{name[:80]}' must be whole numbers, or -1 for any.")
    return TritonTensor(
        name=name,
        datatype=_DATATYPES[datatype] if datatype is not None else "",
        dims=() if "reshape" in block else tuple(dims),
        label_file=_single(block, "label_filename", str) or "",
    )


def _single(message: Message, key: str, kind: type[T]) -> T | None:
    """The one value of a field, None if it is absent."""
    values = message.get(key, [])
    if not values:
        return None
    if len(values) > 1 or type(values[0]) is not kind:
        kinds = {str: "one text in quotes", int: "one whole number", Word: "one word"}
        raise InvalidError(f"{_WHAT}: {key} must be {kinds[kind]}.")
    return values[0]


def _blocks(message: Message, key: str) -> list[Message]:
    blocks = message.get(key, [])
    if not all(isinstance(block, dict) for block in blocks):
        raise InvalidError(f"{_WHAT}: {key} must be a block in braces.")
    return blocks
