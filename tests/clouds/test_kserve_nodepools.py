"""Node pools of AKS through Azure's own client, against a loopback server that checks what it
gets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from clouds.rig import only

from shoal_controlplane.offload.kserve import nodepools
from shoal_controlplane.offload.kserve.nodepools import NodePool, PoolState
from shoal_controlplane.offload.target import Fault, TargetError

pytest.importorskip(
    "azure.mgmt.containerservice", reason="needs shoal[kserve]: run `make test-clouds`"
)

from clouds.rigs.aks import OPTIONS, TOKEN, Azure, Credential, opened

pytestmark = [only("kserve"), pytest.mark.timeout(60)]


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Azure]:
    server = Azure(tmp_path)
    yield server
    server.close()
    assert not server.wrong


@pytest_asyncio.fixture
async def pool(azure: Azure) -> AsyncIterator[NodePool]:
    made = opened(azure.url, azure.certificate)
    yield made
    await made.close()


async def test_the_pool_is_read(pool: NodePool) -> None:
    assert await pool.state() == PoolState(1, None, None, "Succeeded")
    assert await pool.explain() == "node pool gpu has 1 of at most 4 nodes (Succeeded)"


async def test_it_grows_and_shrinks(azure: Azure, pool: NodePool) -> None:
    await pool.resize(3)
    assert azure.changes[-1]["count"] == 3
    # What the operator set stays.
    assert azure.changes[-1]["nodeTaints"] == ["sku=gpu:NoSchedule"]
    assert await pool.state() == PoolState(3, None, None, "Scaling")
    await pool.resize(0)
    assert azure.properties["count"] == 0


async def test_nothing_is_asked_where_nothing_changes(azure: Azure, pool: NodePool) -> None:
    await pool.resize(1)
    assert not azure.changes


async def test_an_autoscaler_gets_its_limit(azure: Azure, pool: NodePool) -> None:
    azure.properties |= {"enableAutoScaling": True, "minCount": 0, "maxCount": 2}
    assert await pool.state() == PoolState(1, 0, 2, "Succeeded")
    await pool.resize(2)
    assert not azure.changes
    await pool.resize(4)
    assert azure.properties["maxCount"] == 4
    assert azure.properties["count"] == 1


@pytest.mark.parametrize(("replicas", "nodes"), [(0, 0), (1, 1), (2, 1), (3, 2), (8, 4)])
def test_nodes_follow_from_replicas(replicas: int, nodes: int) -> None:
    assert NodePool(OPTIONS).nodes_for(replicas) == nodes


def test_more_than_the_operator_allows_is_a_quota() -> None:
    with pytest.raises(TargetError, match="may have 4") as caught:
        NodePool(OPTIONS).nodes_for(9)
    assert caught.value.fault is Fault.QUOTA


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (400, "InsufficientVCPUQuota", Fault.QUOTA),
        (409, "QuotaExceeded", Fault.QUOTA),
        (400, "SubnetIsFull", Fault.QUOTA),
        (409, "OperationNotAllowed", Fault.CONFLICT),
        (403, "AuthorizationFailed", Fault.CREDENTIALS),
        (429, "TooManyRequests", Fault.THROTTLED),
        (500, "InternalServerError", Fault.BROKEN),
    ],
)
async def test_what_azure_refuses(
    azure: Azure, pool: NodePool, status: int, code: str, fault: Fault
) -> None:
    azure.fails = (status, code, {"retry-after": "7"} if status == 429 else {})
    with pytest.raises(TargetError, match=code) as caught:
        await pool.resize(2)
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)
    if status == 429:
        assert caught.value.retry_after_s == 7


async def test_no_token_is_told_without_the_secret(azure: Azure) -> None:
    pool = opened(azure.url, azure.certificate, Credential(works=False))
    with pytest.raises(TargetError) as caught:
        await pool.state()
    assert caught.value.fault is Fault.CREDENTIALS
    assert TOKEN not in str(caught.value)
    await pool.close()


async def test_azure_is_gone(azure: Azure) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    pool = opened(url, azure.certificate)
    with pytest.raises(TargetError) as caught:
        await pool.state()
    assert caught.value.fault is Fault.UNREACHABLE
    assert "cannot be reached" in await pool.explain()
    await pool.close()


async def test_azure_says_nothing(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodepools, "CALL_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        pool = opened(f"https://127.0.0.1:{silent.getsockname()[1]}", azure.certificate)
        with pytest.raises(TargetError) as caught:
            await pool.state()
        assert caught.value.fault is Fault.TIMEOUT
        await pool.close()
