"""Sends one question over and over and counts who answered, and whether rightly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
import numpy as np

from shoal_shared import oip
from shoal_shared.tensors import Array, datatype_of

TOLERANCE = 1e-3
"""Between the answers of different machines and runtimes."""

TIMEOUT_S = 30.0
TOO_MANY = 429


@dataclass(frozen=True)
class Question:
    """Inputs for a model, and the outputs that are right."""

    model: str
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass
class Tally:
    """What came of requests: answers by who gave them, refusals, wrong answers, failures; and the
    seconds that each answer took."""

    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    wrong: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.answered.total() + self.refused + self.wrong + self.failures.total()


class Flood:
    """A client of the gateway at `server` with one question."""

    def __init__(self, server: str, question: Question) -> None:
        tensors = [oip.Tensor(n, datatype_of(a), a) for n, a in question.inputs.items()]
        request = oip.InferRequest(tensors, parameters={"binary_data_output": True})
        buffers, length = oip.encode_request(request)
        self._body = b"".join(buffers)
        self._headers = {oip.HEADER_LENGTH: str(length)}
        self._url = f"{server}/v2/models/{question.model}/infer"
        self._expected = question.expected

    async def at_once(self, clients: int, seconds: float) -> Tally:
        """So many clients, each of which asks again as soon as it has an answer."""
        tally, end = Tally(), time.monotonic() + seconds

        async def ask_on(http: httpx.AsyncClient) -> None:
            while time.monotonic() < end:
                await self._ask(http, tally)

        async with self._client() as http:
            await asyncio.gather(*(ask_on(http) for _ in range(clients)))
        return tally

    async def at_rate(
        self, per_s: float, seconds: float, each_second: Callable[[int, Tally], None]
    ) -> Tally:
        """So many requests a second, whatever becomes of them."""
        tally, start = Tally(), time.monotonic()
        sent, told = 0, 0
        async with self._client() as http, asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - start) < seconds:
                while sent < per_s * elapsed:
                    group.create_task(self._ask(http, tally))
                    sent += 1
                if elapsed >= told + 1:
                    told += 1
                    each_second(told, tally)
                await asyncio.sleep(0.5 / per_s)
        return tally

    @staticmethod
    def _client() -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, trust_env=False)

    async def _ask(self, http: httpx.AsyncClient, tally: Tally) -> None:
        began = time.perf_counter()
        try:
            answer = await http.post(self._url, content=self._body, headers=self._headers)
        except httpx.HTTPError as error:
            tally.failures[f"{type(error).__name__}: {error}"] += 1
            return
        if answer.status_code == TOO_MANY:
            tally.refused += 1
            return
        if answer.status_code != httpx.codes.OK:
            tally.failures[f"{answer.status_code}: {answer.text[:200]}"] += 1
            return
        reply = oip.decode_reply(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
        if not self._right(reply):
            tally.wrong += 1
            return
        by = reply.parameters
        tally.answered[str(by.get("target") or by.get("device"))] += 1
        tally.took_s.append(time.perf_counter() - began)

    def _right(self, reply: oip.InferReply) -> bool:
        given = {tensor.name: tensor.data for tensor in reply.outputs}
        return given.keys() == self._expected.keys() and all(
            np.allclose(given[name], expected, atol=TOLERANCE)
            for name, expected in self._expected.items()
        )
