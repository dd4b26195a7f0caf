"""What the API answers, as far as the command prints it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from shoal_controlplane.cli.errors import CliError
from shoal_shared.messages import Accelerator, Board, RuntimeInfo
from shoal_shared.placement import Placement as Nodes
from shoal_shared.profiles import Profile
from shoal_shared.signature import ModelSignature

V = TypeVar("V")
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Telemetry(msgspec.Struct, kw_only=True):
    """A device's last telemetry."""

    cpu_load: float
    memory_used_bytes: int
    temperature_c: float | None = None
    throttled: bool = False
    power_w: float | None = None
    accelerator_load: float | None = None
    accelerator_memory_used_bytes: int | None = None
    models: dict[str, tuple[int, int, int]] = {}


class Serving(msgspec.Struct, kw_only=True):
    """What a device says of a model that it serves; `fallback` marks one that runs on the CPU
    although the device has an accelerator."""

    state: str
    reason: str = ""
    providers: tuple[str, ...] = ()
    profile: Profile | None = None
    variant: str = ""
    runtime: str = ""
    placement: Nodes | None = None
    golden_error: float | None = None
    compiled: str = ""
    load_s: float = 0.0
    notes: tuple[str, ...] = ()
    fallback: bool = False


class Replica(Serving, kw_only=True):
    """One model on a device."""

    model: str
    version: str
    deployment: str = ""
    memory_bytes: int = 0

    @property
    def key(self) -> str:
        return f"{self.model}:{self.version}"


class Device(msgspec.Struct, kw_only=True):
    """A device; what only it knows is None until it has spoken."""

    id: str
    condition: str
    last_seen: Time
    first_seen: Time
    board: Board | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    disk_free_bytes: int | None = None
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[RuntimeInfo, ...] = ()
    toolkits: dict[str, str] = {}
    power_mode: str = ""
    labels: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    agent_version: str | None = None
    goal: int | None = None
    goal_seen: int | None = None
    telemetry: Telemetry | None = None
    replicas: tuple[Replica, ...] = ()

    @property
    def present(self) -> bool:
        """Whether load and models are news; of a device that is away they are history."""
        return self.condition != "offline"


class Model(msgspec.Struct, kw_only=True):
    """A model in the list."""

    name: str
    latest: str
    versions: tuple[str, ...]


class Variant(msgspec.Struct, kw_only=True):
    """One more file of a version; `target` is the chip it was compiled for, empty for any."""

    name: str
    digest: str
    size_bytes: int
    format: str
    target: str = ""
    note: str = ""


class Golden(msgspec.Struct, kw_only=True):
    """Golden inputs and outputs of a version, and how far an output may be off."""

    digest: str
    size_bytes: int
    cases: int
    absolute: float
    relative: float


class ModelVersion(msgspec.Struct, kw_only=True):
    """A version of a model; `max_batch` is 0 where it has no batch dimension."""

    name: str
    version: str
    digest: str
    size_bytes: int
    format: str
    signature: ModelSignature
    max_batch: int
    created_at: Time
    parameters: int = 0
    opset: int | None = None
    card: dict[str, Any] | None = None
    golden: Golden | None = None
    variants: tuple[Variant, ...] = ()


class Placement(Serving, kw_only=True):
    """A replica of a deployment."""

    device: str


class Measured(msgspec.Struct, kw_only=True):
    """What was measured of a file of a model on a type of board."""

    variant: str
    board: str
    runtime: str
    profile: Profile
    memory_bytes: int = 0
    accelerated: float | None = None


class Saturation(msgspec.Struct, kw_only=True):
    """How full the devices of a model are."""

    level: str
    sentence: str


class Deployment(msgspec.Struct, kw_only=True):
    """A deployment; `replicas` is None where `all` is true."""

    name: str
    model: str
    version: str
    state: str
    wanted: int
    ready: int
    created_at: Time
    replicas: int | None = None
    all: bool = False
    select: dict[str, str] = {}
    slo_ms: float | None = None
    options: dict[str, Any] = {}
    require_accelerator: bool = False
    shards: int | Literal["auto"] | None = None
    objective: str = ""
    shapes: dict[str, tuple[int, ...]] = {}
    offload: tuple[str, ...] = ()
    saturation: Saturation | None = None
    reason: str = ""
    placements: tuple[Placement, ...] = ()

    @property
    def sharded(self) -> bool:
        """Whether the model is cut into stages, of which its plan tells."""
        return self.shards is not None


class Part(msgspec.Struct, kw_only=True):
    """A stage on one device."""

    device: str
    state: str


class Stage(msgspec.Struct, kw_only=True):
    """Segments [first, last) of a model on devices that share its requests; `parts` only where it
    runs."""

    index: int
    first: int
    last: int
    segments: str
    devices: tuple[str, ...]
    board: str
    memory_bytes: int
    compute_ms: float
    measured: bool
    in_bytes: int | None = None
    out_bytes: int | None = None
    parts: tuple[Part, ...] = ()

    @property
    def span(self) -> str:
        """Its segments by number, the last one included."""
        return f"{self.first}-{self.last - 1}" if self.last - self.first > 1 else str(self.first)


class Predicted(msgspec.Struct, kw_only=True):
    """What a plan is good for."""

    throughput_per_s: float
    latency_ms: float
    bottleneck: str


class Partition(Predicted, kw_only=True):
    """A way to place a model on devices."""

    stages: tuple[Stage, ...]
    gap_percent: float
    method: str


class Single(msgspec.Struct, kw_only=True):
    """The best that one device does alone."""

    device: str
    throughput_per_s: float
    latency_ms: float


class Link(msgspec.Struct, kw_only=True, rename={"source": "from", "target": "to"}):
    """What goes from one place to the next with a request."""

    source: str
    target: str
    bytes: int
    ms: float


class Cut(msgspec.Struct, kw_only=True):
    """A place where a graph may be cut; `work` is the share of it that lies before."""

    segment: int
    after: str
    bytes: int
    tensors: int
    work: float
    weight_bytes: int


class PlanBoard(msgspec.Struct, kw_only=True):
    """Devices of one type in a plan; `basis` says what their times rest on."""

    board: str
    devices: tuple[str, ...]
    basis: str
    memory_bytes: int


class Plan(msgspec.Struct, kw_only=True):
    """A plan as it would be now; `plan` is None where nothing fits, and `reason` says why."""

    model: str
    version: str
    objective: str
    segments: int
    shapes: dict[str, tuple[int, ...]] = {}
    cuts: tuple[Cut, ...] = ()
    boards: tuple[PlanBoard, ...] = ()
    plan: Partition | None = None
    single: Single | None = None
    others: tuple[Partition, ...] = ()
    links: tuple[Link, ...] = ()
    why: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    missing_bytes: int = 0


class Spare(msgspec.Struct, kw_only=True):
    """Stages that a device holds for others."""

    device: str
    stages: tuple[int, ...]


class Fallback(msgspec.Struct, kw_only=True):
    """What takes over when a device goes."""

    lost: str
    epoch: int
    devices: tuple[tuple[str, ...], ...]
    throughput_per_s: float


class ActivePlan(msgspec.Struct, kw_only=True):
    """The plan of a sharded deployment."""

    name: str
    state: str
    since: Time
    epoch: int
    reason: str = ""
    stages: tuple[Stage, ...] = ()
    spares: tuple[Spare, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    predicted: Predicted | None = None
    single: Single | None = None
    credits: int = 0
    compression: str = ""


class Event(msgspec.Struct, kw_only=True):
    """An event of the fleet."""

    id: int
    time: Time
    kind: str
    message: str


def read(kind: type[V], document: Any) -> V:
    """A document of the API as a view. Raises `CliError` if it is none."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise CliError(
            f"the control plane's answer cannot be read ({error}): is it a Shoal control plane "
            "of the same version as this command?"
        ) from None


def read_all(kind: type[V], documents: Sequence[Any]) -> list[V]:
    """Documents as views; see `read`."""
    return [read(kind, document) for document in documents]
