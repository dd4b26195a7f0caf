"""By hand: trying a target, placing models on it, scaling and asking them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.target import Fault, TargetError
from shoal_controlplane.targets import manual
from shoal_shared import oip
from shoal_shared.oip import InferRequest, RequestedOutput, Tensor

X = np.ones((3, 4), np.float32)
JSON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
CAT = "/targets/aks/models/cat/1"


def binary(**more: Any) -> tuple[bytes, dict[str, str]]:
    request = InferRequest([Tensor("x", "FP32", X)], **more)
    buffers, length = oip.encode_request(request)
    return b"".join(bytes(part) for part in buffers), {oip.HEADER_LENGTH: str(length)}


async def test_a_target_that_answers_says_what_it_is(room: Any) -> None:
    await room.add(credential="identity", max_replicas=2)
    await room.http.put(CAT)
    tried = (await room.http.post("/targets/aks/test")).json()
    assert tried["ok"] is True
    assert tried["message"] == "Kubernetes v1.31 at https://10.0.0.4"
    assert tried["facts"] == {"version": "v1.31"}
    assert [m["model"] for m in tried["models"]] == ["cat"]
    [settings] = room.kind.opened
    assert (settings.name, settings.credential, settings.max_replicas) == ("aks", "identity", 2)
    assert room.kind.closed == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TargetError(Fault.CREDENTIALS, "others may read /k: chmod 600 /k"), "chmod 600 /k"),
        (InvalidError("option kubeconfig: there is no such file."), "there is no such file"),
        (ZeroDivisionError("deep in an SDK"), "ZeroDivisionError"),
    ],
)
async def test_what_is_wrong_with_a_target_is_one_sentence(
    room: Any, error: Exception, said: str
) -> None:
    async def fail() -> None:
        raise error

    await room.add()
    room.kind.describing = fail
    answer = await room.http.post("/targets/aks/test")
    assert answer.status_code == 200
    tried = answer.json()
    assert tried["ok"] is False
    assert said in tried["message"] and not tried["message"].endswith(".")
    assert "deep in an SDK" not in answer.text
    assert room.kind.closed == 1


async def test_a_target_that_stays_silent_is_given_up(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manual, "TEST_S", 0.01)
    await room.add()
    room.kind.describing = asyncio.Event().wait
    tried = (await room.http.post("/targets/aks/test")).json()
    assert (tried["ok"], tried["message"]) == (False, "it did not answer within 0 s")
    assert room.kind.closed == 1


async def test_a_model_is_placed_scaled_and_taken_away(room: Any) -> None:
    await room.add(max_replicas=3)
    placed = (await room.http.put(CAT)).json()
    assert (placed["placed"], placed["pinned"], placed["state"]) == (True, None, "deploying")
    fixed = (await room.http.patch(CAT, json={"replicas": 3})).json()
    assert (fixed["placed"], fixed["pinned"]) == (True, 3)
    assert (await room.http.get(CAT)).json() == fixed
    # Placing again keeps the number.
    assert (await room.http.put(CAT)).json()["pinned"] == 3
    zero = (await room.http.patch(CAT, json={"replicas": 0})).json()
    assert zero["pinned"] == 0
    free = (await room.http.patch(CAT, json={"replicas": None})).json()
    assert (free["placed"], free["pinned"]) == (True, None)
    assert (await room.http.delete(CAT)).status_code == 204
    assert (await room.http.get(CAT)).status_code == 404
    assert room.store.manual == {}


async def test_what_a_deployment_has_there_can_be_fixed_and_let_go(room: Any) -> None:
    await room.add(max_replicas=3)
    await room.deploy("pets", "aks")
    fixed = (await room.http.patch(CAT, json={"replicas": 2})).json()
    assert (fixed["placed"], fixed["pinned"], fixed["deployments"]) == (False, 2, ["pets"])
    await room.http.patch(CAT, json={"replicas": None})
    assert room.store.manual == {}
    answer = await room.http.delete(CAT)
    assert answer.status_code == 409
    assert "Deployment pets has cat:1 on target aks" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"replicas": -1}, {"replicas": 4}, {"replicas": 1.5}, [], 3])
async def test_a_number_of_replicas_that_cannot_be(room: Any, body: Any) -> None:
    await room.add(max_replicas=3)
    await room.http.put(CAT)
    assert (await room.http.patch(CAT, json=body)).status_code == 422
    assert room.store.manual["aks", ("cat", "1")].replicas is None


async def test_what_is_not_there_is_not_found(room: Any) -> None:
    await room.add()
    assert (await room.http.put("/targets/aks/models/dog/1")).status_code == 404
    for method in ("GET", "DELETE"):
        answer = await room.http.request(method, CAT)
        assert answer.status_code == 404
        assert "cat:1 is not on target aks" in answer.json()["detail"]
    assert (await room.http.patch(CAT, json={"replicas": 1})).status_code == 404
    assert (await room.http.post(f"{CAT}/infer", json=JSON)).status_code == 404


async def test_a_question_in_json_is_answered_in_json(room: Any) -> None:
    await room.add()
    await room.http.put(CAT)
    answer = await room.http.post(f"{CAT}/infer?timeout_ms=500", json={**JSON, "id": "q1"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("cat", "1", "q1")
    assert body["parameters"] == {"target": "aks", "latency_ms": 12.0}
    assert body["outputs"][0]["data"] == [2, 2]
    [(target, model, request, items, deadline)] = room.clouds.asked
    assert (target, model.name, model.max_batch, items) == ("aks", "cat", 8, 1)
    assert deadline == pytest.approx(100.5)
    assert request.outputs == []


async def test_a_question_in_binary_is_answered_in_binary(room: Any) -> None:
    await room.add()
    await room.http.put(CAT)
    body, headers = binary(outputs=[RequestedOutput("y")], parameters={"binary_data_output": True})
    answer = await room.http.post(f"{CAT}/infer", content=body, headers=headers)
    reply = oip.decode_reply(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
    assert reply.outputs[0].data.tolist() == [[2, 2]] * 3
    assert np.array_equal(room.clouds.asked[0][2].inputs[0].data, X)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.INVALID, 422),
        (Fault.UNSUPPORTED, 422),
        (Fault.NOT_DEPLOYED, 503),
        (Fault.CREDENTIALS, 503),
        (Fault.QUOTA, 503),
        (Fault.BROKEN, 503),
    ],
)
async def test_a_target_that_cannot_answer_says_why(room: Any, fault: Fault, status: int) -> None:
    await room.add()
    await room.http.put(CAT)
    room.clouds.fault = TargetError(fault, "the pod is gone")
    answer = await room.http.post(f"{CAT}/infer", json=JSON)
    assert answer.status_code == status
    assert answer.json()["detail"] == "Target aks did not answer: the pod is gone"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"[]",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [9, 4], "data": []}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],'
        b' "outputs": [{"name": "y", "parameters": {"classification": 1}}]}',
    ],
)
async def test_questions_that_do_not_fit_are_refused(room: Any, body: bytes) -> None:
    await room.add()
    await room.http.put(CAT)
    answer = await room.http.post(f"{CAT}/infer", content=body)
    assert answer.status_code == 422
    assert room.clouds.asked == []


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1000000"])
async def test_a_header_length_that_cannot_be(room: Any, length: str) -> None:
    await room.add()
    await room.http.put(CAT)
    body, _ = binary()
    answer = await room.http.post(f"{CAT}/infer", content=body, headers={oip.HEADER_LENGTH: length})
    assert answer.status_code == 422
