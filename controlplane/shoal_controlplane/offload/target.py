"""What every cloud target can do, whatever its kind.

A target runs copies ("replicas") of models somewhere else and answers inference requests with
them. Implementations stand in a file a kind, the only place that imports that cloud's SDK, and all
pass one conformance suite. Nothing here decides when a target is used.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest
from shoal_shared.signature import ModelSignature


class Fault(enum.Enum):
    """Kinds of trouble with a target."""

    CREDENTIALS = "credentials"
    """Refused: 401, 403, an expired token, a file of credentials that cannot be used."""
    UNREACHABLE = "unreachable"
    """No answer: DNS, refused or broken connection, TLS."""
    TIMEOUT = "timeout"
    """It did not answer in time, or too slowly."""
    THROTTLED = "throttled"
    """429, or a quota that is used up."""
    QUOTA = "quota"
    """It cannot grow: a node pool or subscription at its limit."""
    CONFLICT = "conflict"
    """409: something there has the name and is not ours, or a change is under way."""
    NOT_DEPLOYED = "not_deployed"
    """It does not have the model, or no replica of it is ready."""
    UNSUPPORTED = "unsupported"
    """It can never run this model: say why (for instance the operator's name)."""
    INVALID = "invalid"
    """The request does not fit the model: another place would refuse it, too."""
    BROKEN = "broken"
    """It answers with 5xx, or with what cannot be an answer: wrong shapes, types or names."""


class TargetError(Exception):
    """A target failed. The text is one plain sentence without secrets."""

    def __init__(self, fault: Fault, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class CloudModel:
    """A model for a target. `artifact` is the reference file on this machine, `digest` names it
    (`sha256:…`), `url` is where a machine elsewhere may fetch the same bytes. `format` is as in
    manifests, such as `onnx`; `max_batch` is 0 where there is no batch dimension."""

    name: str
    version: str
    format: str
    artifact: Path
    digest: str
    url: str
    signature: ModelSignature
    max_batch: int
    batches: tuple[int, ...] = (1,)
    """Batch sizes worth compiling, ascending."""

    @property
    def key(self) -> ModelKey:
        return (self.name, self.version)


@dataclass(frozen=True, slots=True)
class Description:
    """What a target is, as it says itself. `where` is a phrase such as "Kubernetes v1.31 at
    https://…, namespace shoal"; `facts` are plain JSON values worth showing."""

    where: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """How a model fares on a target: replicas that answer, replicas wanted, and a sentence that
    says what is wrong, empty where nothing is."""

    ready: int
    wanted: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What use costs, in any currency as long as it is the same for all targets: per replica and
    hour, as long as it runs, and per request."""

    per_replica_hour: float = 0.0
    per_request: float = 0.0


class CloudTarget(Protocol):
    """One target. All methods raise `TargetError`, end within their time, and may be cancelled;
    blocking SDKs run in threads of the implementation."""

    async def describe(self) -> Description:
        """Reach the target with its credentials and say what it is."""

    async def deploy(self, model: CloudModel) -> None:
        """Have the target know the model, with no replica where the kind can have none. Does
        nothing where it is deployed already; replaces it where its digest differs. Refuses with
        UNSUPPORTED what can never run there."""

    async def scale(self, model: ModelKey, replicas: int) -> None:
        """Ask for so many replicas of a deployed model; `health` tells when they are there.
        Raises NOT_DEPLOYED for a model that is not there, as `infer` and `health` do."""

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        """Answer a request, whose inputs were checked against the model's signature.

        The reply holds exactly the outputs asked for, checked against the signature. Raises
        NOT_DEPLOYED where no replica is ready."""

    async def health(self, model: ModelKey) -> Health:
        """How the model fares."""

    async def remove(self, model: ModelKey) -> None:
        """Take the model away; nothing of ours stays. Does nothing where it is not there."""

    def price(self) -> Price:
        """What use costs, as the operator said or the target tells."""

    async def close(self) -> None:
        """End sessions and threads; models stay deployed."""


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What an operator said when adding a target. `options` are the kind's own and were checked
    by it; `credential` is a reference (see `credentials`), never a secret."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    credential: str = ""
    price: Price = Price()
    max_replicas: int = 1
