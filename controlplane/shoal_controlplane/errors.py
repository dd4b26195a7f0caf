"""Kinds of domain error. Each room raises its own subclasses; the API maps kinds to statuses."""

from __future__ import annotations


class DomainError(Exception):
    """Base: the text is one plain sentence that says what to do next."""


class NotFoundError(DomainError):
    """What was named does not exist (404)."""


class InvalidError(DomainError):
    """What was sent cannot be used (422)."""


class ConflictError(DomainError):
    """It contradicts what is there (409)."""


class PreconditionError(DomainError):
    """It was changed by somebody else meanwhile: If-Match failed (412)."""


class TooLargeError(DomainError):
    """It exceeds a limit (413)."""


class UnavailableError(DomainError):
    """It cannot be done now, but may be later (503)."""
