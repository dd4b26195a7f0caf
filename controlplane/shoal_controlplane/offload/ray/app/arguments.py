"""What an application is told: which model, where its bytes are, and who may ask."""

from __future__ import annotations

import msgspec

from shoal_shared.signature import ModelSignature


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of an application, as they stand in its declaration.

    `owner` is the name of the target that declared it. `digest` (`sha256:…`) and `size` in bytes
    are those of the file at `url`. `token_sha256` is the hex digest of the bearer token that
    clients must show: the declaration can be read by whoever may read the cluster's state.
    """

    owner: str
    name: str
    version: str
    digest: str
    size: int
    url: str
    signature: ModelSignature
    token_sha256: str
    threads: int = 1
    gpu: bool = False
