"""Goals of devices that take part in plans."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet import DIGEST

from shoal_controlplane.deployments.goals import with_plans
from shoal_controlplane.plans.wiring import Load
from shoal_shared.messages import MAX_DOCUMENT_BYTES, Desired, ModelGoal, RoleGoal


def document(models: Iterable[ModelGoal], roles: Iterable[RoleGoal]) -> int:
    return len(msgspec.json.encode(Desired(goal=2**40, models=tuple(models), roles=tuple(roles))))


def role(plan: str, epoch: int, model: str, padding: int = 0) -> RoleGoal:
    return RoleGoal(
        plan=plan, epoch=epoch, stage=0, model=model, version="1", passes=("t" * padding,)
    )


def goal(model: str, padding: int = 0) -> ModelGoal:
    return ModelGoal(
        deployment="p",
        model=model,
        version="1",
        digest=DIGEST,
        size=1000,
        format="onnx",
        options={"option": "o" * padding},
    )


ROLES = st.lists(
    st.tuples(
        st.sampled_from("pqr"),
        st.integers(1, 9),
        st.booleans(),
        st.sampled_from(["m1", "m2", "m3", "m4"]),
        st.integers(0, 900),
    ),
    max_size=25,
    unique_by=lambda drawn: drawn[:2],
)


@settings(max_examples=300, deadline=None)
@given(drawn=ROLES, whole=st.integers(0, 7000), jobs=st.integers(0, 3), size=st.integers(0, 2000))
def test_goals_fit_and_what_serves_is_kept_longest(
    drawn: list[tuple[str, int, bool, str, int]], whole: int, jobs: int, size: int
) -> None:
    load = Load()
    for plan, epoch, ahead, model, padding in drawn:
        (load.ahead if ahead else load.roles).append(role(plan, epoch, model, padding))
        load.models.setdefault((model, "1"), goal(model, size))
    for n in range(jobs):
        load.models[f"job{n}", "1"] = goal(f"job{n}", size)
    plain = (goal("whole", whole),)
    models, roles = with_plans(plain, load)
    assert models[:1] == plain, "whole models have been weighed before"
    if len(models) > 1:
        assert document(models, roles) <= MAX_DOCUMENT_BYTES
    named = {g.model for g in models[1:]}
    assert {r.model for r in roles} <= named, "a stage without its model is none"
    kept = {(r.plan, r.epoch) for r in roles}
    serving = {(r.plan, r.epoch) for r in load.roles}
    if not serving <= kept:
        assert kept <= serving, "those that take over go first"
        assert not any(name.startswith("job") for name in named), "then what is measured"
    if not kept:
        assert named <= {f"job{n}" for n in range(jobs)}
    if document((*plain, *load.models.values()), (*load.roles, *load.ahead)) <= 8000:
        assert len(roles) == len(load.roles) + len(load.ahead)
        assert len(models) == 1 + len(load.models)


def test_epochs_in_use_are_kept_whatever_their_number() -> None:
    load = Load(models={("m", "1"): goal("m", 0)})
    load.roles = [role("old", 2000, "m", 900)]
    load.ahead = [role("new", n, "m", 900) for n in range(3, 14)]
    _, roles = with_plans((), load)
    assert ("old", 2000) in {(r.plan, r.epoch) for r in roles}
    assert 1 < len(roles) < 12


def test_a_device_without_plans() -> None:
    assert with_plans((goal("cat"),), None) == ((goal("cat"),), ())
