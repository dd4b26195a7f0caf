"""Settings of the control plane: a TOML file, overridden by `SHOAL_*` variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import tomllib

from shoal_shared.names import checked_name

DEFAULT_PORT = 8080
DEFAULT_GRPC_PORT = 8081
DEFAULT_MQTT_PORT = 1883
EMBEDDED = "embedded"

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Timeout = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class ConfigError(Exception):
    """The settings cannot be used; the text is one plain sentence."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`shoal serve`. Ports of 0 mean: any free one. Sizes in bytes, times in seconds.

    `broker` is "embedded" or "HOST:PORT"; `database` is an SQLAlchemy URL, empty for
    SQLite in `data_dir`; `url` is where machines elsewhere reach the control plane, empty where
    that is where it listens: clouds fetch models from there.
    """

    host: str = "127.0.0.1"
    port: _Port = DEFAULT_PORT
    grpc_port: _Port = DEFAULT_GRPC_PORT
    data_dir: str = "~/.local/share/shoal"
    broker: str = EMBEDDED
    mqtt_port: _Port = DEFAULT_MQTT_PORT
    fleet: str = "default"
    database: str = ""
    url: str = ""
    max_body_bytes: _Count = 64 * 1024 * 1024
    max_model_bytes: _Count = 2 * 1024 * 1024 * 1024
    max_devices: _Count = 20_000
    offline_grace_s: _Seconds = 5.0
    startup_grace_s: _Seconds = 5.0
    default_timeout_s: _Timeout = 30.0
    log_level: str = "info"

    @property
    def folder(self) -> Path:
        return Path(self.data_dir).expanduser()

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'shoal.db'}"

    @property
    def broker_address(self) -> tuple[str, int] | None:
        """Host and port of an external broker, None for the embedded one."""
        if self.broker == EMBEDDED:
            return None
        host, _, port = self.broker.rpartition(":")
        known = port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536
        if not host or "/" in host or not known:
            shown = repr(self.broker[:80])
            raise ConfigError(f"broker {shown} is neither 'embedded' nor HOST:PORT")
        return host.strip("[]"), int(port)


def load_config(
    path: Path | None, environment: Mapping[str, str], **overrides: Any
) -> ServerConfig:
    """Settings from `path`, then `SHOAL_*` variables, then `overrides` that are not None.

    Raises `ConfigError` for a file that cannot be read, an unknown key or a wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for field in ServerConfig.__struct_fields__:
        variable = environment.get(f"SHOAL_{field.upper()}")
        if variable is not None:
            values[field] = variable
    values.update({k: v for k, v in overrides.items() if v is not None})
    try:
        # Not strict: variables are text, and "8080" is a fine port.
        config = msgspec.convert(values, ServerConfig, strict=False)
        checked_name(config.fleet, "fleet")
    except ValueError as error:
        raise ConfigError(f"the settings of the control plane are wrong: {error}") from None
    config.broker_address  # noqa: B018  checked here, so that a wrong one is told at the start
    _check_url(config.url)
    return msgspec.structs.replace(config, url=config.url.rstrip("/"))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if url and (not known or set("{}@?#\\ ") & set(url)):
        raise ConfigError(f"url {url[:80]!r} is not of the form https://HOST[:PORT]")
