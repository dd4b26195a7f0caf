"""Control documents on MQTT: JSON under 8 KB, versioned, checked before use."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from shoal_shared.profiles import Profile
from shoal_shared.status import Presence, ReplicaState

VERSION = 1
MAX_DOCUMENT_BYTES = 8192


class MessageError(ValueError):
    """A control document that cannot be used; the text is one plain sentence."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all control documents. `v` is the version of the document's format."""

    v: int = VERSION


class Status(Document, frozen=True, kw_only=True):
    """`…/status`: presence of a device.

    `boot_id` changes with every start of the agent, so that a late last will of an earlier
    session is told from the present one.
    """

    state: Presence
    boot_id: str


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """What the device is. `simulated` is true for a virtual board."""

    family: str
    model: str
    soc: str = ""
    simulated: bool = False


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator. `memory_bytes` is 0 where it shares the system's memory."""

    kind: str
    name: str
    memory_bytes: int = 0


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One inference runtime: model formats it loads and providers that it lists."""

    name: str
    version: str
    formats: tuple[str, ...]
    providers: tuple[str, ...] = ()


class Capabilities(Document, frozen=True, kw_only=True):
    """`…/capabilities`: what the device can do. Memory and disk in bytes."""

    agent_version: str
    board: Board
    cores: int
    memory_bytes: int
    disk_free_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[RuntimeInfo, ...] = ()
    labels: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class ModelGoal(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a device shall serve.

    `digest` is `sha256:<hex>` of the artifact, `size` its bytes, `format` "onnx" or "tflite";
    `max_batch` is 1 where requests must not be merged; `options` go to the runtime.
    """

    deployment: str
    model: str
    version: str
    digest: str
    size: int
    format: str
    max_batch: int = 1
    options: dict[str, Any] = {}


class Desired(Document, frozen=True, kw_only=True):
    """`…/desired`: the goal state of a device. `goal` only ever grows."""

    goal: int
    models: tuple[ModelGoal, ...] = ()


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One model on the device. `reason` is one sentence, set when `state` is failed."""

    deployment: str
    model: str
    version: str
    digest: str
    state: ReplicaState
    reason: str = ""
    providers: tuple[str, ...] = ()
    memory_bytes: int = 0
    profile: Profile | None = None


class Reported(Document, frozen=True, kw_only=True):
    """`…/reported`: what runs, and the goal number that was seen."""

    goal: int
    boot_id: str
    models: tuple[ReplicaReport, ...] = ()


class Telemetry(Document, frozen=True, kw_only=True):
    """`…/telemetry`: load in fractions of one, memory in bytes, temperature in °C.

    `seq` counts up from 0 within a boot; a lower one is late and dropped. `uptime_s` is that of
    the agent. `models` maps "model:version" to (answered, failed, queue depth).
    """

    seq: int
    boot_id: str
    uptime_s: float
    cpu_load: float
    memory_used_bytes: int
    disk_free_bytes: int
    temperature_c: float | None = None
    throttled: bool = False
    power_w: float | None = None
    accelerator_load: float | None = None
    models: dict[str, tuple[int, int, int]] = {}


D = TypeVar("D", bound=Document)
_decoders: dict[type[Document], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (Status, Capabilities, Desired, Reported, Telemetry)
}
_version_probe = msgspec.json.Decoder(Document)
_encoder = msgspec.json.Encoder()


def encode_document(document: Document) -> bytes:
    """Encode a control document. Raises `MessageError` if it would exceed the limit."""
    data = _encoder.encode(document)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MessageError(
            f"{type(document).__name__} document has {len(data)} bytes, "
            f"more than the limit of {MAX_DOCUMENT_BYTES}"
        )
    return data


def decode_document(kind: type[D], data: bytes) -> D:
    """Decode and check a control document; anything wrong raises `MessageError`."""
    name = kind.__name__
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MessageError(f"{name} document has {len(data)} bytes, more than {MAX_DOCUMENT_BYTES}")
    try:
        version = _version_probe.decode(data).v
        if version != VERSION:
            raise MessageError(f"{name} document has version {version}, only {VERSION} is known")
        decoded: D = _decoders[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{name} document cannot be read: {error}") from None
    return decoded
