"""A real Kubernetes control plane on the loopback interface, and the parts around it that need a
machine room: scheduler, kubelet and load balancer are small stand-ins.

kube-apiserver, kube-controller-manager and etcd are real (`KUBEBUILDER_ASSETS`, as with envtest).
A pod's container is a real process that runs the pod's own command, arguments and environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.processes import Process, free_port

ADMIN = "admin"
CONTROL_PLANE = "system:serviceaccount:shoal:shoal-control-plane"
"""The user of the service account that the manifests give its rights."""
_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "etcd")
_CONTROLLERS = "deployment,replicaset,garbagecollector,namespace,resourcequota"
_START_S = 90.0
_LAST_MADE = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:public-info-viewer"

Json = dict[str, Any]


def assets() -> Path:
    """Where the programs are; without them skip, or fail where nothing may be skipped."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not folder:
        reason = "needs kube-apiserver, kube-controller-manager and etcd: set KUBEBUILDER_ASSETS"
    else:
        missing = [name for name in _PROGRAMS if not os.access(f"{folder}/{name}", os.X_OK)]
        reason = f"KUBEBUILDER_ASSETS has no {', '.join(missing)}" if missing else ""
    if reason and os.environ.get("SHOAL_REQUIRE_COMPONENTS"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return Path(folder)


class ApiError(Exception):
    """The API server refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """A user of the API server, by paths and plain JSON."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self._url, self._token = url, token
        self._trust = ssl.create_default_context(cafile=str(ca))

    def call(self, method: str, path: str, body: Any = None, kind: str = "json") -> Json:
        """One request; `kind` names the patch. Raises `ApiError`."""
        request = urllib.request.Request(
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "authorization": f"Bearer {self._token}",
                "content-type": f"application/{kind}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=20, context=self._trust) as answer:
                read: Json = json.loads(answer.read())
                return read
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode("utf-8", "replace")) from None

    def items(self, path: str) -> list[Json]:
        found: list[Json] = self.call("GET", path).get("items", [])
        return found

    def status(self, path: str, status: Json) -> None:
        """Merge into an object's status."""
        self.call("PATCH", f"{path}/status", {"status": status}, "merge-patch+json")

    def apply(self, body: Json, dry_run: bool = False) -> Json:
        """Create an object where its kind and namespace say."""
        return self.call("POST", _path_of(body) + ("?dryRun=All" if dry_run else ""), body)


_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CustomResourceDefinition": "customresourcedefinitions",
}
_GLOBAL = {"Namespace", "CustomResourceDefinition", "Node", "ClusterRole", "ClusterRoleBinding"}


def _path_of(body: Json) -> str:
    version, kind = body["apiVersion"], body["kind"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    if kind in _GLOBAL:
        return f"{root}/{plural}"
    return f"{root}/namespaces/{body['metadata'].get('namespace', 'default')}/{plural}"


@dataclass(frozen=True)
class _Programs:
    etcd: Process
    server: Process
    controllers: Process


class ControlPlane:
    """API server, controllers and etcd, with users that have tokens."""

    def __init__(self, folder: Path) -> None:
        self._programs_at = assets()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = {user: secrets.token_hex(16) for user in (ADMIN, CONTROL_PLANE, "nobody")}
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._started: list[Process] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def ca(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    def api(self, user: str = ADMIN) -> Api:
        return Api(self.url, self.ca, self.tokens[user])

    def kubeconfig(self, name: str, token: str, url: str = "") -> Path:
        """A private kubeconfig for a token."""
        path = self.folder / name
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "clusters": [
                        {
                            "name": "here",
                            "cluster": {
                                "server": url or self.url,
                                "certificate-authority": str(self.ca),
                            },
                        }
                    ],
                    "users": [{"name": "me", "user": {"token": token}}],
                }
            )
        )
        path.chmod(0o600)
        return path

    def close(self) -> None:
        for process in reversed(self._started):
            process.kill()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def _start(self) -> None:
        folder = self.folder
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )
        key, public = folder / "sa.key", folder / "sa.pub"
        for command in (
            ["openssl", "genrsa", "-out", str(key), "2048"],
            ["openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        lines = [
            f'{self.tokens[ADMIN]},{ADMIN},{ADMIN},"system:masters"',
            f"{self.tokens[CONTROL_PLANE]},{CONTROL_PLANE},{CONTROL_PLANE}",
            f"{self.tokens['nobody']},nobody,nobody",
        ]
        users = folder / "tokens.csv"
        users.write_text("\n".join(lines))
        users.chmod(0o600)
        self._run(
            "kube-apiserver",
            f"--etcd-servers={client}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--insecure-port=0",
            "--advertise-address=127.0.0.1",
            f"--cert-dir={folder / 'certs'}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={users}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        )
        self._await_ready()
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('controllers.json', self.tokens[ADMIN])}",
            f"--controllers={_CONTROLLERS}",
            "--leader-elect=false",
            "--port=0",
            "--secure-port=0",
            "--resource-quota-sync-period=1s",
        )

    def _run(self, program: str, *arguments: str) -> Process:
        command = [str(self._programs_at / program), *arguments]
        process = Process(command, self.folder / f"{program}.log")
        self._started.append(process)
        return process

    def _await_ready(self) -> None:
        end = time.monotonic() + _START_S
        while True:
            for process in self._started:
                if process.child.poll() is not None:
                    pytest.fail(f"{process.command[0]} ended:\n{process.output[-3000:]}")
            try:
                # The rights of all users, among them to ask for the version, are made last.
                if self.ca.exists() and self.api().call("GET", _LAST_MADE):
                    return
            except (OSError, ApiError, ssl.SSLError):
                pass
            assert time.monotonic() < end, "the API server does not start"
            time.sleep(0.05)
