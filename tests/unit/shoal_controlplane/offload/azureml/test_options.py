"""Options of a target of kind `azureml`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.azureml.options import Options, parse_options

LEAST = {
    "subscription": "11111111-2222-4333-8444-555555555555",
    "resource_group": "edge",
    "workspace": "vision",
}


def test_least_options_have_sound_defaults() -> None:
    parsed = parse_options(LEAST)
    assert (parsed.auth_mode, parsed.prefix, parsed.cloud) == ("key", "shoal", "AzureCloud")
    assert parsed.addresses.resource_manager == "https://management.azure.com"
    assert parsed.addresses.audience == "https://ml.azure.com"


def test_options_in_full_are_options() -> None:
    full = msgspec.to_builtins(parse_options(LEAST))
    assert parse_options(full) == parse_options(LEAST)
    assert set(full) == set(Options.__struct_fields__)


def test_a_sovereign_cloud_has_its_own_addresses() -> None:
    addresses = parse_options({**LEAST, "cloud": "AzureChinaCloud"}).addresses
    assert addresses.resource_manager == "https://management.chinacloudapi.cn"
    assert addresses.authority == "https://login.chinacloudapi.cn"
    assert addresses.audience == "https://ml.azure.cn"


def test_addresses_of_the_operator_come_first() -> None:
    parsed = parse_options({**LEAST, "resource_manager": "https://arm.example:8443/"})
    assert parsed.addresses.resource_manager == "https://arm.example:8443"
    assert parsed.addresses.authority == "https://login.microsoftonline.com"


@pytest.mark.parametrize("missing", LEAST)
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(InvalidError, match=missing):
        parse_options({k: v for k, v in LEAST.items() if k != missing})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subscription", "mine"),
        ("resource_group", "a/b"),
        ("workspace", ""),
        ("workspace", 7),
        ("prefix", "Shoal-1"),
        ("instance_type", "a b"),
        ("auth_mode", "password"),
        ("concurrency", 0),
        ("tenant", "a/../b"),
        ("client", "x" * 65),
        ("cloud", "Nimbus"),
        ("resource_manager", "http://arm.example"),
        ("resource_manager", "https://user:word@arm.example"),
        ("authority", "https://"),
        ("authority", "https://a:99999"),
        ("audience", "ml.azure.com"),
        ("storage_url", "https://{account}.blob.example?sig=secret"),
        ("ca_file", "relative.pem"),
        ("poll_s", 0),
        ("poll_s", float("nan")),
        ("moonbeam", 1),
    ],
)
def test_an_option_that_cannot_be_used_is_named(key: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=key) as caught:
        parse_options({**LEAST, key: value})
    assert "\n" not in str(caught.value)
