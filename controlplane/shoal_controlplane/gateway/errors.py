"""Why the gateway answers a request with an error."""

from __future__ import annotations

import enum


class GatewayStatus(enum.Enum):
    """Kinds of failure, each with its HTTP status."""

    INVALID = 400
    """The request breaks the protocol or does not fit the model."""
    NOT_FOUND = 404
    """No such model or version."""
    TOO_LARGE = 413
    """The body exceeds the limit."""
    EXHAUSTED = 429
    """Nothing can meet the deadline now; `retry_after_s` says when to come back."""
    INTERNAL = 500
    """Every device that was tried failed on this request."""
    UNSUPPORTED = 501
    """Part of the protocol that is not offered."""
    UNAVAILABLE = 503
    """The model is known, but no device serves it now."""
    DEADLINE = 504
    """The deadline passed before an answer came."""


class GatewayError(Exception):
    """An error answer. The text is one plain sentence; `retry_after_s` is in seconds."""

    def __init__(
        self, status: GatewayStatus, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
