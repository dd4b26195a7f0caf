from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal_agent import cli
from shoal_agent.service.lock import StateLock
from shoal_agent.service.status import AgentStatus, write_status


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nbroker = "127.0.0.1:1"\n')
    monkeypatch.setenv("SHOAL_CONFIG", str(config))


def test_status_without_an_agent_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("shoal-agent: no agent runs on the state folder")
    assert err.count("\n") == 1


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_status_shows_the_running_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folder = tmp_path / "state"
    lock = StateLock(folder)
    status = AgentStatus(
        pid=1,
        agent_version="1",
        device="d1",
        fleet="default",
        boot_id="b",
        board="Box",
        broker="a:1",
        connected=False,
        started_at=0.0,
        changed_at=0.0,
        goal=0,
    )
    write_status(folder, status)
    assert cli.main(["status", "-o", form]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if form == "table":
        assert "device       d1" in out
        assert "not connected" in out
    else:
        assert json.loads(out)["device"] == "d1"
    lock.release()


def test_doctor_names_each_problem_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "-o", "json", "--server", "http://127.0.0.1:1"]) == 1
    findings = {f["check"]: f for f in json.loads(capsys.readouterr().out)}
    assert not findings["broker"]["ok"]
    assert findings["broker"]["blocks"]
    assert findings["board"]["ok"]
    assert findings["onnx on cpu"]["ok"]
    assert "CPUExecutionProvider" in findings["onnx on cpu"]["detail"]
    assert all(f["remedy"] for f in findings.values() if not f["ok"])
    assert cli.main(["doctor"]) == 1
    assert "mend it with: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--broker", "nonsense"],
        ["run", "--device", "a/b"],
        ["run", "--label", "no-value"],
        ["status", "--config", "/nowhere/agent.toml"],
    ],
)
def test_wrong_settings_are_a_sentence_and_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("shoal-agent: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "--speed", "9"], ["status", "-o", "x"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_run_on_a_folder_in_use_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = StateLock(tmp_path / "state")
    assert cli.main(["run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "another agent runs" in line] == lines[-1:]
    lock.release()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("shoal-agent ")
