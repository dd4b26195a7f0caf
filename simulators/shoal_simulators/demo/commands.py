"""`shoal` commands against one control plane, run as a user would type them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_simulators.spec import SpecError


class ScenarioError(Exception):
    """A step went wrong; the text is one plain sentence."""


@dataclass(frozen=True)
class Commands:
    """Runs commands against the control plane at `server`, and shows some of them."""

    server: str

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        shoal = Path(sys.executable).with_name("shoal")
        return subprocess.run(
            [str(shoal), *arguments, "--server", self.server],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def do(self, *arguments: str) -> str:
        """What a command prints. Raises `ScenarioError` if it fails."""
        done = self.attempt(*arguments)
        if done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise ScenarioError(f"'shoal {' '.join(arguments)}' failed: {words}")
        return done.stdout

    def show(self, *arguments: str) -> str:
        """Run a command and print it with what it prints."""
        print(f"$ shoal {' '.join(arguments)}", flush=True)
        output = self.do(*arguments)
        print(output.rstrip() + "\n", flush=True)
        return output

    def read(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.do(*arguments, "-o", "json"))

    def expect(self, answer: str, *arguments: str) -> None:
        """Show a command whose output must hold `answer`."""
        if answer not in self.show(*arguments):
            raise ScenarioError(f"the answer is wrong: {answer!r} was expected")

    def wait_for_devices(self, count: int, timeout_s: float = 60.0) -> None:
        """Until so many devices are online."""
        deadline = time.monotonic() + timeout_s
        while True:
            devices = self.read("device", "list", "--state", "online")
            if len(devices) >= count:
                return
            if time.monotonic() > deadline:
                raise ScenarioError(
                    f"{len(devices)} of {count} devices came online in {timeout_s:.0f} s"
                )
            time.sleep(0.2)

    def wait_until_ready(self, name: str, timeout_s: float = 120.0) -> None:
        """Until a deployment serves with all its replicas."""
        deadline = time.monotonic() + timeout_s
        while True:
            deployment = self.read("deployment", "show", name)
            if deployment["state"] == "ready":
                return
            if deployment["state"] == "failed" or time.monotonic() > deadline:
                raise ScenarioError(
                    f"deployment {name} is {deployment['state']}: {deployment['reason']}"
                )
            time.sleep(0.2)


def exit_status(scenario: Callable[[], None]) -> int:
    """Run a scenario; what went wrong is one line, and the status tells of what kind it is."""
    try:
        scenario()
    except SpecError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    except ScenarioError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
