"""What compiled code of a model depends on; devices that agree on all of it can share it."""

from __future__ import annotations

import hashlib

import msgspec

MAX_FIELD = 200


class CompileKey(msgspec.Struct, frozen=True, kw_only=True):
    """Key of compiled code: `digest` of the model file, `target` chip, name of the
    `provider_set`, versions of `runtime` and `driver`, and `settings`, a digest over options and
    shapes."""

    digest: str
    target: str
    provider_set: str
    runtime: str
    driver: str
    settings: str

    @property
    def hex(self) -> str:
        """SHA-256 over all of it, 64 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()
