"""A flood counts who answered, and whether rightly."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from shoal_shared import oip
from shoal_simulators.demo.flood import Flood, Question, Tally

QUESTION = Question(
    "m", {"x": np.ones((1, 2), np.float32)}, {"y": np.array([[2.0, 2.0]], np.float32)}
)


def answer(value: float, **parameters: str) -> httpx.Response:
    outputs = [oip.Tensor("y", "FP32", np.full((1, 2), value, np.float32))]
    buffers, length = oip.encode_reply(oip.InferReply(outputs, "m", "1", None, dict(parameters)))
    return httpx.Response(200, content=b"".join(buffers), headers={oip.HEADER_LENGTH: str(length)})


ANSWERS = {
    "device": lambda: answer(2.0, device="board-1"),
    "target": lambda: answer(2.0, target="cloud"),
    "wrong": lambda: answer(2.1, device="board-1"),
    "refused": lambda: httpx.Response(429, content=json.dumps({"error": "full"})),
    "failed": lambda: httpx.Response(500, content=b"oh"),
}


@pytest.fixture
def flood(monkeypatch: pytest.MonkeyPatch) -> Flood:
    """Of a gateway that answers in each way by turns."""
    ways = list(ANSWERS)
    count = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal count
        asked = oip.decode_request(request.content, int(request.headers[oip.HEADER_LENGTH]))
        assert asked.inputs[0].data.tolist() == [[1.0, 1.0]]
        assert request.url.path == "/v2/models/m/infer"
        count += 1
        return ANSWERS[ways[count % len(ways)]]()

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(handle))

    monkeypatch.setattr(Flood, "_client", staticmethod(client))
    return Flood("http://gateway", QUESTION)


def check(tally: Tally) -> None:
    each = tally.refused
    assert tally.total >= len(ANSWERS)
    assert tally.answered.keys() == {"board-1", "cloud"}
    assert all(abs(n - each) <= 1 for n in (tally.wrong, *tally.answered.values()))
    assert abs(tally.failures["500: oh"] - each) <= 1
    assert len(tally.took_s) == tally.answered.total()


async def test_clients_ask_again_as_soon_as_they_have_an_answer(flood: Flood) -> None:
    check(await flood.at_once(3, 0.3))


async def test_a_rate_holds_whatever_comes_of_the_requests(flood: Flood) -> None:
    told: list[int] = []
    tally = await flood.at_rate(100, 0.5, lambda second, _: told.append(second))
    check(tally)
    assert tally.total <= 50
    assert told == []
