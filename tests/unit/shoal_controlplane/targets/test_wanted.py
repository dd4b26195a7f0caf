"""What should be on which target. Pure."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from support.fleet import model_version

from shoal_controlplane.gateway.table import ServedModel
from shoal_controlplane.targets.target import Manual
from shoal_controlplane.targets.wanted import batches, pins, targets_by_model


def served(version: str, *targets: str) -> ServedModel:
    model = model_version()
    return ServedModel("cat", version, model.platform, model.signature, 8, offload=targets)


def test_targets_of_deployments_come_first_and_each_once() -> None:
    manual = {
        ("ray", ("cat", "1")): Manual(placed=True),
        ("aks", ("cat", "1")): Manual(replicas=2),
        ("aks", ("dog", "3")): Manual(placed=True, replicas=0),
    }
    models = [served("1", "tpu", "ray"), served("2")]
    assert targets_by_model(models, manual) == {
        ("cat", "1"): ("tpu", "ray", "aks"),
        ("dog", "3"): ("aks",),
    }
    assert pins(manual) == {("aks", ("cat", "1")): 2, ("aks", ("dog", "3")): 0}


@given(st.integers(0, 5000))
def test_batches_are_powers_of_two_that_the_model_takes(max_batch: int) -> None:
    found = batches(max_batch)
    assert found[0] == 1
    assert all(b == 2 * a for a, b in pairwise(found))
    assert found[-1] <= max(1, max_batch) and found[-1] <= 32
    assert 2 * found[-1] > min(max(1, max_batch), 32)
