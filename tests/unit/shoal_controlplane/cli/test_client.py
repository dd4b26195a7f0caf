"""What the command says when the control plane does not do its part."""

from __future__ import annotations

import socket
import threading

import pytest
from starlette.responses import HTMLResponse, RedirectResponse, Response

from shoal_controlplane.cli import client

DEVICES = "/api/v1/devices"


def test_nobody_there(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        done = run("device", "list", "--server", url)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"Error: no control plane answers at {url}: start one with `shoal serve`, or name it with "
        "--server\n"
    )


def test_nobody_answers(run, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_S", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = run("device", "list", "--server", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert done.code == 1
    assert "did not answer GET /api/v1/devices in time" in done.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response("oh no", 500), "answered with 500 Internal Server Error to GET /api/v1/devices"),
        (HTMLResponse("<h1>Bad Gateway</h1>", 502), "answered with 502 Bad Gateway"),
        (Response('{"error": "out of order"}', 503), "Error: out of order\n"),
        (Response('{"detail": 7}', 400), "answered with 400 Bad Request"),
        (RedirectResponse("/elsewhere"), "answered with 307 Temporary Redirect"),
        (HTMLResponse("<p>hello</p>"), "answered with something that is not JSON"),
        (Response('{"items": [', media_type="application/json"), "not JSON"),
        (Response(b"\xff\xfe"), "not JSON"),
        (Response('{"items": 3}'), "answered with a list without items"),
        (Response("[]"), "answered with a list without items"),
        (Response('{"items": [{"id": 3}], "next_cursor": null}'), "cannot be read"),
        (Response('{"items": ["x"], "next_cursor": null}'), "cannot be read"),
        (Response('{"detail": "a\\u001b[2Jb\\nc"}', 400), "Error: a\ufffd[2Jb\ufffdc\n"),
    ],
)
def test_an_answer_that_is_none_is_one_sentence(plane, shoal, answer, said):
    plane.answers[f"GET {DEVICES}"] = answer
    done = shoal("device", "list")
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1


def test_a_list_that_never_ends_is_given_up(plane, shoal, monkeypatch):
    monkeypatch.setattr(client, "MAX_PAGES", 3)
    plane.answers[f"GET {DEVICES}"] = {"items": [], "next_cursor": "more"}
    done = shoal("device", "list")
    assert done.code == 1
    assert "a list without an end" in done.err
    assert len(plane.calls) == 3


def test_an_answer_that_breaks_off(run):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def cut() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        thread = threading.Thread(target=cut)
        thread.start()
        done = run("device", "list", "--server", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(10)
    assert done.code == 1
    assert "broke off" in done.err


def test_the_server_comes_from_the_environment(plane, run, documents):
    plane.pages(DEVICES, [documents.device("a")])
    done = run("device", "list", env={"SHOAL_SERVER": f"{plane.url}/"})
    assert done.code == 0
    assert "a " in done.out


@pytest.mark.parametrize(
    "url", ["foo", "ftp://x", "http://", "http://a:99999", "http://h?x=1", "http://[::1"]
)
def test_what_is_no_server_is_wrong_usage(run, url):
    done = run("device", "list", "--server", url)
    assert done.code == 2
    assert "use http://HOST:PORT" in done.err


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(plane, run, documents):
    plane.pages(DEVICES, [documents.device("a")])
    env = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    assert run("device", "list", "--server", plane.url, env=env).code == 0


def test_ages_follow_the_control_planes_clock(plane, shoal, documents):
    document = documents.device("a", last_seen="2026-01-02T00:00:00.000Z")
    headers = {"date": "Fri, 02 Jan 2026 00:05:00 GMT"}
    body = client.msgspec.json.encode({"items": [document], "next_cursor": None})

    plane.answers[f"GET {DEVICES}"] = Response(body, headers=headers)
    assert "5 min ago" in shoal("device", "list").out
