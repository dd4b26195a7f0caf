from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from support.runtimes import OnCpu

from shoal_agent.runtimes.base import RuntimeLoadError, RuntimeRunError
from shoal_agent.runtimes.onnxfolder import InFolder
from shoal_shared.signature import ModelSignature


class Writer(OnCpu):
    """Leaves a file in its working directory when it is loaded and when it is run."""

    signature = ModelSignature(inputs=(), outputs=())
    providers = ("CANNExecutionProvider", "CPUExecutionProvider")

    def __init__(self, _: Path) -> None:
        Path("loaded.om").touch()
        self.is_closed = False

    def run(self, inputs):
        if not inputs:
            raise RuntimeRunError("there is nothing to do")
        Path("ran.om").touch()
        return dict(inputs)

    def close(self) -> None:
        self.is_closed = True


def test_only_the_model_works_in_its_folder(tmp_path: Path) -> None:
    here, threads = Path.cwd(), threading.active_count()
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    model, other = InFolder(first, Writer), InFolder(second, Writer)
    x = np.ones(3)
    assert model.run({"x": x})["x"] is x
    assert sorted(p.name for p in first.iterdir()) == ["loaded.om", "ran.om"]
    assert [p.name for p in second.iterdir()] == ["loaded.om"]
    assert Path.cwd() == here
    assert (model.providers, model.signature) == (Writer.providers, Writer.signature)
    assert model.placement == OnCpu.placement
    for loaded in (model, other):
        loaded.close()
    assert threading.active_count() == threads


def test_errors_come_through(tmp_path: Path) -> None:
    def fail(_: Path) -> Writer:
        raise RuntimeLoadError("libascendcl.so is missing")

    threads = threading.active_count()
    with pytest.raises(RuntimeLoadError, match="libascendcl"):
        InFolder(tmp_path, fail)
    assert threading.active_count() == threads
    model = InFolder(tmp_path, Writer)
    with pytest.raises(RuntimeRunError, match="nothing to do"):
        model.run({})
    model.close()


def test_where_the_system_forbids_it_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden:
        @staticmethod
        def unshare(_: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Forbidden)
    with pytest.raises(PermissionError, match=os.strerror(errno.EPERM)):
        InFolder(tmp_path, Writer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        InFolder(tmp_path / "none", Writer)
