"""Configuration: defaults, then the file, then `SHOAL_*` variables, then flags."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shoal_agent.identity.device import name_from_hostname
from shoal_shared.names import NAME_RULE, checked_name, is_name

DEFAULT_FILE = Path("/etc/shoal/agent.toml")
MAX_LABELS = 32
LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """The configuration cannot be used; the text is one plain sentence."""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an operator can set; checked when it is made.

    `broker` is "host:port", `server` the control plane's URL, from which artifacts come.
    `max_disk_bytes` bounds what artifacts may occupy, 0 is no bound. Raises `ValueError`.
    """

    device: str
    fleet: str = "default"
    broker: str = "127.0.0.1:1883"
    server: str = "http://127.0.0.1:8080"
    state_dir: Path = Path("/var/lib/shoal")
    labels: dict[str, str] = {}
    log_level: str = "info"
    telemetry_interval_s: float = 5.0
    max_disk_bytes: int = 0

    def __post_init__(self) -> None:
        checked_name(self.device, "device")
        checked_name(self.fleet, "fleet")
        parse_address(self.broker)
        _check_url(self.server)
        if len(self.labels) > MAX_LABELS:
            raise ValueError(f"there are more than {MAX_LABELS} labels")
        for name, value in self.labels.items():
            checked_name(name, "label")
            if not is_name(value):
                raise ValueError(
                    f"label {name} has the value {value[:80]!r}, which is not valid: "
                    f"use {NAME_RULE}"
                )
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level must be one of {', '.join(LOG_LEVELS)}")
        if not 0.1 <= self.telemetry_interval_s <= 3600:
            raise ValueError("telemetry_interval_s must be between 0.1 and 3600")
        if self.max_disk_bytes < 0:
            raise ValueError("max_disk_bytes must not be negative")

    @property
    def broker_address(self) -> tuple[str, int]:
        return parse_address(self.broker)


def load_config(
    path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> AgentConfig:
    """Read the configuration. Raises `ConfigError`.

    `path` or `SHOAL_CONFIG` must exist if given; the default file need not. `flags` are set
    keys of `AgentConfig`; their labels are added to those of the file.
    """
    if path is None and environment.get("SHOAL_CONFIG"):
        path = Path(environment["SHOAL_CONFIG"])
    values: dict[str, Any] = {"device": name_from_hostname(socket.gethostname())}
    values |= _read_file(path or DEFAULT_FILE, required=path is not None)
    values |= _from_environment(environment)
    labels = values.get("labels", {})
    values |= flags
    if flags.get("labels") and isinstance(labels, dict):
        values["labels"] = {**labels, **flags["labels"]}
    return _convert(values, "the configuration")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[address]:port". Raises `ValueError`."""
    host, sep, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdigit() else 0
    if not sep or not host or any(c.isspace() for c in host) or not 0 < number < 65536:
        raise ValueError(f"broker {text[:80]!r} is not an address of the form host:port")
    return host, number


def parse_labels(text: str) -> dict[str, str]:
    """Labels of "name=value,name=value". Raises `ValueError`."""
    labels: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, sep, value = part.partition("=")
        if not sep:
            raise ValueError(f"label {part[:80]!r} is not of the form name=value")
        labels[name.strip()] = value.strip()
    return labels


def _check_url(text: str) -> None:
    try:
        parts = urlsplit(text)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        ok = False
    if not ok:
        raise ValueError(f"server {text[:80]!r} is not a URL such as http://127.0.0.1:8080")


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(f"configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from None
    try:
        values = msgspec.toml.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"configuration file {path} is not valid TOML: {error}") from None
    # Checked before the environment covers it: a wrong file must not hide.
    _convert({"device": "checked", **values}, str(path))
    return dict(values)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in AgentConfig.__struct_fields__:
        variable = f"SHOAL_{field.upper()}"
        text = environment.get(variable)
        if text is None:
            continue
        try:
            if field == "labels":
                values[field] = parse_labels(text)
            elif field == "telemetry_interval_s":
                values[field] = float(text)
            elif field == "max_disk_bytes":
                values[field] = int(text)
            else:
                values[field] = text
        except ValueError as error:
            raise ConfigError(f"{variable} has the wrong value {text[:80]!r}: {error}") from None
    return values


def _convert(values: dict[str, Any], source: str) -> AgentConfig:
    try:
        return msgspec.convert(values, AgentConfig, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source} is not valid: {error}") from None


def _decode_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise TypeError("expected a path")
