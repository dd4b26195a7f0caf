"""Settings from file, variables and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal_controlplane.config import ConfigError, ServerConfig, load_config


def from_toml(folder: Path, text: str | bytes) -> ServerConfig:
    path = folder / "shoal.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, {})


def test_defaults() -> None:
    config = load_config(None, {})
    assert config == ServerConfig()
    assert (config.host, config.port, config.broker_address) == ("127.0.0.1", 8080, None)
    assert config.database_url == f"sqlite:///{Path.home()}/.local/share/shoal/shoal.db"


def test_arguments_win_over_variables_and_those_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shoal.toml"
    path.write_text('port = 1\ngrpc_port = 2\nmqtt_port = 3\nfleet = "öst"\n'.replace("ö", "o"))
    environment = {"SHOAL_PORT": "10", "SHOAL_GRPC_PORT": "20", "SHOAL_UNRELATED": "x", "PORT": "7"}
    config = load_config(path, environment, port=100, mqtt_port=None)
    assert (config.port, config.grpc_port, config.mqtt_port) == (100, 20, 3)
    assert config.fleet == "ost"


def test_variables_are_converted() -> None:
    environment = {
        "SHOAL_OFFLINE_GRACE_S": "2.5",
        "SHOAL_MAX_BODY_BYTES": "1024",
        "SHOAL_DATABASE": "postgresql://db/shoal",
    }
    config = load_config(None, environment)
    assert (config.offline_grace_s, config.max_body_bytes) == (2.5, 1024)
    assert config.database_url == "postgresql://db/shoal"


def test_the_address_for_others_may_end_in_a_slash() -> None:
    assert load_config(None, {"SHOAL_URL": "https://shoal.example:8443/"}).url == (
        "https://shoal.example:8443"
    )


@pytest.mark.parametrize(
    "url",
    [
        "shoal.example",
        "ftp://x",
        "http://",
        "http://a b",
        "http://u@h",
        "http://h:99999",
        "http://h?q",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form"):
        load_config(None, {}, url=url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 8080", "unknown field `prot`"),
        ('port = "many"', "port"),
        ("port = -1", "port"),
        ("port = 65536", "port"),
        ("port = [1]", "port"),
        ("mqtt_port = 70000", "mqtt_port"),
        ("max_body_bytes = 0", "max_body_bytes"),
        ("default_timeout_s = 0.0", "default_timeout_s"),
        ("default_timeout_s = nan", "default_timeout_s"),
        ("offline_grace_s = -1.0", "offline_grace_s"),
        ('fleet = "a/b"', "fleet 'a/b' is not valid"),
        ('fleet = ""', "fleet '' is not valid"),
        ("port = ", "is not valid TOML"),
        (b'host = "\xff"', "cannot read"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_toml(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SHOAL_PORT", "http"), ("SHOAL_PORT", ""), ("SHOAL_DEFAULT_TIMEOUT_S", "nan")],
)
def test_variables_that_cannot_be(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable.removeprefix("SHOAL_").lower()):
        load_config(None, {variable: value})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(path, {})


@pytest.mark.parametrize(
    ("broker", "address"),
    [
        ("embedded", None),
        ("broker.example:1883", ("broker.example", 1883)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:1883", ("::1", 1883)),
    ],
)
def test_brokers(broker: str, address: Any) -> None:
    assert load_config(None, {}, broker=broker).broker_address == address


@pytest.mark.parametrize(
    "broker",
    [
        "",
        "host",
        "host:",
        ":1883",
        "host:0",
        "host:65536",
        "host:-1",
        "host:mqtt",
        "host:²",
        "host:" + "9" * 5000,
        "mqtt://host",
        "mqtt://host:1883",
    ],
)
def test_brokers_that_cannot_be(broker: str) -> None:
    with pytest.raises(ConfigError, match="is neither 'embedded' nor HOST:PORT"):
        load_config(None, {"SHOAL_BROKER": broker})


def test_the_folder_of_the_user() -> None:
    assert load_config(None, {}, data_dir="~/x").folder == Path.home() / "x"
