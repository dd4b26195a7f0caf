"""The picture of what is served."""

from __future__ import annotations

import pytest
from support.gateway import model, replica

from shoal_controlplane.gateway.table import ServingTable, version_key

READY = (replica("d1"),)


def published(*versions: tuple[str, bool]) -> ServingTable:
    table = ServingTable()
    table.publish(model("cat", v, replicas=READY if ready else ()) for v, ready in versions)
    return table


@pytest.mark.parametrize(
    ("versions", "default"),
    [
        ([("1", True), ("2", True)], "2"),
        ([("9", True), ("10", True)], "10"),
        ([("10", False), ("9", True)], "9"),
        ([("1", False), ("2", False)], "2"),
        ([("beta", True), ("1", True)], "1"),
        ([("1.9", True), ("1.10", True)], "1.9"),
        ([("b", True), ("a", True)], "b"),
    ],
)
def test_without_a_version_the_newest_that_is_ready(
    versions: list[tuple[str, bool]], default: str
) -> None:
    for order in (versions, versions[::-1]):
        found = published(*order).find("cat")
        assert found is not None
        assert found.version == default


def test_a_named_version_is_found_whether_ready_or_not() -> None:
    table = published(("1", True), ("2", False))
    for version, ready in (("1", True), ("2", False)):
        found = table.find("cat", version)
        assert found is not None
        assert (found.version, found.ready) == (version, ready)
    assert table.find("cat", "3") is None
    assert table.find("dog") is None
    assert table.find("dog", "1") is None


def test_versions_are_listed_oldest_first() -> None:
    table = published(("10", True), ("9", False), ("rc", True))
    assert table.versions("cat") == ["rc", "9", "10"]
    assert table.versions("dog") == []
    assert {m.version for m in table.all()} == {"10", "9", "rc"}


def test_a_new_picture_replaces_the_old_one() -> None:
    table = published(("1", True))
    table.publish([model("dog", "1")])
    assert table.find("cat") is None
    assert table.find("cat", "1") is None
    assert [m.name for m in table.all()] == ["dog"]
    table.publish([])
    assert table.all() == []


def test_version_keys_never_compare_numbers_with_text() -> None:
    versions = ["2", "10", "v1", "1.0", "0", "007", "²"]
    assert sorted(versions, key=version_key) == ["1.0", "v1", "²", "0", "2", "007", "10"]
