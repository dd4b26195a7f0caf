"""The command as a whole: what it offers, and how every failure ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.root import make_app, run
from shoal_controlplane.errors import ConflictError

SHOAL = Path(sys.executable).parent / "shoal"


def failing(error: BaseException) -> typer.Typer:
    def register(app: typer.Typer) -> None:
        @app.command("fail")
        def fail() -> None:
            raise error

    return make_app([register])


def outcome(app: typer.Typer, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(app)
    return int(ended.value.code or 0)


def test_help_lists_the_nouns_of_this_version_and_no_others():
    done = subprocess.run([SHOAL, "--help"], capture_output=True, text=True, timeout=60, check=True)
    offered = {line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line}
    assert offered == {
        "up", "serve", "device", "model", "deployment", "plan", "target", "infer",
    }  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from shoal_controlplane.cli import main\n"
        "sys.argv = ['shoal', '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'rich', 'httpx', 'numpy', 'PIL', 'fastapi', 'onnx', 'sqlmodel', 'yaml'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_wrong_usage_is_2(run):
    assert run("device", "fly").code == 2
    assert run("device", "list", "--nope").code == 2
    assert run("device", "list", "-o", "xml").code == 2
    assert run("device", "show").code == 2


def test_an_error_of_our_own_is_its_sentence(monkeypatch, capsys):
    assert outcome(failing(ConflictError("It is there.")), monkeypatch, "fail") == 1
    assert capsys.readouterr().err == "Error: It is there.\n"


def test_a_defect_is_one_line_without_a_traceback(monkeypatch, capsys):
    assert outcome(failing(KeyError("gone")), monkeypatch, "fail") == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: the command failed in a way it should not (KeyError: 'gone')")
    assert err.count("\n") == 1


def test_a_defect_is_raised_where_somebody_looks_for_it(monkeypatch):
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["shoal", "fail"])
    with pytest.raises(KeyError):
        run(failing(KeyError("gone")))


def test_ctrl_c_is_130(monkeypatch, run):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "items", interrupted)
    done = run("device", "list")
    assert (done.code, done.out, done.err) == (130, "", "")
