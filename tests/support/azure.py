"""A small Azure on the loopback interface, for the unmodified SDKs.

One TLS server plays Microsoft Entra (tokens for a client's secret), Azure Resource Manager with an
Azure ML workspace (`azure_arm`), its blob storage, and the scoring endpoints (`azure_scoring`),
behind which real processes answer. It refuses what Azure refuses: unknown tokens, api-versions
and fields, changes while another one is under way.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.azure_arm import Arm
from support.azure_assets import SUBSCRIPTION
from support.azure_replies import Answer, Asked, RefusedError
from support.azure_scoring import Scoring

TENANT = "7d1c2f0a-0000-4000-8000-00000000aaaa"
CLIENT = "0f5e3b1c-0000-4000-8000-00000000bbbb"
ACCOUNT, CONTAINER = "shoalstore", "azureml-blobstore-1"


@dataclass
class Fault:
    """What some of the next requests get instead of an answer, once `after` is set. `where` matches
    `METHOD /path`."""

    where: str
    answer: Answer
    times: int = 1
    after: threading.Event | None = None


@dataclass
class Azure:
    """The server's state and its knobs."""

    folder: Path
    secret: str = field(default_factory=lambda: f"client-secret-{secrets.token_hex(12)}")
    sas: str = field(default_factory=lambda: secrets.token_hex(16))
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    token_s: int = 3600
    ca_file: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.scoring = Scoring(self)
        self.arm = Arm(self)
        self._blocks: dict[tuple[str, str], bytes] = {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """All that may not be told, now and before."""
        return (self.secret, self.sas, *self.tokens, *self.arm.keys_ever)

    def fail(
        self,
        where: str,
        status: int,
        code: str,
        message: str = "no",
        times: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse the next requests that match, in the way of Resource Manager."""
        body = {"error": {"code": code, "message": message}}
        self.faults.append(Fault(where, Answer(status, body, dict(headers or {})), times))

    def token(self, scope: str) -> str:
        token = secrets.token_urlsafe(32)
        self.tokens[token] = (scope, time.monotonic() + self.token_s)
        return token

    def expire(self) -> None:
        """No token is valid any more."""
        self.tokens = {token: (scope, 0.0) for token, (scope, _) in self.tokens.items()}

    def knows(self, asked: Asked, scope: str) -> bool:
        """Whether a request shows a token for this audience."""
        known = self.tokens.get(asked.bearer)
        return known is not None and known[0] == scope and known[1] > time.monotonic()

    def answer(self, asked: Asked) -> Answer:
        what = f"{asked.method} {asked.path}"
        with self.lock:
            self.seen.append(what)
            wrong = next((f for f in self.faults if f.times and re.search(f.where, what)), None)
            if wrong is not None:
                wrong.times -= 1
        if wrong is not None:
            if wrong.after is not None:
                wrong.after.wait(60)
            return wrong.answer
        try:
            if asked.path.startswith(f"/{TENANT}/"):
                return self._entra(asked)
            if asked.path.startswith(f"/subscriptions/{SUBSCRIPTION}/"):
                with self.lock:
                    return self.arm.answer(asked)
            if asked.path.startswith(f"/{ACCOUNT}/{CONTAINER}"):
                with self.lock:
                    return self._storage(asked)
            if asked.path.startswith("/endpoints/"):
                return self.scoring.answer(asked)
        except RefusedError as refused:
            return refused.answer
        self.unknown.append(what)
        return Answer(404, {"error": {"code": "NotFound", "message": f"no {what}"}})

    def _entra(self, asked: Asked) -> Answer:
        base = f"{self.url}/{TENANT}"
        if asked.path.endswith("/.well-known/openid-configuration"):
            return Answer(
                200,
                {
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                    "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                    "issuer": f"{base}/v2.0",
                },
            )
        if asked.path.endswith("/msi"):
            # Where a managed identity gets its tokens, as on Azure's App Service.
            if asked.headers.get("x-identity-header") != self.secret:
                raise RefusedError(401, "Unauthorized", "the header is wrong")
            with self.lock:
                token = self.token(f"{asked.query['resource'].rstrip('/')}/.default")
            expires = str(int(time.time()) + self.token_s)
            return Answer(
                200, {"token_type": "Bearer", "expires_on": expires, "access_token": token}
            )
        if asked.method != "POST" or not asked.path.endswith("/oauth2/v2.0/token"):
            raise RefusedError(404, "NotFound", asked.path)
        form = {k: v[0] for k, v in parse_qs(asked.body.decode()).items()}
        if form.get("grant_type") != "client_credentials" or form.get("client_id") != CLIENT:
            return Answer(
                400, {"error": "unauthorized_client", "error_description": "AADSTS700016"}
            )
        if form.get("client_secret") != self.secret:
            told = f"AADSTS7000215: Invalid client secret provided: {form.get('client_secret')}"
            return Answer(401, {"error": "invalid_client", "error_description": told})
        scope = form["scope"].split()[0]
        with self.lock:
            token = self.token(scope)
        return Answer(
            200, {"token_type": "Bearer", "expires_in": self.token_s, "access_token": token}
        )

    def _storage(self, asked: Asked) -> Answer:
        name = asked.path.removeprefix(f"/{ACCOUNT}/{CONTAINER}").removeprefix("/")
        query = asked.query
        headers = {
            "etag": '"0x1"',
            "last-modified": "Tue, 24 Nov 2026 19:00:00 GMT",
            "x-ms-request-id": secrets.token_hex(8),
            "x-ms-version": asked.headers.get("x-ms-version", ""),
        }
        if query.get("sig") != self.sas:
            return _blob_error(403, "AuthenticationFailed", headers)
        if query.get("restype") == "container" and query.get("comp") == "list":
            prefix = query.get("prefix", "")
            found = "".join(
                f"<Blob><Name>{escape(n)}</Name><Properties><Content-Length>{len(b)}"
                "</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
                for n, b in sorted(self.blobs.items())
                if n.startswith(prefix)
            )
            xml = (
                f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="'
                f'{self.url}/{ACCOUNT}" ContainerName="{CONTAINER}"><Prefix>{escape(prefix)}'
                f"</Prefix><Blobs>{found}</Blobs><NextMarker /></EnumerationResults>"
            )
            return Answer(200, xml.encode(), {**headers, "content-type": "application/xml"})
        if asked.method == "PUT" and query.get("comp") == "block":
            self._blocks[name, query["blockid"]] = asked.body
            return Answer(201, b"", headers)
        if asked.method == "PUT" and query.get("comp") == "blocklist":
            order = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", asked.body.decode())
            self.blobs[name] = b"".join(self._blocks.pop((name, block)) for block in order)
            return Answer(201, b"", headers)
        if asked.method == "PUT" and asked.headers.get("x-ms-blob-type") == "BlockBlob":
            self.blobs[name] = asked.body
            return Answer(201, b"", headers)
        if name not in self.blobs:
            return _blob_error(404, "BlobNotFound", headers)
        if asked.method == "DELETE":
            del self.blobs[name]
            return Answer(202, b"", headers)
        raise RefusedError(400, "UnsupportedHttpVerb", asked.method)


def _blob_error(status: int, code: str, headers: dict[str, str]) -> Answer:
    xml = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code></Error>'
    return Answer(
        status,
        xml.encode(),
        {**headers, "x-ms-error-code": code, "content-type": "application/xml"},
    )


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, azure: Azure, context: ssl.SSLContext) -> None:
        self.azure, self._context = azure, context
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        # The handshake is the handler's, in its thread.
        return (
            self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False),
            address,
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _go(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = Asked(
            self.command,
            unquote(parts.path),
            {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()},
            {k.lower(): v for k, v in self.headers.items()},
            body,
        )
        answer = self.server.azure.answer(asked)
        content = answer.body
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        self.send_response(answer.status)
        for name, value in {"content-type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = _go  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the test's screen."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Azure]:
    """An Azure whose files lie in `folder`; its processes end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    azure = Azure(folder)
    chain, azure.ca_file = certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    server = _Server(azure, context)
    azure.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield azure
    finally:
        azure.arm.close()
        azure.scoring.close()
        server.shutdown()
        server.server_close()
        thread.join(10)


def certificates(folder: Path) -> tuple[str, str]:
    """A server's certificate with its key, and the authority to trust: two files."""
    now = datetime.datetime.now(datetime.timezone.utc)
    until = now + datetime.timedelta(days=1)
    authority, server = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Loopback Authority")])
    usage = {
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    root = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage),
            critical=True,
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(issuer)
        .public_key(server.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage),
            critical=True,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain, trusted = folder / "server.pem", folder / "authority.pem"
    chain.write_bytes(leaf.public_bytes(pem) + key)
    trusted.write_bytes(root.public_bytes(pem))
    return str(chain), str(trusted)
