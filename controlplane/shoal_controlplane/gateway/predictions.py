"""What the router knows of one device, and what it predicts of it. Pure.

Work is counted in predicted milliseconds: the measured profile t(b) = a + c*b times a factor that
replies teach, and that decays to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shoal_controlplane.gateway.delays import LEAST_MS, Tail, batched_ms, item_ms
from shoal_controlplane.gateway.table import Replica
from shoal_shared.profiles import Profile


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


@dataclass(slots=True)
class Work:
    """Items of one model in flight on one device, and how it fares against its profile."""

    profile: Profile
    settings: RouterSettings
    items: int = 0
    learnt: float = 1.0
    seen_at: float = -math.inf
    slowed: bool = False

    def measured(self, profile: Profile) -> None:
        """There is a new profile: what replies told of the old one is not to be counted twice."""
        self.learnt *= item_ms(self.profile) / item_ms(profile)
        self.profile = profile

    def factor(self, now: float) -> float:
        """The learnt factor, decayed to 1 over the time since its last sample."""
        age = now - self.seen_at
        factor = 1.0 + (self.learnt - 1.0) * math.exp(-age / self.settings.forget_s)
        return max(factor, self.settings.slowed_factor) if self.slowed else factor

    def learn(self, sample: float, now: float) -> None:
        """Move the factor towards a sample of it."""
        factor = self.factor(now)
        rate = self.settings.rate_up if sample > factor else self.settings.rate_down
        self.learnt = factor + rate * (sample - factor)
        self.seen_at = now


@dataclass(slots=True)
class Device:
    """Own requests in flight on a device, others' as its replies tell, and its failures.

    The device is taken to work off its requests in the order in which they were `sent`; the one
    that it works on has been there since `head_since`.
    """

    settings: RouterSettings
    work: dict[str, Work] = field(default_factory=dict)
    sent: int = 0
    in_flight: int = 0
    head_since: float = 0.0
    others: float = 0.0
    others_at: float = 0.0
    round_trip_ms: float = 0.5
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    probing: bool = False
    tail: Tail = field(default_factory=Tail)

    def of(self, model: str, replica: Replica) -> Work:
        """What is known of a model on it, brought up to date with its profile."""
        work = self.work.get(model)
        if work is None:
            work = self.work[model] = Work(replica.profile, self.settings)
        elif work.profile is not replica.profile:
            work.measured(replica.profile)
        work.slowed = replica.slowed
        return work

    def usable(self, now: float) -> bool:
        """Whether it gets requests: it is not ejected, or may be probed."""
        return not (self.ejected_until and (self.probing or now < self.ejected_until))

    def done_ms(self, work: Work, items: int, own: float, now: float) -> float:
        """Milliseconds until a new request of `items` items would be done, which takes `own` by
        itself: all work of its own model, batched with it, plus the other models' and the other
        gateways' work."""
        others = self.others_ms(own, now)
        if not self.in_flight:
            return own + others
        total, head = self._queue(work, items, now)
        if head > 0:
            # What runs there has run for a while; if for longer than it should have, the
            # device is slower than its replies have told so far. Either way the request itself
            # is still to come.
            elapsed = (now - self.head_since) * 1e3
            if elapsed < head:
                total = max(own, total - elapsed)
            else:
                total = max(own, total - head) * elapsed / head
        return total + others

    def left_ms(self, place: int, now: float) -> float:
        """Milliseconds until the first `place` of the own requests in flight are done.

        One that runs for longer than it should goes on for as long again as it is late.
        """
        total, head = self._queue(None, 0, now)
        if not place or head <= 0:
            return 0.0
        elapsed = (now - self.head_since) * 1e3
        behind = (total - head) * (place - 1) / max(1, self.in_flight - 1)
        return behind * max(1.0, elapsed / head) + abs(head - elapsed)

    def others_ms(self, own: float, now: float) -> float:
        """Milliseconds of others' work, each request of which takes `own`."""
        if not self.others:
            return 0.0
        age = now - self.others_at
        return own * self.others * math.pow(0.5, age / self.settings.others_half_life_s)

    def backlog_ms(self, now: float) -> float:
        """Milliseconds of work, own and others', before a new request."""
        if not self.work:
            return 0.0
        busy = [work for work in self.work.values() if work.items] or list(self.work.values())
        own = sum(item_ms(work.profile) * work.factor(now) for work in busy) / len(busy)
        return self.left_ms(self.in_flight, now) + self.others_ms(own, now)

    def learn(
        self,
        model: str,
        took_ms: float,
        now: float,
        depth: int,
        service_ms: float,
        batch: int,
        *,
        alone: bool,
    ) -> None:
        """What the figures of a reply tell that came `took_ms` after its request was sent, which
        was `alone` if nothing else was under way then."""
        self.head_since = now
        self.others = max(0.0, float(depth - self.in_flight))
        self.others_at = now
        # To the microsecond: what clocks and sums are off by must not tell equal devices apart.
        transit = max(0.0, round(took_ms - service_ms, 3))
        if transit < self.round_trip_ms:
            self.round_trip_ms = transit
        elif alone:
            # Waiting hides in the difference: that of others here, and that behind own requests,
            # which would make a device that is never idle look ever farther away.
            self.round_trip_ms += 0.01 * (
                min(transit, 4 * self.round_trip_ms + 1) - self.round_trip_ms
            )
        work = self.work.get(model)
        if work is not None and service_ms > 0:
            expected = max(work.profile.milliseconds(max(batch, 1)), LEAST_MS)
            work.learn(service_ms / expected, now)

    def runs(self, model: str, items: int, now: float) -> None:
        """A request that was the first of those in flight is waited for no more: it takes at
        least as long as it has run."""
        work = self.work.get(model)
        if work is not None:
            least = (now - self.head_since) * 1e3 / max(work.profile.milliseconds(items), LEAST_MS)
            if least > work.factor(now):
                work.learn(least, now)

    def _queue(self, work: Work | None, items: int, now: float) -> tuple[float, float]:
        """Milliseconds for all own work with `items` more of one model, and for what runs."""
        total = head = 0.0
        for other in self.work.values():
            ahead = other.items + (items if other is work else 0)
            if ahead:
                factor = other.factor(now)
                total += batched_ms(other.profile, ahead) * factor
                if other.items:
                    head = max(head, other.profile.milliseconds(1) * factor)
        return total, head
