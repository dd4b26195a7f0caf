"""References to secrets: where a credential lies, never the credential itself.

`env:NAME` is a variable of the control plane's environment, `file:/path` a file that only its user
may read, `identity` the cloud's managed identity, and the empty reference none. Only the reference
is stored and shown; the secret is read anew for each use, so that a rotated one counts at once.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.target import Fault, TargetError

IDENTITY = "identity"
MAX_SECRET = 64 * 1024

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def check_reference(reference: str) -> str:
    """A reference that can be used. Raises `InvalidError`, which never repeats what was given:
    it may be a secret."""
    kind, _, rest = reference.partition(":")
    known = (
        reference in ("", IDENTITY)
        or (kind == "env" and _VARIABLE.fullmatch(rest) is not None)
        or (kind == "file" and rest.startswith("/") and "\0" not in rest)
    )
    if not known:
        raise InvalidError(
            "a credential is a reference: env:NAME, file:/path (mode 0600) or identity"
        )
    return reference


def secret(reference: str) -> str:
    """The secret behind `env:` or `file:`. Raises `TargetError` CREDENTIALS."""
    kind, _, rest = reference.partition(":")
    if kind == "env":
        value = os.environ.get(rest, "").strip()
        if not value:
            raise TargetError(
                Fault.CREDENTIALS,
                f"the variable {rest} is not set in the environment of the control plane",
            )
        return _one_line(value, f"the variable {rest}")
    if kind == "file":
        return _one_line(private_file(Path(rest)).decode("utf-8", "replace").strip(), rest)
    raise TargetError(Fault.CREDENTIALS, "this target needs a credential: env:NAME or file:/path")


def private_file(path: Path) -> bytes:
    """The content of a file that belongs to this user, or root, and that no one else may read.
    Raises `TargetError` CREDENTIALS."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            # Of the open file, so that it cannot be exchanged in between.
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise TargetError(Fault.CREDENTIALS, f"{path} is not a file")
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise TargetError(
                    Fault.CREDENTIALS,
                    f"others may read {path}, which holds a credential: chmod 600 {path}",
                )
            if status.st_uid not in (os.geteuid(), 0):
                raise TargetError(Fault.CREDENTIALS, f"{path} belongs to another user")
            content = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise TargetError(
            Fault.CREDENTIALS, f"cannot read {path}: {error.strerror or error}"
        ) from None
    if not content.strip() or len(content) > MAX_SECRET:
        raise TargetError(Fault.CREDENTIALS, f"{path} holds no credential")
    return content


def _at_once(path: str, flags: int) -> int:
    """Not waiting for a writer, where it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _one_line(value: str, where: str) -> str:
    if not value.isprintable():
        raise TargetError(Fault.CREDENTIALS, f"{where} holds no credential of one line")
    return value
