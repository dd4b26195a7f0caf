"""What is declared to Ray Serve for a model, and what stays declared for others. Pure.

Ray takes the declarations of all applications at once. What is not ours goes back as it was read.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

import shoal_controlplane
import shoal_shared
from shoal_controlplane.offload.ray import app as ray_app
from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.cluster import Application, ServeState
from shoal_controlplane.offload.ray.options import RayOptions
from shoal_controlplane.offload.target import CloudModel
from shoal_controlplane.planner.snapshot import ModelKey

IMPORT_PATH = "shoal_controlplane.offload.ray.app.application:build"
DEPLOYMENT = "Model"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # The first moment that zip files know.
_RETRIES = 3


def application_name(model: ModelKey) -> str:
    """The application of a model. Names have no colon, so that no two models share one."""
    return f"shoal:{model[0]}:{model[1]}"


def route_prefix(model: ModelKey) -> str:
    """Where the application of a model lies at the cluster's address of Serve."""
    return f"/shoal/{model[0]}/{model[1]}"


def serving_token(secret: str) -> str:
    """The bearer token for inference, which follows from the cluster's. The latter may start
    programs, so that it goes to the cluster's REST API alone."""
    return hmac.new(secret.encode(), b"shoal serve", hashlib.sha256).hexdigest()


def arguments_of(owner: str, model: CloudModel, size: int, token: str, o: RayOptions) -> Arguments:
    """What the application of a model is told. `token` is the serving token."""
    return Arguments(
        owner=owner,
        name=model.name,
        version=model.version,
        digest=model.digest,
        size=size,
        url=model.url,
        signature=model.signature,
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        threads=o.threads,
        gpu=o.num_gpus > 0,
    )


def declared_arguments(application: Application) -> Arguments | None:
    """The arguments in an application's declaration, None where it is none of Shoal's."""
    declared = application.deployed_app_config or {}
    if declared.get("import_path") != IMPORT_PATH:
        return None
    try:
        return msgspec.convert(declared.get("args"), Arguments)
    except msgspec.ValidationError:
        return None


def declared_replicas(application: Application) -> int:
    """Replicas that an application of ours should have."""
    for deployment in (application.deployed_app_config or {}).get("deployments", ()):
        if deployment.get("name") == DEPLOYMENT:
            return int(deployment.get("num_replicas", 1))
    return 1


def declaration(arguments: Arguments, replicas: int, package: str, o: RayOptions) -> dict[str, Any]:
    """The declaration of one application with `replicas` > 0, its code at the address
    `package`."""
    key = (arguments.name, arguments.version)
    runtime_env: dict[str, Any] = {"py_modules": [package]}
    if o.pip:
        runtime_env["pip"] = list(o.pip)
    return {
        "name": application_name(key),
        "route_prefix": route_prefix(key),
        "import_path": IMPORT_PATH,
        "runtime_env": runtime_env,
        # Lists, as Ray gives it back.
        "args": msgspec.json.decode(msgspec.json.encode(arguments)),
        "deployments": [
            {
                "name": DEPLOYMENT,
                "num_replicas": replicas,
                "max_ongoing_requests": o.max_ongoing_requests,
                "ray_actor_options": {"num_cpus": o.num_cpus, "num_gpus": o.num_gpus},
            }
        ],
    }


def configuration(
    state: ServeState, name: str, ours: Mapping[str, Any] | None, serve_url: str
) -> dict[str, Any]:
    """What to declare so that all is as in `state`, except the application `name`: it becomes
    `ours`, or ends where that is None."""
    applications = list(others(state, name).values())
    if ours is not None:
        applications.append(dict(ours))
    declared: dict[str, Any] = {"applications": applications}
    if state.runs:
        for key in ("http_options", "grpc_options", "proxy_location", "target_capacity"):
            value = getattr(state, key)
            if value is not None:
                declared[key] = value
    else:
        parts = urlsplit(serve_url)
        declared["http_options"] = {"port": parts.port or 8000}
    return declared


def others(state: ServeState, name: str) -> dict[str, dict[str, Any]]:
    """Declarations of all applications but `name`, by name. One that is being deleted is not
    among them: it would come back."""
    return {
        other: application.deployed_app_config
        for other, application in state.applications.items()
        if other != name
        and application.deployed_app_config is not None
        and application.status != "DELETING"
    }


@functools.cache
def package() -> tuple[str, bytes]:
    """The code that runs on the cluster: a name that follows from its content, and a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(_sources().items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content


def _sources() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for module, sub in ((shoal_shared, ""), (ray_app, "offload/ray/app/")):
        folder = Path(str(module.__file__)).parent
        root = module.__name__.split(".", 1)[0]
        found |= {f"{root}/{sub}{path.name}": path for path in folder.glob("*.py")}
    root_folder = Path(str(shoal_controlplane.__file__)).parent
    for name in ("__init__.py", "offload/__init__.py", "offload/ray/__init__.py"):
        found[f"shoal_controlplane/{name}"] = root_folder / name
    return found
