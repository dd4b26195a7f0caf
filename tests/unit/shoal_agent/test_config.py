from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.config import (
    AgentConfig,
    ConfigError,
    load_config,
    parse_address,
    parse_labels,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_defaults_are_those_of_a_single_machine(file: Path) -> None:
    file.write_text("")
    config = load_config(file, {}, {})
    assert config.broker_address == ("127.0.0.1", 1883)
    assert config.server == "http://127.0.0.1:8080"
    assert config.state_dir == Path("/var/lib/shoal")
    assert config.fleet == "default"
    assert config.device


def test_flags_beat_variables_beat_the_file(file: Path) -> None:
    file.write_text('device = "a"\nfleet = "a"\nbroker = "a:1"\ntelemetry_interval_s = 9\n')
    environment = {
        "SHOAL_CONFIG": str(file),
        "SHOAL_FLEET": "b",
        "SHOAL_BROKER": "b:2",
        "SHOAL_MAX_DISK_BYTES": "10",
        "SHOAL_TELEMETRY_INTERVAL_S": "0.5",
    }
    config = load_config(None, environment, {"broker": "c:3"})
    assert (config.device, config.fleet, config.broker) == ("a", "b", "c:3")
    assert (config.max_disk_bytes, config.telemetry_interval_s) == (10, 0.5)


def test_labels_of_flags_are_added_to_those_of_the_file(file: Path) -> None:
    file.write_text('[labels]\nsite = "berlin"\nrow = "1"\n')
    config = load_config(file, {}, {"labels": {"row": "2"}})
    assert config.labels == {"site": "berlin", "row": "2"}
    config = load_config(file, {"SHOAL_LABELS": "a=b, c=d"}, {})
    assert config.labels == {"a": "b", "c": "d"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("colour = 1\n", "colour"),
        ("device = 7\n", "$.device"),
        ('device = "a/b"\n', "device 'a/b' is not valid"),
        ('telemetry_interval_s = "5"\n', "telemetry_interval_s"),
        ("telemetry_interval_s = 0\n", "between 0.1 and 3600"),
        ('broker = "host"\n', "host:port"),
        ('broker = "host:99999"\n', "host:port"),
        ('server = "ftp://x"\n', "server 'ftp://x' is not a URL"),
        ('server = "http://x:port"\n', "is not a URL"),
        ('log_level = "loud"\n', "log_level must be one of"),
        ("labels = 3\n", "$.labels"),
        ('[labels]\nsite = "a b"\n', "label site"),
        ("max_disk_bytes = -1\n", "max_disk_bytes"),
        ("state_dir = ''\n", "state_dir"),
        ("device = \n", "not valid TOML"),
        ("\xff", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(file: Path, text: str, part: str) -> None:
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {}, {})
    assert part in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_file_does_not_hide_behind_a_variable(file: Path) -> None:
    file.write_text("broker = 1\n")
    with pytest.raises(ConfigError, match="broker"):
        load_config(file, {"SHOAL_BROKER": "a:1"}, {})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml", {}, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {}, {})


@pytest.mark.parametrize(
    "environment",
    [
        {"SHOAL_TELEMETRY_INTERVAL_S": "soon"},
        {"SHOAL_MAX_DISK_BYTES": "1.5"},
        {"SHOAL_LABELS": "site"},
        {"SHOAL_DEVICE": ".hidden"},
    ],
)
def test_a_wrong_variable_is_refused(file: Path, environment: dict[str, str]) -> None:
    file.write_text("")
    with pytest.raises(ConfigError):
        load_config(file, environment, {})


def test_too_many_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 32 labels"):
        AgentConfig(device="a", labels={f"l{i}": "v" for i in range(33)})


def test_addresses_of_version_6_stand_in_brackets() -> None:
    assert parse_address("[::1]:1883") == ("::1", 1883)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError as error:
        assert "host:port" in str(error)
    else:
        assert host
        assert 0 < port < 65536


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.from_regex(r"[a-z]{1,8}", fullmatch=True)
    )
)
def test_labels_survive_being_written_as_text(labels: dict[str, str]) -> None:
    assert parse_labels(",".join(f"{k}={v}" for k, v in labels.items())) == labels
