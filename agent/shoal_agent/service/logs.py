"""Logging: one line a record, `key=value`, and no more of the same than a disk can bear."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from shoal_shared.clock import Clock

_BURST = 10
_SECONDS_PER_RECORD = 10.0
_MAX_VALUE = 500
_MAX_TRACE = 4000


def fields(**values: object) -> Mapping[str, Any]:
    """The `extra` of a log call that adds `key=value` pairs to its line."""
    return {"fields": values}


def setup_logging(level: str, stream: TextIO | None = None) -> None:
    """Send all records of at least `level` to `stream`, by default stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LineFormatter(logging.Formatter):
    """`time=… level=… logger=… msg=… key=value…`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            f"time={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}"
            f".{int(record.msecs):03d}Z",
            f"level={record.levelname.lower()}",
            f"logger={record.name}",
            f"msg={quoted(record.getMessage())}",
        ]
        extra: Mapping[str, object] = getattr(record, "fields", {})
        parts += [f"{key}={quoted(str(value))}" for key, value in extra.items()]
        if record.exc_info:
            trace = "".join(traceback.format_exception(*record.exc_info))
            parts.append(f"trace={quoted(trace[-_MAX_TRACE:], _MAX_TRACE)}")
        return " ".join(parts)


class RateLimit(logging.Filter):
    """Lets each line of code log a burst, then one record per ten seconds.

    A hostile peer that makes the agent complain as fast as it can send must not fill the disk.
    The first record after a silence tells how many were left out.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # Keyed by place in the code, so its size is bounded: (tokens, as of, left out).
        self._state: dict[tuple[str, int], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.pathname, record.lineno), self._clock()
        tokens, then, dropped = self._state.get(key, (float(_BURST), now, 0))
        tokens = min(float(_BURST), tokens + (now - then) / _SECONDS_PER_RECORD)
        if tokens < 1:
            self._state[key] = (tokens, now, dropped + 1)
            return False
        self._state[key] = (tokens - 1, now, 0)
        if dropped:
            record.fields = {**getattr(record, "fields", {}), "left_out": dropped}
        return True


def quoted(text: str, limit: int = _MAX_VALUE) -> str:
    """`text` as a value: quoted where needed, without control characters, not too long."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if text and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, f"\\u{ord(char):04x}")
