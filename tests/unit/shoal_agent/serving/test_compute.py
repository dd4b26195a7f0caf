from __future__ import annotations

import asyncio
import threading

import pytest

from shoal_agent.serving.compute import ComputeThread, compute


async def test_work_runs_in_order_on_one_thread_and_results_come_on_the_loop() -> None:
    accelerator = ComputeThread()
    loop_thread = threading.current_thread()
    ran: list[tuple[int, threading.Thread]] = []
    delivered: list[tuple[int, threading.Thread]] = []
    all_there = asyncio.Event()

    def work(i: int) -> int:
        ran.append((i, threading.current_thread()))
        return i

    def done(result: int | Exception) -> None:
        assert isinstance(result, int)
        delivered.append((result, threading.current_thread()))
        if len(delivered) == 100:
            all_there.set()

    for i in range(100):
        accelerator.submit(lambda i=i: work(i), done)
    await asyncio.wait_for(all_there.wait(), 10)
    accelerator.close()

    assert [i for i, _ in ran] == [i for i, _ in delivered] == list(range(100))
    assert len({thread for _, thread in ran}) == 1
    assert {thread for _, thread in delivered} == {loop_thread}
    assert ran[0][1] is not loop_thread


async def test_results_of_a_burst_arrive_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = ComputeThread()
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    original = loop.call_soon_threadsafe

    def counting(callback, *args, **kwargs):
        calls.append(callback)
        return original(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    results: list[int | Exception] = []
    finished = threading.Event()
    for i in range(10):
        accelerator.submit(lambda i=i: i, results.append)
    accelerator.submit(finished.set, lambda _: None)
    # The loop is held until the thread has done everything.
    assert finished.wait(10)
    await compute(accelerator, lambda: None)
    accelerator.close()

    assert results == list(range(10))
    assert len(calls) <= 3


async def test_an_error_is_a_result_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accelerator = ComputeThread()

    def fail() -> None:
        raise ZeroDivisionError

    def bad_receiver(_: object) -> None:
        raise RuntimeError("receiver")

    with pytest.raises(ZeroDivisionError):
        await compute(accelerator, fail)
    accelerator.submit(lambda: 1, bad_receiver)
    assert await compute(accelerator, lambda: 2) == 2
    assert "receiver" in caplog.text
    accelerator.close()


async def test_a_cancelled_wait_leaves_the_work_alone() -> None:
    accelerator = ComputeThread()
    gate = threading.Event()
    task = asyncio.create_task(compute(accelerator, lambda: gate.wait(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await compute(accelerator, lambda: "next") == "next"
    accelerator.close()
