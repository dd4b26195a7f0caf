from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.serving.batch import Outcome
from shoal_agent.serving.queue import Limits
from shoal_agent.serving.request import Key, Pending
from shoal_agent.serving.scheduler import SLOTS, ModelQueue, Scheduler
from shoal_shared.oip import InferRequest, Tensor
from shoal_shared.profiles import Profile
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


class Echo:
    signature = ModelSignature(inputs=(), outputs=())
    providers = ()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


class Accelerator:
    """Finishes the next batch when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.second = asyncio.Event()

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((work, done))
        if len(self.jobs) == 2:
            self.second.set()

    def finish(self, error: Exception | None = None) -> None:
        work, done = self.jobs.pop(0)
        done(error or work())

    def close(self) -> None:
        pass


class Desk:
    """A scheduler with everything around it under the test's control."""

    def __init__(self) -> None:
        self.now = 0.0
        self.accelerator = Accelerator()
        self.done: list[tuple[int, Outcome]] = []
        self.expired: list[int] = []
        self.scheduler: Scheduler[ModelQueue] = Scheduler(
            self.accelerator,
            lambda: self.now,
            lambda _, pending, outcome: self.done.append((pending.number, outcome)),
            lambda _, pending: self.expired.append(pending.number),
        )
        self.numbers = itertools.count()

    def queue(self, sizes: tuple[int, ...] = (1, 2, 4, 8), c: float = 10.0) -> ModelQueue:
        samples = tuple((b, 100 + c * b) for b in sizes)
        profile = Profile(samples=samples, intercept_ms=100, slope_ms=c, knee=sizes[-1])
        return ModelQueue(Echo(), Limits.of(profile, sizes[-1]))

    def add(self, queue: ModelQueue, deadline: float = math.inf, key: Key | None = None) -> int:
        number = next(self.numbers)
        request = InferRequest([Tensor("x", "FP32", np.full((1, 1), number, "<f4"))])
        pending = Pending(number, 1, (), self.now, deadline, request, lambda *_: None, key)
        self.scheduler.add(queue, pending)
        return number

    def finish_all(self) -> None:
        while self.accelerator.jobs:
            self.accelerator.finish()


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_the_first_request_runs_at_once_and_the_next_ones_together(desk: Desk) -> None:
    queue = desk.queue()
    for _ in range(5):
        desk.add(queue)
    assert len(desk.accelerator.jobs) == 1
    assert (desk.scheduler.depth, queue.depth) == (5, 5)
    desk.accelerator.finish()
    assert len(desk.accelerator.jobs) == 1
    desk.accelerator.finish()

    assert [number for number, _ in desk.done] == [0, 1, 2, 3, 4]
    assert [outcome.batch for _, outcome in desk.done] == [1, 4, 4, 4, 4]
    assert [outcome.outputs["y"].item() for _, outcome in desk.done] == [0, 1, 2, 3, 4]
    assert desk.scheduler.depth == 0
    assert queue.empty.is_set()


async def test_a_full_batch_is_handed_over_ahead_but_no_more(desk: Desk) -> None:
    queue = desk.queue()
    for _ in range(30):
        desk.add(queue)
    assert len(desk.accelerator.jobs) == SLOTS
    desk.finish_all()
    assert [number for number, _ in desk.done] == list(range(30))


async def test_the_most_urgent_model_is_next(desk: Desk) -> None:
    busy, other = desk.queue((1,)), desk.queue((1,))
    for _ in range(4):
        desk.add(busy)
    late = desk.add(other)
    urgent = desk.add(other, deadline=0.6)
    desk.finish_all()
    order = [number for number, _ in desk.done]
    assert order == [0, 1, urgent, 2, 3, late]


async def test_what_expires_while_waiting_is_dropped(desk: Desk) -> None:
    queue = desk.queue((1,))
    desk.add(queue)
    desk.add(queue)
    doomed = desk.add(queue, deadline=0.5)
    desk.now = 0.5
    desk.accelerator.finish()
    assert desk.expired == [doomed]
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 1]
    assert queue.empty.is_set()


async def test_a_timer_launches_a_batch_before_it_would_be_late(desk: Desk) -> None:
    queue = desk.queue(c=0.0)
    desk.add(queue)
    # t(2) is 100 ms and the accelerator is busy until 0.1: this one can wait until 0.12.
    desk.add(queue, deadline=0.22)
    assert len(desk.accelerator.jobs) == 1
    desk.now = 0.13
    await asyncio.wait_for(desk.accelerator.second.wait(), 10)
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 1]


async def test_withdrawn_requests_are_not_run(desk: Desk) -> None:
    queue = desk.queue((1,))
    for _ in range(4):
        desk.add(queue)
    assert [pending.number for pending in desk.scheduler.withdraw(queue)] == [2, 3]
    assert desk.scheduler.depth == queue.depth == 2
    assert not queue.empty.is_set()
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 1]
    assert queue.empty.is_set()
    assert desk.scheduler.withdraw(queue) == []


async def test_a_batch_that_cannot_be_run_answers_everyone(desk: Desk) -> None:
    queue = desk.queue()
    for _ in range(3):
        desk.add(queue)
    desk.accelerator.finish(MemoryError())
    desk.accelerator.finish(MemoryError())
    assert [number for number, _ in desk.done] == [0, 1, 2]
    assert all("MemoryError" in outcome.error for _, outcome in desk.done)
    assert desk.scheduler.depth == 0


async def test_one_receiver_that_fails_does_not_cost_the_others_their_answer(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    answered: list[int] = []

    def receive(_: ModelQueue, pending: Pending, outcome: Outcome) -> None:
        if pending.number == 1:
            raise RuntimeError("gone")
        answered.append(pending.number)

    desk.scheduler = Scheduler(desk.accelerator, lambda: desk.now, receive, lambda *_: None)
    queue = desk.queue()
    for _ in range(3):
        desk.add(queue)
    desk.finish_all()
    assert answered == [0, 2]
    assert "gone" in caplog.text
    assert desk.scheduler.depth == 0


async def test_a_reply_may_bring_the_next_request_at_once(desk: Desk) -> None:
    queue = desk.queue((1,))
    desk.scheduler = Scheduler(
        desk.accelerator,
        lambda: desk.now,
        lambda _, pending, outcome: [
            desk.done.append((pending.number, outcome)),
            desk.add(queue) if pending.number < 20 else None,
        ],
        lambda *_: None,
    )
    for _ in range(3):
        desk.add(queue)
    desk.finish_all()
    numbers = [number for number, _ in desk.done]
    assert numbers == sorted(set(numbers)) == list(range(len(numbers)))
    assert len(numbers) == 23
    assert desk.scheduler.depth == 0


def key(number: int, gateway: str = "g1") -> Key:
    return (gateway, bytes([number]))


async def test_what_waits_can_be_cancelled_and_what_runs_cannot(desk: Desk) -> None:
    queue = desk.queue((1,))
    for n in range(5):
        desk.add(queue, key=key(n))
    run, done = desk.accelerator.jobs.pop(0)
    result = run()  # The first one runs, the second one is next.
    assert [desk.scheduler.cancel(key(n)) for n in (0, 1, 3, 3, 9)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert desk.scheduler.depth == queue.depth == 3
    done(result)
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 2, 4]
    assert desk.scheduler.depth == queue.depth == 0
    assert queue.empty.is_set()
    assert not desk.scheduler.cancel(key(0))


async def test_a_batch_runs_without_what_was_cancelled(desk: Desk) -> None:
    queue = desk.queue()
    for n in range(9):
        desk.add(queue, key=key(n))
    run, done = desk.accelerator.jobs.pop(0)
    done(run())
    assert desk.scheduler.cancel(key(3))
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [outcome.batch for _, outcome in desk.done] == [1, *[7] * 7]
    assert [outcome.outputs["y"].item() for _, outcome in desk.done] == [0, 1, 2, 4, 5, 6, 7, 8]


async def test_what_is_cancelled_while_its_batch_begins_is_not_answered(desk: Desk) -> None:
    queue = desk.queue((1,))
    desk.add(queue, key=key(0))
    desk.scheduler.cancel(key(0))
    run, done = desk.accelerator.jobs.pop(0)
    assert run() == ([], [])
    done(MemoryError())
    assert desk.done == []
    assert (desk.scheduler.depth, queue.running) == (0, 0)


async def test_cancelling_the_last_request_empties_the_queue_and_lets_others_run(
    desk: Desk,
) -> None:
    first, other = desk.queue((1,)), desk.queue((1,))
    desk.add(other, key=key(0))
    desk.add(other, key=key(1))
    desk.add(first, key=key(2))
    assert desk.scheduler.cancel(key(2))
    assert first.empty.is_set()
    assert not other.empty.is_set()
    desk.finish_all()
    assert [number for number, _ in desk.done] == [0, 1]


Step = tuple[str, int, str]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "cancel", "begin", "finish", "expire"]),
            st.integers(0, 5),
            st.sampled_from(["g1", "g2"]),
        ),
        max_size=60,
    )
)
def test_a_cancelled_request_is_never_answered_and_every_other_one_is(steps: list[Step]) -> None:
    async def run() -> None:
        desk = Desk()
        queues = [desk.queue((1, 2, 4)), desk.queue((1,))]
        alive: dict[Key, int] = {}
        expected: set[int] = set()
        begun: list[tuple[Any, Callable[[Any], None]]] = []
        for step, n, gateway in steps:
            name = key(n, gateway)
            if step == "add" and name not in alive:
                deadline = desk.now + 1.0 if n == 5 else math.inf
                alive[name] = desk.add(queues[n % 2], deadline, name)
                expected.add(alive[name])
            elif step == "cancel" and desk.scheduler.cancel(name):
                expected.remove(alive.pop(name))
            elif step == "begin" and desk.accelerator.jobs:
                work, done = desk.accelerator.jobs.pop(0)
                begun.append((work(), done))
            elif step == "finish" and begun:
                result, done = begun.pop(0)
                done(result)
            elif step == "expire":
                desk.now += 0.5
            answered = {number for number, _ in desk.done} | set(desk.expired)
            alive = {k: number for k, number in alive.items() if number not in answered}
            assert answered <= expected
            assert desk.scheduler.depth == sum(q.depth for q in queues) == len(alive)
        for result, done in begun:
            done(result)
        desk.finish_all()
        answers = [number for number, _ in desk.done] + desk.expired
        assert sorted(answers) == sorted(expected)
        assert desk.scheduler.depth == 0
        assert not desk.scheduler._keyed

    asyncio.run(run())
