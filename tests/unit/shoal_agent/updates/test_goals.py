from __future__ import annotations

import pytest

from shoal_agent.updates.goals import check_desired, key_of, same_settings
from shoal_shared.messages import Desired, ModelGoal

GOOD: dict[str, object] = {
    "deployment": "d",
    "model": "m",
    "version": "1",
    "digest": "sha256:" + "a" * 64,
    "size": 1,
    "format": "onnx",
}


def goal(**changes: object) -> ModelGoal:
    return ModelGoal(**(GOOD | changes))  # type: ignore[arg-type]


def test_a_good_goal_passes() -> None:
    check_desired(Desired(goal=0, models=(goal(), goal(max_batch=4096))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deployment": ""}, "deployment"),
        ({"model": "a/b"}, "model 'a/b'"),
        ({"version": ".."}, "version"),
        ({"digest": "md5:1"}, "is not a SHA-256"),
        ({"digest": "sha256:" + "A" * 64}, "is not a SHA-256"),
        ({"size": 0}, "size 0"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 4097}, "max_batch"),
    ],
)
def test_anything_wrong_is_one_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_desired(Desired(goal=1, models=(goal(), goal(**changes))))


def test_a_goal_number_is_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        check_desired(Desired(goal=-1))


def test_the_deployment_does_not_matter_to_the_device_and_settings_do() -> None:
    assert key_of(goal()) == ("m", "1")
    assert same_settings(goal(), goal(deployment="e"))
    assert not same_settings(goal(), goal(options={"a": 1}))
    assert not same_settings(goal(), goal(max_batch=2))
