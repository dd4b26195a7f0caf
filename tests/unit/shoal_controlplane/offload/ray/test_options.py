"""Options of Ray targets: hostile until checked."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.ray.options import check_options, options_of

GIVEN = {"address": "http://head:8265", "serve_url": "http://head:8000/"}


def test_options_in_full_stay_as_they_are() -> None:
    full = check_options(GIVEN)
    assert full["serve_url"] == "http://head:8000"
    assert full["num_cpus"] == 1.0
    assert check_options(full) == full


def test_numbers_may_come_as_text_of_a_command_line() -> None:
    options = options_of({**GIVEN, "num_cpus": "2.5", "max_ongoing_requests": "8"})
    assert (options.num_cpus, options.max_ongoing_requests, options.threads) == (2.5, 8, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("address", ""),
        ("address", "head:8265"),
        ("address", "ftp://head:8265"),
        ("address", "http://"),
        ("address", "http://user:word@head:8265"),
        ("address", "http://head:99999"),
        ("address", "http://head:8265?token=x"),
        ("address", "http://he ad:8265"),
        ("address", "http://head:8265\n"),
        ("address", 7),
        ("serve_url", "https://[::1"),
        ("num_cpus", -1),
        ("num_cpus", "many"),
        ("num_cpus", float("nan")),
        ("num_cpus", float("inf")),
        ("num_gpus", 1e9),
        ("max_ongoing_requests", 0),
        ("pip", ["--index-url=http://evil"]),
        ("pip", ["a b"]),
        ("pip", "onnxruntime"),
        ("ca_file", "ca.pem"),
        ("moonbeam", 1),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=key) as caught:
        check_options({**GIVEN, key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["address", "serve_url"])
def test_addresses_must_be_given(key: str) -> None:
    with pytest.raises(InvalidError, match=key):
        check_options({k: v for k, v in GIVEN.items() if k != key})
