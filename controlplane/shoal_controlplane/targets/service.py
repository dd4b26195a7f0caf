"""What operators may do with targets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from shoal_controlplane.api.conditional import check_if_match
from shoal_controlplane.errors import ConflictError, InvalidError, NotFoundError
from shoal_controlplane.events.log import EventLog
from shoal_controlplane.offload.credentials import check_reference
from shoal_controlplane.offload.kinds import Kind, kind_of
from shoal_controlplane.offload.state import TargetPicture
from shoal_controlplane.offload.target import Price
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.targets.store import TargetStore
from shoal_controlplane.targets.target import Manual, Target
from shoal_controlplane.targets.views import TargetCondition, TargetView, condition, target_view
from shoal_shared.names import NAME_RULE, is_name

MAX_OPTIONS_BYTES = 16 * 1024


class TargetPictures(Protocol):
    """What is known of the targets now, as `CloudManager` has it."""

    def pictures(self) -> Sequence[TargetPicture]:
        """All targets that are driven."""


class Users(Protocol):
    """Deployments, as `DeploymentStore` has them. Whoever holds `changing` keeps them as they
    are."""

    @property
    def changing(self) -> asyncio.Lock: ...

    def offloading(self, target: str) -> Mapping[str, ModelKey]:
        """The deployments that name a target, with their models."""


@dataclass(frozen=True, slots=True)
class NewTarget:
    """What to add; see `Target`."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    credential: str = ""
    price_per_replica_hour: float = 0.0
    price_per_request: float = 0.0
    cap_per_hour: float | None = None
    max_replicas: int = 1


@dataclass(frozen=True, slots=True)
class TargetChange:
    """What to change; None leaves it. `options` are merged into the present ones, None deletes
    one; `uncapped` takes the cap away."""

    options: Mapping[str, Any] | None = None
    credential: str | None = None
    price_per_replica_hour: float | None = None
    price_per_request: float | None = None
    cap_per_hour: float | None = None
    uncapped: bool = False
    max_replicas: int | None = None


class TargetService:
    """Rules of targets over their store. `changed` is told after each change."""

    def __init__(
        self,
        store: TargetStore,
        pictures: TargetPictures,
        users: Users,
        events: EventLog,
        changed: Callable[[], None],
        wall: Callable[[], float],
        kinds: Callable[[str], Kind] = kind_of,
    ) -> None:
        self._store = store
        self._pictures = pictures
        self._users = users
        self._events = events
        self._changed = changed
        self._wall = wall
        self._kinds = kinds

    def names(self) -> frozenset[str]:
        """Names of all targets."""
        return frozenset(self._store.targets)

    def get(self, name: str) -> Target:
        """One target. Raises `NotFoundError`."""
        target = self._store.targets.get(name)
        if target is None:
            raise NotFoundError(f"There is no target {name[:80]!r}: see `shoal target list`.")
        return target

    def view(self, name: str) -> TargetView:
        """One target as it is now. Raises `NotFoundError`."""
        return self._shown(self.get(name), self.picture(name))

    def picture(self, name: str) -> TargetPicture | None:
        """What is known of a target, None where nobody drives it yet."""
        return next((p for p in self._pictures.pictures() if p.name == name), None)

    def find(
        self, kind: str | None, state: TargetCondition | None, after: str | None, limit: int
    ) -> list[TargetView]:
        """Up to `limit` targets by name, names after `after`."""
        known = {picture.name: picture for picture in self._pictures.pictures()}
        found: list[TargetView] = []
        for name, target in sorted(self._store.targets.items()):
            picture = known.get(name)
            if (
                (after is not None and name <= after)
                or kind not in (None, target.kind)
                or state not in (None, condition(picture)[0])
            ):
                continue
            found.append(self._shown(target, picture))
            if len(found) == limit:
                break
        return found

    async def add(self, new: NewTarget) -> TargetView:
        """Add a target. Raises `InvalidError`, `ConflictError` for a name that is taken."""
        if not is_name(new.name):
            raise InvalidError(f"The name {new.name[:80]!r} is not valid: use {NAME_RULE}.")
        credential = check_reference(new.credential)
        options = await self._checked(new.kind, new.options)
        async with self._store.changing:
            if new.name in self._store.targets:
                raise ConflictError(
                    f"There is a target {new.name} already: change it, or choose another name."
                )
            target = Target(
                name=new.name,
                kind=new.kind,
                options=options,
                credential=credential,
                price=Price(new.price_per_replica_hour, new.price_per_request),
                cap_per_hour=new.cap_per_hour,
                max_replicas=new.max_replicas,
                created_at=self._wall(),
            )
            await self._store.put(target)
        self._tell("added", target)
        return self.view(target.name)

    async def edit(self, name: str, change: TargetChange, if_match: str | None) -> TargetView:
        """Change a target. Raises `NotFoundError`, `PreconditionError`, `InvalidError`."""
        async with self._store.changing:
            before = self.get(name)
            check_if_match(if_match, before.revision)
            price = before.price
            after = replace(
                before,
                options=(
                    before.options
                    if change.options is None
                    else await self._checked(before.kind, _merged(before.options, change.options))
                ),
                credential=(
                    before.credential
                    if change.credential is None
                    else check_reference(change.credential)
                ),
                price=Price(
                    _either(change.price_per_replica_hour, price.per_replica_hour),
                    _either(change.price_per_request, price.per_request),
                ),
                cap_per_hour=(
                    None
                    if change.uncapped
                    else before.cap_per_hour
                    if change.cap_per_hour is None
                    else change.cap_per_hour
                ),
                max_replicas=before.max_replicas
                if change.max_replicas is None
                else change.max_replicas,
            )
            if after == before:
                return self.view(name)
            after = replace(after, revision=before.revision + 1)
            await self._store.put(after)
        self._tell("changed", after)
        return self.view(name)

    async def remove(self, name: str) -> None:
        """Remove a target; what Shoal put there is taken away. Raises `NotFoundError`, and
        `ConflictError` while a deployment names it."""
        async with self._store.changing, self._users.changing:
            target = self.get(name)
            users = sorted(self._users.offloading(name))
            if users:
                noun = "deployment" if len(users) == 1 else "deployments"
                raise ConflictError(
                    f"The {noun} {', '.join(users)[:200]} may offload to target {name}: delete "
                    "that first, or change its offload."
                )
            await self._store.delete(name)
        self._tell("removed", target)

    def _shown(self, target: Target, picture: TargetPicture | None) -> TargetView:
        manual = self.manual(target.name)
        return target_view(target, picture, manual, self._users.offloading(target.name))

    def manual(self, name: str) -> dict[ModelKey, Manual]:
        """What was done by hand on a target."""
        return {key: what for (target, key), what in self._store.manual.items() if target == name}

    async def _checked(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options in full, as plain JSON. Raises `InvalidError`."""
        plain = _plain(options)

        def check() -> Mapping[str, Any]:
            # A kind's SDK may take seconds to import.
            return self._kinds(kind).check_options(plain)

        return _plain(await asyncio.to_thread(check))

    def _tell(self, verb: str, target: Target) -> None:
        self._changed()
        self._events.append(
            f"target.{verb}",
            target.name,
            f"Target {target.name} of kind {target.kind} was {verb}.",
            {"kind": target.kind},
        )


def _merged(present: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**present, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def _either(new: float | None, old: float) -> float:
    return old if new is None else new


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are stored. Raises `InvalidError`."""
    try:
        text = msgspec.json.encode(options)
        plain = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise InvalidError(f"The options cannot be stored: {error}.") from None
    if len(text) > MAX_OPTIONS_BYTES:
        raise InvalidError(f"The options exceed {MAX_OPTIONS_BYTES} bytes: shorten them.")
    return plain
