"""A Ray cluster's REST API: its version, its Serve applications and its store of packages.

Source: Ray's documentation, "Serve REST API" (declarative configuration of all applications) and
"Ray Jobs REST API"; packages as Ray's own job client uploads them.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
import msgspec

from shoal_controlplane.offload.target import Fault, TargetError

MAX_ANSWER = 32 * 1024 * 1024
TIMEOUT_S = 15.0
CHANGE_TIMEOUT_S = 60.0
"""The first application starts Serve itself, which takes a while."""
MAX_SENTENCE = 300
MAX_NODES = 10_000
"""As many as Ray lists."""

_FAULTS = {
    401: Fault.CREDENTIALS,
    403: Fault.CREDENTIALS,
    408: Fault.TIMEOUT,
    409: Fault.CONFLICT,
    429: Fault.THROTTLED,
    502: Fault.UNREACHABLE,
    503: Fault.UNREACHABLE,
    504: Fault.TIMEOUT,
}

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_CLASS = re.compile(r"^(\w+\.)*(?=\w+: )(StartError: )?")

T = TypeVar("T")


class Version(msgspec.Struct, frozen=True):
    """What the cluster is."""

    ray_version: str


class Replica(msgspec.Struct, frozen=True):
    """A replica. Ray's states: STARTING, UPDATING, RECOVERING, RUNNING, STOPPING and others."""

    state: str = ""
    start_time_s: float = 0.0


class Deployment(msgspec.Struct, frozen=True):
    """A deployment of an application, as it is."""

    status: str = ""
    message: str = ""
    required_resources: dict[str, float] | None = None
    replicas: tuple[Replica, ...] = ()


class Application(msgspec.Struct, frozen=True):
    """An application, as it is. `deployed_app_config` is its declaration; one that a program
    deployed has none."""

    status: str = ""
    message: str = ""
    last_deployed_time_s: float = 0.0
    deployed_app_config: dict[str, Any] | None = None
    deployments: dict[str, Deployment] = {}


class ServeState(msgspec.Struct, frozen=True):
    """Serve on the cluster. `controller_info` is empty where it does not run."""

    applications: dict[str, Application] = {}
    controller_info: dict[str, Any] = {}
    http_options: dict[str, Any] | None = None
    grpc_options: dict[str, Any] | None = None
    proxy_location: str | None = None
    target_capacity: float | None = None

    @property
    def runs(self) -> bool:
        """Whether Serve was started."""
        return any(value is not None for value in self.controller_info.values())


class _Mode(msgspec.Struct, frozen=True):
    authentication_mode: str


class _Node(msgspec.Struct, frozen=True):
    state: str
    resources_total: dict[str, float] = {}


class _NodeList(msgspec.Struct, frozen=True):
    result: tuple[_Node, ...]


class _NodesResult(msgspec.Struct, frozen=True):
    result: _NodeList


class _Nodes(msgspec.Struct, frozen=True):
    data: _NodesResult


class RayCluster:
    """Sessions with the dashboard of one cluster. `token` gives the secret anew for each call.

    All methods raise `TargetError` and end within their time.
    """

    def __init__(
        self, address: str, token: Callable[[], str], verify: ssl.SSLContext | bool = True
    ) -> None:
        self._address = address
        self._token = token
        self._http = httpx.AsyncClient(verify=verify, follow_redirects=False, trust_env=False)

    async def version(self) -> str:
        """Ray's version."""
        return _parsed(await self._call("GET", "/api/version"), Version).ray_version

    async def authentication(self) -> str:
        """How the cluster knows who may use it: `token`, or `disabled`, where whoever reaches its
        nodes may run programs there. Ray before 2.52 knows only the latter."""
        body = await self._call("GET", "/api/authentication_mode", may_lack=True)
        return "disabled" if body is None else _parsed(body, _Mode).authentication_mode

    async def serve(self) -> ServeState:
        """Serve's applications and settings."""
        return _parsed(await self._call("GET", "/api/serve/applications/"), ServeState)

    async def declare(self, configuration: Mapping[str, Any]) -> None:
        """Have exactly these declared applications; others end, except those that programs
        deployed."""
        content = json.dumps(configuration).encode()
        await self._call("PUT", "/api/serve/applications/", content, CHANGE_TIMEOUT_S)

    async def nodes(self) -> list[dict[str, float]]:
        """Logical resources, such as `CPU`, of each node that is alive."""
        listed = _parsed(await self._call("GET", f"/api/v0/nodes?limit={MAX_NODES}"), _Nodes)
        return [n.resources_total for n in listed.data.result.result if n.state == "ALIVE"]

    async def keep_package(self, name: str, content: bytes) -> str:
        """Have a package (a zip file whose name follows from its content) in the cluster; returns
        its address there. Ray keeps it as long as something runs that uses it."""
        path = f"/api/packages/gcs/{name}"
        # Asking keeps one that is there for some minutes more, though nothing uses it yet.
        if await self._call("GET", path, may_lack=True) is None:
            await self._call("PUT", path, content, CHANGE_TIMEOUT_S)
        return package_address(name)

    async def close(self) -> None:
        """End all sessions."""
        await self._http.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        timeout_s: float | None = None,
        may_lack: bool = False,
    ) -> bytes | None:
        """The body of the answer, None where the cluster lacks what `path` names and `may_lack`."""
        headers = {"authorization": f"Bearer {self._token()}"}
        try:
            async with asyncio.timeout(TIMEOUT_S if timeout_s is None else timeout_s):
                async with self._http.stream(
                    method,
                    self._address + path,
                    content=content,
                    headers=headers,
                    timeout=None,
                ) as answer:
                    body = await _bounded(answer)
        except TimeoutError:
            raise TargetError(Fault.TIMEOUT, "the Ray cluster does not answer in time") from None
        except httpx.InvalidURL as error:
            raise TargetError(Fault.UNREACHABLE, f"that is no address: {error}") from None
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise TargetError(
                Fault.UNREACHABLE, f"the Ray cluster cannot be reached: {said[:MAX_SENTENCE]}"
            ) from None
        if may_lack and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer.status_code, path, body)
        return body


def package_address(name: str) -> str:
    """Where nodes of the cluster find a package that it keeps."""
    return f"gcs://{name}"


async def _bounded(answer: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in answer.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER:
            raise TargetError(Fault.BROKEN, f"the Ray cluster sends more than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes | None, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body or b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TargetError(
            Fault.BROKEN, f"the Ray cluster sent what cannot be its state: {error}"
        ) from None


def _refusal(status: int, path: str, body: bytes) -> TargetError:
    fault = _FAULTS.get(status, Fault.BROKEN)
    if fault is Fault.CREDENTIALS:
        # What a server says to wrong credentials may repeat them.
        return TargetError(fault, f"the Ray cluster refuses the token ({status})")
    said = sentence(body[: 64 * MAX_SENTENCE].decode("utf-8", "replace"))
    if status == httpx.codes.NOT_FOUND:
        fault, said = Fault.UNREACHABLE, "is it the address of Ray's dashboard?"
    elif status == httpx.codes.NOT_IMPLEMENTED:
        said = "its nodes lack Ray Serve: install ray[serve] there"
    return TargetError(fault, f"the Ray cluster answered {status} to {path}: {said}")


def sentence(text: str) -> str:
    """What a text of Ray's says in one line: of one with a traceback, the error at its end."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    if any(line.startswith(("Traceback (", 'File "')) for line in lines):
        lines = [_ERROR_CLASS.sub("", lines[-1])]
    joined = " ".join(" ".join(lines).split())
    return "".join(c for c in joined if c.isprintable())[:MAX_SENTENCE]
