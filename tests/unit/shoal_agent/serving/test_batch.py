from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from shoal_agent.runtimes.base import RuntimeRunError
from shoal_agent.serving.batch import run_batch
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array


class Doubling:
    """`y` = 2 `x`; fails on a negative element; each run takes a second of the clock."""

    signature = ModelSignature(inputs=(), outputs=())
    providers = ()

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[Array] = []

    def clock(self) -> float:
        return self.now

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.now += 1
        self.seen.append(inputs["x"])
        if (inputs["x"] < 0).any():
            raise RuntimeRunError("negative")
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        pass


def _rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, "<f4").reshape(-1, 1)}


def test_one_request_is_not_copied() -> None:
    model, one = Doubling(), _rows(1)
    (outcome,) = run_batch(model, [one], [1], model.clock)
    assert model.seen[0] is one["x"]
    assert (outcome.error, outcome.seconds, outcome.batch) == ("", 1.0, 1)


def test_a_batch_is_split_into_views_in_order() -> None:
    model = Doubling()
    outcomes = run_batch(model, [_rows(1), _rows(2, 3), _rows(4)], [1, 2, 1], model.clock)
    assert len(model.seen) == 1
    parts = [outcome.outputs["y"] for outcome in outcomes]
    assert [part.ravel().tolist() for part in parts] == [[2], [4, 6], [8]]
    assert all(np.shares_memory(part, parts[0].base) for part in parts)
    assert {(outcome.batch, outcome.seconds) for outcome in outcomes} == {(4, 1.0)}


def test_a_bad_request_fails_alone() -> None:
    model = Doubling()
    outcomes = run_batch(model, [_rows(1), _rows(-1), _rows(2)], [1, 1, 1], model.clock)
    assert [outcome.error for outcome in outcomes] == ["", "negative", ""]
    assert [o.outputs["y"].item() for o in outcomes if not o.error] == [2, 4]
    assert all(outcome.batch == 1 for outcome in outcomes)


def test_a_model_that_mixes_its_items_up_is_run_one_by_one() -> None:
    model = Doubling()
    model.run = lambda inputs: {"y": inputs["x"].sum(keepdims=True)}  # type: ignore[method-assign]
    outcomes = run_batch(model, [_rows(1), _rows(2)], [1, 1], model.clock)
    assert [outcome.outputs["y"].item() for outcome in outcomes] == [1, 2]


def test_nothing_that_a_runtime_raises_gets_through(caplog: pytest.LogCaptureFixture) -> None:
    model = Doubling()
    (outcome,) = run_batch(model, [{"wrong": np.zeros(1)}], [1], model.clock)
    assert outcome.error == "the runtime failed: KeyError"
    assert "should not" in caplog.text
