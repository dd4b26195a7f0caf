"""Options and arguments that commands share, and how their texts are read.

A text that cannot be used is wrong usage: `typer.BadParameter`, exit status 2.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlsplit

import typer

from shoal_shared.names import NAME_RULE, is_name

DEFAULT_SERVER = "http://127.0.0.1:8080"


class Format(str, enum.Enum):
    """How a command prints its result."""

    TABLE = "table"
    """For people: aligned columns, colours on a terminal."""
    JSON = "json"
    """What the API said, as JSON."""
    YAML = "yaml"
    """The same as YAML."""


def checked_server(url: str) -> str:
    """A server's URL without a trailing slash."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not url.isprintable():
        raise typer.BadParameter(f"{url!r} is no server: use http://HOST:PORT.")
    return url.rstrip("/")


def checked_name(text: str) -> str:
    """The name of a device, model or deployment."""
    if not is_name(text):
        raise typer.BadParameter(f"{text[:80]!r} is no name: use {NAME_RULE}.")
    return text


def model_reference(text: str) -> tuple[str, str | None]:
    """`MODEL` or `MODEL:VERSION` as name and version."""
    name, colon, version = text.partition(":")
    if not is_name(name) or (colon and not is_name(version)):
        raise typer.BadParameter(f"{text[:80]!r} is neither MODEL nor MODEL:VERSION.")
    return name, version or None


def key_values(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` texts as a dictionary."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise typer.BadParameter(f"{text[:80]!r} is not of the form key=value.")
        pairs[key] = value
    return pairs


ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="SHOAL_SERVER",
        metavar="URL",
        callback=checked_server,
        help="The control plane.",
    ),
]
FormatOption = Annotated[
    Format, typer.Option("-o", "--format", help="How to print the result.", show_choices=True)
]
