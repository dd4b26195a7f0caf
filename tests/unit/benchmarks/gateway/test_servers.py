from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from shoal_bench.gateway.servers import NotInstalledError, Peer, peers


class FakePip:
    """Stands for `subprocess.run`: makes the folder of an environment, or fails."""

    def __init__(self, folder: Path, *, broken: bool = False) -> None:
        self.calls: list[list[str]] = []
        self._folder = folder
        self._broken = broken

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        self._folder.mkdir(parents=True, exist_ok=True)
        failed = self._broken and "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "", "a\nno such version")


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(tmp_path / "kserve")
    monkeypatch.setattr(subprocess, "run", pip)
    peer = Peer("KServe", "kserve", ("kserve==1.2", "orjson==3"), tmp_path)
    assert peer.prepare() == peer.prepare() == "KServe 1.2"
    assert len(pip.calls) == 2
    assert pip.calls[1][-2:] == ["kserve==1.2", "orjson==3"]
    # Another version is another environment.
    assert Peer("KServe", "kserve", ("kserve==1.3",), tmp_path).prepare() == "KServe 1.3"
    assert len(pip.calls) == 4


def test_a_failed_installation_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path / "kserve", broken=True)
    monkeypatch.setattr(subprocess, "run", pip)
    peer = Peer("KServe", "kserve", ("kserve==1.2",), tmp_path)
    for _ in range(2):
        with pytest.raises(NotInstalledError, match="KServe: no such version"):
            peer.prepare()
    assert len(pip.calls) == 4


def test_every_peer_has_its_script(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "benchmarks" / "shoal_bench" / "gateway" / "peers"
    for peer in peers(tmp_path):
        assert (folder / f"{peer.script}_server.py").exists()
        assert all("==" in requirement for requirement in peer.requirements)
