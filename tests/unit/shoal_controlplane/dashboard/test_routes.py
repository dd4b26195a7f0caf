"""The page and its files: right types, a strict policy, nothing from elsewhere."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from shoal_controlplane.dashboard.routes import routes

STATIC = files("shoal_controlplane.dashboard") / "static"
NAMES = sorted(file.name for file in STATIC.iterdir())


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(routes())
    return TestClient(app)


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/dashboard/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_with_its_type_and_a_strict_policy(client, name):
    answer = client.get(path_of(name))
    assert answer.status_code == 200
    assert answer.content == (STATIC / name).read_bytes()
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_head_has_no_body(client):
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_copy_that_is_still_right_is_not_sent_again(client):
    tag = client.get("/dashboard/app.js").headers["etag"]
    again = client.get("/dashboard/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/dashboard/view.js", headers={"If-None-Match": tag})
    assert other.status_code == 200


def test_what_the_page_refers_to_is_there(client):
    html = (STATIC / "index.html").read_text()
    own = [link for link in re.findall(r'(?:src|href)="([^"#]+)"', html) if "/" in link]
    assert "dashboard/app.js" in own and "dashboard/style.css" in own
    for link in own:
        assert client.get(f"/{link}").status_code == 200, link
    for name in NAMES:
        if name.endswith(".js"):
            for module in re.findall(r'from "\./([^"]+)"', (STATIC / name).read_text()):
                assert module in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(name):
    text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]{2}|@import|data:[a-z]", text)


def test_nothing_inline_and_no_markup_from_text():
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:|<script(?![^>]*\ssrc=)", html)
    for name in NAMES:
        if name.endswith(".js"):
            code = (STATIC / name).read_text()
            forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\("
            assert not re.search(forbidden, code), name


def test_the_page_is_no_part_of_the_api():
    app = FastAPI()
    app.include_router(routes())
    assert app.openapi()["paths"] == {}
