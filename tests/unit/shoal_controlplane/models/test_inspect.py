from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models import inspect as inspection
from shoal_controlplane.models.filecheck import check_file
from shoal_controlplane.models.inspect import format_of, inspect


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3])] for name in ("x", "y")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", *ends)
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "artifact"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def impostor(tmp_path: Path, script: str) -> str:
    """An interpreter in place of Python that does what a hostile file makes a check do."""
    path = tmp_path / "impostor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_child_finds_what_the_reader_finds(model: Path) -> None:
    outcome = check_file(model, "onnx")
    assert outcome.findings is not None
    assert await inspect(model, "onnx") == outcome.findings


async def test_a_sentence_comes_back_from_the_child(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    for data, kind, reason in (
        (b"not a model", "onnx", "not an ONNX model"),
        (b"not a model", "tflite", "TFL3"),
        (b"", "tflite", "empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(InvalidError, match=reason):
            await inspect(path, kind)


async def test_a_working_directory_cannot_pose_as_a_module(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert (await inspect(model, "onnx")).signature.inputs[0].name == "x"


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 1", "echo '{'", "echo '{\"findings\": 1}'"])
async def test_a_crash_is_a_refusal(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(sys, "executable", impostor(tmp_path, script))
    with pytest.raises(InvalidError, match="crash"):
        await inspect(model, "onnx")


async def test_a_hang_is_a_refusal_and_leaves_no_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"
    monkeypatch.setattr(sys, "executable", impostor(tmp_path, script))
    with pytest.raises(InvalidError, match="within"):
        await inspect(model, "onnx", timeout_s=0.05)
    if pid.exists():  # else it was killed before it could say so
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


async def test_an_unknown_format_is_refused(model: Path) -> None:
    with pytest.raises(InvalidError, match="one of onnx, tflite"):
        await inspect(model, "pickle")


@pytest.mark.parametrize(
    ("data", "filename", "format_name"),
    [
        (b"\x1c\0\0\0TFL3", "", "tflite"),
        (b"\x1c\0\0\0TFL3", "model.onnx", "tflite"),
        (b"\x08\x08", "", "onnx"),
        (b"anything", "Model.ONNX", "onnx"),
        (b"anything", "model.tflite", "tflite"),
        (b"", "model.onnx", "onnx"),
    ],
)
def test_formats(tmp_path: Path, data: bytes, filename: str, format_name: str) -> None:
    (tmp_path / "artifact").write_bytes(data)
    assert format_of(tmp_path / "artifact", filename) == format_name


def test_neither_bytes_nor_name_tell(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(b"\x80\x04\x95")
    with pytest.raises(InvalidError, match="neither"):
        format_of(tmp_path / "artifact", "model.pkl")


def test_names_of_platforms() -> None:
    assert set(inspection.PLATFORMS) == set(inspection.FORMATS)
