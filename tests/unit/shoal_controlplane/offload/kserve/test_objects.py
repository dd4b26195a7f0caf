"""Kubernetes objects of a model."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.kserve import objects
from shoal_controlplane.offload.kserve.options import options_of
from shoal_controlplane.offload.target import CloudModel
from shoal_shared.signature import ModelSignature, TensorSpec

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
MODEL = CloudModel(
    name="Tiny_1.x-",
    version="1.0",
    format="onnx",
    artifact=Path("/models/tiny"),
    digest="sha256:" + "a" * 64,
    url="https://plane.example.com/artifacts/sha256/" + "a" * 64,
    signature=ModelSignature(inputs=(SPEC,), outputs=(SPEC,)),
    max_batch=8,
)
OPTIONS = options_of({"image": "registry.example.com/x:1"})

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(NAMES, NAMES)
def test_any_model_has_a_name_that_dns_takes(name: str, version: str) -> None:
    made = objects.object_name((name, version))
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", made)
    assert len(made) <= 40
    assert made == objects.object_name((name, version))


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_two_models_have_two_names(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (objects.object_name(one) == objects.object_name(other)) == (one == other)


def test_pods_have_no_rights_and_no_root() -> None:
    pod = objects.deployment(MODEL, OPTIONS, 1)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    inside = pod["containers"][0]["securityContext"]
    assert inside["readOnlyRootFilesystem"] is True
    assert inside["allowPrivilegeEscalation"] is False
    assert inside["capabilities"] == {"drop": ["ALL"]}


def test_the_token_is_in_the_secret_only() -> None:
    secret = objects.secret(MODEL)
    token = secret["stringData"][objects.TOKEN]
    assert len(token) >= 32
    assert token != objects.secret(MODEL)["stringData"][objects.TOKEN]
    for made in (
        objects.deployment(MODEL, OPTIONS, 1),
        objects.service(MODEL, OPTIONS),
        objects.inference_service(MODEL, OPTIONS, 1),
    ):
        text = json.dumps(made)
        assert token not in text
        assert '"value":' not in text


def test_load_balancers_stay_inside_unless_told() -> None:
    key = "service.beta.kubernetes.io/azure-load-balancer-internal"
    assert objects.service(MODEL, OPTIONS)["metadata"]["annotations"][key] == "true"
    public = objects.service(MODEL, options_of({"internal": False}))
    assert key not in public["metadata"]["annotations"]


def test_devices_and_places_are_asked_for() -> None:
    options = options_of(
        {
            "gpu": 2,
            "cpu": "2",
            "node_selector": {"agentpool": "gpu"},
            "tolerations": ["sku=gpu:NoSchedule", "dedicated:NoExecute"],
        }
    )
    pod = objects.deployment(MODEL, options, 1)["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"agentpool": "gpu"}
    assert pod["tolerations"] == [
        {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "--threads=2" in pod["containers"][0]["args"]


def test_an_inference_service_says_what_kserve_needs() -> None:
    predictor = objects.inference_service(MODEL, OPTIONS, 2)["spec"]["predictor"]
    assert predictor["model"]["modelFormat"] == {"name": "onnx"}
    assert predictor["model"]["protocolVersion"] == "v2"
    assert predictor["model"]["storageUri"] == MODEL.url
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 2)


def test_replicas_are_written_and_read() -> None:
    for replicas in (0, 1, 7):
        for made in (
            objects.deployment(MODEL, OPTIONS, replicas),
            objects.inference_service(MODEL, OPTIONS, replicas),
        ):
            assert objects.replicas_of(made) == replicas


def test_only_ours_is_ours() -> None:
    made = objects.deployment(MODEL, OPTIONS, 0)
    assert objects.is_ours(made, MODEL.key)
    assert not objects.is_ours(made, ("other", "1.0"))
    assert not objects.is_ours({"metadata": {}}, MODEL.key)
    assert not objects.is_ours({"metadata": {"labels": None, "annotations": None}}, MODEL.key)


def test_nothing_changes_where_nothing_changed() -> None:
    for made in (objects.deployment(MODEL, OPTIONS, 3), objects.service(MODEL, OPTIONS)):
        found = copy.deepcopy(made)
        found["metadata"] |= {"uid": "1", "resourceVersion": "7"}
        assert objects.updated(found, made) is None


def test_another_content_replaces_and_keeps_what_others_wrote() -> None:
    found = objects.deployment(MODEL, OPTIONS, 3)
    found["metadata"] |= {"uid": "1", "resourceVersion": "7"}
    found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "4"
    found["spec"]["revisionHistoryLimit"] = 5
    other = dataclasses.replace(MODEL, digest="sha256:" + "b" * 64)
    made = objects.updated(found, objects.deployment(other, OPTIONS, 3))
    assert made is not None
    assert made["metadata"]["resourceVersion"] == "7"
    assert made["metadata"]["annotations"][objects.DIGEST] == other.digest
    assert made["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "4"
    assert made["spec"]["revisionHistoryLimit"] == 5
    assert made["spec"]["replicas"] == 3
    args = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--digest={other.digest}" in args
