from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.fleet import MB, model_version, replica, reported, variant

from shoal_controlplane.deployments.deployment import Deployment
from shoal_controlplane.deployments.goals import files, model_goal, models_by_device, next_goal
from shoal_shared.messages import Desired, GoldenGoal

CAT = model_version("cat")


def deployment(name: str = "cat", **changes: object) -> Deployment:
    facts: dict[str, object] = {"model": "cat", "version": "1", "replicas": 1, "select": {}}
    return Deployment(name=name, created_at=0.0, **facts | changes)  # type: ignore[arg-type]


GOAL = model_goal(deployment(), CAT)


def test_max_batch_is_that_of_the_deployment_else_of_the_model_and_never_zero() -> None:
    assert GOAL.max_batch == 8
    assert model_goal(deployment(max_batch=2), CAT).max_batch == 2
    assert model_goal(deployment(), model_version(max_batch=0)).max_batch == 1
    assert model_goal(deployment(), model_version(max_batch=10**6)).max_batch == 4096


def test_deployments_that_share_a_model_version_make_one_goal() -> None:
    old, new = deployment("old", options={"a": 1}), deployment("new")
    other = deployment("other", version="2")
    found = models_by_device(
        [old, new, other],
        {"old": frozenset({"d1"}), "new": frozenset({"d1", "d2"}), "other": frozenset({"d1"})},
        {("cat", "1"): CAT, ("cat", "2"): model_version("cat", "2")},
    )
    assert [(m.deployment, m.version) for m in found["d1"]] == [("old", "1"), ("other", "2")]
    assert [m.deployment for m in found["d2"]] == ["new"]


def test_devices_are_told_of_all_files_and_of_what_is_required() -> None:
    golden = GoldenGoal(digest="sha256:" + "0" * 64, size=9, absolute=0.0, relative=0.01)
    model = model_version(variants=(variant("int8", target="qualcomm-soc57"),), golden=golden)
    goal = model_goal(deployment(require_accelerator=True), model)
    assert goal.require_accelerator
    assert goal.golden is golden
    [int8] = goal.variants
    assert (int8.name, int8.size, int8.target) == ("int8", 4 * MB, "qualcomm-soc57")
    assert goal.files == files(model)
    assert (GOAL.variants, GOAL.golden, GOAL.require_accelerator) == ((), None, False)


def test_an_accelerator_is_required_where_any_deployment_of_the_model_requires_one() -> None:
    strict = deployment("strict", require_accelerator=True, options={"a": 1})
    for order in ([deployment("lax"), strict], [strict, deployment("lax")]):
        both = {d.name: frozenset({"d1"}) for d in order} | {"lax": frozenset({"d1", "d2"})}
        found = models_by_device(order, both, {("cat", "1"): CAT})
        assert found["d1"][0].require_accelerator
        assert found["d1"][0].options == order[0].options
        assert not found["d2"][0].require_accelerator


def test_deployment_whose_model_is_gone_makes_no_goal() -> None:
    assert models_by_device([deployment()], {"cat": frozenset({"d1"})}, {}) == {}


def test_number_grows_only_with_the_content() -> None:
    current = Desired(goal=5, models=(GOAL,))
    assert next_goal(current, (GOAL,), reported(goal=5)) is None
    assert next_goal(current, (GOAL,), None) is None
    assert next_goal(current, (), None) == Desired(goal=6)


def test_device_that_saw_more_than_we_know_gets_past_it() -> None:
    current = Desired(goal=5, models=(GOAL,))
    assert next_goal(current, (GOAL,), reported(goal=9)) == Desired(goal=10, models=(GOAL,))
    assert next_goal(None, (), reported(replica(), goal=9)) == Desired(goal=10)


def test_device_with_nothing_to_do_gets_no_goal() -> None:
    assert next_goal(None, (), None) is None
    assert next_goal(None, (), reported(goal=9)) is None


def test_absurd_number_is_not_followed() -> None:
    current = Desired(goal=5, models=(GOAL,))
    assert next_goal(current, (GOAL,), reported(goal=2**63 - 1)) is None


@given(
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 2**63 - 1),
)
def test_a_new_number_is_above_both(
    number: int | None, had: bool, wants: bool, seen: int | None
) -> None:
    current = None if number is None else Desired(goal=number, models=(GOAL,) if had else ())
    models = (GOAL,) if wants else ()
    found = next_goal(current, models, None if seen is None else reported(goal=seen))
    if found is None:
        assert (current.models if current else ()) == models
    else:
        assert found.models == models
        assert found.goal > (number or 0)
        assert seen is None or seen > 2**53 or found.goal > seen
        assert found.goal <= 2**53 + 1
