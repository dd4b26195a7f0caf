from __future__ import annotations

import pytest

from shoal_agent.updates.goals import check_desired, key_of, same_settings
from shoal_shared.messages import Desired, ModelGoal, RoleGoal

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


ROLE: dict[str, object] = {"plan": "p", "epoch": 0, "stage": 0, "model": "m", "version": "1"}


def role(**changes: object) -> RoleGoal:
    return RoleGoal(**(ROLE | changes))  # type: ignore[arg-type]


def test_good_roles_pass() -> None:
    roles = (
        role(next=(0.25, 0.75), passes=("x", "y"), credits=1024, compression="int8"),
        role(next=(1 / 3,) * 3, replica=1),
        role(epoch=1, stage=999, credits=1, compression="fp16"),
    )
    check_desired(Desired(goal=0, models=(goal(),), roles=roles))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": "a/b"}, "plan 'a/b'"),
        ({"plan": "+"}, "plan"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": 2**53 + 1}, "epoch"),
        ({"stage": -1}, "stage of"),
        ({"stage": 1000}, "stage of"),
        ({"replica": -1}, "replica"),
        ({"replica": 1000}, "replica"),
        ({"model": "other"}, "a model that the document does not hold"),
        ({"version": "2"}, "a model that the document does not hold"),
        ({"next": (0.0, 1.0)}, "a share of stage 0 of plan p"),
        ({"next": (-1.0, 2.0)}, "a share"),
        ({"next": (float("nan"),)}, "a share"),
        ({"next": (float("inf"),)}, "a share"),
        ({"next": (0.5, 0.4)}, "do not sum to 1"),
        ({"next": (1.0, 1.0)}, "do not sum to 1"),
        ({"passes": ("x", "x")}, "passes a tensor twice"),
        ({"passes": ("",)}, "the name of a tensor"),
        ({"passes": ("x" * 1025,)}, "the name of a tensor"),
        ({"credits": 0}, "credits"),
        ({"credits": 1025}, "credits"),
        ({"compression": "zip"}, "compression 'zip'"),
        ({"epoch": 1}, "two roles read one topic"),
    ],
)
def test_anything_wrong_with_a_role_is_one_sentence(changes: dict[str, object], words: str) -> None:
    desired = Desired(goal=1, models=(goal(),), roles=(role(epoch=1), role(**changes)))
    with pytest.raises(ValueError, match=words):
        check_desired(desired)
