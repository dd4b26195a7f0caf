"""An operator's way with a target, from the command line alone: added, tried, a model deployed,
scaled from zero, asked, scaled to zero, and everything taken away again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds.models import Weights
from clouds.rig import KIND, Rig
from support.processes import ControlPlane, free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(not KIND, reason="needs the packages of a cloud: run `make test-clouds`"),
]


class Operator:
    """Types commands. The rig lives on the loop, so that a command waits in a thread."""

    def __init__(self, plane: ControlPlane, rig: Rig) -> None:
        self._plane = plane
        self._rig = rig

    async def says(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        code, out, err = await self.tries(*arguments)
        assert code == 0, f"shoal {' '.join(arguments)}: {err}{out}\n{self._plane.process.output}"
        return out

    async def tries(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status and outputs, which give no secret away."""
        done = await asyncio.to_thread(self._plane.shoal, *arguments)
        for secret in self._rig.secrets:
            assert secret not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    running = ControlPlane(tmp_path, broker_port=free_port())
    yield running
    running.process.stop()


def settings(options: Mapping[str, Any]) -> list[str]:
    """Options of a kind as arguments."""
    found = []
    for key, value in options.items():
        text = json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
        found += ["--set", f"{key}={text}"]
    return found


async def test_from_nothing_to_an_answer_and_back(
    rig: Rig, plane: ControlPlane, tmp_path: Path
) -> None:
    operator, given, weights = Operator(plane, rig), rig.settings, Weights(5)
    options = dict(given.options)
    kubeconfig = options.pop("kubeconfig", None)
    add = ["target", "add", "cloud", "--kind", given.kind, *settings(options)]
    if kubeconfig is not None:
        add += ["--kubeconfig", str(kubeconfig)]
    if given.credential:
        add += ["--credential", given.credential]
    await operator.says(*add, "--max-replicas", "2", "--price-per-hour", "0.5")
    assert "cloud works: " in await operator.says("target", "test", "cloud")

    path, _ = weights.save(tmp_path / "model")
    model = path.rename(path.with_name("model.onnx"))
    await operator.says("model", "push", str(model), "--name", "typed", "--no-golden")
    out = await operator.says("target", "deploy", "cloud", "typed")
    assert out.startswith("typed:1 on cloud is ")
    out = await operator.says("target", "scale", "cloud", "typed", "1")
    assert out.startswith("typed:1 on cloud is ready, 1 of 1 replicas ready (fixed)")

    # Trying a target disturbs nothing that runs there.
    assert "typed:1" in await operator.says("target", "test", "cloud")

    question = weights.question(3, seed=1)
    inputs = []
    for tensor in question.request.inputs:
        np.save(tmp_path / f"{tensor.name}.npy", tensor.data)
        inputs += ["--input", f"{tensor.name}=@{tmp_path / tensor.name}.npy"]
    saved = tmp_path / "answers"
    out = await operator.says("target", "infer", "cloud", "typed", *inputs, "--output", str(saved))
    assert "answered by target cloud in " in out
    for name, expected in question.answers.items():
        np.testing.assert_allclose(np.load(saved / f"{name}.npy"), expected, rtol=1e-5, atol=1e-5)
    shown = json.loads(await operator.says("target", "show", "cloud", "-o", "json"))
    assert (shown["state"], shown["ready"], shown["spent"] > 0) == ("ready", 1, True)
    assert shown["models"][0]["p95_ms"] > 0

    if rig.can_scale_to_zero:
        out = await operator.says("target", "scale", "cloud", "typed", "0")
        assert out.startswith("typed:1 on cloud is cold, 0 of 0 replicas ready (fixed)")
        code, _, err = await operator.tries("target", "infer", "cloud", "typed", *inputs)
        assert code == 1 and err.startswith("Error: Target cloud did not answer: ")
        assert err.count("\n") == 1
    await operator.says("target", "undeploy", "cloud", "typed")
    await operator.says("target", "remove", "cloud")
    assert "no targets" in await operator.says("target", "list")
