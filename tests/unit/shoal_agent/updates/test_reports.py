from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.serving.resident import Loaded
from shoal_agent.updates.goals import Slot, key_of
from shoal_agent.updates.reports import encoded_size_fits, fit, reports
from shoal_shared import profiles
from shoal_shared.messages import MAX_DOCUMENT_BYTES, ModelGoal, ReplicaReport, Reported
from shoal_shared.status import ReplicaState

LOADED = Loaded(("CPUExecutionProvider",), 1000, profiles.fit([(1, 2.0)]))


def goal(deployment: str, model: str, version: str, max_batch: int = 1) -> ModelGoal:
    return ModelGoal(
        deployment=deployment,
        model=model,
        version=version,
        digest="sha256:" + "a" * 64,
        size=1,
        format="onnx",
        max_batch=max_batch,
    )


def test_every_goal_is_reported_and_what_still_runs() -> None:
    a, b, old = goal("d", "a", "1"), goal("e", "a", "1"), goal("f", "b", "1")
    new = goal("f", "b", "2")
    there = {
        key_of(g): Slot(g, state=ReplicaState.READY, files={}, loaded=LOADED) for g in (a, old)
    }
    shown = [(r.deployment, r.version, r.state.value) for r in reports((a, b, new), there)]
    assert shown == [
        ("d", "1", "ready"),
        ("e", "1", "ready"),
        ("f", "2", "queued"),
        ("f", "1", "ready"),
    ]


def test_two_deployments_cannot_have_one_version_with_two_settings() -> None:
    first, second = goal("d", "a", "1"), goal("e", "a", "1", max_batch=8)
    there = {key_of(first): Slot(first, state=ReplicaState.READY, loaded=LOADED)}
    one, other = reports((first, second), there)
    assert one.state is ReplicaState.READY
    assert other.state is ReplicaState.FAILED
    assert "other settings" in other.reason


NAMES = st.from_regex(r"[a-z]{1,64}", fullmatch=True)
MODELS = st.builds(
    ReplicaReport,
    deployment=NAMES,
    model=NAMES,
    version=NAMES,
    digest=st.just("sha256:" + "a" * 64),
    state=st.sampled_from(ReplicaState),
    reason=st.text(max_size=600),
    providers=st.lists(NAMES, max_size=4).map(tuple),
    memory_bytes=st.integers(0, 2**40),
    profile=st.sampled_from([None, profiles.fit([(2**i, 1.234567 * 2**i) for i in range(8)])]),
)


@given(st.lists(MODELS, max_size=60).map(tuple))
def test_a_report_always_fits_and_keeps_states_first(models: tuple[ReplicaReport, ...]) -> None:
    whole = Reported(goal=1, boot_id="b" * 16, models=models)
    short = fit(whole)
    assert len(msgspec.json.encode(short)) <= MAX_DOCUMENT_BYTES
    assert [(m.model, m.state) for m in short.models] == [
        (m.model, m.state) for m in models[: len(short.models)]
    ]
    for before, after in zip(models, short.models, strict=False):
        if before.profile is not None and after.profile is not None:
            assert after.profile.milliseconds(3) == before.profile.milliseconds(3)
    if len(models) <= 14:
        assert len(short.models) == len(models)


def test_a_small_report_is_left_alone() -> None:
    model = ReplicaReport(
        deployment="d",
        model="m",
        version="1",
        digest="sha256:" + "a" * 64,
        state=ReplicaState.FAILED,
        reason="x" * 290,
        profile=LOADED.profile,
    )
    reported = Reported(goal=1, boot_id="b", models=(model,))
    assert fit(reported) == reported
    assert encoded_size_fits(reported)
