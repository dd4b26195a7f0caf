"""Sentences on plans."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.drafts import LINK, draft, partition, problem

from shoal_controlplane.planner.partition.problem import Link, Objective, Outcome
from shoal_controlplane.plans.reasons import bottleneck, copies, hops, names, why

TWO = ((0, 2, 0, ("jetson-1",)), (2, 4, 1, ("ascend-1",)))
WHOLE = (0, 4, 1, ("ascend-1",))


def test_the_bottleneck_is_the_slowest_stage_or_link():
    asked = problem()
    assert bottleneck(partition(asked, *TWO)) == "stage 0 on jetson-1 (8.00 ms)"
    slow = problem(link=Link(1e6))
    assert bottleneck(partition(slow, *TWO)) == "link jetson-1 -> ascend-1 (20.0 ms)"
    assert bottleneck(partition(slow, WHOLE)) == "link ascend-1 -> gateway (20.0 ms)"


def test_devices_of_a_stage_share_its_time():
    shared = (0, 3, 0, ("jetson-1", "jetson-2"))
    text = bottleneck(partition(problem(), shared, (3, 4, 1, ("ascend-1",))))
    assert text == "stage 0 on jetson-1, jetson-2 (6.00 ms)"


@given(st.lists(st.from_regex(r"[a-z]{1,4}", fullmatch=True), min_size=1, max_size=40))
def test_every_device_is_named_or_counted(devices):
    text = names(devices)
    head, _, rest = text.partition(" and ")
    assert len(head.split(", ")) + int((rest or "0").split()[0]) == len(devices)


def test_a_link_for_every_step_of_a_request():
    asked = problem()
    assert hops(asked, partition(asked, *TWO)) == [(LINK, 10_000), (LINK, 20_000), (LINK, 20_000)]


def test_a_pipeline_is_set_beside_the_best_single_device():
    asked = problem()
    found = Outcome(partition(asked, *TWO), partition(asked, WHOLE))
    assert why(draft(asked, found)) == (
        "2 stages: stage 0 on jetson-1 (8.00 ms) is the bottleneck; alone, ascend-1 would take "
        "12.0 ms a request, so the pipeline serves 1.5x as many requests."
    )
    assert "no single device has the memory" in why(draft(asked, Outcome(found.best)))


def test_a_pipeline_that_was_asked_for_although_one_device_is_better():
    asked = problem(objective=Objective.LATENCY, stages=2)
    found = Outcome(partition(asked, *TWO), partition(asked, WHOLE))
    assert why(draft(asked, found)) == (
        "2 stages: a request takes 19.0 ms; alone, ascend-1 would take 15.0 ms a request, which "
        "is better, but 2 stages were asked for."
    )


def test_a_pipeline_that_answers_faster():
    boards = (("a", ("a-1",), 9.0), ("b", ("b-1",), 9.0))
    known = {(0, 2, 0): 5.0, (2, 4, 1): 5.0}
    asked = replace(problem(boards, objective=Objective.LATENCY), known_ms=known)
    found = Outcome(
        partition(asked, (0, 2, 0, ("a-1",)), (2, 4, 1, ("b-1",))),
        partition(asked, (0, 4, 0, ("a-1",))),
    )
    assert why(draft(asked, found)).endswith("so the pipeline answers 2.6x as fast.")


def test_devices_that_compute_whole_requests_side_by_side():
    asked = problem()
    found = Outcome(partition(asked, (0, 4, 0, ("jetson-1", "jetson-2"))), partition(asked, WHOLE))
    assert why(draft(asked, found)) == (
        "2 devices share one stage: each computes whole requests, so nothing moves between them, "
        "and together they serve 1.5x as many as ascend-1 alone."
    )


def test_one_device_because_every_cut_is_too_dear():
    asked = problem(link=Link(1e6, 3.0))
    best = partition(problem(), WHOLE)
    assert why(draft(asked, Outcome(best, best))) == (
        "one device is best: every cut moves at least 19.5 KiB, which takes at least 20.0 ms "
        "between these devices; ascend-1 takes 12.0 ms a request for the whole model."
    )


def test_one_device_beside_the_best_pipeline():
    asked = problem((("jetson", ("jetson-1",), 40.0), ("ascend", ("ascend-1",), 3.0)))
    best, rival = partition(asked, WHOLE), partition(asked, *TWO)
    assert why(draft(asked, Outcome(best, best, (rival,)))) == (
        "one device is best: ascend-1 takes 12.0 ms a request, the best pipeline, "
        "jetson-1 -> ascend-1, 80.0 ms a request because of stage 0 on jetson-1 (80.0 ms)."
    )


def test_one_device_whose_answer_comes_first():
    asked = problem(objective=Objective.LATENCY)
    best, rival = partition(asked, WHOLE), partition(asked, *TWO)
    assert why(draft(asked, Outcome(best, best, (rival,)))) == (
        "one device is best: ascend-1 takes 15.0 ms a request, the best pipeline, "
        "jetson-1 -> ascend-1, 19.0 ms a request, links included."
    )


def test_one_device_for_want_of_a_choice():
    alone = problem((("jetson", ("jetson-1",), 4.0),))
    best = partition(alone, (0, 4, 0, ("jetson-1",)))
    assert why(draft(alone, Outcome(best, best))) == "one device: none but jetson-1 can take part."
    asked = problem(stages=1)
    best = partition(asked, WHOLE)
    assert "as asked for: ascend-1 takes 12.0 ms" in why(draft(asked, Outcome(best, best)))
    whole = problem(count=1)
    best = partition(whole, (0, 1, 1, ("ascend-1",)))
    assert why(draft(whole, Outcome(best, best), "All of it is one Loop.")) == (
        "one device: the graph cannot be cut (All of it is one Loop)."
    )


def test_nothing_to_say_where_nothing_fits():
    assert why(draft(problem(), Outcome(None, reason="Too large.", missing_bytes=5))) == ""


def test_whole_copies_are_named_where_they_serve_more():
    asked = problem()
    pipeline = partition(asked, *TWO)
    whole = partition(asked, WHOLE)
    text = copies(draft(asked, Outcome(pipeline, whole)))
    assert text.startswith("a whole copy on each of the 3 devices that have the memory would serve")
    assert text.endswith("shoal deployment create cat:1 --all")
    alone = problem((("jetson", ("jetson-1",), 4.0),))
    best = partition(alone, (0, 4, 0, ("jetson-1",)))
    assert copies(draft(alone, Outcome(best, best))) == ""
    latency = problem(objective=Objective.LATENCY)
    assert copies(draft(latency, Outcome(partition(latency, WHOLE)))) == ""
    assert copies(draft(asked, Outcome(None, reason="nothing fits"))) == ""
