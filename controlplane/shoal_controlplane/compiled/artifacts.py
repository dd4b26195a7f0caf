"""Artifacts that several rooms refer to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shoal_controlplane.models.artifacts import ArtifactStore

RefersTo = Callable[[str], Awaitable[bool]]
"""Whether a room refers to the artifact with a digest."""


class SharedArtifacts(ArtifactStore):
    """A store that removes an artifact only when no room refers to it any more.

    A room asks for the removal of what it alone knew; what another room has under the same
    digest stays.
    """

    _rooms: tuple[RefersTo, ...] = ()

    def add_room(self, refers_to: RefersTo) -> None:
        """Ask this room, too, before anything is removed."""
        self._rooms = (*self._rooms, refers_to)

    async def remove(self, digest: str) -> None:
        for refers_to in self._rooms:
            if await refers_to(digest):
                return
        await super().remove(digest)
