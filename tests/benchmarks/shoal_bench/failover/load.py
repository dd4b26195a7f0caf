"""Clients of the gateway over HTTP that note what became of every single request."""

from __future__ import annotations

import http.client
import math
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from shoal_bench.pipeline.models import Model
from shoal_shared import oip
from shoal_shared.oip import InferRequest, RequestedOutput, Tensor

HOST = "127.0.0.1"
TOLERANCE = 1e-4
"""Of an answer, relative to the largest magnitude of the whole model's."""

DRAIN_S = 0.3
"""How long answers may still come from the stages behind one that is gone."""

_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Outcomes:
    """When answers came (`time.monotonic`), how long each took, and the requests that were lost,
    each in words."""

    answered: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Answers a second between the first and the last one in a time span."""
        inside = sorted(at for at in self.answered if since <= at <= until)
        if len(inside) < 2:
            return 0.0
        return (len(inside) - 1) / (inside[-1] - inside[0])

    def back_after(self, moment: float) -> float:
        """Seconds from `moment` to the end of the longest silence that began within `DRAIN_S`:
        until answers flowed again. Infinite if none came."""
        gaps = self._gaps(moment)
        began = [gap for gap in gaps if gap[0] <= moment + DRAIN_S]
        return max(began, key=lambda gap: gap[1] - gap[0])[1] - moment

    def longest_silence(self, moment: float) -> float:
        """Seconds of the longest silence since `moment`, whenever it began."""
        return max(end - start for start, end in self._gaps(moment))

    def _gaps(self, moment: float) -> list[tuple[float, float]]:
        times = sorted(at for at in self.answered if at > moment) or [math.inf]
        return list(zip([moment, *times], times, strict=False))


class Load:
    """`clients` threads that ask one request after the other, from `start` to `stop`."""

    def __init__(self, port: int, model: Model, clients: int, name: str = "") -> None:
        self._port = port
        self._model = model
        self._path = f"/v2/models/{name or model.name}/infer"
        tensors = [Tensor(key, "FP32", array) for key, array in model.inputs.items()]
        outputs = [RequestedOutput(key, True) for key in model.expected]
        buffers, length = oip.encode_request(InferRequest(tensors, outputs))
        self._body = b"".join(buffers)
        self._headers = {oip.HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.outcomes = Outcomes()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let every request that is under way come to its end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=_TIMEOUT_S)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", self._path, self._body, self._headers)
                response = connection.getresponse()
                body = response.read()
                wrong = self._wrong(response, body)
            except (OSError, http.client.HTTPException) as error:
                wrong = f"{type(error).__name__}: {error}"
                connection.close()
            ended = time.monotonic()
            with self._lock:
                if wrong:
                    self.outcomes.lost.append(wrong)
                else:
                    self.outcomes.answered.append(ended)
                    self.outcomes.took_s.append(ended - began)
            if wrong:
                # A gateway that refuses must not be asked in a busy loop.
                self._stopping.wait(0.1)
        connection.close()

    def _wrong(self, response: http.client.HTTPResponse, body: bytes) -> str:
        """What is wrong with an answer, empty if nothing is."""
        if response.status != http.HTTPStatus.OK:
            return f"{response.status}: {body[:200].decode(errors='replace')}"
        length = response.getheader(oip.HEADER_LENGTH)
        try:
            reply = oip.decode_reply(body, int(length) if length else None)
        except ValueError as error:
            return str(error)
        given = {tensor.name: tensor.data for tensor in reply.outputs}
        for name, array in self._model.expected.items():
            other = given.get(name)
            if other is None or other.shape != array.shape:
                return f"output {name!r} is missing or misshapen"
            if not float(np.max(np.abs(other - array))) <= TOLERANCE * float(np.max(np.abs(array))):
                return f"output {name!r} is wrong"
        return ""
