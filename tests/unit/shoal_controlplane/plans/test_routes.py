"""`/api/v1/plans` over a planner of canned drafts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.drafts import draft, partition, problem

from shoal_controlplane.api import problem as problems
from shoal_controlplane.errors import UnavailableError
from shoal_controlplane.planner.partition.problem import Link, Objective, Outcome
from shoal_controlplane.planner.partition.solve import solve
from shoal_controlplane.plans.active import ActivePlan, Fallback, PlanState
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.plan import Part, Plan, Wiring
from shoal_controlplane.plans.routes import plan_routes
from shoal_controlplane.plans.views import plan_view

TWO = ((0, 2, 0, ("jetson-1", "jetson-2")), (2, 4, 1, ("ascend-1",)))
WHOLE = (0, 4, 1, ("ascend-1",))


class Canned:
    """Answers with one draft, and knows some plans that run."""

    def __init__(self, answer: Draft) -> None:
        self.answer: Draft | Exception = answer
        self.asked: list[dict[str, Any]] = []
        self.plans: dict[str, ActivePlan] = {}

    async def draft(
        self,
        model: str,
        version: str | None,
        *,
        select: Mapping[str, str],
        objective: Objective,
        stages: int | None,
        shapes: Mapping[str, tuple[int, ...]] | None,
    ) -> Draft:
        self.asked.append(
            {"model": model, "version": version, "select": select, "objective": objective,
             "stages": stages, "shapes": shapes}
        )  # fmt: skip
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def active(self) -> Sequence[ActivePlan]:
        return list(self.plans.values())

    def find(self, name: str) -> ActivePlan | None:
        return self.plans.get(name)


@pytest.fixture
def canned() -> Canned:
    asked = problem()
    best, whole = partition(asked, *TWO), partition(asked, WHOLE)
    return Canned(draft(asked, Outcome(best, whole, (whole,))))


@pytest.fixture
async def http(canned: Canned) -> Any:
    app = FastAPI()
    app.include_router(plan_routes(canned, canned))
    problems.install(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as client:
        yield client


def running(name: str, canned: Canned, **more: Any) -> ActivePlan:
    found = canned.answer
    assert isinstance(found, Draft)
    plan = ActivePlan(
        name,
        "cat",
        "1",
        Objective.THROUGHPUT,
        PlanState.READY,
        0.0,
        epoch=3,
        draft=found,
        partition=found.outcome.best,
        states={(0, "jetson-1"): "ready", (1, "ascend-1"): "ready"},
        spares={"ascend-1": (0,)},
        fallbacks=(Fallback("jetson-1", 4, (("jetson-2",), ("ascend-1",)), 50.0),),
        credits=8,
        compression="fp16",
    )
    return replace(plan, **more)


async def test_a_draft_with_all_that_was_asked_for(http, canned):
    answer = await http.post(
        "/plans",
        json={
            "model": "cat",
            "version": "1",
            "select": {"site": "berlin"},
            "objective": "latency",
            "shards": 2,
            "shapes": {"x": [1, 3, 48, 320]},
        },
    )
    assert answer.status_code == 200
    assert canned.asked == [
        {
            "model": "cat",
            "version": "1",
            "select": {"site": "berlin"},
            "objective": Objective.LATENCY,
            "stages": 2,
            "shapes": {"x": (1, 3, 48, 320)},
        }
    ]
    shown = answer.json()
    assert (shown["model"], shown["segments"], shown["reason"]) == ("cat", 4, "")
    first, second = shown["plan"]["stages"]
    assert (first["first"], first["last"], first["segments"]) == (0, 2, "node0 … node1")
    assert (second["devices"], second["board"]) == (["ascend-1"], "ascend")
    assert (first["compute_ms"], first["measured"]) == (8.0, False)
    assert shown["plan"]["throughput_per_s"] == pytest.approx(1e3 / 6)
    assert shown["plan"]["bottleneck"] == "stage 1 on ascend-1 (6.00 ms)"
    assert (shown["plan"]["gap_percent"], shown["plan"]["method"]) == (0.0, "exact")
    assert shown["single"]["device"] == "ascend-1"
    assert [(link["from"], link["to"], link["bytes"]) for link in shown["links"]] == [
        ("gateway", "jetson-1, jetson-2", 10_000),
        ("jetson-1, jetson-2", "ascend-1", 20_000),
        ("ascend-1", "gateway", 20_000),
    ]
    assert shown["links"][0]["ms"] == pytest.approx(2.0)
    assert [(b["board"], b["basis"]) for b in shown["boards"]] == [
        ("jetson", "measured"),
        ("ascend", "measured"),
    ]
    assert [cut["work"] for cut in shown["cuts"]] == [0.25, 0.5, 0.75]
    assert shown["cuts"][1]["after"] == "node1"
    assert shown["why"].startswith("2 stages: stage 1")
    assert len(shown["others"]) == 1


async def test_the_least_that_can_be_asked(http, canned):
    assert (await http.post("/plans", json={"model": "cat"})).status_code == 200
    [asked] = canned.asked
    assert (asked["stages"], asked["shapes"], asked["objective"]) == (
        None,
        None,
        Objective.THROUGHPUT,
    )


async def test_how_far_a_plan_may_be_from_the_best(http, canned):
    asked = problem()
    best = replace(partition(asked, *TWO), bound_ms=5.0, method="search")
    canned.answer = draft(asked, Outcome(best))
    canned.answer = replace(canned.answer, notes=("b was left out.",))
    shown = (await http.post("/plans", json={"model": "cat"})).json()
    assert shown["notes"][0] == "b was left out."
    assert shown["plan"]["gap_percent"] == pytest.approx(20.0)
    assert shown["single"] is None


async def test_a_stage_that_was_measured_says_so(http, canned):
    asked = replace(problem(), known_ms={(0, 2, 0): 9.0})
    canned.answer = draft(asked, Outcome(partition(asked, *TWO)))
    stages = (await http.post("/plans", json={"model": "cat"})).json()["plan"]["stages"]
    assert [(s["compute_ms"], s["measured"]) for s in stages] == [(9.0, True), (6.0, False)]


@given(
    count=st.integers(1, 6),
    each=st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)),
    bandwidth=st.floats(1e4, 1e9),
    objective=st.sampled_from(Objective),
    stages=st.none() | st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_whatever_the_planner_finds_is_shown_with_a_reason(
    count, each, bandwidth, objective, stages
):
    boards = (("jetson", ("jetson-1", "jetson-2"), each[0]), ("ascend", ("ascend-1",), each[1]))
    asked = problem(boards, count, Link(bandwidth, 1.0), objective, stages)
    view = plan_view(draft(asked, solve(asked)))
    if view.plan is None:
        assert view.reason and not view.why
        return
    assert view.why.endswith(".") and not view.reason
    assert len(view.links) == len(view.plan.stages) + 1
    assert [s.first for s in view.plan.stages] == [0, *(s.last for s in view.plan.stages[:-1])]
    limits = re.search(r"\((.*) ms\)", view.plan.bottleneck)
    assert limits and float(limits[1]) == pytest.approx(1e3 / view.plan.throughput_per_s, rel=0.06)


async def test_a_model_that_fits_nowhere(http, canned):
    canned.answer = draft(problem(), Outcome(None, reason="Too large.", missing_bytes=1 << 20))
    answer = await http.post("/plans", json={"model": "cat"})
    shown = answer.json()
    assert answer.status_code == 200
    assert (shown["plan"], shown["links"], shown["why"]) == (None, [], "")
    assert (shown["reason"], shown["missing_bytes"]) == ("Too large.", 1 << 20)


async def test_what_the_planner_cannot_do_is_a_problem(http, canned):
    canned.answer = UnavailableError("No device is online: start one, then try again.")
    answer = await http.post("/plans", json={"model": "cat"})
    assert answer.status_code == 503
    assert answer.json()["detail"] == "No device is online: start one, then try again."


@pytest.mark.parametrize(
    "wrong",
    [
        {"shards": 0},
        {"shards": 33},
        {"shards": "many"},
        {"objective": "cheapness"},
        {"shapes": {"x": [0]}},
        {"shapes": {"x": [-1, 3]}},
        {"shapes": {"x": [1] * 9}},
        {"shapes": {"": [1]}},
        {"shapes": {"x": [10**12]}},
        {"model": ""},
        {"unknown": 1},
    ],
)
async def test_what_cannot_be_asked(http, canned, wrong):
    answer = await http.post("/plans", json={"model": "cat", **wrong})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert canned.asked == []


async def test_plans_that_run(http, canned):
    canned.plans["cat"] = running("cat", canned)
    shown = (await http.get("/plans/cat")).json()
    assert (shown["name"], shown["state"], shown["epoch"]) == ("cat", "ready", 3)
    assert shown["since"] == "1970-01-01T00:00:00.000Z"
    assert [part["state"] for stage in shown["stages"] for part in stage["parts"]] == [
        "ready",
        "queued",
        "ready",
    ]
    assert shown["spares"] == [{"device": "ascend-1", "stages": [0]}]
    assert shown["fallbacks"] == [
        {
            "lost": "jetson-1",
            "epoch": 4,
            "devices": [["jetson-2"], ["ascend-1"]],
            "throughput_per_s": 50.0,
        }
    ]
    assert shown["predicted"]["bottleneck"] == "stage 1 on ascend-1 (6.00 ms)"
    assert shown["single"]["device"] == "ascend-1"
    assert (shown["credits"], shown["compression"]) == (8, "fp16")
    assert shown["links"][1]["from"] == "jetson-1, jetson-2"
    missing = await http.get("/plans/dog")
    assert missing.status_code == 404
    assert "created with shards" in missing.json()["detail"]


async def test_a_plan_that_is_not_made_yet(http, canned):
    canned.plans["cat"] = ActivePlan(
        "cat", "cat", "1", Objective.LATENCY, PlanState.MEASURING, 0.0, "stage 1 on ascend"
    )
    shown = (await http.get("/plans/cat")).json()
    assert (shown["state"], shown["reason"]) == ("measuring", "stage 1 on ascend")
    assert (shown["stages"], shown["predicted"], shown["single"]) == ([], None, None)


async def test_a_plan_that_the_planner_has_not_looked_at_since_a_restart(http, canned):
    stored = Plan(
        name="cat",
        model="cat",
        version="1",
        digest="sha256:" + "ab" * 32,
        parts=(
            Part(first=0, last=2, digest="sha256:" + "1" * 64, size=9, shapes={}, memory_bytes=5),
            Part(first=2, last=4, digest="sha256:" + "2" * 64, size=9, shapes={}),
        ),
        current=Wiring(
            epoch=1007,
            devices=(("jetson-1", "jetson-2"), ("ascend-1",)),
            stage_ms=(8.0, 6.0),
            bottleneck_ms=6.0,
            latency_ms=19.0,
        ),
    )
    canned.plans["cat"] = running("cat", canned, draft=None, partition=None, plan=stored)
    shown = (await http.get("/plans/cat")).json()
    first, second = shown["stages"]
    assert (first["devices"], first["last"], first["out_bytes"]) == (
        ["jetson-1", "jetson-2"],
        2,
        None,
    )
    assert (first["compute_ms"], first["memory_bytes"]) == (8.0, 5)
    assert second["parts"] == [{"device": "ascend-1", "state": "ready"}]
    assert shown["predicted"] == {
        "throughput_per_s": pytest.approx(1e3 / 6),
        "latency_ms": 19.0,
        "bottleneck": "stage 1 on ascend-1 (6.00 ms)",
    }
    slow = structs.replace(stored, current=structs.replace(stored.current, bottleneck_ms=30.0))
    canned.plans["cat"] = running("cat", canned, draft=None, partition=None, plan=slow)
    shown = (await http.get("/plans/cat")).json()
    assert shown["predicted"]["bottleneck"] == "a link (30.0 ms)"


async def test_pages_of_plans_by_name(http, canned):
    for name in ("c", "a", "b"):
        canned.plans[name] = running(name, canned)
    first = (await http.get("/plans", params={"limit": 2})).json()
    assert [plan["name"] for plan in first["items"]] == ["a", "b"]
    rest = (await http.get("/plans", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [plan["name"] for plan in rest["items"]] == ["c"]
    assert rest["next_cursor"] is None
