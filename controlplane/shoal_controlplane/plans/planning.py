"""Plans for whoever asks: a model's name looked up, and its draft."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_controlplane.planner.partition.problem import Objective
from shoal_controlplane.plans.draft import Draft
from shoal_controlplane.plans.shaping import Drafting, Models


class Planner:
    """Drafts by a model's name and version."""

    def __init__(self, models: Models, drafter: Drafting) -> None:
        self._models = models
        self._drafter = drafter

    async def draft(
        self,
        model: str,
        version: str | None,
        *,
        select: Mapping[str, str],
        objective: Objective,
        stages: int | None,
        shapes: Mapping[str, tuple[int, ...]] | None,
    ) -> Draft:
        """See `plans.active.Planning`."""
        found = await self._models.get(model, version)
        return await self._drafter.draft(
            found, select=select, objective=objective, stages=stages, shapes=shapes
        )
