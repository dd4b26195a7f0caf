from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_agent.updates import bundle as bundle_module
from shoal_agent.updates.bundle import BundledFile, BundleError, list_files, pack, unpack
from shoal_agent.updates.store import hash_file

FILES = {"engine.bin": b"\x01" * 3000, "a/nodes.json": b"{}", "a/b/empty": b"", "é" * 80: b"x"}

_part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
_parts = _part.filter(lambda text: text not in (".", "..") and len(text.encode()) < 200)
_names = st.lists(_parts, min_size=1, max_size=4).map("/".join)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def nothing_but(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def archive(path: Path, *members: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar file of another program, each member with as many bytes as it announces."""
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"z" * member.size))
    return path


def member(name: str, size: int = 3, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "source", FILES)
    packed = tmp_path / "bundle"
    digest, size = pack(source, packed)
    assert (digest, size) == (hash_file(packed), packed.stat().st_size)
    files = unpack(packed, tmp_path / "copy")
    assert contents(tmp_path / "copy") == FILES
    assert {f.name: f.size for f in files} == list_files(source)
    assert files[0] == BundledFile(name="a/b/empty", size=0, digest=hash_file(source / "a/b/empty"))
    nothing_but(tmp_path, "source", "bundle", "copy")


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", FILES)
    other = write(tmp_path / "other", dict(reversed(FILES.items())))
    os.utime(other / "engine.bin", (1, 1))
    (other / "engine.bin").chmod(0o700)
    assert pack(one, tmp_path / "1") == pack(other, tmp_path / "2")
    (other / "engine.bin").write_bytes(b"\x01" * 3001)
    assert pack(one, tmp_path / "1") != pack(other, tmp_path / "2")


def test_other_programs_can_look_into_a_bundle(tmp_path: Path) -> None:
    pack(write(tmp_path / "source", FILES), tmp_path / "bundle")
    with tarfile.open(tmp_path / "bundle") as tar:
        assert sorted(tar.getnames()) == sorted(FILES)


def test_an_empty_folder_in_the_way_is_filled_and_a_full_one_is_not(tmp_path: Path) -> None:
    pack(write(tmp_path / "source", FILES), tmp_path / "bundle")
    (tmp_path / "copy").mkdir()
    unpack(tmp_path / "bundle", tmp_path / "copy")
    (tmp_path / "copy/engine.bin").write_bytes(b"mine")
    with pytest.raises(OSError, match="not empty"):
        unpack(tmp_path / "bundle", tmp_path / "copy")
    assert (tmp_path / "copy/engine.bin").read_bytes() == b"mine"
    nothing_but(tmp_path, "source", "bundle", "copy")


@given(name=_names, data=st.binary(max_size=2000))
@settings(max_examples=50, deadline=None)
def test_any_name_and_content_survive(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    pack(write(folder / "source", {name: data}), folder / "bundle")
    unpack(folder / "bundle", folder / "copy")
    assert (folder / "copy" / name).read_bytes() == data


@given(st.binary(max_size=3000), st.integers(min_value=0, max_value=3000))
@settings(max_examples=100, deadline=None)
def test_garbage_never_gets_further_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, position: int
) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    pack(write(folder / "source", {"f": b"content" * 200}), folder / "bundle")
    good = (folder / "bundle").read_bytes()
    bad = good[:position] + garbage + good[position + len(garbage) :]
    (folder / "bundle").write_bytes(bad)
    try:
        unpack(folder / "bundle", folder / "copy")
    except BundleError:
        nothing_but(folder, "source", "bundle")
    else:
        # Only the content of the file may be another one; its digest tells.
        assert list(contents(folder / "copy")) == ["f"]


@pytest.mark.parametrize(
    "hostile",
    [
        member("../up"),
        member("a/../../up"),
        member("/etc/passwd"),
        member("a//b"),
        member("./a"),
        member("a/"),
        member("x" * 300),
        member("/".join("abcdefghijkl")),
        member("../" * 50 + "up"),
        member("link", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", 0, type=tarfile.LNKTYPE, linkname="f"),
        member("device", 0, type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("block", 0, type=tarfile.BLKTYPE),
        member("pipe", 0, type=tarfile.FIFOTYPE),
        member("folder", 0, type=tarfile.DIRTYPE),
        member("sparse", type=tarfile.GNUTYPE_SPARSE),
        member("setuid", mode=0o4755),
        member("owned", uid=1),
        member("dated", mtime=1),
    ],
    ids=lambda info: f"{info.name[:20]}-{info.type.decode()}",
)
def test_what_pack_never_writes_is_refused(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    path = archive(tmp_path / "bundle", member("f"), hostile)
    with pytest.raises(BundleError) as caught:
        unpack(path, tmp_path / "copy")
    assert "\n" not in str(caught.value)
    nothing_but(tmp_path, "bundle")


def test_extended_headers_are_not_even_read(tmp_path: Path) -> None:
    info = member("f", pax_headers={"comment": "x" * 5000})
    archive(tmp_path / "bundle", info, form=tarfile.PAX_FORMAT)
    with pytest.raises(BundleError):
        unpack(tmp_path / "bundle", tmp_path / "copy")


@pytest.mark.parametrize(
    "names", [("b", "a"), ("a", "a"), ("a", "a/b"), ("a", "a-", "a/b")], ids=" ".join
)
def test_files_out_of_order_or_on_one_another_are_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    archive(tmp_path / "bundle", *map(member, names))
    with pytest.raises(BundleError, match=r"not in order|no folder"):
        unpack(tmp_path / "bundle", tmp_path / "copy")
    nothing_but(tmp_path, "bundle")


@pytest.mark.parametrize("cut", [0, 100, 512, 1000, 2048, 3584, 4096])
def test_a_bundle_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    pack(write(tmp_path / "source", {"f": b"y" * 3000}), tmp_path / "bundle")
    whole = (tmp_path / "bundle").read_bytes()
    (tmp_path / "bundle").write_bytes(whole[:cut])
    with pytest.raises(BundleError):
        unpack(tmp_path / "bundle", tmp_path / "copy")
    (tmp_path / "bundle").write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match="does not end"):
        unpack(tmp_path / "bundle", tmp_path / "copy")
    nothing_but(tmp_path, "source", "bundle")


def test_size_and_number_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", {"a": b"x" * 60, "b": b"x" * 41})
    pack(source, tmp_path / "bundle")
    with pytest.raises(BundleError, match="more than 100 bytes"):
        unpack(tmp_path / "bundle", tmp_path / "copy", max_bytes=100)
    with pytest.raises(BundleError, match="more than 1 files"):
        unpack(tmp_path / "bundle", tmp_path / "copy", max_files=1)
    nothing_but(tmp_path, "source", "bundle")
    unpack(tmp_path / "bundle", tmp_path / "copy", max_bytes=101, max_files=2)
    monkeypatch.setattr(bundle_module, "MAX_BYTES", 100)
    with pytest.raises(BundleError, match="more than 100 bytes"):
        list_files(source)


def test_links_pipes_and_deep_folders_are_not_packed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"f": b""})
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="'link' is neither"):
        pack(source, tmp_path / "bundle")
    (source / "link").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(BundleError, match="'pipe' is neither"):
        list_files(source)
    (source / "pipe").unlink()
    write(source, {"/".join("abcdefghijkl"): b""})
    with pytest.raises(BundleError, match="nested"):
        list_files(source)


def test_a_name_that_is_no_text_is_not_packed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {})
    source.mkdir()
    os.close(os.open(os.fsencode(source) + b"/\xff", os.O_CREAT))
    with pytest.raises(BundleError, match="not Unicode"):
        list_files(source)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(write(tmp_path / "source", FILES), tmp_path / "bundle")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        unpack(tmp_path / "bundle", tmp_path / "copy")
    nothing_but(tmp_path, "source", "bundle")
