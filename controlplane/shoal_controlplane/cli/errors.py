"""What the command tells its user when it cannot do what was asked."""

from __future__ import annotations


class CliError(Exception):
    """The command failed; the text is one plain sentence with what to do next."""
