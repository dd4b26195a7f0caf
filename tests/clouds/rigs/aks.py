"""Azure's management API for one node pool, on the loopback interface, for Azure's own client."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import ClientAuthenticationError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal_controlplane.offload.kserve.nodepools import NodePool
from shoal_controlplane.offload.kserve.options import AksOptions

TOKEN = "fake-token-of-azure"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
PATH = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/fleet/providers/"
    "Microsoft.ContainerService/managedClusters/aks-west/agentPools/gpu"
)
OPTIONS = AksOptions(
    subscription=SUBSCRIPTION,
    resource_group="fleet",
    cluster="aks-west",
    node_pool="gpu",
    max_nodes=4,
    replicas_per_node=2,
)


class Credential:
    """Gives one token for Azure's management API, or none."""

    def __init__(self, works: bool = True) -> None:
        self._works = works

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        info = self.get_token_info(*scopes)
        return AccessToken(info.token, info.expires_on)

    def get_token_info(self, *scopes: str, **_: Any) -> AccessTokenInfo:
        if not self._works:
            raise ClientAuthenticationError(f"AADSTS7000215: invalid secret {TOKEN}")
        assert scopes == ("https://management.azure.com/.default",)
        return AccessTokenInfo(TOKEN, int(time.time()) + 3600)


class Azure:
    """Azure's management API, as far as one node pool goes. `fails` is what the next changes
    are answered with: status, code, headers."""

    def __init__(self, folder: Path) -> None:
        self.properties: dict[str, Any] = {
            "count": 1,
            "vmSize": "Standard_NC4as_T4_v3",
            "mode": "User",
            "nodeTaints": ["sku=gpu:NoSchedule"],
            "provisioningState": "Succeeded",
        }
        self.fails: tuple[int, str, dict[str, str]] | None = None
        self.changes: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        azure = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                azure.answer(self, b"")

            def do_PUT(self) -> None:
                azure.answer(self, self.rfile.read(int(self.headers["content-length"])))

            def log_message(self, *_: object) -> None:
                """Nothing on the test's screen."""

        self.certificate = _certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, request: Any, body: bytes) -> None:
        path, _, query = request.path.partition("?")
        headers: dict[str, str] = {}
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            status, said = 401, _error("InvalidAuthenticationToken", "no")
        elif path != PATH or not query.startswith("api-version=20"):
            self.wrong.append(request.path)
            status, said = 404, _error("NotFound", path)
        elif body and self.fails is not None:
            status, code, headers = self.fails
            said = _error(code, "Azure says no")
        else:
            if body:
                change = json.loads(body)["properties"]
                self.changes.append(change)
                self.properties = {**self.properties, **change, "provisioningState": "Scaling"}
            status, said = 200, {"id": PATH, "name": "gpu", "properties": self.properties}
        text = json.dumps(said).encode()
        request.send_response(status)
        for key, value in {
            "content-type": "application/json",
            "content-length": str(len(text)),
            **headers,
        }.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(text)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _certificate(folder: Path) -> Path:
    """A certificate for the loopback address, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "azure.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


def opened(url: str, certificate: Path, credential: Credential | None = None) -> NodePool:
    options = {
        "base_url": url,
        "credential_scopes": ["https://management.azure.com/.default"],
        "connection_verify": str(certificate),
        "retry_total": 0,
    }
    return NodePool(OPTIONS, credential or Credential(), options)
