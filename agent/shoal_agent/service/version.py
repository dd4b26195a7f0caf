"""The version of this agent."""

from __future__ import annotations

from importlib import metadata


def agent_version() -> str:
    """Version of the installed distribution; "unknown" where it runs from a bare folder."""
    try:
        return metadata.version("shoal")
    except metadata.PackageNotFoundError:
        return "unknown"
