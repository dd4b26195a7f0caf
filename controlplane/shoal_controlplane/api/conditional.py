"""Conditional updates: every resource has a revision, shown as its `ETag` (RFC 9110)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from shoal_controlplane.errors import PreconditionError

IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="Change only if the ETag is still this one")
]


def etag(revision: int) -> str:
    """Strong entity tag of a revision: `"7"`."""
    return f'"{revision}"'


def check_if_match(if_match: str | None, revision: int) -> None:
    """Raise `PreconditionError` unless `If-Match` is absent, `*`, or lists the revision's tag.

    If-Match compares strongly: a weak tag (`W/"7"`) never matches, nor does garbage.
    """
    if if_match is None:
        return
    current = etag(revision)
    tags = [tag.strip() for tag in if_match.split(",")]
    if tags != ["*"] and current not in tags:
        raise PreconditionError(
            f"If-Match does not hold, the ETag is now {current}: read it again and repeat."
        )
