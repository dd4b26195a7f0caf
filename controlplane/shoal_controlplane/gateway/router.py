"""Which device gets a request: capacity-aware shortest expected delay.

Pure decision code: replicas, clock readings and a random generator in, a ticket out. The gateway
and the simulator run the same object.

The expected delay of a device is the time for the work that lies before it (own requests in
flight, and others' as its replies tell) plus the request itself, plus the round trip. Work is
counted in predicted milliseconds, not in requests. Predictions are the measured profile
t(b) = a + c*b times a factor that follows the *pure service time* that devices return, fast up
and slow down, and decays to 1 so that a device which was slow is tried again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from shoal_controlplane.gateway.delays import LEAST_MS, Tail, batched_ms
from shoal_controlplane.gateway.predictions import Device, RouterSettings, Work
from shoal_controlplane.gateway.table import Pipeline, Replica


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to one place. `delay_ms` is what the router expects, and 95 of 100
    such requests are answered within `p95_ms`.

    `state` is what the router knew of the device then, `number` counts what was sent to it; a
    device that returned has a new one. `alone` says that nothing else was under way there.
    `pipeline` is set where the place is no single device; `device` is its name then.
    """

    device: str
    model: str
    items: int
    delay_ms: float
    sent_at: float
    probe: bool = False
    open: bool = True
    state: Device | None = field(default=None, repr=False)
    pipeline: Pipeline | None = None
    number: int = 0
    alone: bool = True
    round_trip_ms: float = 0.0
    p95_ms: float = 0.0

    def __post_init__(self) -> None:
        self.p95_ms = max(self.p95_ms, self.delay_ms)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the router expects of a device: how long until it begins with a request that comes
    now, round trip included, and how many times longer than its profile says it takes."""

    waiting_ms: float
    factor: float


class Router:
    """State per device, updated by the outcome of every request."""

    def __init__(
        self, settings: RouterSettings | None = None, rng: random.Random | None = None
    ) -> None:
        self._settings = settings or RouterSettings()
        self._rng = rng or random.Random()
        self._devices: dict[str, Device] = {}
        self._tail = Tail()

    def pick(
        self,
        model: str,
        replicas: Iterable[Replica],
        items: int,
        now: float,
        exclude: Collection[str] = (),
        within_ms: float = math.inf,
    ) -> Ticket | None:
        """Choose the replica with the shortest expected delay for `items` batch items.

        `now` is monotonic seconds. The ticket counts as in flight until one of `succeeded`,
        `failed`, `overtaken`, `released` or `withdrawn` is called with it. None if every replica
        is excluded, ejected, or expected to take `within_ms` or longer.
        """
        best: tuple[float, float, Replica, Device, Work] | None = None
        for replica in replicas:
            name = replica.device
            if name in exclude:
                continue
            device = self._device(name)
            work = device.of(model, replica)
            if not device.usable(now):
                continue
            own = batched_ms(work.profile, items) * work.factor(now)
            if best is not None and device.round_trip_ms + own > best[0]:
                continue  # Waiting only adds to it.
            delay = device.round_trip_ms + device.done_ms(work, items, own, now)
            key = (delay, self._rng.random())
            if best is None or key < best[:2]:
                best = (*key, replica, device, work)
        if best is None:
            return None
        delay, _, replica, device, work = best
        if delay >= within_ms:
            return None
        if not device.in_flight:
            device.head_since = now
        work.items += items
        device.sent += 1
        device.in_flight += 1
        probe = device.ejected_until > 0
        device.probing = device.probing or probe
        return Ticket(
            replica.device,
            model,
            items,
            delay,
            now,
            probe,
            state=device,
            pipeline=replica.pipeline,
            number=device.sent,
            alone=device.in_flight == 1,
            round_trip_ms=device.round_trip_ms,
            p95_ms=delay * (device.tail if device.tail.known else self._tail).p95,
        )

    def outlook(self, model: str, replica: Replica, items: int, now: float) -> Outlook | None:
        """What to expect if `items` batch items went there now; None if the device gets no
        requests now. Nothing is sent, nothing counted."""
        device = self._device(replica.device)
        work = device.of(model, replica)
        if not device.usable(now):
            return None
        factor = work.factor(now)
        own = batched_ms(work.profile, items) * factor
        done = device.round_trip_ms + device.done_ms(work, items, own, now)
        return Outlook(max(0.0, done - own), factor)

    def left_ms(self, ticket: Ticket, now: float) -> float:
        """Milliseconds until a request that is under way should be answered, as far as is known
        now: requests are answered in the order in which they were sent."""
        device = ticket.state
        return 0.0 if device is None else device.left_ms(self._place(ticket), now)

    def succeeded(
        self, ticket: Ticket, now: float, queue_depth: int, service_ms: float, batch: int
    ) -> None:
        """The device answered: `service_ms` is its pure compute time for a batch of `batch`
        items, `queue_depth` the requests that wait or run there after this one."""
        device = self._close(ticket)
        if device is not None:
            took_ms = self._took(device, ticket, now)
            device.failures = device.ejections = 0
            device.ejected_until = 0.0
            figures = (queue_depth, service_ms, batch)
            device.learn(ticket.model, took_ms, now, *figures, alone=ticket.alone)

    def overtaken(self, ticket: Ticket, now: float) -> None:
        """Another device answered first: this one is no failure, but took longer than until now,
        and may be busy with the request for some time."""
        place = self._place(ticket)
        device = self._close(ticket)
        if device is None:
            return
        if (now - ticket.sent_at) * 1e3 >= ticket.p95_ms:
            self._took(device, ticket, now)
        if not device.in_flight:
            device.others = max(device.others, 1.0)
            device.others_at = now
        if place == 1:
            device.runs(ticket.model, ticket.items, now)

    def answered_late(
        self, ticket: Ticket, now: float, queue_depth: int, service_ms: float, batch: int
    ) -> None:
        """The device that was overtaken answered, too; see `succeeded`."""
        device = self._devices.get(ticket.device)
        if device is not None and device is ticket.state:
            took_ms = (now - ticket.sent_at) * 1e3
            figures = (queue_depth, service_ms, batch)
            device.learn(ticket.model, took_ms, now, *figures, alone=False)

    def failed(self, ticket: Ticket, now: float) -> None:
        """The device is to blame: it stayed silent, vanished, or sent nonsense."""
        device = self._close(ticket)
        if device is not None:
            device.head_since = now
            self.blame(ticket.device, now, probe=ticket.probe)

    def blame(self, name: str, now: float, *, probe: bool = False) -> None:
        """Count a failure against a device.

        After enough failures in a row, or a failed probe, it is ejected for a time that doubles
        up to a limit, then probed by a single request. Failures of requests that were on their
        way when it was ejected do not prolong that.
        """
        device = self._devices.get(name)
        if device is None or (now < device.ejected_until and not probe):
            return
        s = self._settings
        device.failures += 1
        if probe or device.failures >= s.failures_to_eject:
            pause = min(s.max_ejection_s, s.ejection_s * 2**device.ejections)
            device.ejections = min(device.ejections + 1, 16)
            device.ejected_until = now + pause * self._rng.uniform(0.8, 1.2)
            device.failures = 0

    def released(self, ticket: Ticket, now: float) -> None:
        """The device answered, without telling anything about itself."""
        device = self._close(ticket)
        if device is not None:
            device.head_since = now

    def withdrawn(self, ticket: Ticket) -> None:
        """The request was not sent, or is waited for no more."""
        self._close(ticket)

    def returned(self, device: str) -> None:
        """The device has a new session: what was held against it is forgotten."""
        self._devices.pop(device, None)

    def ejected(self, now: float) -> list[str]:
        """Devices that get no requests now."""
        return [name for name, d in self._devices.items() if d.ejected_until > now]

    def usable(self, device: str, now: float) -> bool:
        """Whether the device gets requests now; one that is unknown does."""
        state = self._devices.get(device)
        return state is None or state.usable(now)

    def backlog_ms(self, device: str, now: float) -> float:
        """Predicted milliseconds of work that lies before a new request on a device: own requests
        in flight there, of all models, and others'. 0 for an unknown device.

        For one that is ejected, too, it is what was sent there: who adds up capacity leaves out
        devices that are not `usable`.
        """
        state = self._devices.get(device)
        return 0.0 if state is None else state.backlog_ms(now)

    def _device(self, name: str) -> Device:
        device = self._devices.get(name)
        if device is None:
            device = self._devices[name] = Device(self._settings)
        return device

    @staticmethod
    def _place(ticket: Ticket) -> int:
        """Which of the own requests in flight on its device it is, from 1 for what runs there; 0
        where it is none of them."""
        device = ticket.state
        if device is None or not ticket.open:
            return 0
        return max(1, device.in_flight - (device.sent - ticket.number))

    def _close(self, ticket: Ticket) -> Device | None:
        device = self._devices.get(ticket.device)
        was_open, ticket.open = ticket.open, False
        if not was_open or device is None or device is not ticket.state:
            return None
        device.in_flight = max(0, device.in_flight - 1)
        work = device.work.get(ticket.model)
        if work is not None:
            work.items = max(0, work.items - ticket.items)
        if ticket.probe:
            device.probing = False
        return device

    def _took(self, device: Device, ticket: Ticket, now: float) -> float:
        """Milliseconds that a request took; learns what that is to what was expected of it."""
        took_ms = (now - ticket.sent_at) * 1e3
        ratio = took_ms / max(ticket.delay_ms, LEAST_MS)
        device.tail.add(ratio)
        self._tail.add(ratio)
        return took_ms
