"""Node pools of AKS: as many nodes as the replicas need, within the operator's limits.

Azure's SDK is imported when it is first used: clusters without such a pool do without it.
Credentials are those of `azure.identity.DefaultAzureCredential`: a managed identity, the
environment or a workload identity.

Source: azure-mgmt-containerservice, `AgentPoolsOperations`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal_controlplane.offload.kserve.options import AksOptions
from shoal_controlplane.offload.target import Fault, TargetError

T = TypeVar("T")

CALL_S = 60.0
_CONNECT_S = 5
_READ_S = 20
_LONGEST = 300
# Codes that mean that Azure has no more of what a node needs, beside all with "quota" in them.
_FULL = {
    "allocationfailed",
    "zonalallocationfailed",
    "overconstrainedallocationrequest",
    "overconstrainedzonalallocationrequest",
    "skunotavailable",
    "subnetisfull",
    "insufficientsubnetsize",
}


@dataclass(frozen=True, slots=True)
class PoolState:
    """A node pool: nodes it has, limits of its autoscaler (None without one), and what Azure does
    with it, such as `Succeeded`, `Scaling` or `Failed`."""

    count: int
    minimum: int | None
    maximum: int | None
    provisioning: str


class NodePool:
    """One node pool. `credential` and `client_options` replace the defaults of Azure's client."""

    def __init__(
        self,
        options: AksOptions,
        credential: Any = None,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = options
        self._credential = credential
        self._client_options = dict(client_options or {})
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="aks")
        self._lock = threading.Lock()
        self._client: Any = None

    def nodes_for(self, replicas: int) -> int:
        """How many nodes so many replicas need. Raises `TargetError` QUOTA where the pool may not
        have so many."""
        options = self._options
        nodes = max(options.min_nodes, -(-replicas // options.replicas_per_node))
        if nodes > options.max_nodes:
            raise TargetError(
                Fault.QUOTA,
                f"{replicas} replicas need {nodes} nodes, but node pool {options.node_pool} may "
                f"have {options.max_nodes}",
            )
        return nodes

    async def state(self) -> PoolState:
        """The pool as it is. Raises `TargetError`."""
        return _state(await self._run(self._get))

    async def resize(self, nodes: int) -> None:
        """Have the pool get `nodes` nodes; with an autoscaler, allow it so many. Returns when
        Azure accepted it: `state` tells the rest. Raises `TargetError`."""
        await self._run(lambda: self._resize(nodes))

    async def explain(self) -> str:
        """A phrase about the pool for someone who waits for a node."""
        try:
            state = await self.state()
        except TargetError as error:
            return f"node pool {self._options.node_pool}: {error}"
        most = self._options.max_nodes if state.maximum is None else state.maximum
        return (
            f"node pool {self._options.node_pool} has {state.count} of at most {most} nodes "
            f"({state.provisioning})"
        )

    async def close(self) -> None:
        """End sessions and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def _get(self) -> Any:
        options = self._options
        return self._connected().agent_pools.get(
            options.resource_group, options.cluster, options.node_pool
        )

    def _resize(self, nodes: int) -> None:
        options, pool = self._options, self._get()
        state = _state(pool)
        if state.maximum is None:
            if state.count == nodes:
                return
            pool.count = nodes
        else:
            if state.maximum >= nodes:
                return
            pool.max_count = nodes
        # What is left out stays as it is; Azure refuses a change of what it says itself.
        self._connected().agent_pools.begin_create_or_update(
            options.resource_group, options.cluster, options.node_pool, pool, polling=False
        )

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _connect(
                    self._options.subscription, self._credential, self._client_options
                )
            return self._client

    async def _run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_S):
                return await loop.run_in_executor(self._threads, _translated, work)
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, "Azure does not answer") from None


def _connect(subscription: str, credential: Any, options: Mapping[str, Any]) -> Any:
    try:
        from azure.mgmt.containerservice import ContainerServiceClient
    except ImportError as error:
        raise TargetError(
            Fault.UNSUPPORTED,
            f"node pools of AKS need packages that are not installed here ({error.name}): "
            "pip install 'shoal[kserve]'",
        ) from None
    if credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    defaults = {"retry_total": 1, "connection_timeout": _CONNECT_S, "read_timeout": _READ_S}
    return ContainerServiceClient(credential, subscription, **{**defaults, **options})


def _state(pool: Any) -> PoolState:
    scales = bool(pool.enable_auto_scaling)
    return PoolState(
        count=int(pool.count or 0),
        minimum=pool.min_count if scales else None,
        maximum=pool.max_count if scales else None,
        provisioning=str(pool.provisioning_state or "unknown"),
    )


def _translated(work: Callable[[], T]) -> T:
    """The result of `work`; what Azure's client raises becomes a `TargetError`."""
    try:
        from azure.core import exceptions
    except ImportError:
        return work()  # says itself what is missing
    try:
        return work()
    except exceptions.ClientAuthenticationError:
        # What it says may repeat the credentials.
        raise TargetError(Fault.CREDENTIALS, "Azure refuses the credentials") from None
    except (exceptions.ServiceRequestTimeoutError, exceptions.ServiceResponseTimeoutError):
        raise TargetError(Fault.TIMEOUT, "Azure does not answer") from None
    except (exceptions.ServiceRequestError, exceptions.ServiceResponseError) as error:
        raise TargetError(
            Fault.UNREACHABLE, f"Azure cannot be reached: {_sentence(error)}"
        ) from None
    except exceptions.HttpResponseError as error:
        raise _refusal(error) from None
    except exceptions.AzureError as error:
        raise TargetError(Fault.BROKEN, f"Azure: {_sentence(error)}") from None


def _refusal(error: Any) -> TargetError:
    status = int(error.status_code or 0)
    code = str(getattr(error.error, "code", "") or "")
    said = str(getattr(error.error, "message", "") or error.reason or "")
    text = f"Azure answered {status} {code}: {' '.join(said.split())}"[:_LONGEST]
    if "quota" in code.lower() or code.lower() in _FULL:
        return TargetError(Fault.QUOTA, text)
    if status == 403:
        return TargetError(Fault.CREDENTIALS, text)
    if status == 409:
        return TargetError(Fault.CONFLICT, text, retry_after_s=30.0)
    if status == 429:
        retry = error.response.headers.get("Retry-After", "") if error.response else ""
        after_s = float(retry) if retry.isdecimal() and len(retry) < 6 else None
        return TargetError(Fault.THROTTLED, text, after_s)
    return TargetError(Fault.BROKEN, text)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
