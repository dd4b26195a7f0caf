"""More than the fleet can answer: a flood that spills over to a real KServe server on this machine.

    python -m shoal_simulators.demo.overload --server URL --fleet SPEC --kserve-python FILE
    python -m shoal_simulators.demo.overload --server URL --leave

Deploys the classifier on all boards with a target to offload to, measures what the boards answer by
themselves, sends twice as much, and shows who answered. Exit status 0 only if every answer was
right, the cloud took part, and the fleet was calm again afterwards. `--leave` takes the server away
again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal_controlplane.models.card import load_card
from shoal_controlplane.models.media import image_to_tensor, load_picture
from shoal_simulators.demo.assets import AssetError, default_cache
from shoal_simulators.demo.commands import Commands, ScenarioError, exit_status
from shoal_simulators.demo.flood import Flood, Question, Tally
from shoal_simulators.demo.models import COFFEE_LABEL, build_demo_models, demo_pictures
from shoal_simulators.spec import parse_fleet

MODEL = "efficientnet-lite0"
TARGET = "cloud"
SLO_MS = 2000
CLIENTS_A_DEVICE = 3
MEASURE_S = 8.0
FLOOD_S = 15.0
TIMES_CAPACITY = 2.0
CALM_S = 20.0
"""For the fleet to be calm again, and the cloud's last replica gone."""


LEAVE_S = 10.0


def leave(shoal: Commands) -> None:
    """Take away what `run` put on this machine. Raises `ScenarioError`."""
    shoal.attempt("deployment", "delete", MODEL)
    deadline = time.monotonic() + LEAVE_S
    while shoal.read("target", "show", TARGET)["models"]:
        if time.monotonic() > deadline:
            raise ScenarioError(f"target {TARGET} still has its model after {LEAVE_S:.0f} s")
        time.sleep(0.2)
    shoal.do("target", "remove", TARGET)


def run(shoal: Commands, devices: int, kserve_python: str) -> None:
    """All steps. Raises `ScenarioError`."""
    cache = default_cache()
    try:
        models = build_demo_models(cache, cache / "models")
        picture = demo_pictures(cache).coffee
    except AssetError as error:
        raise ScenarioError(str(error)) from None
    model = next(m for m in models if m.name == MODEL)
    shoal.wait_for_devices(devices)
    shoal.show("device", "list")
    shoal.do("model", "push", str(model.path), "--name", MODEL, "--version", "1")
    shoal.show(
        *("target", "add", TARGET, "--kind", "kserve", "--set", "launch=process"),
        *("--set", f"python={kserve_python}", "--price-per-hour", "0.50", "--max-replicas", "2"),
    )
    shoal.do(
        *("deployment", "create", f"{MODEL}:1", "--all", "--slo-ms", str(SLO_MS)),
        *("--offload", TARGET),
    )
    shoal.wait_until_ready(MODEL)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        ask = ("infer", MODEL, "--image", str(picture))
        shoal.expect(COFFEE_LABEL, *ask, "--output", folder)
        expected = {file.stem: np.load(file) for file in Path(folder).glob("*.npy")}
    inputs = image_to_tensor(load_card(model.path), load_picture(picture))
    flood = Flood(shoal.server, Question(MODEL, inputs, expected))
    tally = asyncio.run(_overload(flood, devices))
    _report(tally)
    _wait_until_calm(shoal)
    shoal.show("target", "show", TARGET)
    shoal.expect(COFFEE_LABEL, *ask)


async def _overload(flood: Flood, devices: int) -> Tally:
    calm = await flood.at_once(CLIENTS_A_DEVICE * devices, MEASURE_S)
    _check(calm)
    rate = (calm.answered.total() - calm.answered[TARGET]) / MEASURE_S
    print(f"the boards answer {rate:.0f} requests a second; now {TIMES_CAPACITY * rate:.0f}:")

    def tell(second: int, tally: Tally) -> None:
        cloud = tally.answered[TARGET]
        print(
            f"  {second:3d} s  boards {tally.answered.total() - cloud:5d}  {TARGET} {cloud:5d}  "
            f"refused {tally.refused:4d}",
            flush=True,
        )

    return await flood.at_rate(TIMES_CAPACITY * rate, FLOOD_S, tell)


def _check(tally: Tally) -> None:
    if tally.wrong:
        raise ScenarioError(f"{tally.wrong} of {tally.total} answers were wrong")
    if tally.failures:
        reason, count = tally.failures.most_common(1)[0]
        raise ScenarioError(
            f"{tally.failures.total()} of {tally.total} requests failed; {count} so: {reason}"
        )


def _report(tally: Tally) -> None:
    _check(tally)
    print(f"\n{tally.total} requests:")
    for place, count in sorted(tally.answered.items(), key=lambda entry: -entry[1]):
        print(f"  {count:5d}  {count / tally.total:4.0%}  {place}")
    print(f"  {tally.refused:5d}  {tally.refused / tally.total:4.0%}  refused at once (429)")
    p99 = float(np.quantile(tally.took_s, 0.99)) * 1e3
    print(
        f"all {tally.answered.total()} answers were right; 99 of 100 came within {p99:.0f} ms\n",
        flush=True,
    )
    if not tally.answered[TARGET]:
        raise ScenarioError("the target answered nothing: 'shoal target show' says why")


def _wait_until_calm(shoal: Commands) -> None:
    """Until the fleet keeps up again by itself."""
    deadline = time.monotonic() + CALM_S
    while True:
        saturation = shoal.read("deployment", "show", MODEL)["saturation"]
        print(f"{MODEL} is {saturation['sentence']}", flush=True)
        if saturation["level"] == "calm":
            print()
            return
        if time.monotonic() > deadline:
            raise ScenarioError(f"the fleet was not calm again within {CALM_S:.0f} s")
        time.sleep(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal_simulators.demo.overload")
    parser.add_argument("--server", required=True)
    parser.add_argument("--fleet", default="", help="the specification of the fleet")
    parser.add_argument("--kserve-python", help="Python with KServe's server and ONNX Runtime")
    parser.add_argument("--leave", action="store_true", help="take the server away again")
    options = parser.parse_args(arguments)
    shoal = Commands(options.server)
    if options.leave:
        return exit_status(lambda: leave(shoal))
    if not options.kserve_python:
        parser.error("--kserve-python is missing")
    return exit_status(lambda: run(shoal, len(parse_fleet(options.fleet)), options.kserve_python))


if __name__ == "__main__":
    sys.exit(main())
