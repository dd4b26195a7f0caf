"""States that users see, each value documented."""

from __future__ import annotations

import enum


class Presence(str, enum.Enum):
    """Whether a device has a session with the broker."""

    ONLINE = "online"
    """The device has a live session."""
    OFFLINE = "offline"
    """The device said goodbye, or the broker published its last will."""


class DeviceCondition(str, enum.Enum):
    """What the control plane says about a device."""

    ONLINE = "online"
    """Live session; may receive models and requests."""
    OFFLINE = "offline"
    """No session; keeps its models and converges when it returns."""
    CORDONED = "cordoned"
    """Live session, but the operator keeps new models and requests away."""


class ReplicaState(str, enum.Enum):
    """One model on one device, as the device reports it."""

    QUEUED = "queued"
    """Known from the goal state; nothing done yet."""
    FETCHING = "fetching"
    """The artifact is being downloaded or verified."""
    LOADING = "loading"
    """The runtime is loading and warming the model up."""
    PROFILING = "profiling"
    """Service time is being measured per batch size."""
    READY = "ready"
    """Serving requests."""
    FAILED = "failed"
    """Could not be served; `reason` says why. Retried when the goal changes or after a pause."""


class DeploymentState(str, enum.Enum):
    """A deployment over all its replicas."""

    PENDING = "pending"
    """No device fits now, or nothing has been reported yet."""
    PROGRESSING = "progressing"
    """Some replicas are on their way; fewer than wanted are ready."""
    READY = "ready"
    """Every wanted replica is ready."""
    DEGRADED = "degraded"
    """It was complete once; now at least one replica serves, but fewer than wanted."""
    FAILED = "failed"
    """No replica serves and at least one says why it cannot."""


class InferCode(str, enum.Enum):
    """Why a device did not answer a request with tensors."""

    INVALID = "invalid"
    """The request does not fit the model; trying elsewhere will not help."""
    NOT_FOUND = "not_found"
    """The device does not serve that model now; another device may."""
    EXPIRED = "expired"
    """The deadline passed before compute began."""
    OVERLOADED = "overloaded"
    """The queue is full; another device may have room."""
    INTERNAL = "internal"
    """The runtime failed; another device may succeed."""


RETRYABLE = frozenset({InferCode.NOT_FOUND, InferCode.OVERLOADED, InferCode.INTERNAL})
"""Codes after which an idempotent request may be tried on another device."""
