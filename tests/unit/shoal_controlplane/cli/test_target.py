"""`shoal target` against canned answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from shoal_controlplane.cli import targetmodels
from shoal_controlplane.cli.targetmodels import TARGETS
from shoal_shared import oip
from shoal_shared.oip import InferReply, Tensor

AKS = f"{TARGETS}/aks"
MODEL = f"{AKS}/models/m/1"
SECRET = "hunter2-very-secret"


def model(state: str = "ready", **more) -> dict:
    document = {
        "model": "m",
        "version": "1",
        "state": state,
        "reason": "",
        "ready": 1,
        "wanted": 1,
        "pinned": None,
        "placed": True,
        "deployments": ["pets"],
        "mean_ms": 40.0,
        "p95_ms": 80.5,
        "concurrent": 4.0,
        "items_per_s": 60.0,
        "price_per_request": 0.0000042,
        "in_flight": 0,
        "requests": 1204,
        "items": 1204,
        "failures": 3,
    }
    return {**document, **more}


def target(name: str = "aks", state: str = "ready", **more) -> dict:
    document = {
        "name": name,
        "kind": "kserve",
        "state": state,
        "reason": "",
        "where": "Kubernetes v1.31 at https://10.0.0.4, namespace shoal",
        "facts": {"version": "v1.31", "nodes": 3},
        "options": {"namespace": "shoal", "context": "", "gpu": 0},
        "credential": "file:/etc/shoal/aks",
        "price_per_replica_hour": 0.9,
        "price_per_request": 0.0005,
        "cap_per_hour": 2.5,
        "left": 0.4,
        "spent": 7.0,
        "spent_last_hour": 0.75,
        "max_replicas": 3,
        "ready": 1,
        "deployments": ["pets"],
        "models": [model()],
        "created_at": "2026-01-01T00:00:00.000Z",
        "revision": 1,
    }
    return {**document, **more}


def test_add_sends_what_was_given(plane, shoal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plane.answers[f"POST {TARGETS}"] = JSONResponse(target(), 201)
    done = shoal(
        "target", "add", "aks", "--kind", "kserve", "--kubeconfig", "kube.yaml",
        "--set", "namespace=shoal", "--set", "port=8081", "--set", "aks.cluster=prod",
        "--set", 'node_selector={"gpu": "yes"}', "--set", "endpoint=http://h?a=b",
        "--credential", "file:/etc/shoal/aks", "--price-per-hour", "0.9", "--price-per-1k", "0.5",
        "--max-per-hour", "2.5", "--max-replicas", "3",
    )  # fmt: skip
    assert (done.code, done.out) == (
        0,
        "aks was added: see whether it works with `shoal target test aks`\n",
    )
    assert json.loads(plane.calls[0].body) == {
        "name": "aks",
        "kind": "kserve",
        "options": {
            "namespace": "shoal",
            "port": "8081",
            "aks": {"cluster": "prod"},
            "node_selector": {"gpu": "yes"},
            "endpoint": "http://h?a=b",
            "kubeconfig": str(tmp_path / "kube.yaml"),
        },
        "credential": "file:/etc/shoal/aks",
        "price_per_replica_hour": 0.9,
        "price_per_request": 0.0005,
        "cap_per_hour": 2.5,
        "max_replicas": 3,
    }


def test_without_a_cap_there_is_none(plane, shoal):
    plane.answers[f"POST {TARGETS}"] = JSONResponse(target(), 201)
    assert shoal("target", "add", "lab", "--kind", "ray").code == 0
    sent = json.loads(plane.calls[0].body)
    assert (sent["cap_per_hour"], sent["credential"], sent["options"]) == (None, "", {})


@pytest.mark.parametrize("credential", [SECRET, f"bearer:{SECRET}", f"env:{SECRET}", "file:x"])
def test_a_secret_typed_by_mistake_is_neither_shown_nor_sent(plane, shoal, credential):
    done = shoal("target", "add", "aks", "--kind", "kserve", "--credential", credential)
    assert done.code == 2
    assert "env:NAME, file:/path (mode 0600) or identity" in " ".join(done.err.split())
    assert SECRET not in done.out + done.err
    assert plane.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "aks"),
        ("add", "a/b", "--kind", "kserve"),
        ("add", "aks", "--kind", "kserve", "--set", "namespace"),
        ("add", "aks", "--kind", "kserve", "--set", "node_selector={"),
        ("add", "aks", "--kind", "kserve", "--set", "a=b", "--set", "a.c=d"),
        ("add", "aks", "--kind", "kserve", "--set", "a.=d"),
        ("add", "aks", "--kind", "kserve", "--set", "kubeconfig=/k", "--kubeconfig", "k"),
        ("add", "aks", "--kind", "kserve", "--max-per-hour", "-1"),
        ("add", "aks", "--kind", "kserve", "--price-per-1k", "much"),
        ("add", "aks", "--kind", "kserve", "--max-replicas", "0"),
        ("scale", "aks", "m"),
        ("scale", "aks", "m", "2", "--auto"),
        ("scale", "aks", "m", "1.5"),
        ("deploy", "aks", "m/1"),
        ("infer", "aks", "m"),
        ("infer", "aks", "m", "--input", "x=f.npy"),
    ],
)
def test_wrong_usage_asks_nobody(plane, shoal, arguments):
    done = shoal("target", *arguments)
    assert (done.code, done.out, plane.calls) == (2, "", [])


def test_what_the_control_plane_refuses_is_its_sentence(plane, shoal):
    plane.answers[f"POST {TARGETS}"] = JSONResponse(
        {"detail": "there is no kind of target 'lambda': use kserve"}, 422
    )
    done = shoal("target", "add", "aks", "--kind", "lambda")
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: there is no kind of target 'lambda': use kserve\n"


def test_list(plane, shoal):
    broken = target(
        "ray", "over_budget", reason="its budget is spent", cap_per_hour=None, models=[],
        spent_last_hour=0.0, ready=0,
    )  # fmt: skip
    plane.pages(TARGETS, [target(models=[model(), model(p95_ms=200.0)]), broken])
    header, aks, ray = shoal("target", "list").out.splitlines()
    assert header.split() == [
        "TARGET", "KIND", "STATE", "READY", "LATENCY", "LAST", "HOUR", "CAP", "REASON",
    ]  # fmt: skip
    assert aks.split() == [
        "aks", "kserve", "ready", "1", "80.5", "ms", "to", "200", "ms", "0.75", "2.50", "-",
    ]  # fmt: skip
    assert ray.endswith("  its budget is spent")
    plane.pages(TARGETS, [])
    assert "shoal target add NAME" in shoal("target", "list").out


def test_show(plane, shoal):
    plane.answers[f"GET {AKS}"] = target(models=[model(pinned=1), model("cold", failures=0)])
    out = shoal("target", "show", "aks").out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "Kubernetes v1.31" in lines["where"]
    # What an option leaves open is left out.
    assert lines["options"].endswith("gpu=0, namespace=shoal")
    assert lines["facts"].endswith("nodes=3, version=v1.31")
    assert lines["price"].endswith("0.9 per replica and hour, 0.5 per 1,000 requests")
    assert lines["budget"].endswith("0.75 spent in the last hour of 2.50, 0.4 left now")
    assert lines["replicas"].endswith("1 ready, up to 3 of a model")
    assert "1/1 (fixed)" in out and "1204, 3 failed" in out and "pets, by hand" in out
    assert "4.2e-06" in out and "60/s" in out
    document = json.loads(shoal("target", "show", "aks", "-o", "json").out)
    assert document["credential"] == "file:/etc/shoal/aks"


def test_a_target_without_cap_and_models(plane, shoal):
    plane.answers[f"GET {AKS}"] = target(
        models=[], cap_per_hour=None, left=None, price_per_replica_hour=0, price_per_request=0
    )
    out = shoal("target", "show", "aks").out
    assert "no cap" in out and "free" in out and "no models on it" in out


def test_a_target_that_works(plane, shoal):
    plane.answers[f"POST {AKS}/test"] = {
        "ok": True, "message": "Kubernetes v1.31 at https://x", "facts": {}, "models": [model()],
    }  # fmt: skip
    done = shoal("target", "test", "aks")
    assert done.code == 0
    assert done.out.startswith("aks works: Kubernetes v1.31 at https://x\n")
    assert "m:1" in done.out


@pytest.mark.parametrize("style", ["table", "json", "yaml"])
def test_a_target_that_does_not_work_is_a_failure(plane, shoal, style):
    plane.answers[f"POST {AKS}/test"] = {
        "ok": False, "message": "401: the token has expired", "facts": {}, "models": [],
    }  # fmt: skip
    done = shoal("target", "test", "aks", "-o", style)
    assert done.code == 1
    assert done.err == "Error: target aks does not work: 401: the token has expired\n"
    assert ("expired" in done.out) is (style != "table")


def test_remove(plane, shoal):
    plane.answers[f"DELETE {AKS}"] = Response(status_code=204)
    assert shoal("target", "remove", "aks").out == "aks was removed\n"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(targetmodels, "POLL_S", 0.001)
    monkeypatch.setattr(targetmodels, "TRUST_S", 0.0)


def test_deploy_takes_the_newest_version_and_waits(plane, shoal, quick):
    states = iter(["deploying", "deploying", "cold"])
    plane.answers[f"GET {AKS}"] = target(models=[])
    plane.answers["GET /api/v1/models/m"] = {"name": "m", "latest": "1", "versions": []}
    plane.answers[f"PUT {MODEL}"] = model("deploying")
    plane.answers[f"GET {MODEL}"] = lambda _: model(next(states), ready=0, wanted=0)
    done = shoal("target", "deploy", "aks", "m")
    assert (done.code, done.out) == (0, "m:1 on aks is cold, 0 of 0 replicas ready\n")
    assert done.err == "m:1 on aks is deploying, 0 of 0 replicas ready\n"
    assert plane.names.count(f"GET {MODEL}") == 3


def test_a_model_that_can_never_run_there_is_a_failure(plane, shoal, quick):
    plane.answers[f"GET {AKS}"] = target(models=[])
    plane.answers[f"PUT {MODEL}"] = model("deploying")
    plane.answers[f"GET {MODEL}"] = model("failed", reason="it has no operator NonZero.")
    done = shoal("target", "deploy", "aks", "m:1")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("it has no operator NonZero: see `shoal target show aks`\n")


def test_scale_waits_until_as_many_are_ready(plane, shoal, quick):
    states = iter([(0, 0, "cold"), (0, 2, "warming"), (1, 2, "ready"), (2, 2, "ready")])

    def later(_):
        ready, wanted, state = next(states)
        return model(state, ready=ready, wanted=wanted, pinned=2)

    plane.answers[f"GET {AKS}"] = target()
    plane.answers[f"PATCH {MODEL}"] = model("cold", pinned=2)
    plane.answers[f"GET {MODEL}"] = later
    done = shoal("target", "scale", "aks", "m", "2")
    assert (done.code, done.out) == (0, "m:1 on aks is ready, 2 of 2 replicas ready (fixed)\n")
    assert json.loads(plane.calls[1].body) == {"replicas": 2}


def test_scale_to_none_and_back_to_what_is_needed(plane, shoal, quick):
    plane.answers[f"GET {AKS}"] = target()
    plane.answers[f"PATCH {MODEL}"] = model(pinned=0)
    plane.answers[f"GET {MODEL}"] = model("cold", ready=0, wanted=0, pinned=0)
    assert "is cold, 0 of 0" in shoal("target", "scale", "aks", "m", "0").out
    plane.calls.clear()
    plane.answers[f"PATCH {MODEL}"] = model(pinned=None)
    assert "fixed" not in shoal("target", "scale", "aks", "m", "--auto").out
    assert json.loads(plane.calls[1].body) == {"replicas": None}
    assert plane.names == [f"GET {AKS}", f"PATCH {MODEL}"]


def test_waiting_has_an_end(plane, shoal, quick):
    plane.answers[f"GET {AKS}"] = target()
    plane.answers[f"PATCH {MODEL}"] = model("warming")
    plane.answers[f"GET {MODEL}"] = model("warming", ready=0, wanted=2, reason="waits for 2")
    done = shoal("target", "scale", "aks", "m", "2", "--timeout", "0")
    assert done.code == 1
    assert "waits for 2 after 0 s: it goes on without this command" in done.err


def test_undeploy(plane, shoal):
    plane.answers[f"GET {AKS}"] = target()
    plane.answers[f"DELETE {MODEL}"] = Response(status_code=204)
    assert shoal("target", "undeploy", "aks", "m").out == "m:1 was taken off aks\n"


def test_of_several_versions_one_must_be_named(plane, shoal):
    plane.answers[f"GET {AKS}"] = target(models=[model(), model(version="2")])
    done = shoal("target", "undeploy", "aks", "m")
    assert done.code == 1
    assert done.err == ("Error: target aks has several versions of m, 1, 2: name one, as in m:1\n")


@pytest.fixture
def array(tmp_path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3, dtype=np.float32).reshape(1, 3))
    return path


def test_infer_asks_the_target_itself(plane, shoal, documents, array, tmp_path):
    asked: list[oip.InferRequest] = []

    def infer(call) -> Response:
        length = int(call.headers[oip.HEADER_LENGTH.lower()])
        asked.append(oip.decode_request(call.body, length))
        assert ("timeout_ms", "1500") in call.query
        outputs = [Tensor("y", "FP32", np.array([[0.5, 1, 2]], np.float32))]
        parameters = {"target": "aks", "latency_ms": 11.5}
        buffers, size = oip.encode_reply(InferReply(outputs, "m", "1", parameters=parameters))
        return Response(b"".join(bytes(b) for b in buffers), headers={oip.HEADER_LENGTH: str(size)})

    plane.answers[f"GET {AKS}"] = target()
    plane.answers["GET /api/v1/models/m/versions/1"] = documents.version()
    plane.answers[f"POST {MODEL}/infer"] = infer
    ask = ("target", "infer", "aks", "m", "--input", f"x=@{array}", "--timeout-ms", "1500")
    done = shoal(*ask)
    lines = done.out.splitlines()
    assert lines[0] == "y  FP32 [1, 3]  0.5, 1, 2"
    assert lines[1].startswith("answered by target aks in ")
    assert lines[1].endswith(" ms, 11.5 ms of them by the target")
    assert asked[0].inputs[0].data.tolist() == [[0, 1, 2]]
    document = json.loads(shoal(*ask, "-o", "json", "--output", str(tmp_path / "o")).out)
    assert (document["target"], document["target_milliseconds"]) == ("aks", 11.5)
    assert np.load(document["saved"][0]).tolist() == [[0.5, 1, 2]]


def test_a_target_that_does_not_answer_is_one_sentence(plane, shoal, documents, array):
    plane.answers[f"GET {AKS}"] = target()
    plane.answers["GET /api/v1/models/m/versions/1"] = documents.version()
    detail = "Target aks did not answer: no replica is ready"
    plane.answers[f"POST {MODEL}/infer"] = JSONResponse({"detail": detail}, 503)
    done = shoal("target", "infer", "aks", "m", "--input", f"x=@{array}")
    assert (done.code, done.out, done.err) == (1, "", f"Error: {detail}\n")
