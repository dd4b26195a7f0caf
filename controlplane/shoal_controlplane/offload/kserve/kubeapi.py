"""A Kubernetes API server, reached through the official client, as plain JSON.

Calls run in threads and end in time; errors become `TargetError`s of one sentence. The kubeconfig
is read anew for each call, so that a rotated credential counts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import yaml
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config_from_dict
from kubernetes.dynamic import DynamicClient
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as SlowError

from shoal_controlplane.offload.credentials import IDENTITY, private_file, secret
from shoal_controlplane.offload.target import Fault, TargetError

Json = dict[str, Any]
T = TypeVar("T")

CONNECT_S = 3.0
READ_S = 10.0
CALL_S = 15.0
_THREADS = 4
_LONGEST = 300
_FAULTS = {
    401: Fault.CREDENTIALS,
    403: Fault.CREDENTIALS,
    404: Fault.NOT_DEPLOYED,
    409: Fault.CONFLICT,
    429: Fault.THROTTLED,
    504: Fault.TIMEOUT,
}


class KubeApi:
    """The API server that a kubeconfig, or the pod that this runs in, names.

    `credential` is a reference: a kubeconfig in a file or variable, `identity` for the service
    account of this pod; where it is empty, the file `kubeconfig` counts.
    """

    def __init__(self, credential: str, kubeconfig: str, context: str) -> None:
        self._source = partial(_source, credential, kubeconfig)
        self._context = context or None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubernetes")
        self._lock = threading.Lock()
        self._read = ""
        self._client: DynamicClient | None = None

    async def host(self) -> str:
        """The server's address. Raises `TargetError`."""
        return str((await self._run(self._connected)).configuration.host)

    async def get(self, path: str, **query: str) -> Json:
        """Read an object or a list. Raises `TargetError`, NOT_DEPLOYED where it is not there."""
        return await self._call("get", f"{path}?{urlencode(query)}" if query else path)

    async def find(self, path: str) -> Json | None:
        """An object, None where it is not there."""
        try:
            return await self.get(path)
        except TargetError as error:
            if error.fault is Fault.NOT_DEPLOYED:
                return None
            raise

    async def create(self, path: str, body: Json) -> Json:
        """Create an object in the list at `path`. Raises `TargetError`."""
        return await self._call("post", path, body)

    async def replace(self, path: str, body: Json) -> Json:
        """Replace the object at `path`. Raises CONFLICT where it changed since it was read."""
        return await self._call("put", path, body)

    async def merge(self, path: str, body: Json) -> Json:
        """Change some fields of the object at `path`."""
        return await self._call("patch", path, body)

    async def delete(self, path: str) -> None:
        """Delete an object and what it owns; does nothing where it is not there."""
        with contextlib.suppress(_MissingError):
            await self._call("delete", path, {"propagationPolicy": "Background"})

    async def close(self) -> None:
        """End sessions and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.client.close()

    async def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        return await self._run(partial(self._request, method, path, body))

    async def _run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_S):
                return await loop.run_in_executor(self._threads, work)
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, "the Kubernetes API does not answer") from None

    def _request(self, method: str, path: str, body: Json | None) -> Json:
        client = self._connected()
        more = {"content_type": "application/merge-patch+json"} if method == "patch" else {}
        try:
            answer = client.request(
                method,
                path,
                body=body,
                serialize=False,
                _request_timeout=(CONNECT_S, READ_S),
                **more,
            )
            read = json.loads(answer.data)
        except ApiException as error:
            raise _refusal(error) from None
        except (HTTPError, OSError) as error:
            # What cannot connect counts as a timeout there, too.
            if isinstance(error, SlowError) and not isinstance(error, NewConnectionError):
                raise TargetError(Fault.TIMEOUT, f"{_host(client)} does not answer") from None
            raise TargetError(
                Fault.UNREACHABLE, f"{_host(client)} cannot be reached: {_first(error)}"
            ) from None
        except (ConfigException, ValueError) as error:
            raise TargetError(
                Fault.BROKEN, f"{_host(client)} sent what is no answer: {type(error).__name__}"
            ) from None
        if not isinstance(read, dict):
            raise TargetError(Fault.BROKEN, f"{_host(client)} sent what is no object")
        return read

    def _connected(self) -> DynamicClient:
        """A client with the credentials of now."""
        text = self._source()
        mark = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            if self._client is None or mark != self._read:
                self._client, self._read = _client(text, self._context), mark
            return self._client


class _MissingError(TargetError):
    """404."""

    def __init__(self, message: str) -> None:
        super().__init__(Fault.NOT_DEPLOYED, message)


def _source(credential: str, kubeconfig: str) -> str:
    """The text of the kubeconfig, "" for the service account of this pod."""
    if credential == IDENTITY:
        return ""
    if credential:
        return secret(credential)
    if kubeconfig:
        return private_file(Path(kubeconfig)).decode("utf-8", "replace")
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return ""
    raise TargetError(
        Fault.CREDENTIALS,
        "this target needs the option kubeconfig, or a credential that holds a kubeconfig",
    )


def _client(text: str, context: str | None) -> DynamicClient:
    settings = Configuration()
    # The client's own log of requests has their headers.
    settings.debug = False
    settings.retries = False
    try:
        if text:
            load_kube_config_from_dict(
                yaml.safe_load(text),
                context=context,
                client_configuration=settings,
                persist_config=False,
            )
        else:
            load_incluster_config(client_configuration=settings)
    # What the client raises for a file that is no kubeconfig has no common base, and may repeat
    # what is in it.
    except (ConfigException, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError):
        raise TargetError(
            Fault.CREDENTIALS,
            "the kubeconfig cannot be used: it is not one, or lacks the context",
        ) from None
    except OSError as error:
        raise TargetError(
            Fault.CREDENTIALS, f"the kubeconfig names a file that cannot be read: {error.strerror}"
        ) from None
    address = urlsplit(settings.host)
    if address.scheme != "https" and address.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise TargetError(
            Fault.CREDENTIALS, "the kubeconfig sends credentials in clear: use https://"
        )
    # No discovery: all paths are known here.
    return DynamicClient(ApiClient(settings), discoverer=lambda client, cache: None)


def _refusal(error: ApiException) -> TargetError:
    status = int(error.status or 0)
    said = _sentence(error.body)
    if status == 404:
        return _MissingError(said or "not found")
    if status == 401:
        # Nothing of what was said to wrong credentials: it may repeat them.
        return TargetError(Fault.CREDENTIALS, "the Kubernetes API refuses the credentials (401)")
    if status == 403 and "exceeded quota" in said:
        return TargetError(Fault.QUOTA, f"quota: {said}")
    fault = _FAULTS.get(status, Fault.BROKEN)
    retry = (error.headers or {}).get("Retry-After", "") if status in (429, 503) else ""
    after_s = float(retry) if retry.isdecimal() and len(retry) < 6 else None
    return TargetError(fault, f"the Kubernetes API answered {status}: {said}", after_s)


def _sentence(body: Any) -> str:
    try:
        read = json.loads(body)
        text = str(read["message"]) if isinstance(read, Mapping) else ""
    except (ValueError, TypeError, LookupError):
        text = ""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_LONGEST]


def _host(client: DynamicClient) -> str:
    return f"the Kubernetes API at {client.configuration.host}"


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
