"""Golden inputs and outputs of a model: what every file and every board must agree with.

A golden file is the magic, then each case: two lengths, and an inference request with the inputs
and a reply with the outputs, both with binary tensors (see `oip`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_shared.oip import (
    InferReply,
    InferRequest,
    OipError,
    Tensor,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from shoal_shared.tensors import Array, TensorError, datatype_of

MAX_CASES = 64
MAX_BYTES = 64 * 1024 * 1024
DEFAULT_ABSOLUTE = 1e-3
DEFAULT_RELATIVE = 0.02
"""Tolerance where a model's card gives none: half precision passes, a broken model does not."""

_MAGIC = b"SHOALGLD\x01\0\0\0\0\0\0\0"
_LENGTHS = struct.Struct("<QQQQ")
"""Bytes of the request's header, the request, the reply's header, the reply."""
_ALIGN = 8


class GoldenError(ValueError):
    """Golden cases that cannot be used; the text is one plain sentence."""


@dataclass(frozen=True, eq=False)
class Case:
    """One input of the model and the outputs that the reference gave for it, by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True, eq=False)
class Golden:
    """At least one case."""

    cases: tuple[Case, ...]


def encode(golden: Golden) -> bytes:
    """The file of golden cases; the same cases give the same bytes. Raises `GoldenError`."""
    parts = [_MAGIC]
    for case in golden.cases:
        try:
            request, request_header = encode_request(InferRequest(_tensors(case.inputs)))
            reply, reply_header = encode_reply(InferReply(_tensors(case.outputs)))
        except TensorError as error:
            raise GoldenError(f"a golden case cannot be written: {error}") from None
        body, answer = b"".join(request), b"".join(reply)
        header = len(answer) if reply_header is None else reply_header
        parts += [
            _LENGTHS.pack(request_header, len(body), header, len(answer)),
            body + bytes(-len(body) % _ALIGN),
            answer + bytes(-len(answer) % _ALIGN),
        ]
    data = b"".join(parts)
    decode(data)  # What nobody could read is not written.
    return data


def decode(data: bytes) -> Golden:
    """Read a file of golden cases; anything wrong raises `GoldenError`.

    Arrays are read-only views of `data`, except those of texts.
    """
    if len(data) > MAX_BYTES:
        raise GoldenError(f"the golden cases take {len(data)} bytes, more than {MAX_BYTES}")
    if not data.startswith(_MAGIC):
        raise GoldenError("this is no file of golden cases")
    view, at = memoryview(data), len(_MAGIC)
    cases: list[Case] = []
    while at < len(data):
        if len(cases) == MAX_CASES:
            raise GoldenError(f"there are more than {MAX_CASES} golden cases")
        if at + _LENGTHS.size > len(data):
            raise GoldenError("the file of golden cases ends too early")
        request_header, request, reply_header, reply = _LENGTHS.unpack_from(data, at)
        at += _LENGTHS.size
        middle = at + request + -request % _ALIGN
        end = middle + reply + -reply % _ALIGN
        if end > len(data):
            raise GoldenError("the file of golden cases ends too early")
        try:
            asked = decode_request(view[at : at + request], request_header)
            answered = decode_reply(view[middle : middle + reply], reply_header)
        except (OipError, TensorError) as error:
            raise GoldenError(f"a golden case cannot be read: {error}") from None
        cases.append(Case(_named(asked.inputs), _named(answered.outputs)))
        at = end
    if not cases:
        raise GoldenError("there are no golden cases in the file")
    return Golden(tuple(cases))


def error_of(expected: Array, got: Array, *, bfloat16: bool = False) -> float:
    """Largest absolute difference of two outputs, as values if they are `bfloat16` bits.

    Infinite where shapes differ, where only one is finite, and for texts and booleans that are
    not equal.
    """
    if expected.shape != got.shape:
        return math.inf
    if not expected.size:
        return 0.0
    kinds = {expected.dtype.kind, got.dtype.kind}
    if not kinds <= set("iuf"):
        return 0.0 if len(kinds) == 1 and bool(np.all(expected == got)) else math.inf
    wanted, given = _values(expected, bfloat16), _values(got, bfloat16)
    with np.errstate(invalid="ignore"):
        difference = np.abs(wanted - given)
    # Both infinite of the same sign, or both no number: the same.
    same = (wanted == given) | (np.isnan(wanted) & np.isnan(given))
    difference = np.where(same, 0.0, np.where(np.isnan(difference), math.inf, difference))
    return float(difference.max())


def agrees(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    absolute: float,
    relative: float,
    bfloat16: Collection[str] = (),
) -> tuple[bool, float]:
    """Whether outputs are close enough, and the largest absolute difference.

    Each output may be off by `absolute` + `relative` times the largest finite magnitude that is
    expected of it. An output that is missing is infinitely far off. `bfloat16` names outputs that
    are held as the 16 bits of that datatype.
    """
    fine, largest = True, 0.0
    for name, wanted in expected.items():
        bits = name in bfloat16
        error = error_of(wanted, got[name], bfloat16=bits) if name in got else math.inf
        largest = max(largest, error)
        fine = fine and error <= absolute + relative * _magnitude(wanted, bits)
    return fine, largest


def _values(array: Array, bfloat16: bool) -> npt.NDArray[np.float64]:
    if bfloat16 and array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def _magnitude(array: Array, bfloat16: bool) -> float:
    if array.dtype.kind not in "iuf":
        return 0.0
    values = np.abs(_values(array, bfloat16))
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


def _tensors(arrays: Mapping[str, Array]) -> list[Tensor]:
    return [Tensor(name, datatype_of(array), array) for name, array in arrays.items()]


def _named(tensors: list[Tensor]) -> dict[str, Array]:
    if not tensors:
        raise GoldenError("a golden case has no tensors")
    named = {tensor.name: tensor.data for tensor in tensors}
    if len(named) < len(tensors):
        raise GoldenError("a golden case names a tensor twice")
    return named
