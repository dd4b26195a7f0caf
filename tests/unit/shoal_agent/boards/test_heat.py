from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.boards.heat import AGAIN_S, HOLD_S, HeatWatch, Step


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_sign_counts_at_once_and_the_last_one_holds() -> None:
    clock = Clock()
    watch = HeatWatch(clock)
    assert watch.see(False) == Step()
    assert watch.see(True) == Step(changed=True, measure=True)
    clock.now += HOLD_S - 0.1
    assert watch.see(False) == Step()
    assert watch.throttled
    clock.now += 0.1
    assert watch.see(False) == Step(changed=True, measure=True)
    assert not watch.throttled


def test_while_it_lasts_models_are_measured_again_and_again() -> None:
    clock = Clock()
    watch = HeatWatch(clock)
    watch.see(True)
    measured = 0
    for _ in range(int(3 * AGAIN_S)):
        clock.now += 1
        measured += watch.see(True).measure
    assert measured == 3


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 60.0))))
def test_a_change_is_told_once_and_always_measured(signs: list[tuple[bool, float]]) -> None:
    clock = Clock()
    watch = HeatWatch(clock)
    told = False
    for sign, pause in signs:
        clock.now += pause
        step = watch.see(sign)
        told ^= step.changed
        assert told is watch.throttled
        assert step.measure or not step.changed
        assert watch.throttled or not sign
