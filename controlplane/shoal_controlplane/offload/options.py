"""Options of targets, as operators give them: checked against a kind's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from shoal_controlplane.errors import InvalidError

T = TypeVar("T", bound=msgspec.Struct)


def converted(options: Mapping[str, Any], kind: type[T]) -> T:
    """`options` as the struct `kind`; text counts as the number that it reads. Raises
    `InvalidError` with a sentence that names the key."""
    try:
        return msgspec.convert(dict(options), kind, strict=False)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at ")
        key = path.strip("`").removeprefix("$.")
        raise InvalidError(f"option {key}: {said}" if key else f"options: {said}") from None
