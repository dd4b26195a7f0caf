"""How full the devices of each model are, every 50 ms: the thin loop around `saturation`.

The gateway notes what becomes of each request. While there are any, or a model is not calm, the
loop looks at the router's backlog, steps each model's state machine, keeps its picture, tells the
clouds and records changes of level. While nothing comes it sleeps.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from shoal_controlplane.gateway.clouds import Clouds, Level, Pressure
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.saturation import (
    DEFAULT_HORIZON_MS,
    WINDOW_S,
    Load,
    Picture,
    Saturation,
    SaturationSettings,
    fullness,
)
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared.clock import Clock

Record = Callable[[str, str, str, dict[str, Any]], object]
"""`EventLog.append`: kind, subject, message, data."""

CHANGED = "saturation.changed"
SHARES_S = 1.0
"""Shares in pictures are those of so long."""
TELL_S = 0.5
"""The clouds are told again so often while a model is not calm."""

_EDGE, _SHED = "edge", "shed"
_Key = tuple[str, str]

log = structlog.get_logger("gateway")


def _no_event(kind: str, subject: str, message: str, data: dict[str, Any]) -> None:
    return


@dataclass(slots=True)
class _Window:
    """What became of a model's items for `seconds`: in `counts` by "edge", "shed" or the target's
    name in a tuple; `turned_away` are those that the devices had no room for."""

    counts: Counter[str | tuple[str]] = field(default_factory=Counter)
    turned_away: float = 0.0
    seconds: float = WINDOW_S


class _Flow:
    """The windows of the last second, and how far the router's 95th percentiles lie above what it
    expects."""

    __slots__ = ("delay_ms", "now", "p95_ms", "past")

    def __init__(self) -> None:
        self.now = _Window()
        self.past: deque[_Window] = deque(maxlen=round(SHARES_S / WINDOW_S))
        self.p95_ms = self.delay_ms = 0.0

    @property
    def tail(self) -> float:
        return self.p95_ms / self.delay_ms if self.delay_ms else 1.0

    def close(self, seconds: float) -> _Window:
        """End the window."""
        window, self.now = self.now, _Window()
        window.seconds = seconds
        self.past.append(window)
        self.p95_ms, self.delay_ms = self.p95_ms / 2, self.delay_ms / 2
        return window


@dataclass(slots=True)
class _Watched:
    model: ServedModel
    flow: _Flow
    saturation: Saturation
    picture: Picture
    told_at: float


class Pressures:
    """Pictures of all models that are asked for. `models` lists what is served now."""

    def __init__(
        self,
        router: Router,
        models: Callable[[], Iterable[ServedModel]],
        clouds: Clouds,
        clock: Clock,
        *,
        record: Record = _no_event,
        wall_clock: Callable[[], float] = time.time,
        settings: SaturationSettings | None = None,
    ) -> None:
        self._router = router
        self._models = models
        self._clouds = clouds
        self._clock = clock
        self._record = record
        self._wall_clock = wall_clock
        self._settings = settings
        self._watched: dict[_Key, _Watched] = {}
        self._ticked_at: float | None = None
        self._noted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def of(self, model: str, version: str) -> Picture:
        """The picture of a model; a calm one where nothing was asked for lately."""
        watched = self._watched.get((model, version))
        return watched.picture if watched is not None else Picture()

    def all(self) -> Mapping[_Key, Picture]:
        """Pictures by model and version."""
        return {key: watched.picture for key, watched in self._watched.items()}

    def edge(self, model: ServedModel, items: int, ticket: Ticket | None = None) -> None:
        """Devices take a request, `ticket` where it goes to a single place."""
        flow = self._flow(model)
        flow.now.counts[_EDGE] += items
        if ticket is not None:
            flow.delay_ms += ticket.delay_ms
            flow.p95_ms += max(ticket.p95_ms, ticket.delay_ms)

    def turned_away(self, model: ServedModel, items: int) -> None:
        """Devices have no room for a request, whatever becomes of it then."""
        self._flow(model).now.turned_away += items

    def spilled(self, model: ServedModel, items: int, target: str) -> None:
        """A target has answered a request."""
        self._flow(model).now.counts[(target,)] += items

    def shed(self, model: ServedModel, items: int) -> None:
        """Nobody takes a request."""
        self._flow(model).now.counts[_SHED] += items

    def start(self) -> None:
        """Begin to look, on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the loop; pictures stay."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def tick(self, now: float) -> bool:
        """Close a window; whether there is anything to look at in the next one."""
        since = self._ticked_at
        seconds = WINDOW_S if since is None else max(now - since, 1e-3)
        self._ticked_at = now
        served = {(m.name, m.version): m for m in self._models()}
        busy = False
        for key, watched in list(self._watched.items()):
            model = served.get(key)
            if model is None:
                del self._watched[key]
                self._clouds.demand(watched.model, Pressure(Level.CALM))
                continue
            watched.model = model
            busy = self._step(watched, seconds, now) or busy
        return busy

    def _step(self, watched: _Watched, seconds: float, now: float) -> bool:
        """Close the window of a model; whether it needs looking at."""
        flow, saturation = watched.flow, watched.saturation
        window = flow.close(seconds)
        asked = any(past.counts or past.turned_away for past in flow.past)
        if not asked and saturation.level is Level.CALM:
            watched.picture = Picture(since=watched.picture.since)
            return False
        rho = self._rho(watched.model, flow, window.turned_away / seconds, now)
        changed = saturation.step(rho, now)
        watched.picture = picture = _picture(
            flow,
            saturation.level,
            self._wall_clock() if changed else watched.picture.since,
            rho,
        )
        if changed or (
            picture.level is not Level.CALM and now - watched.told_at >= TELL_S - WINDOW_S / 2
        ):
            watched.told_at = now
            excess = picture.excess_per_s if picture.level is Level.SATURATED else 0.0
            self._clouds.demand(watched.model, Pressure(picture.level, excess))
        if changed:
            self._tell(watched.model, picture)
        return True

    def _rho(self, model: ServedModel, flow: _Flow, turned_away_per_s: float, now: float) -> float:
        key = f"{model.name}:{model.version}"
        loads = []
        for replica in model.replicas:
            outlook = self._router.outlook(key, replica, 1, now)
            if outlook is not None:
                backlog_ms = self._router.backlog_ms(replica.device, now)
                each = items_per_s(replica, model.max_batch) / outlook.factor
                loads.append(Load(backlog_ms * flow.tail, each))
        return fullness(loads, turned_away_per_s, model.slo_ms or DEFAULT_HORIZON_MS)

    def _tell(self, model: ServedModel, picture: Picture) -> None:
        subject = f"{model.name}:{model.version}"
        data = {
            "level": picture.level.value,
            "rho": round(picture.rho, 3),
            "edge": round(picture.edge, 4),
            "spilled": {target: round(s, 4) for target, s in picture.spilled.items()},
            "shed": round(picture.shed, 4),
        }
        self._record(CHANGED, subject, f"{subject} is {picture.sentence}", data)

    async def _run(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            self._ticked_at = self._clock()
            busy = True
            while busy:
                await asyncio.sleep(WINDOW_S)
                try:
                    busy = self.tick(self._clock())
                except Exception:
                    # Requests go on without it; the next window may be better.
                    log.exception("pressure could not be computed")

    def _flow(self, model: ServedModel) -> _Flow:
        key = (model.name, model.version)
        watched = self._watched.get(key)
        if watched is None:
            watched = _Watched(model, _Flow(), Saturation(self._settings), Picture(), 0.0)
            self._watched[key] = watched
        if not self._noted.is_set():
            self._noted.set()
        return watched.flow


def items_per_s(replica: Replica, max_batch: int) -> float:
    """What a place can do of a model, as its profile says."""
    profile = replica.profile
    batch = profile.knee if replica.pipeline is not None else min(profile.knee, max(1, max_batch))
    return 1e3 * batch / max(profile.milliseconds(batch), 1e-3)


def _picture(flow: _Flow, level: Level, since: float, rho: float) -> Picture:
    counts: Counter[str | tuple[str]] = Counter()
    seconds = turned_away = 0.0
    for window in flow.past:
        counts.update(window.counts)
        seconds += window.seconds
        turned_away += window.turned_away
    total = counts.total()
    return Picture(
        level,
        since,
        rho,
        items_per_s=total / seconds,
        excess_per_s=turned_away / seconds,
        edge=counts[_EDGE] / total if total else 0.0,
        spilled={key[0]: n / total for key, n in counts.items() if isinstance(key, tuple)},
        shed=counts[_SHED] / total if total else 0.0,
    )
