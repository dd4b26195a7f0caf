"""Control documents on MQTT: JSON under 8 KB, versioned, checked before use."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from shoal_shared.placement import Placement
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
    """One accelerator. `memory_bytes` is 0 where it shares the system's memory.

    `kind` is "gpu", "npu" or "dla"; `precisions` are what it computes in, as "fp16", "int8".
    `compute_capability` is CUDA's, as "8.7"; `transfer_bytes_per_s` from pinned memory of the
    host. Empty or None where the board cannot say.
    """

    kind: str
    name: str
    memory_bytes: int = 0
    precisions: tuple[str, ...] = ()
    compute_capability: str = ""
    transfer_bytes_per_s: float | None = None


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One inference runtime: model formats it loads and providers that it lists."""

    name: str
    version: str
    formats: tuple[str, ...]
    providers: tuple[str, ...] = ()


class Capabilities(Document, frozen=True, kw_only=True):
    """`…/capabilities`: what the device can do. Memory and disk in bytes.

    `toolkits` maps drivers and toolkits of the board to their versions, as "cuda" to "12.6";
    `power_mode` is the board's own name for it, empty where it has none.
    """

    agent_version: str
    board: Board
    cores: int
    memory_bytes: int
    disk_free_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[RuntimeInfo, ...] = ()
    toolkits: dict[str, str] = {}
    power_mode: str = ""
    labels: dict[str, str] = {}
    notes: tuple[str, ...] = ()


REFERENCE = "reference"
"""Name of the variant that every version has: the file that it was pushed with."""


class VariantGoal(msgspec.Struct, frozen=True, kw_only=True):
    """One more file of a version, which computes the same as its reference.

    `target` is what it was compiled for, as a device's `ProviderSet.target`; empty for a file
    that any board may load.
    """

    name: str
    digest: str
    size: int
    format: str
    target: str = ""


class GoldenGoal(msgspec.Struct, frozen=True, kw_only=True):
    """Golden inputs and outputs (see `shoal_shared.golden`), and how far a variant may be off:
    at most `absolute` + `relative` times the largest magnitude of that output."""

    digest: str
    size: int
    absolute: float
    relative: float


class ModelGoal(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a device shall serve.

    `digest` is `sha256:<hex>` of the reference artifact, `size` its bytes, `format` "onnx" or
    "tflite"; the device may serve any of `variants` in its place. `max_batch` is 1 where requests
    must not be merged; `options` go to the runtime. With `require_accelerator` the model fails
    rather than falls back to the CPU.
    """

    deployment: str
    model: str
    version: str
    digest: str
    size: int
    format: str
    max_batch: int = 1
    options: dict[str, Any] = {}
    variants: tuple[VariantGoal, ...] = ()
    golden: GoldenGoal | None = None
    require_accelerator: bool = False

    @property
    def files(self) -> tuple[VariantGoal, ...]:
        """The reference and the variants."""
        reference = VariantGoal(
            name=REFERENCE, digest=self.digest, size=self.size, format=self.format
        )
        return (reference, *self.variants)

    @property
    def settings(self) -> tuple[Any, ...]:
        """All that a device must act on when it changes."""
        return (
            self.digest,
            self.format,
            self.max_batch,
            self.options,
            self.variants,
            self.golden,
            self.require_accelerator,
        )


class RoleGoal(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a sharded model that a device computes, in one epoch of its plan.

    The stage reads `…/plans/{plan}/{epoch}/{stage}`, where `stage` is its index, and "index.n" for
    its replica n > 0. It runs the model `model:version`, a `ModelGoal` of the same document.
    `next` holds the shares of the replicas of the next stage, which sum to 1; it is empty for the
    last stage, which answers the gateway. `passes` names tensors of a message that later stages
    need as well, and that travel on beside the model's outputs. At most `credits` requests of a
    gateway may wait here. `compression` is how float tensors are sent on: "" as they are, "fp16"
    or "int8".
    """

    plan: str
    epoch: int
    stage: int
    replica: int = 0
    model: str
    version: str
    next: tuple[float, ...] = ()
    passes: tuple[str, ...] = ()
    credits: int = 8
    compression: str = ""


class Desired(Document, frozen=True, kw_only=True):
    """`…/desired`: the goal state of a device. `goal` only ever grows."""

    goal: int
    models: tuple[ModelGoal, ...] = ()
    roles: tuple[RoleGoal, ...] = ()


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One model on the device. `reason` is one sentence, set when `state` is failed.

    `variant` is the file that serves, `runtime` what runs it, as "onnxruntime 1.32.0 qnn-htp",
    `golden_error` the largest difference to the golden outputs. `compiled` tells where the
    board's own code for it comes from: "here", "shared" by another device, or empty for none.
    `notes` are sentences on a replica that serves, but not as well as it could: why variants
    were passed over, or why it runs on the CPU.
    """

    deployment: str
    model: str
    version: str
    digest: str
    state: ReplicaState
    reason: str = ""
    providers: tuple[str, ...] = ()
    memory_bytes: int = 0
    profile: Profile | None = None
    variant: str = ""
    runtime: str = ""
    placement: Placement | None = None
    golden_error: float | None = None
    compiled: str = ""
    load_s: float = 0.0
    notes: tuple[str, ...] = ()


class Reported(Document, frozen=True, kw_only=True):
    """`…/reported`: what runs, and the goal number that was seen."""

    goal: int
    boot_id: str
    models: tuple[ReplicaReport, ...] = ()


class Telemetry(Document, frozen=True, kw_only=True):
    """`…/telemetry`: load in fractions of one, memory in bytes, temperature in °C.

    `seq` counts up from 0 within a boot; a lower one is late and dropped. `uptime_s` is that of
    the agent. `models` maps "model:version" to (answered, failed, queue depth).
    `accelerator_memory_used_bytes` is None where accelerators share the system's memory.
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
    accelerator_memory_used_bytes: int | None = None
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
