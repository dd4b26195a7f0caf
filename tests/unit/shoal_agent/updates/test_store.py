from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shoal_agent.updates.files import write_atomically
from shoal_agent.updates.store import ArtifactStore, hash_file, is_digest


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts", free_bytes=lambda _: 1000)
    store.prepare()
    return store


def put(store: ArtifactStore, data: bytes) -> str:
    digest = digest_of(data)
    store.part_path(digest).write_bytes(data)
    store.commit(digest)
    return digest


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "sha256:../" + "a" * 61, "a" * 64],
)
def test_only_digests_name_files(store: ArtifactStore, text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(ValueError, match="is not a digest"):
        store.path(text)


def test_what_is_committed_is_there_and_whole(store: ArtifactStore) -> None:
    digest = put(store, b"model")
    assert store.has(digest, 5)
    assert not store.has(digest, 4)
    assert store.verify(digest, 5)
    assert hash_file(store.path(digest)) == digest
    assert not store.part_path(digest).exists()
    assert not store.verify(digest_of(b"other"), 5)


@pytest.mark.parametrize("damage", [b"", b"mode", b"modex", b"longer"])
def test_a_damaged_artifact_is_removed(store: ArtifactStore, damage: bytes) -> None:
    digest = put(store, b"model")
    store.path(digest).write_bytes(damage)
    assert not store.verify(digest, 5)
    assert not store.path(digest).exists()


def test_only_what_is_not_kept_is_collected(store: ArtifactStore) -> None:
    kept, spare = put(store, b"kept"), put(store, b"spare")
    unfinished = digest_of(b"unfinished")
    store.part_path(unfinished).write_bytes(b"unf")
    foreign = store.path(kept).with_name("README")
    foreign.write_text("not ours")
    assert sorted(store.collect({kept})) == sorted([spare, unfinished])
    assert store.has(kept, 4)
    assert foreign.exists()
    assert not store.path(spare).exists()
    assert not store.part_path(unfinished).exists()


def test_room_is_what_disk_and_limit_leave(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, max_bytes=100, free_bytes=lambda _: 70)
    store.prepare()
    assert store.room() == 70
    put(store, b"x" * 60)
    assert store.room() == 40
    put(store, b"y" * 60)
    assert store.room() == 0


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    write_atomically(file, b"old")
    (tmp_path / "journal.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
