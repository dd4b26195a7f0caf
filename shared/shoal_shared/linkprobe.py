"""The reserved model `$link`, which every device answers at once: it measures the link."""

from __future__ import annotations

LINK_MODEL = "$link"
"""No model of a user has this name: it is none."""

REPLY_BYTES = "reply_bytes"
"""Parameter of a request to it: bytes of the one output, UINT8 `data`, that it asks for."""
MAX_REPLY_BYTES = 4 * 1024 * 1024
