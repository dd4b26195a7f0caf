"""The main job on a running control plane, by the commands that a user would type.

    python -m shoal_simulators.demo.scenario --server URL --fleet SPEC

Pushes the demo models, deploys them, sends a real picture and a real line of text, checks the
answers, and shows how a model would be cut over the fleet. Exit status 0 only if they are right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_simulators.demo.assets import AssetError, default_cache
from shoal_simulators.demo.models import (
    COFFEE_LABEL,
    LINE_TEXT,
    build_demo_models,
    demo_pictures,
)
from shoal_simulators.spec import SpecError, parse_fleet

REPLICAS = {
    "efficientnet-lite0": ("--all",),
    "ppocr-rec": ("--replicas", "2"),
    "ppocr-det": (),
    "face-detection": (),
}
"""How the demo models are spread: the classifier everywhere, so that load can be balanced."""


class ScenarioError(Exception):
    """A step went wrong; the text is one plain sentence."""


@dataclass
class Scenario:
    """Runs `shoal` commands against one control plane and shows them."""

    server: str

    def run(self, devices: int) -> None:
        """All steps. Raises `ScenarioError`."""
        cache = default_cache()
        try:
            models = build_demo_models(cache, cache / "models")
            pictures = demo_pictures(cache)
        except AssetError as error:
            raise ScenarioError(str(error)) from None
        self._wait_for_devices(devices)
        self._show("device", "list")
        for model in models:
            self._do("model", "push", str(model.path), "--name", model.name, "--version", "1")
        for model in models:
            if self._try("deployment", "show", model.name).returncode != 0:
                self._do(
                    "deployment", "create", f"{model.name}:1", "--no-wait", *REPLICAS[model.name]
                )
        for model in models:
            self._wait_until_ready(model.name)
        self._show("deployment", "list")
        self._expect(COFFEE_LABEL, "infer", "efficientnet-lite0", "--image", str(pictures.coffee))
        self._expect(LINE_TEXT, "infer", "ppocr-rec", "--image", str(pictures.line))
        self._show("plan", "ppocr-rec")

    def _try(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        shoal = Path(sys.executable).with_name("shoal")
        return subprocess.run(
            [str(shoal), *arguments, "--server", self.server],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _do(self, *arguments: str) -> str:
        done = self._try(*arguments)
        if done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise ScenarioError(f"'shoal {' '.join(arguments)}' failed: {words}")
        return done.stdout

    def _show(self, *arguments: str) -> str:
        print(f"$ shoal {' '.join(arguments)}", flush=True)
        output = self._do(*arguments)
        print(output.rstrip() + "\n", flush=True)
        return output

    def _expect(self, answer: str, *arguments: str) -> None:
        output = self._show(*arguments)
        if answer not in output:
            raise ScenarioError(f"the answer is wrong: {answer!r} was expected")

    def _wait_for_devices(self, count: int, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            devices = self._read("device", "list", "--state", "online")
            if len(devices) >= count:
                return
            if time.monotonic() > deadline:
                raise ScenarioError(
                    f"{len(devices)} of {count} devices came online in {timeout_s:.0f} s"
                )
            time.sleep(0.2)

    def _wait_until_ready(self, name: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            deployment = self._read("deployment", "show", name)
            if deployment["state"] == "ready":
                return
            if deployment["state"] == "failed" or time.monotonic() > deadline:
                raise ScenarioError(
                    f"deployment {name} is {deployment['state']}: {deployment['reason']}"
                )
            time.sleep(0.2)

    def _read(self, *arguments: str) -> Any:
        return json.loads(self._do(*arguments, "-o", "json"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal_simulators.demo.scenario")
    parser.add_argument("--server", required=True)
    parser.add_argument("--fleet", required=True, help="the specification of the fleet")
    options = parser.parse_args(arguments)
    try:
        Scenario(options.server).run(len(parse_fleet(options.fleet)))
    except SpecError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    except ScenarioError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
