"""Links between gateway, broker and devices: what is known of them, and how it is measured.

The links are a star with the broker in its middle. A device is probed with requests to the
reserved model `$link`, which it answers at once: small ones tell the round trip, one with a large
input the bandwidth down to it, one with a large reply the bandwidth up from it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import structlog

from shoal_controlplane.mqtt.link import Link as MqttLink
from shoal_controlplane.planner.partition.problem import Link
from shoal_shared import oip
from shoal_shared.clock import Clock
from shoal_shared.linkprobe import LINK_MODEL, REPLY_BYTES
from shoal_shared.oip import InferReply, InferRequest, Tensor
from shoal_shared.publish import (
    Message,
    PublishProperties,
    correlation_data,
    message_expiry,
    response_topic,
    user_property,
)
from shoal_shared.topics import DeviceTopic, Topics

log = structlog.get_logger("links")

SUSTAINED = 0.95
"""Of what a probe measured: links that are full both ways all the time carry less."""

KEEP_S = 600.0
RETRY_S = 30.0
"""How soon a device that did not answer is probed again."""
ANSWER_S = 2.0
AT_ONCE = 4
PINGS = 3
BULK_BYTES = 128 * 1024
LARGE_BYTES = 1024 * 1024
SHORT_S = 0.005
"""Where bulk takes less than this beyond the round trip, more bytes tell more."""

LEAST_BYTES_PER_S = 1e3
MOST_BYTES_PER_S = 10e9
MOST_LATENCY_MS = 10_000.0
_EPSILON_S = 1e-6


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """A device's way from and to the broker: bytes a second up and down, and the time of an empty
    message one way in ms. `measured` is False where it is a guess: the device did not answer all
    probes. `at` is the clock's reading of the last probe, None before the first."""

    up_bytes_per_s: float = 12.5e6
    down_bytes_per_s: float = 12.5e6
    latency_ms: float = 2.0
    measured: bool = False
    at: float | None = None

    def __post_init__(self) -> None:
        for name in ("up_bytes_per_s", "down_bytes_per_s"):
            rate = min(max(getattr(self, name), LEAST_BYTES_PER_S), MOST_BYTES_PER_S)
            object.__setattr__(self, name, rate)
        object.__setattr__(self, "latency_ms", min(max(self.latency_ms, 0.0), MOST_LATENCY_MS))


UNMEASURED = DeviceLink()
"""100 Mbit/s, until a device has been probed."""


class LinkBook:
    """What is known of the devices' links. Pure state; for devices that were never probed it is
    `UNMEASURED`."""

    def __init__(self) -> None:
        self._links: dict[str, DeviceLink] = {}

    def of(self, device: str) -> DeviceLink:
        return self._links.get(device, UNMEASURED)

    def put(self, device: str, link: DeviceLink) -> None:
        """Take in what a probe found."""
        self._links[device] = link

    def forget(self, device: str) -> None:
        """The device is gone, or came back: its link may be another one."""
        self._links.pop(device, None)

    def observed(
        self,
        device: str,
        *,
        up_bytes_per_s: float | None = None,
        down_bytes_per_s: float | None = None,
    ) -> None:
        """Requests in flight showed a bandwidth. It only ever lowers what is known: they need not
        have used all of the link."""
        link = self.of(device)
        up, down = link.up_bytes_per_s, link.down_bytes_per_s
        self._links[device] = replace(
            link,
            up_bytes_per_s=up if up_bytes_per_s is None else min(up, up_bytes_per_s),
            down_bytes_per_s=down if down_bytes_per_s is None else min(down, down_bytes_per_s),
        )

    def down_bytes_per_s(self, device: str) -> float:
        """Bandwidth to a device; without limit where it was not measured."""
        link = self._links.get(device)
        return link.down_bytes_per_s if link is not None and link.measured else math.inf

    def stale(self, devices: Iterable[str], now: float) -> list[str]:
        """Those that should be probed."""
        return [device for device in devices if self._is_stale(self.of(device), now)]

    def _is_stale(self, link: DeviceLink, now: float) -> bool:
        return link.at is None or now - link.at >= (KEEP_S if link.measured else RETRY_S)


def between(sender: DeviceLink, receiver: DeviceLink) -> Link:
    """From one device through the broker to another."""
    return Link(
        SUSTAINED * min(sender.up_bytes_per_s, receiver.down_bytes_per_s),
        sender.latency_ms + receiver.latency_ms,
    )


def entry(receiver: DeviceLink) -> Link:
    """From the gateway to a device."""
    return Link(SUSTAINED * receiver.down_bytes_per_s, receiver.latency_ms)


def leaving(sender: DeviceLink) -> Link:
    """From a device to the gateway."""
    return Link(SUSTAINED * sender.up_bytes_per_s, sender.latency_ms)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Seconds from request to reply, and whether the device did what it was asked for."""

    took_s: float
    served: bool


class LinkProber:
    """Probes devices and keeps what it finds in `book`. At most `AT_ONCE` devices are measured
    at once, and each by one probe, however many ask."""

    def __init__(
        self, link: MqttLink, topics: Topics, gateway_id: str, book: LinkBook, clock: Clock
    ) -> None:
        self.book = book
        self._link = link
        self._topics = topics
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting: dict[bytes, asyncio.Future[tuple[float, Message]]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        reply_topic = topics.replies(f"{gateway_id}-links")
        self._reply_to = response_topic(reply_topic)
        link.subscribe(reply_topic, 0, self._on_reply)

    async def refresh(self, devices: Collection[str], timeout_s: float = 3.0) -> None:
        """Probe those of `devices` that are not known well, for at most `timeout_s` seconds; what
        takes longer is finished behind the caller's back."""
        for device in self.book.stale(devices, self._clock()):
            if device not in self._probes:
                task = asyncio.create_task(self._probe(device))
                self._probes[device] = task
        tasks = [self._probes[device] for device in devices if device in self._probes]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def alive(self, devices: Collection[str], timeout_s: float) -> set[str]:
        """Those that answer a small request within `timeout_s` seconds."""
        names = list(devices)
        answers = await asyncio.gather(*(self._ask(name, timeout_s) for name in names))
        return {name for name, got in zip(names, answers, strict=True) if got is not None}

    async def stop(self) -> None:
        tasks = list(self._probes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, device: str) -> None:
        try:
            async with self._turns:
                began = self._clock()
                found = await self._measure(device)
        finally:
            del self._probes[device]
        if not found.measured:
            log.info("the link of a device could not be measured", device=device)
        self.book.put(device, replace(found, at=began))

    async def _measure(self, device: str) -> DeviceLink:
        trips: list[float] = []
        for _ in range(PINGS):
            answer = await self._ask(device, ANSWER_S)
            if answer is None:
                return UNMEASURED
            trips.append(answer.took_s)
        trip_s = min(trips)
        found = replace(UNMEASURED, latency_ms=trip_s / 2 * 1e3)
        for size in (BULK_BYTES, LARGE_BYTES):
            # One after the other: at once they would share what is in their way.
            down = await self._ask(device, ANSWER_S, send=size)
            up = await self._ask(device, ANSWER_S, receive=size)
            found = replace(
                found,
                down_bytes_per_s=_rate(size, down, trip_s, found.down_bytes_per_s),
                up_bytes_per_s=_rate(size, up, trip_s, found.up_bytes_per_s),
                measured=all(a is not None and a.served for a in (down, up)),
            )
            if any(a is None or a.took_s - trip_s >= SHORT_S for a in (down, up)):
                break
        return found

    async def _ask(
        self, device: str, timeout_s: float, *, send: int = 0, receive: int = 0
    ) -> _Answer | None:
        """One request to `$link`; None where no answer came."""
        request = InferRequest(
            [Tensor("data", "UINT8", np.zeros(send, np.uint8))],
            model_name=LINK_MODEL,
            parameters={REPLY_BYTES: receive, "timeout": int(timeout_s * 1e6)},
        )
        buffers, header_length = oip.encode_request(request)
        key = secrets.token_bytes(8)
        properties = PublishProperties(
            self._reply_to,
            correlation_data(key),
            message_expiry(int(timeout_s) + 1),
            user_property(oip.HEADER_LENGTH, str(header_length)),
        )
        future = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        topic = self._topics.device(device, DeviceTopic.INFER)
        began = self._clock()
        try:
            if not self._link.publish(topic, b"".join(buffers), properties=properties):
                return None
            async with asyncio.timeout(timeout_s):
                came, message = await future
        except TimeoutError:
            return None
        finally:
            del self._waiting[key]
        return _Answer(came - began, _serves(message, receive))

    def _on_reply(self, message: Message) -> None:
        # The reading belongs here: whoever waits may get its turn only later.
        future = self._waiting.get(message.correlation or b"")
        if future is not None and not future.done():
            future.set_result((self._clock(), message))


def _rate(size: int, answer: _Answer | None, trip_s: float, known: float) -> float:
    """Bytes a second. Without an answer at most what had time to pass; an answer that is an error
    tells nothing."""
    if answer is None:
        return min(known, size / ANSWER_S)
    if not answer.served:
        return known
    return size / max(answer.took_s - trip_s, _EPSILON_S)


def _serves(message: Message, receive: int) -> bool:
    """Whether a reply is the one that was asked for."""
    try:
        length = message.user_properties.get(oip.HEADER_LENGTH)
        reply: InferReply = oip.decode_reply(message.payload, int(length) if length else None)
    except ValueError:
        return False
    return not reply.error and sum(output.data.nbytes for output in reply.outputs) >= receive
