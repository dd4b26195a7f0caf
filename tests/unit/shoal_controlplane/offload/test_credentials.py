from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.offload import credentials
from shoal_controlplane.offload.credentials import (
    MAX_SECRET,
    check_reference,
    private_file,
    secret,
)
from shoal_controlplane.offload.target import Fault, TargetError

SECRET = "s3cr3t-token"


def private(path: Path, content: str | bytes = SECRET, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def refused(reference: str) -> str:
    with pytest.raises(TargetError) as caught:
        secret(reference)
    assert caught.value.fault is Fault.CREDENTIALS
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    return str(caught.value)


@pytest.mark.parametrize("reference", ["", "identity", "env:AZURE_TOKEN", "file:/etc/token"])
def test_references(reference: str) -> None:
    assert check_reference(reference) == reference


@pytest.mark.parametrize(
    "reference",
    [
        SECRET,
        f"env:{SECRET}",
        f"file:{SECRET}",
        f"token:{SECRET}",
        "env:",
        "env:1A",
        "env:A B",
        "file:",
        "file:relative",
        f"file:/a\0{SECRET}",
        "identity:x",
        "ENV:X",
        f"env:{'A' * 200}",
    ],
)
def test_what_is_no_reference_is_refused_without_repeating_it(reference: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_reference(reference)
    assert SECRET not in str(caught.value)


def test_a_variable_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TEST_TOKEN", f" {SECRET}\n")
    assert secret("env:SHOAL_TEST_TOKEN") == SECRET
    monkeypatch.setenv("SHOAL_TEST_TOKEN", "rotated")
    assert secret("env:SHOAL_TEST_TOKEN") == "rotated"
    monkeypatch.setenv("SHOAL_TEST_TOKEN", "")
    assert "SHOAL_TEST_TOKEN is not set" in refused("env:SHOAL_TEST_TOKEN")
    monkeypatch.delenv("SHOAL_TEST_TOKEN")
    refused("env:SHOAL_TEST_TOKEN")
    monkeypatch.setenv("SHOAL_TEST_TOKEN", f"{SECRET}\nx-evil: 1")
    assert "one line" in refused("env:SHOAL_TEST_TOKEN")


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = private(tmp_path / "token", f"{SECRET}\n")
    assert secret(f"file:{path}") == SECRET
    private(path, "rotated")
    assert secret(f"file:{path}") == "rotated"
    assert private_file(private(path, b"\x00\x01binary")) == b"\x00\x01binary"
    refused(f"file:{path}")


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "token", mode=mode)
    assert f"chmod 600 {path}" in refused(f"file:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_ones_own_is_read(tmp_path: Path, mode: int) -> None:
    assert secret(f"file:{private(tmp_path / 'token', mode=mode)}") == SECRET


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(private(tmp_path / "token"))
    assert secret(f"file:{link}") == SECRET
    (tmp_path / "token").chmod(0o644)
    refused(f"file:{link}")


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = private(tmp_path / "token")
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(credentials.os, "geteuid", lambda: 12345)
    assert "belongs to another user" in refused(f"file:{path}")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "pipe", "loop", "missing", "missing/deeper"):
        assert str(tmp_path / name) in refused(f"file:{tmp_path / name}")
    assert "not a file" in refused("file:/dev/null")


@pytest.mark.parametrize("content", ["", " \n\t", SECRET * MAX_SECRET, f"{SECRET}\n{SECRET}"])
def test_what_cannot_be_a_credential(tmp_path: Path, content: str) -> None:
    refused(f"file:{private(tmp_path / 'token', content)}")


@pytest.mark.parametrize("reference", ["", "identity"])
def test_where_a_secret_is_needed_none_is_not_enough(reference: str) -> None:
    assert "needs a credential" in refused(reference)
