"""Stand-ins for scheduler, kubelet and load balancer, beside the real control plane of
`support.kubernetes`. Containers are processes; all pods share the loopback interface, so each
container's port becomes a free one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.kubernetes import Api, ApiError, Json
from support.processes import free_port

_PERIOD_S = 0.1
_BACKOFF_S = 1.0
_RUNNING: Json = {"running": {}}


@dataclass
class _Pod:
    """A pod that has a node: its process and where that listens."""

    path: str
    labels: dict[str, str]
    spec: Json
    ports: dict[int, int]
    log: Path
    child: subprocess.Popen[bytes] | None = None
    ready: bool = False
    misses: int = 0
    restarts: int = 0
    not_before: float = 0.0
    mounts: dict[str, str] = field(default_factory=dict)
    terminating: float = 0.0

    def signal(self, number: int) -> None:
        if self.child is not None and self.child.poll() is None:
            os.killpg(self.child.pid, number)


class Machines:
    """Nodes, their kubelets, and a load balancer. `environment` is added to each container's;
    `forced` overrides variables of containers that start from now on."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api, self._folder = api, folder
        self._pods: dict[str, _Pod] = {}
        self._nodes: list[Json] = []
        self._told: set[str] = set()
        self.forced: dict[str, str] = {}
        self.images: set[str] | None = None
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._balancers = _Balancers(self._ready_ports)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(20)
        for pod in self._pods.values():
            pod.signal(signal.SIGKILL)
            if pod.child is not None:
                pod.child.wait(10)
        self._balancers.close()

    def add_node(self, name: str, labels: Json, room: Json) -> None:
        """A node with labels and allocatable resources, whole numbers of `cpu` and devices."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", **labels}},
        }
        self._api.apply(node)
        amounts = {k: str(v) for k, v in {"pods": 110, "memory": "64Gi", **room}.items()}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        self._api.status(f"/api/v1/nodes/{name}", status)
        self._nodes.append({"name": name, "labels": node["metadata"]["labels"], "room": room})

    @property
    def all_ready(self) -> bool:
        """Whether all pods that stay are ready."""
        return all(pod.ready for pod in list(self._pods.values()) if not pod.terminating)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All containers hang."""
        pods = list(self._pods.values())
        for pod in pods:
            pod.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for pod in pods:
                pod.signal(signal.SIGCONT)

    def restart(self) -> None:
        """All containers end and start again."""
        with self._lock:
            for pod in self._pods.values():
                pod.signal(signal.SIGKILL)
                if pod.child is not None:
                    pod.child.wait(10)
                pod.child, pod.ready, pod.not_before = None, False, 0.0
                self._start_container(pod)
                self._tell(pod, _RUNNING)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            try:
                with self._lock:
                    self._round()
            except (ApiError, OSError, subprocess.SubprocessError) as error:
                # A pod went away meanwhile, or the API server ends: the next round tells.
                self.failures.append(str(error))

    def _round(self) -> None:
        seen = self._api.items("/api/v1/pods")
        self._balance()
        for pod in seen:
            uid, metadata = pod["metadata"]["uid"], pod["metadata"]
            if uid not in self._pods:
                if "deletionTimestamp" in metadata:
                    self._delete(_path(pod))
                else:
                    self._admit(pod, seen)
                continue
            held = self._pods[uid]
            if "deletionTimestamp" in metadata:
                self._end(uid, held, pod)
            else:
                self._look_after(held)
        for uid in set(self._pods) - {pod["metadata"]["uid"] for pod in seen}:
            self._pods.pop(uid).signal(signal.SIGKILL)

    def _admit(self, pod: Json, seen: list[Json]) -> None:
        path = _path(pod)
        node, why = self._node_for(pod, seen)
        if node is None:
            if pod["metadata"]["uid"] not in self._told:
                self._told.add(pod["metadata"]["uid"])
                condition = {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": why,
                }
                self._api.status(path, {"phase": "Pending", "conditions": [condition]})
            return
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace},
                "target": target,
            }
            self._api.call("POST", f"{path}/binding", binding)
            # The next one of this round sees its room taken.
            pod["spec"]["nodeName"] = node
        held = _Pod(
            path,
            pod["metadata"].get("labels", {}),
            pod["spec"],
            {
                port["containerPort"]: free_port()
                for container in pod["spec"]["containers"]
                for port in container.get("ports", ())
            },
            self._folder / f"{name}.log",
        )
        volumes = {v["name"]: self._volume(name) for v in pod["spec"].get("volumes", ())}
        held.mounts = {
            mount["mountPath"]: volumes[mount["name"]]
            for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
            for mount in container.get("volumeMounts", ())
        }
        self._pods[pod["metadata"]["uid"]] = held
        if self.images is not None and pod["spec"]["containers"][0]["image"] not in self.images:
            waiting = {"reason": "ErrImagePull", "message": "not found"}
            self._tell(held, {"waiting": waiting})
            held.not_before = float("inf")
            return
        for container in pod["spec"].get("initContainers", ()):
            with held.log.open("ab") as log:
                subprocess.run(
                    self._command(held, container),
                    env=self._environment(held, container),
                    stdout=log,
                    stderr=log,
                    timeout=60,
                    check=True,
                )
        self._start_container(held)
        self._tell(held, _RUNNING)

    def _volume(self, pod: str) -> str:
        return tempfile.mkdtemp(prefix=f"{pod}-", dir=self._folder)

    def _node_for(self, pod: Json, seen: list[Json]) -> tuple[str | None, str]:
        """A node with the labels and the room that a pod wants, or why there is none."""
        wanted = _asked(pod["spec"])
        lacking = set()
        for node in self._nodes:
            if not pod["spec"].get("nodeSelector", {}).items() <= node["labels"].items():
                lacking.add("node(s) didn't match Pod's node affinity/selector")
                continue
            used: dict[str, float] = {}
            for other in seen:
                if other["spec"].get("nodeName") == node["name"]:
                    for key, value in _asked(other["spec"]).items():
                        used[key] = used.get(key, 0.0) + value
            short = [
                key
                for key, value in wanted.items()
                if used.get(key, 0.0) + value > float(node["room"].get(key, 0))
            ]
            if not short:
                return node["name"], ""
            lacking |= {f"Insufficient {key}" for key in short}
        count = len(self._nodes)
        return None, f"0/{count} nodes are available: {', '.join(sorted(lacking))}."

    def _start_container(self, pod: _Pod) -> None:
        container = pod.spec["containers"][0]
        with pod.log.open("ab") as log:
            pod.child = subprocess.Popen(
                self._command(pod, container),
                env=self._environment(pod, container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self, pod: _Pod, container: Json) -> list[str]:
        made = [*container.get("command", ()), *container.get("args", ())]
        for inside, outside in pod.ports.items():
            made = [p.replace(f"--port={inside}", f"--port={outside}") for p in made]
        for inside, outside in pod.mounts.items():
            made = [p.replace(inside, outside) for p in made]
        # Last, since this very environment may lie beneath what a pod mounts, such as /tmp.
        return [sys.executable if part == "python" else part for part in made]

    def _environment(self, pod: _Pod, container: Json) -> dict[str, str]:
        made = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        namespace = pod.path.split("/")[4]
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                made[variable["name"]] = variable.get("value", "")
                continue
            path = f"/api/v1/namespaces/{namespace}/secrets/{reference['name']}"
            data = self._api.call("GET", path)["data"][reference["key"]]
            made[variable["name"]] = base64.b64decode(data).decode()
        return {**made, **self.forced}

    def _look_after(self, pod: _Pod) -> None:
        """Restart what ended, and tell when readiness changes."""
        if pod.child is None:
            if time.monotonic() >= pod.not_before:
                self._start_container(pod)
                self._tell(pod, _RUNNING)
            return
        code = pod.child.poll()
        if code is not None:
            pod.child, pod.ready = None, False
            pod.restarts += 1
            pod.not_before = time.monotonic() + _BACKOFF_S
            tail = pod.log.read_text(errors="replace")[-2000:]
            ended = {"exitCode": code, "reason": "Error", "message": tail}
            waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting"}
            self._tell(pod, {"waiting": waiting}, ended)
            return
        probe = pod.spec["containers"][0].get("readinessProbe", {})
        passed = self._probe(pod, probe)
        pod.misses = 0 if passed else pod.misses + 1
        ready = passed or (pod.ready and pod.misses < probe.get("failureThreshold", 3))
        if ready != pod.ready:
            pod.ready = ready
            self._tell(pod, _RUNNING)

    def _probe(self, pod: _Pod, probe: Json) -> bool:
        if not probe:
            return True
        port = next(iter(pod.ports.values()))
        url = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=probe.get("timeoutSeconds", 1)) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _end(self, uid: str, pod: _Pod, seen: Json) -> None:
        pod.ready = False
        if not pod.terminating:
            pod.terminating = time.monotonic()
            pod.signal(signal.SIGTERM)
        grace = seen["metadata"].get("deletionGracePeriodSeconds", 30)
        if pod.child is not None and pod.child.poll() is None:
            if time.monotonic() - pod.terminating < grace:
                return
            pod.signal(signal.SIGKILL)
            pod.child.wait(10)
        self._pods.pop(uid)
        self._delete(pod.path)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(ApiError):
            self._api.call("DELETE", path, {"gracePeriodSeconds": 0})

    def _tell(self, pod: _Pod, state: Json, last: Json | None = None) -> None:
        truth = "True" if pod.ready else "False"
        container = pod.spec["containers"][0]
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": pod.ready,
            "restartCount": pod.restarts,
            "state": {"waiting": None, "running": None, **state},
            "lastState": {"terminated": last} if last else {},
        }
        kinds = ("PodScheduled", "Ready", "ContainersReady")
        conditions = [{"type": k, "status": truth if k != kinds[0] else "True"} for k in kinds]
        self._api.status(
            pod.path,
            {
                "phase": "Running" if "running" in state else "Pending",
                "podIP": "127.0.0.1",
                "conditions": conditions,
                "containerStatuses": [status],
            },
        )

    def _ready_ports(self, namespace: str, selector: dict[str, str]) -> list[int]:
        return [
            next(iter(pod.ports.values()))
            for pod in list(self._pods.values())
            if pod.ready
            and not pod.terminating
            and pod.path.split("/")[4] == namespace
            and selector.items() <= pod.labels.items()
        ]

    def _balance(self) -> None:
        """Give each Service that wants one an address."""
        wanted = {}
        for found in self._api.items("/api/v1/services"):
            if found["spec"].get("type") == "LoadBalancer":
                wanted[found["metadata"]["uid"]] = found
        for uid, found in wanted.items():
            address = self._balancers.address(uid, found)
            if not found.get("status", {}).get("loadBalancer", {}).get("ingress"):
                status = {"loadBalancer": {"ingress": [{"ip": address}]}}
                namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]
                self._api.status(f"/api/v1/namespaces/{namespace}/services/{name}", status)
        self._balancers.keep(set(wanted))


class _Balancers:
    """Each Service listens at an address of its own below 127/8, on the Service's port, and
    passes connections on to ready pods in turn."""

    def __init__(self, ports: Any) -> None:
        self._ports = ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: dict[str, tuple[str, asyncio.Server]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0

    def address(self, uid: str, service: Json) -> str:
        if uid not in self._servers:
            address = f"127.{os.getpid() % 200 + 20}.{len(self._servers) // 200}."
            self._turn += 1
            address += str(self._turn % 200 + 10)
            self._servers[uid] = (address, self._call(self._listen(address, service)))
        return self._servers[uid][0]

    def keep(self, uids: set[str]) -> None:
        for uid in set(self._servers) - uids:
            self._loop.call_soon_threadsafe(self._servers.pop(uid)[1].close)

    def close(self) -> None:
        self.keep(set())
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, address: str, service: Json) -> asyncio.Server:
        namespace = service["metadata"]["namespace"]
        selector = service["spec"].get("selector", {})

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ports = self._ports(namespace, selector)
            if not ports:
                writer.transport.abort()
                return
            self._turn += 1
            try:
                back, forth = await asyncio.open_connection(
                    "127.0.0.1", ports[self._turn % len(ports)]
                )
            except OSError:
                writer.transport.abort()
                return
            for source, sink in ((reader, forth), (back, writer)):
                task = self._loop.create_task(_pump(source, sink))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        port = service["spec"]["ports"][0]["port"]
        return await asyncio.start_server(connected, address, port)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


def _path(pod: Json) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _asked(spec: Json) -> dict[str, float]:
    """CPUs and devices that a pod asks for."""
    asked: dict[str, float] = {}
    for container in spec["containers"]:
        resources = container.get("resources", {})
        amounts = {**resources.get("limits", {}), **resources.get("requests", {})}
        for key, text in amounts.items():
            if key == "memory":
                continue
            value = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
            asked[key] = asked.get(key, 0.0) + value
    return asked
