"""Targets of kind `ray`: a Serve application for each model, on any Ray cluster.

All goes through the cluster's REST API, so that the control plane needs no Ray: the code of the
application travels as a package, and the cluster fetches the model from the control plane. Serve
knows no deployment without replicas: at none, the application is not declared.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload.credentials import secret
from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.ray import declaration as declarations
from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.app.model import DATATYPES
from shoal_controlplane.offload.ray.app.protocol import DIGEST
from shoal_controlplane.offload.ray.cluster import (
    Application,
    RayCluster,
    ServeState,
    package_address,
)
from shoal_controlplane.offload.ray.health import judge
from shoal_controlplane.offload.ray.options import RayOptions, check_options, options_of
from shoal_controlplane.offload.target import (
    CloudModel,
    CloudTarget,
    Description,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest

__all__ = ["check_options", "open_target"]


class RayTarget:
    """One cluster; see `CloudTarget`."""

    def __init__(
        self, settings: TargetSettings, options: RayOptions, verify: ssl.SSLContext | bool
    ) -> None:
        self._settings = settings
        self._options = options
        self._cluster = RayCluster(options.address, self._token, verify)
        self._oip = OipClient(verify=verify)
        # Ray takes all declarations at once, so that only one of ours may change at a time.
        self._changing = asyncio.Lock()
        self._known: dict[ModelKey, Arguments] = {}
        self._answering: set[ModelKey] = set()

    async def describe(self) -> Description:
        version = await self._cluster.version()
        state = await self._cluster.serve()
        nodes = await self._cluster.nodes()
        ours = [a for a in state.applications.values() if self._owns(a)]
        facts = {
            "ray": version,
            "authentication": await self._cluster.authentication(),
            "serve": "runs" if state.runs else "starts with the first model",
            "applications": len(state.applications),
            "models": len(ours),
            "nodes": len(nodes),
            "cpus": sum(node.get("CPU", 0) for node in nodes),
            "gpus": sum(node.get("GPU", 0) for node in nodes),
        }
        return Description(f"Ray {version} at {self._options.address}", facts)

    async def deploy(self, model: CloudModel) -> None:
        if model.format != "onnx":
            raise TargetError(
                Fault.UNSUPPORTED, f"Ray targets run ONNX models, and this is {model.format}"
            )
        for spec in model.signature.inputs + model.signature.outputs:
            if spec.datatype not in DATATYPES:
                raise TargetError(
                    Fault.UNSUPPORTED, f"Ray targets cannot carry {spec.datatype} ('{spec.name}')"
                )
        try:
            size = model.artifact.stat().st_size
        except OSError as error:
            raise TargetError(
                Fault.INVALID, f"the file of the model cannot be read: {error.strerror}"
            ) from None
        token = declarations.serving_token(self._token())
        arguments = declarations.arguments_of(
            self._settings.name, model, size, token, self._options
        )
        async with self._changing:
            state = await self._cluster.serve()
            there = self._application(state, model.key)
            if there is not None and not self._is_current(there, arguments):
                self._answering.discard(model.key)
                await self._declare(arguments, declarations.declared_replicas(there))
            self._known[model.key] = arguments

    async def scale(self, model: ModelKey, replicas: int) -> None:
        async with self._changing:
            state = await self._cluster.serve()
            there = self._application(state, model)
            arguments = self._arguments(model, there)
            self._known[model] = arguments
            current = 0 if there is None else declarations.declared_replicas(there)
            if replicas != current:
                self._answering.discard(model)
                await self._declare(arguments, replicas)

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        if model not in self._answering:
            # Serve would keep the request until a replica is there.
            await self._check_ready(model, timeout_s)
        arguments = self._known[model]
        headers = {
            "authorization": f"Bearer {declarations.serving_token(self._token())}",
            DIGEST: arguments.digest,
        }
        url = (
            f"{self._options.serve_url}{declarations.route_prefix(model)}"
            f"/v2/models/{arguments.name}"
        )
        try:
            return await self._oip.infer(
                url, request, arguments.signature, end - loop.time(), headers
            )
        except TargetError as error:
            if error.fault is not Fault.INVALID:
                self._answering.discard(model)
            raise

    async def health(self, model: ModelKey) -> Health:
        there = self._application(await self._cluster.serve(), model)
        arguments = self._arguments(model, there)
        self._known[model] = arguments
        if there is None:
            self._answering.discard(model)
            return Health(0, 0)
        health = judge(there)
        if health.ready < health.wanted:
            health = judge(there, await self._cluster.nodes())
        if health.ready and health.wanted:
            self._answering.add(model)
        else:
            self._answering.discard(model)
        return health

    async def remove(self, model: ModelKey) -> None:
        async with self._changing:
            state = await self._cluster.serve()
            there = state.applications.get(declarations.application_name(model))
            if there is not None and self._owns(there) and there.status != "DELETING":
                await self._change(model, None)
            self._known.pop(model, None)
            self._answering.discard(model)

    def price(self) -> Price:
        return self._settings.price

    async def close(self) -> None:
        await self._cluster.close()
        await self._oip.close()

    def _token(self) -> str:
        token = secret(self._settings.credential)
        if not (token.isascii() and token.isprintable()):
            raise TargetError(Fault.CREDENTIALS, "the token of the Ray cluster is not plain text")
        return token

    def _owns(self, application: Application) -> bool:
        arguments = declarations.declared_arguments(application)
        return arguments is not None and arguments.owner == self._settings.name

    def _is_current(self, application: Application, arguments: Arguments) -> bool:
        replicas = declarations.declared_replicas(application)
        address = package_address(declarations.package()[0])
        wanted = declarations.declaration(arguments, replicas, address, self._options)
        declared = application.deployed_app_config or {}
        return all(declared.get(key) == value for key, value in wanted.items())

    def _application(self, state: ServeState, model: ModelKey) -> Application | None:
        """The application of a model, None where none is declared. Raises CONFLICT where it is
        another's."""
        name = declarations.application_name(model)
        there = state.applications.get(name)
        if there is None or there.status == "DELETING":
            return None
        if not self._owns(there):
            raise TargetError(
                Fault.CONFLICT, f"the cluster has an application {name!r} that is not ours"
            )
        return there

    def _arguments(self, model: ModelKey, there: Application | None) -> Arguments:
        arguments = self._known.get(model)
        if arguments is None and there is not None:
            arguments = declarations.declared_arguments(there)
        if arguments is None:
            raise TargetError(
                Fault.NOT_DEPLOYED, f"the Ray cluster does not have {model[0]} {model[1]}"
            )
        return arguments

    async def _check_ready(self, model: ModelKey, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                health = await self.health(model)
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, "the Ray cluster does not answer in time") from None
        if not health.ready or not health.wanted:
            said = f": {health.reason}" if health.reason else ""
            raise TargetError(Fault.NOT_DEPLOYED, f"no replica is ready on the Ray cluster{said}")

    async def _declare(self, arguments: Arguments, replicas: int) -> None:
        """Have the application with so many replicas, none at 0."""
        ours = None
        if replicas:
            name, content = declarations.package()
            address = await self._cluster.keep_package(name, content)
            ours = declarations.declaration(arguments, replicas, address, self._options)
        await self._change((arguments.name, arguments.version), ours)

    async def _change(self, model: ModelKey, ours: Mapping[str, Any] | None) -> None:
        # Ray has no precondition for a change, so it follows at once on what was read, and a look
        # afterwards tells whether somebody came in between.
        before = await self._cluster.serve()
        self._application(before, model)
        name = declarations.application_name(model)
        await self._cluster.declare(
            declarations.configuration(before, name, ours, self._options.serve_url)
        )
        after = await self._cluster.serve()
        lost = (self._application(after, model) is None) != (ours is None)
        if lost or declarations.others(before, name) != declarations.others(after, name):
            raise TargetError(
                Fault.CONFLICT,
                "somebody else changed the applications of the Ray cluster at the same time: "
                "check them and try again",
            )


def open_target(settings: TargetSettings) -> CloudTarget:
    """The target, without reaching it. Raises `InvalidError`."""
    options = options_of(settings.options)
    verify: ssl.SSLContext | bool = True
    if options.ca_file:
        try:
            verify = ssl.create_default_context(cafile=options.ca_file)
        except (OSError, ssl.SSLError):
            raise InvalidError(
                f"option ca_file: there are no certificates in {options.ca_file}"
            ) from None
    return RayTarget(settings, options, verify)
