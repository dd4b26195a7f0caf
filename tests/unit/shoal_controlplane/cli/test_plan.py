"""`shoal plan` against canned answers."""

from __future__ import annotations

import json

import pytest

from shoal_controlplane.cli import shards

PLANS = "/api/v1/plans"


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell] for line in text.splitlines()]


def test_all_that_may_be_asked_is_sent(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.plan()
    done = shoal(
        "plan", "m:1", "--select", "site=berlin", "--objective", "latency", "--shards", "2",
        "--shape", "x=1x3x48x320", "--shape", "odd=name:0=7",
    )  # fmt: skip
    assert done.code == 0
    assert json.loads(plane.calls[0].body) == {
        "model": "m",
        "version": "1",
        "select": {"site": "berlin"},
        "objective": "latency",
        "shards": 2,
        "shapes": {"x": [1, 3, 48, 320], "odd=name:0": [7]},
    }
    shoal("plan", "m")
    assert json.loads(plane.calls[1].body) == {"model": "m", "shards": "auto"}


def test_stages_links_and_figures(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.plan()
    done = shoal("plan", "m")
    lines = rows(done.out)
    assert lines[0] == ["m:1 for throughput: 2 stages on 2 devices, cut from 8 segments"]
    assert ["0", "jetson-1", "0-3", "12.0 ms", "measured", "45.0 MiB"] in lines
    assert ["1", "ascend-1", "4-7", "13.0 ms", "estimated", "45.0 MiB"] in lines
    assert ["gateway -> jetson-1", "588 KiB", "6.00 ms", "-"] in lines
    [cut] = [line for line in lines if line[:1] == ["jetson-1 -> ascend-1"]]
    assert cut[1:3] == ["75.0 KiB", "1.77 ms"]
    assert cut[3].startswith("…") and cut[3].endswith("/module/3/relu")
    assert ["throughput", "76.9/s, 49.0/s on ascend-1 alone (1.57x)"] in lines
    assert ["latency", "31.2 ms, 20.4 ms on ascend-1 alone"] in lines
    assert ["bottleneck", "stage 1 on ascend-1 (13.0 ms)"] in lines
    assert ["shapes", "x=1x3x224x224"] in lines
    assert ["proof", "the best plan there is (exact)"] in lines
    assert done.out.splitlines()[-1].startswith("2 stages: stage 1")
    assert "Runners-up" not in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_one_device_and_a_bound_that_is_not_reached(plane, shoal, documents):
    whole = documents.stage(0, "ascend-1", last=1, measured=False)
    best = documents.partition(whole, gap_percent=3.21, method="search")
    plane.answers[f"POST {PLANS}"] = documents.plan(
        plan=best, segments=1, cuts=[], single=None, why="one device: it is so.", links=[],
        notes=["b was left out."],
    )  # fmt: skip
    out = shoal("plan", "m").out
    assert "1 stage on 1 device, cut from 1 segment" in out
    assert "at most 3.2 % from the best plan there is (search)" in out
    assert "no single device can hold the model" in out
    assert out.endswith("One device: it is so.\nnote: b was left out.\n")


def test_one_device_is_not_set_beside_itself(plane, shoal, documents):
    best = documents.partition(documents.stage(0, "ascend-1", last=8))
    plane.answers[f"POST {PLANS}"] = documents.plan(plan=best)
    lines = rows(shoal("plan", "m").out)
    assert ["throughput", "76.9/s"] in lines and ["latency", "31.2 ms"] in lines


def test_times_of_a_stage_from_parts_that_were_measured(plane, shoal, documents):
    best = documents.partition(documents.stage(0, "jetson-2", measured=False))
    plane.answers[f"POST {PLANS}"] = documents.plan(plan=best)
    [row] = [line for line in rows(shoal("plan", "m").out) if line[:2] == ["0", "jetson-2"]]
    assert row[4] == "from parts"


def test_explained(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.plan()
    done = shoal("plan", "m", "--explain")
    lines = rows(done.out)
    assert ["ascend-1 (0-3)", "49.0/s", "stage 1 on ascend-1 (13.0 ms)"] in lines
    assert ["jetson/Orin Nano", "2", "measured", "4.0 GiB"] in lines
    assert ["ascend/Atlas 200I DK A2", "1", "estimated", "6.0 GiB"] in lines
    assert ["Where few bytes cross, 7 of 7 places to cut, with what lies before each:"] in lines
    [used] = [line for line in lines if line[-1:] == ["cut here"]]
    assert (used[0], used[2:5]) == ("3", ["76.0 KiB", "1", "50 %"])
    assert max(map(len, done.out.splitlines())) <= 100


def test_explained_by_latency_and_without_rivals(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.plan(objective="latency")
    assert ["ascend-1 (0-3)", "31.2 ms", "stage 1 on ascend-1 (13.0 ms)"] in rows(
        shoal("plan", "m", "--explain").out
    )
    plane.answers[f"POST {PLANS}"] = documents.plan(others=[], cuts=[])
    assert "No other plan fits." in shoal("plan", "m", "--explain").out


def test_of_many_cuts_the_cheapest_and_those_in_use_are_shown(plane, shoal, documents):
    cut = documents.plan()["cuts"][0]
    cuts = [{**cut, "segment": n, "bytes": 1000 * (n + 1)} for n in range(40)]
    best = documents.partition(
        documents.stage(0, "a", last=30), documents.stage(1, "b", first=30, last=41)
    )
    plane.answers[f"POST {PLANS}"] = documents.plan(cuts=cuts, plan=best, segments=41)
    lines = rows(shoal("plan", "m", "--explain").out)
    assert ["Where few bytes cross, 12 of 40 places to cut, with what lies before each:"] in lines
    start = next(n for n, line in enumerate(lines) if line[:1] == ["SEGMENT"])
    assert [line[0] for line in lines[start + 1 :]] == [*map(str, range(11)), "29"]


def test_a_model_that_fits_nowhere(plane, shoal, documents):
    nothing = {"plan": None, "single": None, "others": [], "links": [], "why": ""}
    lack = "needs 9 MB on one device, which has 2 MB too little"
    document = documents.plan(**nothing, reason=lack, missing_bytes=2_000_000)
    plane.answers[f"POST {PLANS}"] = document
    done = shoal("plan", "m")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"Error: there is no plan for m:1: {lack}: free memory on devices, or add one\n"
    )
    done = shoal("plan", "m", "-o", "json")
    assert done.code == 1 and json.loads(done.out) == document
    few = "3 stages need 3 devices, there are 2"
    plane.answers[f"POST {PLANS}"] = {**document, "reason": few, "missing_bytes": 0}
    assert shoal("plan", "m").err == f"Error: there is no plan for m:1: {few}\n"


def test_documents_for_programs(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.plan()
    assert json.loads(shoal("plan", "m", "-o", "json").out) == documents.plan()
    assert "throughput_per_s: 76.9" in shoal("plan", "m", "-o", "yaml").out


def test_what_the_control_plane_refuses(plane, shoal, documents):
    plane.answers[f"POST {PLANS}"] = documents.problem(404, "There is no model 'm'.")
    done = shoal("plan", "m")
    assert (done.code, done.err) == (1, "Error: There is no model 'm'.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("m:",),
        ("m", "--shards", "0"),
        ("m", "--shards", "33"),
        ("m", "--shards", "²"),
        ("m", "--shards", "9" * 5000),
        ("m", "--objective", "price"),
        ("m", "--select", "site"),
        ("m", "--shape", "x"),
        ("m", "--shape", "=1x3"),
        ("m", "--shape", "x=1x"),
        ("m", "--shape", "x=1x-1"),
        ("m", "--shape", "x=0"),
        ("m", "--shape", "x=1x1x1x1x1x1x1x1x1"),
        ("m", "--shape", "x=9999999999"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(plane, shoal, arguments):
    assert shoal("plan", *arguments).code == 2
    assert not plane.calls


@pytest.mark.parametrize(
    ("per_s", "text"), [(0.4, "0.40/s"), (9.999, "10.0/s"), (83.12, "83.1/s"), (1250.4, "1250/s")]
)
def test_rates(per_s, text):
    assert shards.rate(per_s) == text
