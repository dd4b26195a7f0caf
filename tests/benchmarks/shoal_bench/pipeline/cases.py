"""What is planned: fleets of unequal boards on unequal links, drawn from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from shoal_bench.netfleet import Board
from shoal_bench.pipeline.models import LARGE

MODELS = ("efficientnet-lite0", "residual", "ppocr-rec", "transformer")
LINKS_MBIT = (100.0, 20.0, 5.0)
_SHARES = (0.5, 0.3, 0.2)
_FACTORS = (6.0, 30.0)
_MEMORY_MIB = (256, 512, 1024, 2048)
SMALL_MIB = 256
"""Memory of each board where the large model is asked for: less than half of what it takes."""

_LARGE_EVERY = 6


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the boards that there are for it."""

    seed: int
    model: str
    boards: tuple[Board, ...]


def draw(seed: int) -> Case:
    """The case of a seed; each sixth asks for the model that fits no single board."""
    rng = random.Random(seed)
    large = seed % _LARGE_EVERY == _LARGE_EVERY - 1
    boards = []
    for number in range(rng.randint(3, 5)):
        low, high = map(math.log, _FACTORS)
        # A wire and a radio: what a device sends may be slower than what it receives.
        down = rng.choices(LINKS_MBIT, _SHARES)[0]
        up = down if rng.random() < 0.7 else max(down / 2, LINKS_MBIT[-1])
        boards.append(
            Board(
                name=f"board-{number + 1}",
                factor=round(math.exp(rng.uniform(low, high)), 1),
                memory_mib=SMALL_MIB if large else rng.choice(_MEMORY_MIB),
                up=up,
                down=down,
            )
        )
    return Case(seed, LARGE if large else MODELS[seed % len(MODELS)], tuple(boards))
