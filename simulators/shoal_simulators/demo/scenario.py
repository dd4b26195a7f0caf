"""The main job on a running control plane, by the commands that a user would type.

    python -m shoal_simulators.demo.scenario --server URL --fleet SPEC

Pushes the demo models, deploys them, sends a real picture and a real line of text, checks the
answers, and shows how a model would be cut over the fleet. Exit status 0 only if they are right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shoal_simulators.demo.assets import AssetError, default_cache
from shoal_simulators.demo.commands import Commands, ScenarioError, exit_status
from shoal_simulators.demo.models import (
    COFFEE_LABEL,
    LINE_TEXT,
    build_demo_models,
    demo_pictures,
)
from shoal_simulators.spec import parse_fleet

REPLICAS = {
    "efficientnet-lite0": ("--all",),
    "ppocr-rec": ("--replicas", "2"),
    "ppocr-det": (),
    "face-detection": (),
}
"""How the demo models are spread: the classifier everywhere, so that load can be balanced."""


def run(shoal: Commands, devices: int) -> None:
    """All steps. Raises `ScenarioError`."""
    cache = default_cache()
    try:
        models = build_demo_models(cache, cache / "models")
        pictures = demo_pictures(cache)
    except AssetError as error:
        raise ScenarioError(str(error)) from None
    shoal.wait_for_devices(devices)
    shoal.show("device", "list")
    for model in models:
        shoal.do("model", "push", str(model.path), "--name", model.name, "--version", "1")
    for model in models:
        if shoal.attempt("deployment", "show", model.name).returncode != 0:
            shoal.do("deployment", "create", f"{model.name}:1", "--no-wait", *REPLICAS[model.name])
    for model in models:
        shoal.wait_until_ready(model.name)
    shoal.show("deployment", "list")
    shoal.expect(COFFEE_LABEL, "infer", "efficientnet-lite0", "--image", str(pictures.coffee))
    shoal.expect(LINE_TEXT, "infer", "ppocr-rec", "--image", str(pictures.line))
    shoal.show("plan", "ppocr-rec")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal_simulators.demo.scenario")
    parser.add_argument("--server", required=True)
    parser.add_argument("--fleet", required=True, help="the specification of the fleet")
    options = parser.parse_args(arguments)
    shoal = Commands(options.server)
    return exit_status(lambda: run(shoal, len(parse_fleet(options.fleet))))


if __name__ == "__main__":
    sys.exit(main())
