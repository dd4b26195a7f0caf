"""Control documents: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_shared.messages import (
    MAX_DOCUMENT_BYTES,
    Board,
    Capabilities,
    Desired,
    Document,
    MessageError,
    ModelGoal,
    ReplicaReport,
    Reported,
    RuntimeInfo,
    Status,
    Telemetry,
    decode_document,
    encode_document,
)
from shoal_shared.profiles import fit
from shoal_shared.status import Presence, ReplicaState

KINDS = [Status, Capabilities, Desired, Reported, Telemetry]
DIGEST = "sha256:" + "0" * 64
EXAMPLES: list[Document] = [
    Status(state=Presence.ONLINE, boot_id="b1"),
    Capabilities(
        agent_version="1.0",
        board=Board(family="jetson", model="orin-nano", simulated=True),
        cores=6,
        memory_bytes=8 << 30,
        disk_free_bytes=1 << 30,
        runtimes=(RuntimeInfo(name="onnxruntime", version="1.2", formats=("onnx",)),),
        labels={"site": "east"},
        notes=("no accelerator",),
    ),
    Desired(
        goal=3,
        models=(
            ModelGoal(
                deployment="d",
                model="cat",
                version="1",
                digest=DIGEST,
                size=10,
                format="onnx",
                max_batch=4,
                options={"threads": 2},
            ),
        ),
    ),
    Reported(
        goal=3,
        boot_id="b1",
        models=(
            ReplicaReport(
                deployment="d",
                model="cat",
                version="1",
                digest=DIGEST,
                state=ReplicaState.READY,
                profile=fit([(1, 2.0), (2, 3.0)]),
            ),
        ),
    ),
    Telemetry(
        seq=1,
        boot_id="b1",
        uptime_s=1.5,
        cpu_load=0.5,
        memory_used_bytes=1,
        disk_free_bytes=2,
        temperature_c=40.5,
        models={"cat:1": (1, 2, 3)},
    ),
]


def changed(document: Document, **changes: Any) -> bytes:
    return json.dumps(msgspec.to_builtins(document) | changes).encode()


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda d: type(d).__name__)
def test_round_trip(document: Document) -> None:
    assert decode_document(type(document), encode_document(document)) == document


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda d: type(d).__name__)
def test_unknown_fields_are_ignored(document: Document) -> None:
    assert decode_document(type(document), changed(document, colour="red", extra=[{}])) == document


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda d: type(d).__name__)
def test_a_later_version_is_named_even_if_nothing_else_fits(document: Document) -> None:
    name = type(document).__name__
    for data in (changed(document, v=2), b'{"v": 2, "state": 5, "boot_id": []}'):
        with pytest.raises(MessageError, match=f"{name} document has version 2, only 1 is known"):
            decode_document(type(document), data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"{}", b'{"v": "1"}', b'{"v": 1.5}', b"\xff", b"[" * 8000],
)
def test_what_is_no_document(kind: type[Document], data: bytes) -> None:
    with pytest.raises(MessageError, match=f"^{kind.__name__} document "):
        decode_document(kind, data)


@pytest.mark.parametrize(
    ("document", "changes"),
    [
        (EXAMPLES[0], {"state": "asleep"}),
        (EXAMPLES[0], {"boot_id": 7}),
        (EXAMPLES[1], {"cores": "six"}),
        (EXAMPLES[1], {"cores": 1.5}),
        (EXAMPLES[1], {"board": None}),
        (EXAMPLES[1], {"labels": {"site": 3}}),
        (EXAMPLES[2], {"goal": True}),
        (EXAMPLES[2], {"models": [{}]}),
        (EXAMPLES[3], {"models": [{"state": "ready"}]}),
        (EXAMPLES[4], {"temperature_c": "warm"}),
        (EXAMPLES[4], {"models": {"cat:1": [1, 2]}}),
        (EXAMPLES[4], {"seq": None}),
    ],
)
def test_wrong_types(document: Document, changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="cannot be read"):
        decode_document(type(document), changed(document, **changes))


@pytest.mark.parametrize(
    "profile",
    [
        {"knee": 0},
        {"knee": -1},
        {"intercept_ms": -1.0},
        {"intercept_ms": 1e300},
        {"slope_ms": -0.5},
        {"slope_ms": None},
        {"samples": [[0, 1.0]]},
        {"samples": [[1, -1.0]]},
        {"samples": [[1]]},
    ],
)
def test_a_profile_that_the_router_cannot_compute_with(profile: dict[str, Any]) -> None:
    whole = msgspec.to_builtins(EXAMPLES[3])
    whole["models"][0]["profile"] |= profile
    with pytest.raises(MessageError, match="cannot be read"):
        decode_document(Reported, json.dumps(whole).encode())


def test_documents_above_the_limit() -> None:
    notes = ("x" * MAX_DOCUMENT_BYTES,)
    with pytest.raises(MessageError, match="more than the limit of 8192"):
        encode_document(msgspec.structs.replace(EXAMPLES[1], notes=notes))
    padded = changed(EXAMPLES[0], padding="x" * MAX_DOCUMENT_BYTES)
    with pytest.raises(MessageError, match="more than 8192"):
        decode_document(Status, padded)


def test_a_document_of_exactly_the_limit() -> None:
    size = len(encode_document(Status(state=Presence.ONLINE, boot_id="")))
    document = Status(state=Presence.ONLINE, boot_id="x" * (MAX_DOCUMENT_BYTES - size))
    assert decode_document(Status, encode_document(document)) == document


@given(st.sampled_from(KINDS), st.binary(max_size=80))
def test_noise_raises_nothing_but_message_errors(kind: type[Document], data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_document(kind, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_field_of_any_value_is_read_or_refused(document: Document, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(type(document).__struct_fields__))
    try:
        decode_document(type(document), changed(document, **{field: data.draw(JSON)}))
    except MessageError as error:
        assert str(error).startswith(type(document).__name__)
