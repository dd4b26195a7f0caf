"""Settings of the control plane: a TOML file, overridden by `SHOAL_*` variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomllib

DEFAULT_PORT = 8080
DEFAULT_GRPC_PORT = 8081
DEFAULT_MQTT_PORT = 1883
EMBEDDED = "embedded"


class ConfigError(Exception):
    """The settings cannot be used; the text is one plain sentence."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`shoal serve`. Ports of 0 mean: any free one. Sizes in bytes, times in seconds.

    `broker` is "embedded" or "HOST:PORT"; `database` is an SQLAlchemy URL, empty for
    SQLite in `data_dir`.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    grpc_port: int = DEFAULT_GRPC_PORT
    data_dir: str = "~/.local/share/shoal"
    broker: str = EMBEDDED
    mqtt_port: int = DEFAULT_MQTT_PORT
    fleet: str = "default"
    database: str = ""
    max_body_bytes: int = 64 * 1024 * 1024
    max_model_bytes: int = 2 * 1024 * 1024 * 1024
    max_devices: int = 20_000
    offline_grace_s: float = 5.0
    startup_grace_s: float = 5.0
    default_timeout_s: float = 30.0
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
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"broker {self.broker!r} is neither 'embedded' nor HOST:PORT")
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
            values = tomllib.loads(path.read_text())
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
    except msgspec.ValidationError as error:
        raise ConfigError(f"the settings of the control plane are wrong: {error}") from None
    config.broker_address  # noqa: B018  checked here, so that a wrong one is told at the start
    return config
