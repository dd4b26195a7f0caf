"""Azure ML managed online endpoints: an endpoint per model name, a deployment per version.

Models run in Triton ("no-code"), so they answer Open Inference Protocol v2. A version without
replicas has no deployment, since managed endpoints have at least one instance: going to zero
deletes it and coming from zero creates it, which takes Azure minutes; what that needs, the
endpoint and the registered model, stays. All requests name their deployment, so the split of the
traffic is for others who ask the endpoint.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload import credentials
from shoal_controlplane.offload.azureml import plan
from shoal_controlplane.offload.azureml.endpoint import Endpoint, call, within
from shoal_controlplane.offload.azureml.options import Options, parse_options
from shoal_controlplane.offload.azureml.session import Session
from shoal_controlplane.offload.oipclient import OipClient
from shoal_controlplane.offload.target import (
    CloudModel,
    Description,
    Fault,
    Health,
    Price,
    TargetError,
    TargetSettings,
)
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_shared.oip import InferReply, InferRequest

# Azure's SDKs take seconds to import, so a session does that in its thread; here only to tell.
for _needed in ("azure.ai.ml", "azure.identity"):
    if importlib.util.find_spec(_needed) is None:
        raise ImportError(f"{_needed} is not installed", name=_needed)

READY_S = 5.0
OPEN_S = 120.0


def check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in full. Raises `InvalidError` with a sentence that names the key."""
    checked: dict[str, Any] = msgspec.to_builtins(parse_options(options))
    return checked


def open_target(settings: TargetSettings) -> AzureMlTarget:
    """The target, without reaching Azure. Raises `InvalidError`."""
    options = parse_options(settings.options)
    reference = credentials.check_reference(settings.credential)
    if not reference:
        raise InvalidError(
            "an Azure ML target needs a credential: env:NAME, file:/path (mode 0600) or identity"
        )
    if reference != credentials.IDENTITY and not (options.tenant and options.client):
        raise InvalidError("the secret of a service principal needs the options tenant and client")
    try:
        trust = ssl.create_default_context(cafile=options.ca_file or None)
    except OSError:
        raise InvalidError(
            f"option ca_file: there are no certificates in {options.ca_file}"
        ) from None
    return AzureMlTarget(settings, options, trust)


class AzureMlTarget:
    """See `CloudTarget`."""

    def __init__(self, settings: TargetSettings, options: Options, trust: ssl.SSLContext) -> None:
        self._settings, self._options = settings, options
        self._oip = OipClient(verify=trust)
        self._calls = ThreadPoolExecutor(4, f"azureml-{settings.name}")
        self._transfers = ThreadPoolExecutor(2, f"azureml-upload-{settings.name}")
        self._opening = asyncio.Lock()
        self._session: Session | None = None
        self._endpoints: dict[str, Endpoint] = {}

    async def describe(self) -> Description:
        session = await self._opened()
        location, identifier = await call(self._calls, session.workspace)
        options = self._options
        return Description(
            f"Azure ML workspace {options.workspace} in {location}, "
            f"resource group {options.resource_group}",
            {
                "workspace": identifier,
                "location": location,
                "instance_type": options.instance_type,
                "auth_mode": options.auth_mode,
            },
        )

    async def deploy(self, model: CloudModel) -> None:
        if model.format != "onnx":
            raise TargetError(
                Fault.UNSUPPORTED,
                f"Azure ML's Triton runs ONNX models here, and {model.name} is {model.format}",
            )
        plan.triton_config(model)
        await (await self._endpoint(model.name)).want(model)

    async def scale(self, model: ModelKey, replicas: int) -> None:
        name, version = model
        if not await (await self._endpoint(name)).scale(version, replicas):
            raise _not_deployed(model)

    async def infer(self, model: ModelKey, request: InferRequest, timeout_s: float) -> InferReply:
        name, version = model
        end = asyncio.get_running_loop().time() + timeout_s
        async with within(timeout_s):
            endpoint = await self._endpoint(name)
            if version not in endpoint.models:
                await endpoint.look()
                raise _not_deployed(model)
            deployed = endpoint.serving(version)
            if deployed is None:
                raise TargetError(Fault.NOT_DEPLOYED, f"no replica of {name}:{version} is ready")
            key = await endpoint.key()
        url, signature = endpoint.url, endpoint.models[version].signature
        try:
            return await self._oip.infer(
                url, request, signature, _left(end), _headers(key, deployed.name)
            )
        except TargetError as error:
            if error.fault is not Fault.CREDENTIALS:
                raise
            # The key was rotated, or the token has expired.
            async with within(_left(end)):
                fresh = await endpoint.key(used=key)
            if fresh == key:
                raise
        return await self._oip.infer(
            url, request, signature, _left(end), _headers(fresh, deployed.name)
        )

    async def health(self, model: ModelKey) -> Health:
        name, version = model
        endpoint = await self._endpoint(name)
        await endpoint.look()
        health, deployed = endpoint.health(version), endpoint.serving(version)
        if health is None:
            raise _not_deployed(model)
        if deployed is None or await self._answers(endpoint, deployed.name):
            return health
        reason = health.reason or f"deployment {deployed.name} does not answer"
        return Health(0, health.wanted, reason)

    async def remove(self, model: ModelKey) -> None:
        name, version = model
        await (await self._endpoint(name)).drop(version)

    def price(self) -> Price:
        return self._settings.price

    async def close(self) -> None:
        for endpoint in self._endpoints.values():
            await endpoint.close()
        if self._session is not None:
            self._session.close()
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._transfers.shutdown(wait=False, cancel_futures=True)
        await self._oip.close()

    async def _answers(self, endpoint: Endpoint, deployment: str) -> bool:
        key = await endpoint.key()
        try:
            return await self._oip.ready(endpoint.url, READY_S, _headers(key, deployment))
        except TargetError as error:
            if error.fault is not Fault.CREDENTIALS:
                return False
            fresh = await endpoint.key(used=key)
            if fresh == key:
                raise
        return await self._oip.ready(endpoint.url, READY_S, _headers(fresh, deployment))

    async def _opened(self) -> Session:
        async with self._opening:
            if self._session is None:
                self._session = await call(
                    self._calls, Session, self._options, self._settings.credential, limit_s=OPEN_S
                )
            return self._session

    async def _endpoint(self, model: str) -> Endpoint:
        session = await self._opened()
        if model not in self._endpoints:
            options = self._options
            workspace = f"{options.subscription}/{options.resource_group}/{options.workspace}"
            self._endpoints[model] = Endpoint(
                plan.endpoint_name(options.prefix, workspace, model),
                model,
                session,
                options.poll_s,
                self._calls,
                self._transfers,
            )
        return self._endpoints[model]


def _not_deployed(model: ModelKey) -> TargetError:
    return TargetError(Fault.NOT_DEPLOYED, f"{model[0]}:{model[1]} is not deployed here")


def _headers(key: str, deployment: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "azureml-model-deployment": deployment}


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())
