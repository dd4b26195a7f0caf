"""How a target fares, by what is known of it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_controlplane.offload.state import State
from shoal_controlplane.targets.views import TargetCondition, condition


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, TargetCondition.READY, ""),
        ({"where": ""}, TargetCondition.CONNECTING, ""),
        ({"trouble": "401"}, TargetCondition.FAILED, "401"),
        ({"trouble": "401", "where": ""}, TargetCondition.FAILED, "401"),
        ({"affordable_in_s": 12.4}, TargetCondition.OVER_BUDGET, "paid in 12 s"),
        ({"affordable_in_s": None}, TargetCondition.OVER_BUDGET, "of a cap of 2.5: it can never"),
    ],
)
def test_the_worst_thing_is_said_first(
    pictures: Any, changes: dict[str, Any], state: TargetCondition, said: str
) -> None:
    found, reason = condition(pictures.target("aks", pictures.model(), **changes))
    assert found is state
    assert said in reason and bool(said) is bool(reason)


@pytest.mark.parametrize("state", list(State))
def test_every_state_of_a_model_gives_one_of_its_target(pictures: Any, state: State) -> None:
    model = pictures.model(state, sentence="so it is")
    found, reason = condition(pictures.target("aks", pictures.model(), model))
    expected = {
        State.EJECTED: TargetCondition.DEGRADED,
        State.FAILED: TargetCondition.DEGRADED,
        State.OVER_BUDGET: TargetCondition.OVER_BUDGET,
    }.get(state, TargetCondition.READY)
    assert found is expected
    assert ("so it is" in reason) is (expected is not TargetCondition.READY)


def test_a_target_that_nobody_drives_is_connecting() -> None:
    assert condition(None) == (TargetCondition.CONNECTING, "")
