"""Proof of placement: which part of a loaded model runs on which execution provider."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec

CPU_PROVIDERS = frozenset({"CPUExecutionProvider", "CPU", "XNNPACK"})
"""Providers that compute on the processor; every other one stands for an accelerator."""

MOSTLY = 0.5
"""Share of nodes on accelerators from which a model counts as placed there."""


class Proof(str, enum.Enum):
    """How placement was found out, the strongest first."""

    GRAPH = "graph"
    """The runtime told where it assigned each node."""
    TIMING = "timing"
    """The runtime names its providers only, and the model runs faster than on the CPU alone."""
    LISTED = "listed"
    """The runtime names its providers only: nothing was proven."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """`nodes` counts nodes by provider, empty where the runtime does not tell.

    `accelerated` is the share of nodes on accelerators, 0 to 1; 1 or 0 for the whole model where
    nodes are not told.
    """

    accelerated: Annotated[float, msgspec.Meta(ge=0, le=1)]
    proof: Proof
    nodes: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}

    @property
    def is_accelerated(self) -> bool:
        """Whether more than `MOSTLY` of the model was proven to be on accelerators."""
        return self.proof is not Proof.LISTED and self.accelerated > MOSTLY


def of_nodes(nodes: Mapping[str, int]) -> Placement:
    """Placement from nodes by provider, as a graph assignment gives them."""
    total = sum(nodes.values())
    fast = sum(count for name, count in nodes.items() if name not in CPU_PROVIDERS)
    return Placement(
        accelerated=fast / total if total else 0.0, proof=Proof.GRAPH, nodes=dict(nodes)
    )
