"""What this device found out about a goal's models, so that it need not be found out again."""

from __future__ import annotations

import hashlib
from typing import Protocol

import msgspec

from shoal_shared.messages import ModelGoal
from shoal_shared.placement import Placement
from shoal_shared.profiles import Profile


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The fastest way that passed, by the names of its file and provider set, and its figures.

    `compiled` says that it has code to be loaded, rather than made at every load.
    """

    variant: str
    provider_set: str
    placement: Placement
    profile: Profile
    compiled: bool = False
    notes: tuple[str, ...] = ()


class Records(Protocol):
    """Records by `record_key`."""

    def get(self, key: str) -> Record | None: ...

    async def put(self, key: str, record: Record) -> None:
        """Keep a record; one that cannot be kept is logged."""

    async def forget(self, key: str) -> None: ...


class NoRecords:
    """Remembers nothing: everything is found out at every load."""

    def get(self, key: str) -> Record | None:
        return None

    async def put(self, key: str, record: Record) -> None:
        pass

    async def forget(self, key: str) -> None:
        pass


def record_key(goal: ModelGoal, environment: str) -> str:
    """Key over all that a record depends on: the goal's settings, and the versions of runtimes
    and drivers in `environment`."""
    document = msgspec.json.encode((goal.settings, environment), order="sorted")
    return hashlib.sha256(document).hexdigest()


_conforms: type[Records] = NoRecords
