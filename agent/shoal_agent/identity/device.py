"""Who this device is, and which run of the agent this is."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_MAX_LENGTH = 64


@dataclass(frozen=True)
class Identity:
    """`boot_id` is new with every start of the agent, `device` is not."""

    device: str
    boot_id: str


def new_boot_id(rng: random.Random) -> str:
    """16 hexadecimal digits."""
    return f"{rng.getrandbits(64):016x}"


def name_from_hostname(hostname: str) -> str:
    """A valid device name that resembles `hostname`; "device" if nothing of it is usable."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", hostname.split(".", maxsplit=1)[0])
    return name.lstrip("._-")[:_MAX_LENGTH] or "device"
