"""Names on Azure ML, and which change may begin next."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.azureml import plan
from shoal_controlplane.offload.azureml.plan import Deployed, Goal, Observed
from shoal_controlplane.offload.target import CloudModel, Fault, TargetError
from shoal_shared.signature import ModelSignature, TensorSpec

AZURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def deployed(
    version: str = "1", digest: str = ONE, state: str = plan.SUCCEEDED, instances: int = 1
) -> Deployed:
    name = plan.deployment_name(version, digest)
    return Deployed(name, version, digest, state, instances)


def seen(*deployments: Deployed, traffic: Deployed | None = None) -> Observed:
    shares = {} if traffic is None else {traffic.name: 100}
    return Observed(plan.SUCCEEDED, "https://e.example/score", shares, deployments)


@given(NAMES, NAMES)
def test_names_are_what_azure_allows(model: str, version: str) -> None:
    assert AZURE_NAME.fullmatch(plan.endpoint_name("shoal", "s/g/w", model))
    assert AZURE_NAME.fullmatch(plan.deployment_name(version, ONE))


@given(NAMES, NAMES)
def test_different_models_have_different_names(one: str, other: str) -> None:
    same = plan.endpoint_name("shoal", "w", one) == plan.endpoint_name("shoal", "w", other)
    assert same == (one == other)


def test_the_workspace_is_part_of_the_name() -> None:
    names = {plan.endpoint_name("shoal", workspace, "m") for workspace in ("a", "b", "A")}
    assert len(names) == 2


def test_nothing_wanted_is_nothing_to_do() -> None:
    assert plan.next_step(Observed(), {}, {"1"}) is None


def test_the_endpoint_comes_first_even_with_no_replicas() -> None:
    assert plan.next_step(Observed(), {"1": Goal(ONE, 0)}, set()) == plan.CreateEndpoint()
    assert plan.next_step(seen(), {"1": Goal(ONE, 0, True)}, set()) is None


@pytest.mark.parametrize("state", sorted(plan.BUSY))
def test_one_change_of_the_endpoint_at_a_time(state: str) -> None:
    there = replace(seen(), state=state)
    assert plan.next_step(there, {"1": Goal(ONE, 1, True)}, set()) == plan.Wait()


def test_a_model_is_registered_before_it_is_needed() -> None:
    assert plan.next_step(seen(), {"1": Goal(ONE, 0)}, set()) == plan.Wait()


def test_a_deployment_waits_for_its_model() -> None:
    assert plan.next_step(seen(), {"1": Goal(ONE, 2)}, set()) == plan.Wait()
    step = plan.next_step(seen(), {"1": Goal(ONE, 2, True)}, set())
    assert step == plan.PutDeployment(plan.deployment_name("1", ONE), "1", 2, new=True)


def test_a_new_deployment_gets_traffic_once_it_is_healthy_and_then_the_old_one_goes() -> None:
    goals = {"1": Goal(TWO, 1, True)}
    old, new = deployed(), deployed(digest=TWO)
    young = replace(new, state="Creating")
    assert plan.next_step(seen(old, young, traffic=old), goals, set()) == plan.Wait()
    step = plan.next_step(seen(old, new, traffic=old), goals, set())
    assert step == plan.SetTraffic({new.name: 100})
    step = plan.next_step(seen(old, new, traffic=new), goals, set())
    assert step == plan.DeleteDeployment(old.name)
    assert plan.next_step(seen(new, traffic=new), goals, set()) is None


def test_another_version_keeps_its_traffic() -> None:
    one, two = deployed(), deployed("2", TWO)
    goals = {"1": Goal(ONE, 1, True), "2": Goal(TWO, 1, True)}
    assert plan.next_step(seen(one, two, traffic=one), goals, set()) is None


def test_as_many_as_are_found() -> None:
    there = deployed(instances=3)
    assert plan.next_step(seen(there, traffic=there), {"1": Goal(ONE, None, True)}, set()) is None
    step = plan.next_step(seen(there, traffic=there), {"1": Goal(TWO, None, True)}, set())
    assert isinstance(step, plan.PutDeployment)
    assert step.instances == 3


def test_another_number_of_instances() -> None:
    there = deployed()
    step = plan.next_step(seen(there, traffic=there), {"1": Goal(ONE, 2, True)}, set())
    assert step == plan.PutDeployment(there.name, "1", 2, new=False)


def test_to_zero_the_traffic_goes_before_the_deployment() -> None:
    there, goals = deployed(), {"1": Goal(ONE, 0, True)}
    assert plan.next_step(seen(there, traffic=there), goals, set()) == plan.SetTraffic({})
    assert plan.next_step(seen(there), goals, set()) == plan.DeleteDeployment(there.name)
    going = replace(there, state="Deleting")
    assert plan.next_step(seen(going), goals, set()) == plan.Wait()


def test_traffic_of_what_goes_falls_to_another_healthy_version() -> None:
    one, two = deployed(), deployed("2", TWO)
    step = plan.next_step(seen(one, two, traffic=one), {"2": Goal(TWO, 1, True)}, {"1"})
    assert step == plan.SetTraffic({two.name: 100})


def test_traffic_of_others_still_adds_up() -> None:
    one, foreign = deployed(), Deployed("blue", "", "", plan.SUCCEEDED, 1)
    there = replace(seen(one, foreign), traffic={one.name: 10, "blue": 90})
    assert plan.next_step(there, {}, {"1"}) == plan.SetTraffic({"blue": 100})
    there = replace(seen(one, foreign), traffic={"blue": 100})
    assert plan.next_step(there, {"1": Goal(ONE, 1, True)}, set()) is None


def test_the_last_version_takes_the_endpoint_with_it() -> None:
    there = deployed()
    assert plan.next_step(seen(there, traffic=there), {}, {"1"}) == plan.DeleteEndpoint()
    assert plan.next_step(seen(there, deployed("2")), {}, {"1"}) == plan.DeleteDeployment(
        there.name
    )


def test_what_failed_is_tried_again_only_when_asked() -> None:
    failed, goals = deployed(state="Failed"), {"1": Goal(ONE, 1, True)}
    assert plan.next_step(seen(failed), goals, set()) == plan.Stuck(failed.name)
    again = plan.PutDeployment(failed.name, "1", 1, new=False)
    assert plan.next_step(seen(failed), goals, set(), retry=True) == again
    endpoint = replace(seen(), state="Failed")
    assert plan.next_step(endpoint, goals, set()) == plan.Stuck()
    assert plan.next_step(endpoint, goals, set(), retry=True) == plan.CreateEndpoint()


def test_one_version_does_not_wait_for_another() -> None:
    goals = {"1": Goal(ONE, 1, True), "2": Goal(TWO, 1, True)}
    for state in ("Creating", "Failed"):
        step = plan.next_step(seen(deployed(state=state)), goals, set())
        assert isinstance(step, plan.PutDeployment)
        assert step.version == "2"


def test_the_predecessor_answers_until_its_successor_is_healthy() -> None:
    old, young = deployed(), deployed(digest=TWO, state="Creating")
    assert plan.serving(seen(old, young), "1", TWO) == old
    new = replace(young, state=plan.SUCCEEDED)
    assert plan.serving(seen(old, new), "1", TWO) == new


def test_what_gets_traffic_answers_while_it_changes() -> None:
    for state, answers in (("Updating", True), ("Failed", True), ("Deleting", False)):
        there = deployed(state=state)
        found = plan.serving(seen(there, traffic=there), "1", ONE)
        assert (found == there) is answers
        assert plan.serving(seen(there), "1", ONE) is None


STATES = st.sampled_from(["Creating", "Updating", "Deleting", "Failed", plan.SUCCEEDED])


@given(st.data())
def test_from_anywhere_it_ends_as_wanted(data: st.DataObject) -> None:
    """A model of Azure carries out each step at once; what is busy settles."""
    kinds = [(v, d) for v in ("1", "2") for d in (ONE, TWO)]
    there = [
        deployed(v, d, data.draw(STATES), data.draw(st.integers(1, 3)))
        for v, d in data.draw(st.lists(st.sampled_from(kinds), unique=True))
    ]
    healthy = [d for d in there if d.state == plan.SUCCEEDED]
    holder = data.draw(st.sampled_from(healthy)) if healthy else None
    now = seen(*there, traffic=holder) if data.draw(st.booleans()) or there else Observed()
    goals = {
        version: Goal(data.draw(st.sampled_from([ONE, TWO])), data.draw(st.integers(0, 3)), True)
        for version in data.draw(st.sets(st.sampled_from(["1", "2"])))
    }
    gone = {"1", "2"} - goals.keys()
    for _ in range(40):
        step = plan.next_step(now, goals, gone, retry=True)
        if step is None:
            break
        now = carried_out(now, step)
    else:
        pytest.fail(f"never done: {now}")
    assert {d.version: d.instances for d in now.deployments} == {
        version: goal.replicas for version, goal in goals.items() if goal.replicas
    }
    assert sum(now.traffic.values()) == (100 if now.deployments else 0)
    assert bool(now.state) == bool(goals)


def carried_out(now: Observed, step: plan.Step) -> Observed:
    by_name = {d.name: d for d in now.deployments}
    match step:
        case plan.CreateEndpoint():
            return replace(now, state=plan.SUCCEEDED)
        case plan.DeleteEndpoint():
            return Observed()
        case plan.SetTraffic(traffic):
            assert sum(traffic.values()) in (0, 100)
            assert all(by_name[n].state == plan.SUCCEEDED for n in traffic)
            return replace(now, traffic=traffic)
        case plan.DeleteDeployment(name):
            assert not now.traffic.get(name)
            del by_name[name]
        case plan.PutDeployment(name, version, instances, new):
            assert new == (name not in by_name)
            digest = ONE if name == plan.deployment_name(version, ONE) else TWO
            by_name[name] = Deployed(name, version, digest, plan.SUCCEEDED, instances)
        case plan.Wait():
            settled = [d for d in now.deployments if d.state != "Deleting"]
            assert any(d.busy for d in now.deployments)
            by_name = {d.name: replace(d, state=plan.SUCCEEDED) if d.busy else d for d in settled}
        case _:
            pytest.fail(f"nothing can be done: {step}")
    return replace(now, deployments=tuple(by_name.values()))


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def model(*specs: TensorSpec, max_batch: int = 8) -> CloudModel:
    signature = ModelSignature(inputs=specs[:1], outputs=specs[1:])
    return CloudModel("Net_1.x", "1", "onnx", Path("x"), ONE, "", signature, max_batch)


def test_triton_is_told_about_batches() -> None:
    config = plan.triton_config(model(spec("a", -1, 3, 224), spec("y", -1, 10, datatype="INT64")))
    assert 'name: "Net_1.x"' in config
    assert "max_batch_size: 8" in config
    assert '{ name: "a" data_type: TYPE_FP32 dims: [ 3, 224 ] }' in config
    assert '{ name: "y" data_type: TYPE_INT64 dims: [ 10 ] }' in config
    assert "dynamic_batching" in config


@pytest.mark.parametrize(
    "unbatched",
    [
        model(spec("a", 1, 3), spec("y", 1, 10)),
        model(spec("a", -1), spec("y", -1, 10)),
        model(spec("a", -1, 3), spec("y", -1, 10), max_batch=0),
    ],
)
def test_triton_leaves_other_models_whole(unbatched: CloudModel) -> None:
    config = plan.triton_config(unbatched)
    assert "max_batch_size: 0" in config
    dims = ", ".join(str(d) for d in unbatched.signature.inputs[0].shape)
    assert f"dims: [ {dims} ]" in config
    assert "dynamic_batching" not in config


def test_names_of_tensors_cannot_break_out() -> None:
    config = plan.triton_config(model(spec('a" }\n\\é', -1, 3), spec("y", -1, 10)))
    assert '"a\\042 }\\012\\134\\303\\251"' in config


@pytest.mark.parametrize("wrong", [spec("a"), spec("a", -1, 3, datatype="FP8")])
def test_what_triton_cannot_serve_is_refused_by_name(wrong: TensorSpec) -> None:
    with pytest.raises(TargetError, match="'a'") as caught:
        plan.triton_config(model(wrong, spec("y", -1, 10)))
    assert caught.value.fault is Fault.UNSUPPORTED
