"""HTTP to the control plane: the one module of the command that speaks it.

Every failure is a `CliError`: nobody there, too slow, broken off, refused, or an answer that is
none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shoal_controlplane.cli.errors import CliError

if TYPE_CHECKING:
    import httpx

CONNECT_S = 5.0
ANSWER_S = 30.0
CHECK_S = 600.0
"""Time for the control plane to check a model that was pushed."""
SILENCE_S = 60.0
"""A stream of events that says nothing for so long is dead: it has heartbeats."""
MAX_PAGES = 10_000

Query = dict[str, str | int | list[str]]


class Client:
    """A connection to one control plane; use it as a context manager.

    `now` is the control plane's time at its last answer, so that ages are right even where this
    machine's clock is not.
    """

    def __init__(self, server: str) -> None:
        import httpx

        self.server = server
        self.now = datetime.now(timezone.utc)
        host = urlsplit(server).hostname or ""
        self._http = httpx.Client(
            base_url=server,
            timeout=_timeout(ANSWER_S),
            # Loading the certificate authorities takes longer than most commands.
            verify=server.startswith("https:"),
            # A proxy cannot reach what listens on this machine only.
            trust_env=not _is_loopback(host),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, query: Query | None = None) -> Any:
        """The document at `path`."""
        return self._document(self._call("GET", path, params=query))

    def items(self, path: str, query: Query | None = None, most: int | None = None) -> list[Any]:
        """The items of all pages of a list, up to `most`."""
        found: list[Any] = []
        query = {"limit": min(500, most or 500), **(query or {})}
        for _ in range(MAX_PAGES):
            page = self.get(path, query)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise self._strange("a list without items")
            found += page["items"]
            cursor = page.get("next_cursor")
            if not isinstance(cursor, str) or (most is not None and len(found) >= most):
                return found[:most]
            query["cursor"] = cursor
        raise self._strange("a list without an end")

    def send(self, method: str, path: str, body: Any = None, answer_s: float = ANSWER_S) -> Any:
        """Send a document, or nothing; the document that comes back, None if none does."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if content else {}
        reply = self._call(
            method, path, content=content, headers=headers, timeout=_timeout(answer_s)
        )
        return self._document(reply) if reply.content else None

    def has(self, path: str) -> bool:
        """Whether something is at `path`."""
        with self._failures("HEAD", path):
            reply = self._http.head(path)
        if reply.status_code == 404:
            return False
        self._check(reply)
        return True

    def upload(self, path: str, chunks: Iterable[bytes], length: int) -> None:
        """PUT `length` bytes."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        self._call("PUT", path, content=chunks, headers=headers, timeout=_timeout(SILENCE_S))

    def receive(self, path: str, chunk: int) -> Iterator[bytes]:
        """The bytes at `path`, in pieces of `chunk`."""
        with self._failures("GET", path), self._http.stream("GET", path) as reply:
            if not reply.is_success:
                reply.read()
                self._check(reply)
            yield from reply.iter_bytes(chunk)

    def post_bytes(
        self, path: str, body: bytes, headers: dict[str, str], answer_s: float
    ) -> tuple[bytes, dict[str, str]]:
        """POST a body that is no document; body and headers (in lower case) that come back."""
        reply = self._call("POST", path, content=body, headers=headers, timeout=_timeout(answer_s))
        return reply.content, {name.lower(): value for name, value in reply.headers.items()}

    def events(self, path: str, query: Query, after: int | None) -> Iterator[Any]:
        """Documents of a stream of server-sent events, those after id `after` first."""
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = _timeout(SILENCE_S)
        with (
            self._failures("GET", path),
            self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as reply,
        ):
            if reply.status_code != 200:
                reply.read()
                self._check(reply)
            data: list[str] = []
            for line in reply.iter_lines():
                if line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield self._decoded("\n".join(data).encode())
                    data.clear()

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._failures(method, path):
            reply = self._http.request(method, path, **options)
        self._check(reply)
        return reply

    @contextmanager
    def _failures(self, method: str, path: str) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise CliError(
                f"no control plane answers at {self.server}: start one with `shoal serve`, or "
                "name it with --server"
            ) from None
        except httpx.TimeoutException:
            raise CliError(
                f"{self.server} did not answer {method} {path} in time: try again, and see the "
                "control plane's log if it stays silent"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CliError(
                f"the exchange with {self.server} broke off "
                f"({str(error) or type(error).__name__}): try again"
            ) from None

    def _check(self, reply: httpx.Response) -> None:
        """Raise what the control plane says against a request."""
        self.now = _date(reply.headers.get("date", ""))
        if reply.is_success:
            return
        try:
            document = msgspec.json.decode(reply.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = None
        for key in ("detail", "error"):
            if isinstance(document, dict) and isinstance(document.get(key), str):
                raise CliError(document[key])
        raise self._strange(
            f"{reply.status_code} {reply.reason_phrase} to {reply.request.method} "
            f"{reply.request.url.path}"
        )

    def _document(self, reply: httpx.Response) -> Any:
        return self._decoded(reply.content)

    def _decoded(self, content: bytes) -> Any:
        try:
            return msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._strange("something that is not JSON") from None

    def _strange(self, what: str) -> CliError:
        return CliError(f"{self.server} answered with {what}: is it a Shoal control plane?")


def _timeout(answer_s: float) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s))


def _date(text: str) -> datetime:
    """The time in a Date header, else this machine's."""
    try:
        return parsedate_to_datetime(text).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return datetime.now(timezone.utc)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
