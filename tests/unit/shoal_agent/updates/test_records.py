from __future__ import annotations

from pathlib import Path

import pytest

from shoal_agent.serving.records import Record, record_key
from shoal_agent.updates.records import MAX_RECORDS, FileRecords
from shoal_shared.messages import ModelGoal
from shoal_shared.placement import of_nodes
from shoal_shared.profiles import fit

RECORD = Record(
    variant="int8",
    provider_set="qnn-htp",
    placement=of_nodes({"QNNExecutionProvider": 97}),
    profile=fit([(1, 2.0), (2, 3.0)]),
    notes=("a note",),
)


async def test_records_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    records = FileRecords(path)
    assert records.get("a") is None
    await records.put("a", RECORD)
    assert FileRecords(path).get("a") == RECORD
    await records.forget("a")
    await records.forget("a")
    assert FileRecords(path).get("a") is None


async def test_the_oldest_are_dropped(tmp_path: Path) -> None:
    records = FileRecords(tmp_path / "records.json")
    for number in range(MAX_RECORDS + 1):
        await records.put(str(number), RECORD)
    again = FileRecords(tmp_path / "records.json")
    assert again.get("0") is None
    assert again.get("1") == again.get(str(MAX_RECORDS)) == RECORD


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"\xff\xfe", b"[" * 100_000])
async def test_what_cannot_be_read_is_found_out_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(content)
    records = FileRecords(path)
    assert records.get("a") is None
    await records.put("a", RECORD)
    assert FileRecords(path).get("a") == RECORD


async def test_a_full_disk_costs_the_record_only(tmp_path: Path) -> None:
    records = FileRecords(tmp_path / "missing" / "records.json")
    await records.put("a", RECORD)
    assert records.get("a") == RECORD


def test_the_key_follows_all_that_matters() -> None:
    def goal(**more: object) -> ModelGoal:
        values: dict[str, object] = {"deployment": "d", "digest": "sha256:1", **more}
        return ModelGoal(model="m", version="1", size=1, format="onnx", **values)  # type: ignore[arg-type]

    key = record_key(goal(), "onnxruntime 1.32.0")
    assert key == record_key(goal(deployment="other"), "onnxruntime 1.32.0")
    assert key == record_key(goal(options={}), "onnxruntime 1.32.0")
    others = [
        record_key(goal(), "onnxruntime 1.33.0"),
        record_key(goal(digest="sha256:2"), "onnxruntime 1.32.0"),
        record_key(goal(options={"a": 1}), "onnxruntime 1.32.0"),
        record_key(goal(require_accelerator=True), "onnxruntime 1.32.0"),
        record_key(goal(max_batch=2), "onnxruntime 1.32.0"),
    ]
    assert len({key, *others}) == 6
