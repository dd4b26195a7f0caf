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

from shoal_controlplane.gateway.table import Pipeline, Replica
from shoal_shared.profiles import Profile

_LEAST_MS = 1e-3
"""Profiles may say 0."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Times in seconds; rates are weights of a new sample. `slowed_factor` is the least factor of
    a device that throttles, until its models are measured anew."""

    rate_up: float = 0.5
    rate_down: float = 0.25
    forget_s: float = 2.0
    others_half_life_s: float = 0.05
    failures_to_eject: int = 2
    slowed_factor: float = 1.5
    ejection_s: float = 1.0
    max_ejection_s: float = 60.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to one place. `delay_ms` is what the router expects.

    `state` is what the router knew of the device then; a device that returned has a new one.
    `pipeline` is set where the place is no single device; `device` is its name then.
    """

    device: str
    model: str
    items: int
    delay_ms: float
    sent_at: float
    probe: bool = False
    open: bool = True
    state: _Device | None = field(default=None, repr=False)
    pipeline: Pipeline | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the router expects of a device: how long until it begins with a request that comes
    now, round trip included, and how many times longer than its profile says it takes."""

    waiting_ms: float
    factor: float


@dataclass(slots=True)
class _Work:
    """Items of one model in flight on one device, and how it fares against its profile."""

    profile: Profile
    items: int = 0
    factor: float = 1.0
    seen_at: float = -math.inf
    slowed: bool = False

    def measured(self, profile: Profile) -> None:
        """There is a new profile: what replies told of the old one is not to be counted twice."""
        self.factor *= _item_ms(self.profile) / _item_ms(profile)
        self.profile = profile


@dataclass(slots=True)
class _Device:
    work: dict[str, _Work] = field(default_factory=dict)
    in_flight: int = 0
    head_since: float = 0.0
    others: float = 0.0
    others_at: float = 0.0
    round_trip_ms: float = 0.5
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    probing: bool = False


class Router:
    """State per device, updated by the outcome of every request."""

    def __init__(
        self, settings: RouterSettings | None = None, rng: random.Random | None = None
    ) -> None:
        self._settings = settings or RouterSettings()
        self._rng = rng or random.Random()
        self._devices: dict[str, _Device] = {}

    def pick(
        self,
        model: str,
        replicas: Iterable[Replica],
        items: int,
        now: float,
        exclude: Collection[str] = (),
    ) -> Ticket | None:
        """Choose the replica with the shortest expected delay for `items` batch items.

        `now` is monotonic seconds. The ticket counts as in flight until one of `succeeded`,
        `failed` or `released` is called with it. None if every replica is excluded or ejected.
        """
        best: tuple[float, float, Replica, _Device, _Work] | None = None
        for replica in replicas:
            name = replica.device
            if name in exclude:
                continue
            device, work = self._state(model, replica)
            if not self._open(device, now):
                continue
            own = _batched_ms(work.profile, items) * self._factor(work, now)
            if best is not None and device.round_trip_ms + own > best[0]:
                continue  # Waiting only adds to it.
            delay = device.round_trip_ms + self._waiting(device, work, items, own, now)
            key = (delay, self._rng.random())
            if best is None or key < best[:2]:
                best = (*key, replica, device, work)
        if best is None:
            return None
        delay, _, replica, device, work = best
        if not device.in_flight:
            device.head_since = now
        work.items += items
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
        )

    def outlook(self, model: str, replica: Replica, items: int, now: float) -> Outlook | None:
        """What to expect if `items` batch items went there now; None if the device gets no
        requests now. Nothing is sent, nothing counted."""
        device, work = self._state(model, replica)
        if not self._open(device, now):
            return None
        factor = self._factor(work, now)
        own = _batched_ms(work.profile, items) * factor
        done = device.round_trip_ms + self._waiting(device, work, items, own, now)
        return Outlook(max(0.0, done - own), factor)

    def succeeded(
        self, ticket: Ticket, now: float, queue_depth: int, service_ms: float, batch: int
    ) -> None:
        """The device answered: `service_ms` is its pure compute time for a batch of `batch`
        items, `queue_depth` the requests that wait or run there after this one."""
        device = self._close(ticket, now)
        if device is None:
            return
        device.failures = device.ejections = 0
        device.ejected_until = 0.0
        device.others = max(0.0, float(queue_depth - device.in_flight))
        device.others_at = now
        transit = max(0.0, (now - ticket.sent_at) * 1e3 - service_ms)
        if transit < device.round_trip_ms:
            device.round_trip_ms = transit
        else:
            # Waiting hides in the difference, so only its low end tells the round trip.
            device.round_trip_ms += 0.01 * (
                min(transit, 4 * device.round_trip_ms + 1) - device.round_trip_ms
            )
        work = device.work.get(ticket.model)
        if work is not None and service_ms > 0:
            expected = max(work.profile.milliseconds(max(batch, 1)), _LEAST_MS)
            sample = service_ms / expected
            factor = self._factor(work, now)
            rate = self._settings.rate_up if sample > factor else self._settings.rate_down
            work.factor = factor + rate * (sample - factor)
            work.seen_at = now

    def failed(self, ticket: Ticket, now: float) -> None:
        """The device is to blame: it stayed silent, vanished, or sent nonsense."""
        if self._close(ticket, now) is not None:
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
        """The request ended without telling anything about the device."""
        self._close(ticket, now)

    def returned(self, device: str) -> None:
        """The device has a new session: what was held against it is forgotten."""
        self._devices.pop(device, None)

    def ejected(self, now: float) -> list[str]:
        """Devices that get no requests now."""
        return [name for name, d in self._devices.items() if d.ejected_until > now]

    def _state(self, model: str, replica: Replica) -> tuple[_Device, _Work]:
        """What is known of a replica, brought up to date with its profile."""
        device = self._devices.get(replica.device)
        if device is None:
            device = self._devices[replica.device] = _Device()
        work = device.work.get(model)
        if work is None:
            work = device.work[model] = _Work(replica.profile)
        elif work.profile is not replica.profile:
            work.measured(replica.profile)
        work.slowed = replica.slowed
        return device, work

    @staticmethod
    def _open(device: _Device, now: float) -> bool:
        """Whether the device gets requests: it is not ejected, or may be probed."""
        return not (device.ejected_until and (device.probing or now < device.ejected_until))

    def _close(self, ticket: Ticket, now: float) -> _Device | None:
        device = self._devices.get(ticket.device)
        was_open, ticket.open = ticket.open, False
        if not was_open or device is None or device is not ticket.state:
            return None
        device.in_flight = max(0, device.in_flight - 1)
        device.head_since = now
        work = device.work.get(ticket.model)
        if work is not None:
            work.items = max(0, work.items - ticket.items)
        if ticket.probe:
            device.probing = False
        return device

    def _factor(self, work: _Work, now: float) -> float:
        """The learnt factor, decayed to 1 over the time since its last sample."""
        age = now - work.seen_at
        factor = 1.0 + (work.factor - 1.0) * math.exp(-age / self._settings.forget_s)
        return max(factor, self._settings.slowed_factor) if work.slowed else factor

    def _waiting(self, device: _Device, work: _Work, items: int, own: float, now: float) -> float:
        """Milliseconds until the request would be done: all work of its own model, batched with
        it, plus the other models' and the other gateways' work."""
        if not device.in_flight:
            return own + self._others(device, own, now)
        total = head = 0.0
        for other in device.work.values():
            ahead = other.items + (items if other is work else 0)
            if ahead:
                factor = self._factor(other, now)
                total += _batched_ms(other.profile, ahead) * factor
                if other.items:
                    head = max(head, other.profile.milliseconds(1) * factor)
        if head > 0:
            # What runs there has run for a while; if for longer than it should have, the
            # device is slower than its replies have told so far. Either way the request itself
            # is still to come.
            elapsed = (now - device.head_since) * 1e3
            if elapsed < head:
                total = max(own, total - elapsed)
            else:
                total = max(own, total - head) * elapsed / head
        return total + self._others(device, own, now)

    def _others(self, device: _Device, own: float, now: float) -> float:
        if not device.others:
            return 0.0
        age = now - device.others_at
        return own * device.others * math.pow(0.5, age / self._settings.others_half_life_s)


def _item_ms(profile: Profile) -> float:
    return max(profile.milliseconds(1), _LEAST_MS)


def _batched_ms(profile: Profile, items: int) -> float:
    """Milliseconds for `items` items in batches up to the knee."""
    if items <= profile.knee:
        return profile.milliseconds(items)
    full, rest = divmod(items, profile.knee)
    total = full * profile.milliseconds(profile.knee)
    return total + (profile.milliseconds(rest) if rest else 0.0)
