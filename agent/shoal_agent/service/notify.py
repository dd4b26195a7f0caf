"""systemd's notification protocol; harmless where nobody listens.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from shoal_agent.service.logs import fields

log = logging.getLogger("notify")


class Notifier:
    """Tells the service manager how the agent fares."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_us = _watchdog(environment)

    @property
    def watchdog_period_s(self) -> float | None:
        """How often `alive` is due; None where there is no watchdog."""
        return self._watchdog_us / 2e6 if self._watchdog_us else None

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def starting(self, status: str, patience_s: float) -> None:
        """Not ready yet, and not to be killed for it within `patience_s` seconds."""
        self._send(f"STATUS={status}\nEXTEND_TIMEOUT_USEC={int(patience_s * 1e6)}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), address)
        except OSError as error:
            log.warning("service manager not notified", extra=fields(error=error))


def _watchdog(environment: Mapping[str, str]) -> int:
    pid, period = environment.get("WATCHDOG_PID"), environment.get("WATCHDOG_USEC", "")
    if pid is not None and pid != str(os.getpid()):
        return 0
    return int(period) if period.isascii() and period.isdigit() else 0
