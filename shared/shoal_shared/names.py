"""Names that users and topics share: one rule, checked in one place."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, dots, underscores or hyphens, starting with a letter or digit"


def is_name(text: str) -> bool:
    """Whether `text` can name a fleet, device, model, version or deployment.

    The rule admits no slash, wildcard or leading dot, so a name is safe as an MQTT topic
    level, a URL segment and a file name.
    """
    return _NAME.fullmatch(text) is not None


def checked_name(text: str, what: str) -> str:
    """Return `text` if it is a name, else raise `ValueError` with one sentence."""
    if not is_name(text):
        raise ValueError(f"{what} {text[:80]!r} is not valid: use {NAME_RULE}")
    return text
