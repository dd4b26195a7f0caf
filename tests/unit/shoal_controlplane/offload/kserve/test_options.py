"""Options of targets of kind `kserve`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.kserve.options import check_options, options_of

AKS = {
    "subscription": "00000000-0000-0000-0000-000000000000",
    "resource_group": "fleet",
    "cluster": "aks-west",
    "node_pool": "gpu",
    "max_nodes": 4,
}


def test_nothing_said_is_enough() -> None:
    options = options_of({})
    assert (options.namespace, options.port, options.mode) == ("shoal", 8080, "auto")
    assert options.internal
    assert options.aks is None


def test_full_options_are_options_again() -> None:
    said = {
        "kubeconfig": "/etc/shoal/kubeconfig",
        "context": "west",
        "namespace": "fleet",
        "image": "registry.example.com/x:1",
        "endpoint": "https://{name}.{namespace}.example.com:{port}/",
        "cpu": "1500m",
        "gpu": 1,
        "node_selector": {"agentpool": "gpu"},
        "tolerations": ["sku=gpu:NoSchedule", "dedicated:NoExecute"],
        "aks": AKS,
    }
    full = check_options(said)
    json.dumps(full)
    assert check_options(full) == full
    assert full["aks"]["min_nodes"] == 0


def test_text_of_a_command_line_is_read() -> None:
    options = options_of({"port": "9000", "gpu": "2", "internal": "false"})
    assert (options.port, options.gpu, options.internal) == (9000, 2, False)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"moonbeam": 1}, "moonbeam"),
        ({"port": 80}, "port"),
        ({"port": "x"}, "port"),
        ({"namespace": "Upper"}, "namespace"),
        ({"namespace": "a/../b"}, "namespace"),
        ({"mode": "magic"}, "mode"),
        ({"image": "a b"}, "image"),
        ({"image": "--privileged"}, "image"),
        ({"cpu": "0"}, "cpu"),
        ({"cpu": "many"}, "cpu"),
        ({"memory": "1 GB"}, "memory"),
        ({"gpu": -1}, "gpu"),
        ({"kubeconfig": "relative"}, "kubeconfig"),
        ({"tolerations": ["x"]}, "tolerations"),
        ({"node_selector": {"a": 1}}, "node_selector"),
        ({"endpoint": "ftp://x"}, "endpoint"),
        ({"endpoint": "http://{host}"}, "endpoint"),
        ({"endpoint": "http://{name.__class__}"}, "endpoint"),
        ({"endpoint": "http://user@host"}, "endpoint"),
        ({"endpoint": "http://"}, "endpoint"),
        ({"endpoint": "http://h:99999"}, "endpoint"),
        ({"aks": {**AKS, "max_nodes": 0}}, "aks.max_nodes"),
        ({"aks": {**AKS, "min_nodes": 5}}, "aks"),
        ({"aks": {"cluster": "x"}}, "aks"),
        ({"aks": {**AKS, "resource_group": "a/b"}}, "aks.resource_group"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(said: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_options(said)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cpu", "threads"), [("500m", 1), ("1", 1), ("1500m", 1), ("2.5", 2), ("8", 8), (".5", 1)]
)
def test_threads_follow_from_cpus(cpu: str, threads: int) -> None:
    assert options_of({"cpu": cpu}).threads == threads


def test_an_endpoint_is_filled_in() -> None:
    options = options_of({"endpoint": "http://{name}.{namespace}:{port}/x/", "port": 9000})
    assert options.endpoint_of("m") == "http://m.shoal:9000/x"


@given(
    st.dictionaries(
        st.sampled_from(["port", "cpu", "endpoint", "tolerations", "aks", "node_selector", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.lists(st.text())
        | st.dictionaries(st.text(), st.text()),
    )
)
def test_anything_is_taken_or_refused_in_a_sentence(said: dict[str, Any]) -> None:
    try:
        full = check_options(said)
    except InvalidError as error:
        assert str(error)
    else:
        assert check_options(full) == full
