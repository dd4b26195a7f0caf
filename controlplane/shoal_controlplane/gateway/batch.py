"""One request of many items, computed by many places at once.

The batch is cut along its first dimension into pieces, which are views of the request. What has
not been sent belongs to nobody: whenever a place has room for a piece, all that is left is shared
out anew by what the router now knows, and the place gets a piece of its share. So a place that
turns slow loses its share to the others without being asked for it. Once everything is sent, a
place that is idle computes a straggler's piece a second time, and the first answer wins.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal_controlplane.gateway.dispatch import Dispatcher
from shoal_controlplane.gateway.errors import GatewayError, GatewayStatus
from shoal_controlplane.gateway.join import OutputJoin
from shoal_controlplane.gateway.router import Router, Ticket
from shoal_controlplane.gateway.split import (
    IN_FLIGHT,
    Place,
    makespan_ms,
    next_piece,
    water_fill,
)
from shoal_controlplane.gateway.table import Replica, ServedModel
from shoal_shared.clock import Clock
from shoal_shared.oip import InferReply, InferRequest, RequestedOutput, Tensor

WORTH = 0.8
"""A batch that one place could take is split if that ends within this part of its time there."""

COPY_WORTH = 0.75
"""A piece is computed a second time if that ends within this part of what it still needs."""

_TICK_S = 1e-3
"""Timers may fire this much too early."""

Bandwidth = Callable[[str], float]
"""Bytes a second to a device, infinite where it does not matter."""

Replicas = Callable[[], Sequence[Replica]]


def _unlimited(device: str) -> float:
    return math.inf


class BatchRunner:
    """Splits batches over the places that serve a model."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        router: Router,
        clock: Clock,
        bandwidth: Bandwidth = _unlimited,
    ) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self._router = router
        self._bandwidth = bandwidth

    def pays(self, request: InferRequest, model: ServedModel, items: int) -> bool:
        """Whether to split: the model takes no batch so large, or several places together end
        clearly earlier than the best of them alone."""
        if items > model.max_batch:
            return model.max_batch > 0
        knee = min((replica.profile.knee for replica in model.replicas), default=items)
        if len(model.replicas) < 2 or items < 2 * knee:
            return False
        found = self.places(request, model, model.replicas, items)
        places = [place for _, place in found]
        if len(places) < 2:
            return False
        alone = min(replace(p, most=max(p.most, items)).finish_ms(items) for p in places)
        return makespan_ms(water_fill(items, places), places) < WORTH * alone

    async def call(
        self,
        request: InferRequest,
        model: ServedModel,
        replicas: Replicas,
        items: int,
        deadline: float,
    ) -> InferReply:
        """Send `request`, whose inputs have `items` rows each, in pieces; their outputs joined.

        `replicas` is asked anew whenever something changes; `deadline`, a reading of the clock,
        is that of the whole. Parameters of the reply: `devices` with the items that each of them
        computed, `device` in words, `service_us`, the most that one of them computed, and `batch`.
        Cancelling the coroutine forgets all pieces. Raises `GatewayError`, that of the first
        piece that came to nothing, and `JoinError`.
        """
        return await _Run(self, request, model, replicas, items, deadline).answer()

    def places(
        self, request: InferRequest, model: ServedModel, replicas: Sequence[Replica], items: int
    ) -> list[tuple[Replica, Place]]:
        """Replicas that get requests now, as places for pieces of a request of `items` items."""
        now = self.clock()
        size = sum(tensor.data.nbytes for tensor in request.inputs) / items
        found = []
        for replica in self.dispatcher.pipelines.usable(replicas, ()):
            profile = replica.profile
            # A batch larger than any that was measured may not fit into the device's memory.
            most = max(1, min(model.max_batch, max((b for b, _ in profile.samples), default=1)))
            knee = min(profile.knee, most)
            outlook = self._router.outlook(_key(model), replica, knee, now)
            if outlook is None:
                continue
            place = Place(
                waiting_ms=outlook.waiting_ms,
                intercept_ms=profile.intercept_ms * outlook.factor,
                slope_ms=profile.slope_ms * outlook.factor,
                most=most,
                knee=knee,
                transfer_ms=1e3 * size / self._bandwidth(replica.device),
            )
            found.append((replica, place))
        return found

    def gets_requests(self, model: ServedModel, replica: Replica) -> bool:
        """Whether the router would send to it now."""
        return self._router.outlook(_key(model), replica, 1, self.clock()) is not None


@dataclass(slots=True, eq=False)
class _Piece:
    """Items [start, stop) of the batch."""

    start: int
    stop: int
    copied: bool = False
    answered: bool = False

    @property
    def items(self) -> int:
        return self.stop - self.start


@dataclass(slots=True, eq=False)
class _Flight:
    """A piece on its way to a device, which may have begun it at `begun`, a reading of the
    clock."""

    piece: _Piece
    device: str
    begun: float


@dataclass(slots=True, eq=False)
class _Lane:
    """A place as it stands now: the pieces that it has, in their order, and may have at a time."""

    device: str
    idle: Place
    """As it would be without our pieces."""
    depth: int
    flights: list[_Flight]

    def rests_ms(self, now: float) -> list[float]:
        """When each piece should be back, in ms from now.

        A piece that is late is taken to need as long again as it is late; and then the place is
        as much slower for the pieces behind it.
        """
        rests: list[float] = []
        slower = 1.0
        for flight in self.flights:
            work = self.idle.work_ms(flight.piece.items)
            if rests:
                rests.append(rests[-1] + work * slower)
                continue
            elapsed = (now - flight.begun) * 1e3
            slower = max(1.0, elapsed / work)
            rests.append(abs(work - elapsed))
        return rests

    def place(self, now: float) -> Place:
        """The place with our pieces before it."""
        if not self.flights:
            return self.idle
        return replace(self.idle, waiting_ms=self.rests_ms(now)[-1])


class _Run:
    """One batch under way; the items from `sent` on have not been sent."""

    def __init__(
        self,
        runner: BatchRunner,
        request: InferRequest,
        model: ServedModel,
        replicas: Replicas,
        items: int,
        deadline: float,
    ) -> None:
        self._runner = runner
        self._request = request
        self._model = model
        self._replicas = replicas
        self._items = items
        self._deadline = deadline
        self._sent = 0
        self._flights: dict[asyncio.Task[tuple[InferReply, Ticket]], _Flight] = {}
        self._counts: Counter[str] = Counter()
        self._service_us: Counter[str] = Counter()

    async def answer(self) -> InferReply:
        self._admit()
        outputs = OutputJoin(self._items)
        left = self._items
        try:
            while left:
                again_s = self._send()
                done, _ = await asyncio.wait(
                    self._flights, timeout=again_s, return_when=asyncio.FIRST_COMPLETED
                )
                now = self._runner.clock()
                for task in done:
                    self._advance(self._flights[task], now)
                    flight = self._flights.pop(task)
                    reply = self._landed(task, flight)
                    if reply is not None:
                        outputs.add(flight.piece.start, flight.piece.stop, reply.outputs)
                        left -= flight.piece.items
        finally:
            for task in self._flights:
                task.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)
        devices = dict(sorted(self._counts.items()))
        words = f"{len(devices)} devices" if len(devices) > 1 else next(iter(devices))
        parameters = {
            "device": words,
            "devices": devices,
            "service_us": max(self._service_us.values()),
            "batch": self._items,
        }
        return InferReply(outputs.tensors(), parameters=parameters)

    def _admit(self) -> None:
        """Refuse at once what the fleet cannot do in time."""
        now = self._runner.clock()
        places = [lane.idle for lane in self._lanes()]
        if not places:
            return
        remaining_ms = (self._deadline - now) * 1e3
        needed_ms = makespan_ms(water_fill(self._items, places), places)
        if needed_ms > remaining_ms:
            raise GatewayError(
                GatewayStatus.EXHAUSTED,
                f"no devices can answer {self._items} items within {max(remaining_ms, 0):.0f} ms: "
                f"all {len(places)} together would take {needed_ms:.0f} ms",
                retry_after_s=(needed_ms - remaining_ms) / 1e3,
            )

    def _nobody(self) -> GatewayError:
        return GatewayError(
            GatewayStatus.UNAVAILABLE,
            f"no device serves {_key(self._model)} now",
            retry_after_s=1.0,
        )

    def _advance(self, flight: _Flight, now: float) -> None:
        """A piece is back: if it was the first of its place, that is at the next one from now."""
        place = [other for other in self._flights.values() if other.device == flight.device]
        if place[0] is flight and len(place) > 1:
            place[1].begun = now

    def _lanes(self) -> list[_Lane]:
        found = self._runner.places(self._request, self._model, self._replicas(), self._items)
        lanes = []
        for replica, place in found:
            depth, pipeline = IN_FLIGHT, replica.pipeline
            if pipeline is not None:
                depth = max(1, min(pipeline.credits, len(pipeline.stages) + 1))
            flights = [f for f in self._flights.values() if f.device == replica.device]
            lanes.append(_Lane(replica.device, place, depth, flights))
        return lanes

    def _send(self) -> float | None:
        """Send what should be sent now; the seconds after which to look again, None for not
        before something lands."""
        now = self._runner.clock()
        lanes = self._lanes()
        while True:
            places = [lane.place(now) for lane in lanes]
            left = self._items - self._sent
            shares = water_fill(left, places) if places else []
            again_s = self._help(lanes, now, makespan_ms(shares, places))
            if again_s == 0:
                continue
            if not left:
                return again_s
            chosen = [
                (lane, next_piece(share, place))
                for lane, place, share in zip(lanes, places, shares, strict=True)
                if share and len(lane.flights) < lane.depth
            ]
            if not chosen and not self._flights:
                if lanes or not self._model.sharded:
                    raise self._nobody()
                # A sharded model comes back with its next plan, for which the dispatcher waits.
                self._launch(_Piece(self._sent, self._sent + 1), None, now)
                self._sent += 1
                return None
            if not chosen:
                return again_s
            for lane, items in chosen:
                piece = _Piece(self._sent, self._sent + items)
                self._sent = piece.stop
                self._launch(piece, lane, now)

    def _help(self, lanes: list[_Lane], now: float, end_ms: float) -> float | None:
        """Send a piece a second time, from the place that would have it done last to one that
        has room and would have it done clearly earlier.

        Only pieces that come back clearly after `end_ms`, when all that has not been sent could
        be done. Returns 0 after a piece was sent, else the seconds after which to look again.
        """
        late = [
            (rest, lane, flight)
            for lane in lanes
            for rest, flight in zip(lane.rests_ms(now), lane.flights, strict=True)
            if not (flight.piece.copied or flight.piece.answered)
        ]
        if not late:
            return None
        rest_ms, lane, flight = max(late, key=lambda entry: entry[0])
        items = flight.piece.items
        needed = [
            (helper.place(now).finish_ms(items), index)
            for index, helper in enumerate(lanes)
            if helper is not lane
            and len(helper.flights) < helper.depth
            and items <= helper.idle.most
        ]
        if not needed:
            return None
        needed_ms, index = min(needed)
        needed_ms = max(needed_ms, end_ms) / COPY_WORTH
        if needed_ms <= rest_ms:
            flight.piece.copied = True
            self._launch(flight.piece, lanes[index], now)
            return 0
        # The rest grows from when the first piece of the place is late.
        head = lane.flights[0]
        due = head.begun + lane.idle.work_ms(head.piece.items) / 1e3
        behind_ms = rest_ms - lane.rests_ms(now)[0]
        return max(due - now + (needed_ms - behind_ms) / 1e3, _TICK_S)

    def _launch(self, piece: _Piece, lane: _Lane | None, now: float) -> None:
        """Send a piece to a place, without one to wherever the router sends it."""
        runner, request, model = self._runner, self._request, self._model
        wire = InferRequest(
            [
                Tensor(tensor.name, tensor.datatype, tensor.data[piece.start : piece.stop])
                for tensor in request.inputs
            ],
            [RequestedOutput(output.name) for output in request.outputs],
            request.model_name,
            request.model_version,
        )
        flight = _Flight(piece, "", now)
        if lane is not None:
            flight = _Flight(piece, lane.device, now + lane.idle.waiting_ms / 1e3)
            lane.flights.append(flight)
        replicas = self._attempts(piece, flight.device)
        call = runner.dispatcher.call(
            wire, replicas, piece.items, self._deadline, sharded=model.sharded, hedges=False
        )
        self._flights[asyncio.ensure_future(call)] = flight

    def _attempts(self, piece: _Piece, device: str) -> Replicas:
        """Replicas for the attempts of a piece: `device` for the first, then all of them, and
        none any more once there is an answer."""
        asked = False

        def choose() -> Sequence[Replica]:
            nonlocal asked
            known = () if piece.answered else self._replicas()
            first, asked = not asked, True
            for replica in known if first else ():
                if replica.device == device and self._runner.gets_requests(self._model, replica):
                    return (replica,)
            return known

        return choose

    def _landed(
        self, task: asyncio.Task[tuple[InferReply, Ticket]], flight: _Flight
    ) -> InferReply | None:
        """The reply of a piece's first copy; None for the others, and where one may still come.

        Raises `GatewayError` where none will.
        """
        piece = flight.piece
        error = task.exception()
        if piece.answered:
            return None
        if error is not None:
            if any(other.piece is piece for other in self._flights.values()):
                return None
            raise error
        reply, ticket = task.result()
        # What else is on its way for this piece is not waited for, but still keeps its place busy.
        piece.answered = True
        self._counts[ticket.device] += piece.items
        self._service_us[ticket.device] += reply.parameters.get("service_us", 0)
        return reply


def _key(model: ServedModel) -> str:
    return f"{model.name}:{model.version}"
