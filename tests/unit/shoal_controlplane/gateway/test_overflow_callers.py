"""Who asks and how much it matters, as HTTP and gRPC carry it, and refusals on the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from support import asgi
from support.gateway import World, model
from support.virtual_time import virtual_time

from shoal_controlplane.gateway.admission import Admission, Ask, Priority
from shoal_controlplane.gateway.clouds import NoClouds
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.grpc.servicer import _caller
from shoal_controlplane.gateway.http import InferenceApp
from shoal_controlplane.gateway.overflow import Overflow
from shoal_controlplane.gateway.pressure import Pressures
from shoal_controlplane.gateway.service import Gateway

X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


class Site(World):
    """`cat` behind HTTP; what admission is asked is kept."""

    def __init__(self) -> None:
        super().__init__("d1")
        self.asks: list[Ask] = []
        admission = Admission()
        decide = admission.decide

        def spy(ask: Ask, *rest: Any) -> Any:
            self.asks.append(ask)
            return decide(ask, *rest)

        admission.decide = spy  # type: ignore[method-assign]
        clouds = NoClouds()
        pressures = Pressures(self.router, self.table.all, clouds, self.clock)
        self.gateway = Gateway(
            self.table,
            self.dispatcher,
            self.repository,
            clock=self.clock,
            overflow=Overflow(self.dispatcher, admission, clouds, pressures, self.clock),
        )
        self.table.publish([model(replicas=self.replicas, slo_ms=100.0)])
        self.link.on_sent = self.link.answer

    async def post(self, parameters: Any = None, peer: Any = None, **headers: str) -> asgi.Response:
        app = InferenceApp(self.gateway)
        body = json.dumps({"inputs": [X], "parameters": parameters or {}}).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "client": peer}, receive, send)

        response = await asgi.call(with_peer, "POST", "/v2/models/cat/infer", body, headers=named)
        assert response is not None
        return response


@virtual_time
async def test_the_headers_say_who_and_how_urgent() -> None:
    site = Site()
    response = await site.post({"priority": 3}, shoal_priority="Interactive", shoal_client="cam-7")
    assert response.status == 200
    assert (site.asks[0].priority, site.asks[0].client) == (Priority.INTERACTIVE, "cam-7")
    assert site.asks[0].left_ms == pytest.approx(100.0)


@virtual_time
async def test_else_the_parameter_and_the_address() -> None:
    site = Site()
    await site.post({"priority": 3}, peer=("10.0.0.9", 5123))
    await site.post()
    assert [(a.priority, a.client) for a in site.asks] == [
        (Priority.BULK, "10.0.0.9"),
        (Priority.STANDARD, ""),
    ]


@pytest.mark.parametrize(
    ("headers", "parameters", "words"),
    [
        ({"shoal_priority": "urgent"}, {}, "use interactive, standard or bulk"),
        ({"shoal_priority": ""}, {}, "use interactive, standard or bulk"),
        ({}, {"priority": 4}, "'priority' must be 0 (standard)"),
        ({}, {"priority": "1"}, "'priority' must be 0 (standard)"),
        ({"shoal_client": "a b"}, {}, "the name in Shoal-Client 'a b' is not valid"),
        ({"shoal_client": "x" * 5000}, {}, "1 to 64 letters"),
    ],
)
def test_wrong_ones(headers: dict[str, str], parameters: Any, words: str) -> None:
    @virtual_time
    async def scenario() -> None:
        site = Site()
        response = await site.post(parameters, **headers)
        assert response.status == 400
        assert words in response.error
        assert len(response.error) < 300
        assert site.asks == []

    scenario()


@virtual_time
async def test_a_refusal_says_when_to_come_back() -> None:
    site = Site()
    for _ in range(300):
        site.router.pick("cat:1", site.replicas, 1, site.clock())
    response = await site.post(shoal_priority="bulk")
    assert response.status == 429
    assert response.error.startswith("cat:1 is full: devices would answer 95 of 100")
    assert int(response.headers["retry-after"]) >= 1
    assert site.link.sent == []
    assert site.gateway.statistics.of("cat", "1").shed == 1


def called(peer: str, metadata: Sequence[tuple[str, str]] = ()) -> Any:
    return _caller(SimpleNamespace(peer=lambda: peer, invocation_metadata=lambda: metadata))


def test_grpc_metadata_and_peers() -> None:
    both = called("ipv4:1.2.3.4:5", [("shoal-priority", "bulk"), ("shoal-client", "cam-7")])
    assert both == {"priority": "bulk", "client": "cam-7"}
    assert called("ipv4:1.2.3.4:5") == {"priority": None, "client": "1.2.3.4"}
    assert called("ipv6:[::1]:5")["client"] == "[::1]"
    assert called("unix:")["client"] == "unix"
    with pytest.raises(GatewayError, match="the name in shoal-client") as caught:
        called("ipv4:1.2.3.4:5", [("shoal-client", "../..")])
    assert caught.value.status is GatewayStatus.INVALID
