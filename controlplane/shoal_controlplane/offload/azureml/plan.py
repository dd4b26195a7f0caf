"""What to do next on an Azure ML online endpoint: names, and pure decisions.

One endpoint stands for a model name, one deployment in it for a version with a digest. Azure does
one change at a time to each, for minutes: `next_step` looks at what is there and at what is wanted
and says which change may begin now. Managed endpoints have no instances to spare at zero, so a
version without replicas has no deployment, only its registered model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from shoal_controlplane.offload.target import CloudModel, Fault, TargetError
from shoal_shared.signature import TensorSpec

TAG_MODEL, TAG_VERSION, TAG_DIGEST = "shoal-model", "shoal-version", "shoal-digest"

SUCCEEDED = "Succeeded"
BUSY = frozenset({"Creating", "Updating", "Scaling", "Deleting", "Accepted", "Provisioning"})

_TRITON_TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FP16": "TYPE_FP16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BF16": "TYPE_BF16",
    "BYTES": "TYPE_STRING",
}


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment as Azure tells it. `version` and `digest` are empty where it is not ours."""

    name: str
    version: str
    digest: str
    state: str
    instances: int

    @property
    def busy(self) -> bool:
        return self.state in BUSY


@dataclass(frozen=True, slots=True)
class Observed:
    """An endpoint as Azure tells it. `state` is empty where there is none; `traffic` in per cent
    by deployment, without zeros."""

    state: str = ""
    scoring: str = ""
    traffic: Mapping[str, int] = field(default_factory=dict)
    deployments: tuple[Deployed, ...] = ()

    def of(self, version: str) -> list[Deployed]:
        return [d for d in self.deployments if d.version == version]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a version shall be. `replicas` None: as many as are found."""

    digest: str
    replicas: int | None = None
    registered: bool = False


@dataclass(frozen=True, slots=True)
class CreateEndpoint:
    """Create the endpoint, or try again where that failed."""


@dataclass(frozen=True, slots=True)
class DeleteEndpoint:
    """Delete the endpoint and with it its deployments."""


@dataclass(frozen=True, slots=True)
class PutDeployment:
    """Create a deployment, or give it another number of instances."""

    name: str
    version: str
    instances: int
    new: bool


@dataclass(frozen=True, slots=True)
class DeleteDeployment:
    name: str


@dataclass(frozen=True, slots=True)
class SetTraffic:
    traffic: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Wait:
    """A change is under way, or a model is not registered yet."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """Azure gave up on a change: nothing is tried again until someone asks. `name` is the
    deployment, empty for the endpoint."""

    name: str = ""


Step = (
    CreateEndpoint | DeleteEndpoint | PutDeployment | DeleteDeployment | SetTraffic | Wait | Stuck
)


def next_step(
    seen: Observed, goals: Mapping[str, Goal], gone: Collection[str], retry: bool = False
) -> Step | None:
    """The change to begin now, None where all is as wanted.

    `goals` by version; versions in neither `goals` nor `gone` are left alone. With `retry`, what
    failed is tried again. A new deployment gets the traffic once it is healthy, and only from one
    of the same version or from none; its predecessor is deleted after that.
    """
    if not seen.state:
        return CreateEndpoint() if goals else None
    if seen.state in BUSY:
        return Wait()
    if not goals and all(d.version in gone for d in seen.deployments):
        return DeleteEndpoint()
    if seen.state != SUCCEEDED:
        return CreateEndpoint() if retry else Stuck()
    later: Step | None = None
    for version, goal in goals.items():
        step = _step_of(seen, version, goal, retry)
        if step is not None and not isinstance(step, Wait | Stuck):
            return step
        # Others may go on while this one waits.
        later = later if isinstance(later, Wait) else step or later
    for version in gone:
        step = _drop(seen, seen.of(version))
        if step is not None and not isinstance(step, Wait):
            return step
        later = step or later
    return later


def serving(seen: Observed, version: str, digest: str) -> Deployed | None:
    """The deployment that answers for a version: the one with this digest once it is healthy, its
    predecessor until then. What gets traffic was healthy once and still answers while it changes
    or after a change that failed."""
    own = sorted(seen.of(version), key=lambda d: d.digest != digest)
    for deployed in own:
        if deployed.state == SUCCEEDED:
            return deployed
    for deployed in own:
        if seen.traffic.get(deployed.name) and deployed.state != "Deleting":
            return deployed
    return None


def _step_of(seen: Observed, version: str, goal: Goal, retry: bool) -> Step | None:
    own = seen.of(version)
    replicas = goal.replicas
    if replicas is None:
        replicas = max((d.instances for d in own if d.state != "Deleting"), default=0)
    if replicas == 0:
        return _drop(seen, own) or (None if goal.registered else Wait())
    current = next((d for d in own if d.digest == goal.digest), None)
    if current is None:
        name = deployment_name(version, goal.digest)
        return PutDeployment(name, version, replicas, new=True) if goal.registered else Wait()
    if current.busy:
        return Wait()
    failed = current.state != SUCCEEDED
    if failed and not retry:
        return Stuck(current.name)
    if failed or current.instances != replicas:
        return PutDeployment(current.name, version, replicas, new=False)
    if set(seen.traffic) <= {d.name for d in own} and seen.traffic != {current.name: 100}:
        return SetTraffic({current.name: 100})
    return _drop(seen, [d for d in own if d is not current])


def _drop(seen: Observed, unwanted: Iterable[Deployed]) -> Step | None:
    """Azure refuses to delete what gets traffic."""
    waits = False
    names = {d.name for d in unwanted}
    for deployed in seen.deployments:
        if deployed.name not in names:
            continue
        if deployed.busy:
            waits = True
        elif seen.traffic.get(deployed.name):
            return SetTraffic(_without(seen, names))
        else:
            return DeleteDeployment(deployed.name)
    return Wait() if waits else None


def _without(seen: Observed, names: Collection[str]) -> dict[str, int]:
    """Traffic that adds up to 100, or none, with nothing for `names`."""
    rest = {name: share for name, share in seen.traffic.items() if name not in names}
    if rest:
        largest = max(rest, key=lambda name: rest[name])
        rest[largest] += 100 - sum(rest.values())
        return rest
    heirs = [d for d in seen.deployments if d.version and d.name not in names]
    return next(({d.name: 100} for d in heirs if d.state == SUCCEEDED), {})


def endpoint_name(prefix: str, workspace_id: str, model: str) -> str:
    """At most 32 letters, digits and hyphens, alone in a whole region of Azure."""
    tail = _hash(f"{workspace_id.lower()}\n{model}", 8)
    slug = _slug(model)[: 32 - len(prefix) - len(tail) - 2].strip("-") or "m"
    return f"{prefix}-{slug}-{tail}"


def deployment_name(version: str, digest: str) -> str:
    """At most 32 letters, digits and hyphens, alone in its endpoint."""
    return f"v{_slug(version)[:18].strip('-')}-{_hash(f'{version} {digest}', 10)}"


def asset_version(digest: str) -> str:
    """The version under which Azure ML knows the bytes of `digest`."""
    return digest.removeprefix("sha256:")[:24]


def triton_config(model: CloudModel) -> str:
    """`config.pbtxt` for Triton's ONNX Runtime. Raises `TargetError` UNSUPPORTED.

    Source: NVIDIA Triton, "Model Configuration".
    """
    specs = (*model.signature.inputs, *model.signature.outputs)
    for spec in specs:
        if spec.datatype not in _TRITON_TYPES or not spec.shape:
            raise TargetError(
                Fault.UNSUPPORTED,
                f"Triton cannot serve tensor {spec.name!r} of {model.name}: it is "
                f"{spec.datatype} with shape {list(spec.shape)}",
            )
    # Triton leaves the batch dimension out of `dims`, which may not become empty.
    batched = (
        model.max_batch > 0
        and model.signature.batchable
        and all(len(spec.shape) > 1 for spec in specs)
    )
    lines = [
        f"name: {_quoted(model.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {model.max_batch if batched else 0}",
    ]
    for kind, tensors in (("input", model.signature.inputs), ("output", model.signature.outputs)):
        lines += [f"{kind} [{_tensor(spec, batched)}]" for spec in tensors]
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(spec: TensorSpec, batched: bool) -> str:
    dims = ", ".join(str(d) for d in (spec.shape[1:] if batched else spec.shape))
    kind = _TRITON_TYPES[spec.datatype]
    return f" {{ name: {_quoted(spec.name)} data_type: {kind} dims: [ {dims} ] }} "


def _quoted(text: str) -> str:
    escaped = "".join(
        c if " " <= c <= "~" and c not in '"\\' else "".join(f"\\{b:03o}" for b in c.encode())
        for c in text
    )
    return f'"{escaped}"'


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
