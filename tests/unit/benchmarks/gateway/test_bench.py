from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from shoal_bench.figures import Result
from shoal_bench.gateway import bench
from shoal_bench.gateway.bench import CLIENTS, Plan, Run, add_findings, measure_rounds
from shoal_bench.gateway.measure import FailedError, Measured
from shoal_bench.gateway.servers import Ready, Running
from shoal_bench.gateway.workload import SMALL, Workload
from shoal_bench.processes import NotStartedError

WORKLOADS = [Workload(SMALL, False, (b"{}",), (), ({},)), Workload(SMALL, True, (b"",), (), ({},))]
PLAN = Plan(runs=3, warm_up_s=0, seconds=0, limit_s=1e9)


def runs(per_second: float, *, binary: bool = True) -> Run:
    measured = Measured(per_second, 1e3 / per_second, 2e3 / per_second)
    spoken = [w for w in WORKLOADS if binary or not w.binary]
    return {(w.name, clients): measured for w in spoken for clients in CLIENTS}


def test_best_peer_and_ray_are_compared() -> None:
    round_ = {
        "Shoal": runs(1000),
        "Shoal on Mosquitto": runs(5000),
        "KServe": runs(500),
        "MLServer": runs(800, binary=False),
        "Ray Serve": runs(100),
    }
    result = Result("gateway")
    add_findings(result, [round_, round_], {SMALL: [0.1, 0.1]}, WORKLOADS)
    found = {(f.name, f.peer): f for f in result.figures}
    json = found["small, JSON, 16 client(s)", "MLServer"]
    assert (json.ratio, json.met) == (1.25, False)
    # MLServer speaks no binary, so the next best counts.
    assert found["small, binary, 16 client(s)", "KServe"].met is True
    assert found["small, JSON, 16 client(s)", "Ray Serve"].ratio == 10
    added = found["p50 added to a bare call, small, JSON, 1 client(s)", "MLServer"]
    assert added.value == pytest.approx(1.0 - 0.1)
    assert added.met is False
    mosquitto = found["small, JSON, 16 client(s), on Mosquitto", "MLServer"]
    assert (mosquitto.ratio, mosquitto.met) == (6.25, True)


def test_a_server_that_failed_in_a_round_does_not_count_there() -> None:
    good = {"Shoal": runs(1000), "KServe": runs(500), "LitServe": runs(900)}
    bad = {"Shoal": runs(1000), "KServe": runs(500)}
    result = Result("gateway")
    add_findings(result, [good, bad], {SMALL: [0.1, 0.1]}, WORKLOADS)
    assert {figure.peer for figure in result.figures} == {"KServe"}


def test_without_peers_there_are_tables_only() -> None:
    result = Result("gateway")
    add_findings(result, [{"Shoal": runs(1000)}], {SMALL: [0.1]}, WORKLOADS)
    assert [figure.peer for figure in result.figures] == [None, None]
    assert len(result.tables) == len(WORKLOADS) * len(CLIENTS) + 1


class FakeServer:
    def __init__(self, name: str, log: list[str], *, broken: bool = False) -> None:
        self.name = name
        self.binary = name != "MLServer"
        self.port = 1
        self._log = log
        self._broken = broken

    def prepare(self) -> str:
        return self.name

    def start(self, models: Mapping[str, Path], folder: Path, ready: Ready) -> Running:
        self._log.append(f"start {self.name}")
        if self._broken:
            raise NotStartedError("no port")
        return self

    def stop(self) -> None:
        self._log.append(f"stop {self.name}")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fakes the measurements; holds the workloads that were measured."""
    names: list[str] = []

    def fake(workload: Workload, port: int, clients: int, *_: float) -> Measured:
        names.append(workload.name)
        if workload.binary and clients == 16:
            raise FailedError("wrong answer")
        return Measured(1, 1, 1)

    monkeypatch.setattr(bench, "measure", fake)
    monkeypatch.setattr(bench, "bare_ms", lambda *_: 0.1)
    return names


def test_servers_take_turns_and_are_always_stopped(measured: list[str]) -> None:
    log: list[str] = []
    notes: list[str] = []
    servers = [FakeServer("Shoal", log), FakeServer("MLServer", log)]
    rounds, bare = measure_rounds(servers, WORKLOADS, {SMALL: Path()}, PLAN, notes, lambda _: None)
    assert [entry for entry in log if "start" in entry] == [
        f"start {name}" for name in ("Shoal", "MLServer", "MLServer", "Shoal", "Shoal", "MLServer")
    ]
    assert [entry.replace("start", "stop") for entry in log[::2]] == log[1::2]
    assert len(rounds) == 3
    assert bare == {SMALL: [0.1] * 3}
    # What failed is left out and told; what a server does not speak is not asked.
    assert ("small, binary", 16) not in rounds[0]["Shoal"]
    assert set(rounds[0]["MLServer"]) == {("small, JSON", 1), ("small, JSON", 16)}
    assert any("wrong answer" in note for note in notes)


def test_a_server_that_does_not_start_is_told_and_left_out(measured: list[str]) -> None:
    notes: list[str] = []
    servers = [FakeServer("Shoal", []), FakeServer("KServe", [], broken=True)]
    rounds, _ = measure_rounds(servers, WORKLOADS, {SMALL: Path()}, PLAN, notes, lambda _: None)
    assert set(rounds[0]) == {"Shoal"}
    assert any("KServe did not start in round 1: no port" in note for note in notes)


def test_rounds_end_when_there_is_no_time_for_another(measured: list[str]) -> None:
    notes: list[str] = []
    plan = Plan(runs=3, warm_up_s=0, seconds=0, limit_s=-1)
    rounds, _ = measure_rounds([], WORKLOADS, {}, plan, notes, lambda _: None)
    assert rounds == []
    assert "Cut short after 0 of 3 rounds" in notes[0]
