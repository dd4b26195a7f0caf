from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.identity.device import name_from_hostname, new_boot_id
from shoal_shared.names import is_name


@given(st.text(max_size=200))
def test_every_hostname_gives_a_valid_device_name(hostname: str) -> None:
    assert is_name(name_from_hostname(hostname))


def test_a_good_hostname_stays_as_it_is() -> None:
    assert name_from_hostname("jetson-7.local") == "jetson-7"
    assert name_from_hostname("") == "device"
    assert name_from_hostname("my board") == "my-board"


def test_each_start_has_a_boot_of_its_own() -> None:
    rng = random.Random(1)
    assert new_boot_id(rng) != new_boot_id(rng)
    assert len(new_boot_id(rng)) == 16
