"""`shoal deployment` against canned answers, and the waiting on a clock of its own."""

from __future__ import annotations

import json

import pytest
from starlette.responses import JSONResponse, Response

from shoal_controlplane.cli import deployment
from shoal_controlplane.cli.errors import CliError

DEPLOYMENTS = "/api/v1/deployments"
PLANS = "/api/v1/plans"
PROFILES = "/api/v1/models/m/versions/1/profiles"


def test_create_sends_what_was_given_and_waits_until_it_is_ready(
    plane, shoal, documents, monkeypatch
):
    monkeypatch.setattr(deployment, "POLL_S", 0.001)
    states = iter(["progressing", "progressing", "ready"])
    pending = documents.deployment("pending", ready=0, placements=[], reason="no device fits")
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(pending, 201)
    plane.answers[f"GET {DEPLOYMENTS}/m"] = lambda _: documents.deployment(next(states))
    done = shoal(
        "deployment", "create", "m:1", "--name", "m", "--replicas", "2", "--select", "site=berlin",
        "--select", "rack=a=b", "--slo-ms", "50",
    )  # fmt: skip
    assert (done.code, done.out) == (0, "m is ready, 2 of 2 replicas ready\n")
    assert json.loads(plane.calls[0].body) == {
        "model": "m",
        "version": "1",
        "name": "m",
        "replicas": 2,
        "select": {"site": "berlin", "rack": "a=b"},
        "slo_ms": 50.0,
    }
    # One line for what did not change.
    assert done.err == "m is progressing, 1 of 2 replicas ready: b: loading\n"


def test_create_everywhere_without_waiting(plane, shoal, documents):
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(documents.deployment("progressing"), 201)
    done = shoal("deployment", "create", "m", "--all", "--no-wait", "-o", "json")
    assert json.loads(plane.calls[0].body) == {"model": "m", "all": True}
    assert json.loads(done.out)["state"] == "progressing"
    assert len(plane.calls) == 1


def test_a_deployment_that_fails_is_a_failure(plane, shoal, documents):
    failed = documents.deployment("failed", ready=0, reason="b: no runtime loads onnx.")
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(failed, 201)
    plane.answers[f"GET {DEPLOYMENTS}/m"] = failed
    done = shoal("deployment", "create", "m")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "Error: m is failed, 0 of 2 replicas ready: b: no runtime loads onnx: see "
        "`shoal deployment show m`\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "--all", "--replicas", "2"),
        ("m", "--replicas", "0"),
        ("m", "--select", "site"),
        ("m/1",),
        ("m:",),
        (":1",),
        ("m", "--name", "a/b"),
        ("m", "--slo-ms", "fast"),
        ("m", "--shards", "auto", "--replicas", "2"),
        ("m", "--shards", "2", "--all"),
        ("m", "--shards", "0"),
        ("m", "--shards", "33"),
        ("m", "--shards", "some"),
        ("m", "--objective", "latency"),
        ("m", "--shape", "x=1x3"),
        ("m", "--shards", "2", "--objective", "price"),
        ("m", "--shards", "2", "--shape", "x"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(plane, shoal, arguments):
    assert shoal("deployment", "create", *arguments).code == 2
    assert not plane.calls


def test_list_and_show(plane, shoal, documents):
    plane.pages(
        DEPLOYMENTS,
        [documents.deployment(), documents.deployment("degraded", name="n", all=True)],
    )
    _, first, second = shoal("deployment", "list").out.splitlines()
    assert first.split()[:4] == ["m", "m:1", "ready", "2/2"]
    assert "1/2 (all)" in second and "b: loading" in second
    plane.answers[f"GET {DEPLOYMENTS}/m"] = documents.deployment("degraded")
    plane.pages(PROFILES, [])
    shown = shoal("deployment", "show", "m").out
    assert "1 of 2 ready" in shown and "site=berlin" in shown and "50.0 ms" in shown
    assert "8.30 ms" in shown and "up to 4" in shown
    plane.pages(DEPLOYMENTS, [])
    assert "no deployments" in shoal("deployment", "list").out


def test_create_with_options_of_the_runtime(plane, shoal, documents):
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(documents.deployment("progressing"), 201)
    done = shoal(
        "deployment", "create", "m", "--no-wait", "--require-accelerator",
        "--option", 'provider_options={"QNNExecutionProvider": {"soc_model": "57"}}',
        "--option", "threads=2", "--option", "set=qnn-htp", "--option", "odd=NaN",
        "--option", "empty=", "--option", "equation=a=b",
    )  # fmt: skip
    assert done.code == 0
    assert json.loads(plane.calls[0].body) == {
        "model": "m",
        "require_accelerator": True,
        "options": {
            "provider_options": {"QNNExecutionProvider": {"soc_model": "57"}},
            "threads": 2,
            "set": "qnn-htp",
            "odd": "NaN",
            "empty": "",
            "equation": "a=b",
        },
    }


def placed(documents, *more: dict) -> list[dict]:
    first = documents.deployment()["placements"][0]
    return [{**first, "device": f"board-{n}", **extra} for n, extra in enumerate(more)]


def test_show_says_where_each_replica_runs_and_what_was_measured(plane, shoal, documents):
    document = documents.deployment(
        placements=placed(documents, documents.on_npu(), documents.on_cpu()),
        require_accelerator=True,
        options={"provider_options": {"a": 1}},
    )
    plane.answers[f"GET {DEPLOYMENTS}/m"] = document
    slow = documents.measured(board="pi", variant="reference", accelerated=None, memory_bytes=0)
    plane.pages(PROFILES, [documents.measured(), slow])
    lines = shoal("deployment", "show", "m").out.splitlines()
    [npu] = [line for line in lines if line.startswith("board-0  ready")]
    assert "int8" in npu and "100 % QNN (97 of 97 nodes)" in npu
    [cpu] = [line for line in lines if line.startswith("board-1  ready")]
    assert "CPU only" in cpu
    text = "\n".join(lines)
    assert "qnn-htp, loaded in 0.04 s, compiled by another device of its kind, golden" in text
    assert "warning: board-1 runs on the CPU although the device has an accelerator" in lines
    assert any("libascendcl.so not found: install CANN 8.x" in line for line in lines)
    assert "warning: board-0" not in text
    assert 'provider_options={"a": 1}' in text and "required" in text
    [board] = [line for line in lines if line.startswith("snapdragon/QCS8550")]
    assert "100 %" in board and "4.00 ms" in board and "up to 2" in board and "20.0 MiB" in board
    assert json.loads(shoal("deployment", "show", "m", "-o", "json").out) == document
    plane.pages(DEPLOYMENTS, [document])
    assert "1 of 2 runs on the CPU instead" in shoal("deployment", "list").out


def test_show_of_a_deployment_whose_model_is_gone(plane, shoal, documents):
    gone = documents.deployment("failed", reason="model m:1 is gone: push it again")
    plane.answers[f"GET {DEPLOYMENTS}/m"] = gone
    plane.answers[f"GET {PROFILES}"] = documents.problem(404, "There is no model 'm'.")
    done = shoal("deployment", "show", "m")
    assert done.code == 0 and "push it again" in done.out


def test_create_in_stages(plane, shoal, documents, monkeypatch):
    monkeypatch.setattr(deployment, "POLL_S", 0.001)
    steps = [
        documents.deployment("progressing", shards=2, wanted=0, ready=0, reason="measuring"),
        documents.deployment("progressing", shards=2, reason="ascend-1 load their stages"),
        documents.deployment("ready", shards=2),
    ]
    left = iter(steps)
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(steps[0], 201)
    plane.answers[f"GET {DEPLOYMENTS}/m"] = lambda _: next(left)
    plane.pages(PLANS, [documents.active(name="other"), documents.active()])
    done = shoal(
        "deployment", "create", "m", "--shards", "2", "--objective", "latency",
        "--shape", "x=1x3x48x320",
    )  # fmt: skip
    assert json.loads(plane.calls[0].body) == {
        "model": "m",
        "shards": 2,
        "objective": "latency",
        "shapes": {"x": [1, 3, 48, 320]},
    }
    assert done.err.splitlines() == [
        "m is progressing: measuring",
        "m is progressing, 1 of 2 stages ready: ascend-1 load their stages",
    ]
    assert done.out.splitlines() == [
        "m is ready, 2 of 2 stages ready",
        "2 stages, jetson-1, jetson-2 -> ascend-1: 76.9/s predicted",
    ]


def test_as_many_stages_as_is_best_without_a_plan_yet(plane, shoal, documents):
    pending = documents.deployment("pending", shards="auto", wanted=0, reason="no device fits")
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(pending, 201)
    plane.pages(PLANS, [])
    done = shoal("deployment", "create", "m", "--shards", "auto", "--no-wait")
    assert json.loads(plane.calls[0].body) == {"model": "m", "shards": "auto"}
    assert done.out == "m is pending: no device fits\n"


def test_list_and_show_of_a_sharded_deployment(plane, shoal, documents):
    document = documents.deployment("progressing", shards="auto", placements=[])
    plane.pages(DEPLOYMENTS, [documents.deployment(name="whole"), document])
    header, whole, sharded = shoal("deployment", "list").out.splitlines()
    at = header.index("SHARDS")
    assert whole[at:].split()[0] == "-" and sharded[at:].split()[0] == "auto"
    plane.answers[f"GET {DEPLOYMENTS}/m"] = document
    plane.pages(PROFILES, [])
    plane.pages(PLANS, [documents.active()])
    shown = shoal("deployment", "show", "m").out
    lines = [line.split("  ") for line in shown.splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines]
    measured = ["12.0 ms", "measured", "45.0 MiB", "75.0 KiB"]
    assert ["0", "jetson-1", "ready", "0-3", *measured] in cells
    assert ["0", "jetson-2", "ready", "0-3", *measured] in cells
    predicted = ["13.0 ms", "predicted", "45.0 MiB", "75.0 KiB"]
    assert ["1", "ascend-1", "loading", "4-7", *predicted] in cells
    assert ["plan", "epoch 3, loading"] in cells
    assert ["shards", "as many as is best, for throughput"] in cells
    assert ["throughput", "76.9/s, 49.0/s on ascend-1 alone (1.57x)"] in cells
    assert ["jetson-1", "4", "jetson-2 -> ascend-1", "70.0/s"] in cells
    assert ["spares", "ascend-1 holds stage 0 as well"] in cells
    assert ["under way", "up to 8 requests at once, activations as fp16"] in cells
    assert "replicas" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_show_of_a_plan_that_is_not_complete(plane, shoal, documents):
    plane.answers[f"GET {DEPLOYMENTS}/m"] = documents.deployment("pending", shards=3, placements=[])
    plane.pages(PROFILES, [])
    plane.pages(PLANS, [])
    assert "no plan yet" in shoal("deployment", "show", "m").out
    nothing = {"stages": [], "fallbacks": [], "spares": [], "predicted": None, "single": None}
    plane.pages(PLANS, [documents.active(**nothing, state="measuring", reason="parts", epoch=0)])
    assert "no stages yet: parts" in shoal("deployment", "show", "m").out
    unknown = documents.stage(0, "a", parts=[{"device": "a", "state": "ready"}], out_bytes=None)
    plane.pages(PLANS, [documents.active(stages=[unknown], fallbacks=[], single=None)])
    shown = shoal("deployment", "show", "m").out
    assert "no fallback is ready" in shown
    assert "76.9/s, no single device can hold the model" in shown


def test_delete(plane, shoal):
    plane.answers[f"DELETE {DEPLOYMENTS}/m"] = Response(status_code=204)
    assert shoal("deployment", "delete", "m").out == "m was deleted\n"
    done = shoal("deployment", "delete", "gone")
    assert done.code == 1


class Waiting:
    """`settle` over a list of documents, on a clock that only its sleep moves."""

    def __init__(self, *documents: dict) -> None:
        self._documents = list(documents)
        self._now = 0.0
        self.told: list[str] = []

    def settle(self, timeout_s: float) -> dict:
        return deployment.settle(
            lambda: self._documents.pop(0) if len(self._documents) > 1 else self._documents[0],
            self.told.append,
            timeout_s,
            lambda: self._now,
            self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self._now += seconds


def test_waiting_ends_with_its_time(documents):
    waiting = Waiting(documents.deployment("pending", reason="no device fits"))
    with pytest.raises(CliError, match=r"m is pending, .* no device fits after 2 s"):
        waiting.settle(2.0)
    assert len(waiting.told) == round(2.0 / deployment.POLL_S)


def test_waiting_ends_when_no_replica_is_under_way_any_more(documents):
    placements = [
        {"device": "a", "state": "ready", "reason": "", "providers": [], "profile": None},
        {"device": "b", "state": "failed", "reason": "x", "providers": [], "profile": None},
    ]
    stuck = documents.deployment("progressing", placements=placements, reason="b: x")
    with pytest.raises(CliError, match="1 of 2 replicas ready: b: x"):
        Waiting(documents.deployment("progressing"), stuck).settle(60.0)


def test_a_stage_that_failed_is_waited_for_since_its_plan_is_made_anew(documents):
    placements = [
        {"device": "a", "state": "ready", "reason": "", "providers": [], "profile": None},
        {"device": "b", "state": "failed", "reason": "x", "providers": [], "profile": None},
    ]
    moving = documents.deployment("progressing", shards=2, placements=placements)
    done = Waiting(moving, documents.deployment("ready", shards=2)).settle(60.0)
    assert done["state"] == "ready"


def test_waiting_goes_on_while_one_replica_is_under_way(documents):
    placements = [
        {"device": "a", "state": "loading", "reason": "", "providers": [], "profile": None},
        {"device": "b", "state": "failed", "reason": "x", "providers": [], "profile": None},
    ]
    moving = documents.deployment("progressing", placements=placements)
    waiting = Waiting(moving, moving, documents.deployment("ready"))
    assert waiting.settle(60.0)["state"] == "ready"
    assert len(waiting.told) == 2


def test_targets_are_sent_and_shown_with_how_full_the_devices_are(plane, shoal, documents):
    full = {"level": "saturated", "sentence": "saturated since 12:03:10: rho 1.31"}
    document = documents.deployment(offload=["aks", "ray"], saturation=full)
    plane.answers[f"POST {DEPLOYMENTS}"] = JSONResponse(document, 201)
    done = shoal("deployment", "create", "m", "--offload", "aks", "--offload", "ray", "--no-wait")
    assert done.code == 0
    assert json.loads(plane.calls[0].body)["offload"] == ["aks", "ray"]
    plane.answers[f"GET {DEPLOYMENTS}/m"] = document
    plane.pages(PROFILES, [])
    out = shoal("deployment", "show", "m").out
    assert "aks, ray" in out and "saturated since 12:03:10: rho 1.31" in out
    plane.pages(DEPLOYMENTS, [document])
    row = shoal("deployment", "list").out.splitlines()[1]
    assert row.endswith("aks, ray  saturated since 12:03:10: rho 1.31")
    calm = {"level": "calm", "sentence": "calm: rho 0.10"}
    plane.pages(DEPLOYMENTS, [{**document, "saturation": calm}])
    assert shoal("deployment", "list").out.splitlines()[1].endswith("aks, ray  -")


def test_a_target_has_a_name(plane, shoal):
    assert shoal("deployment", "create", "m", "--offload", "a/b").code == 2
    assert plane.calls == []
