from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.plans import digest_of

from shoal_controlplane.plans.plan import Part, Plan, Wiring, part_key
from shoal_shared.names import is_name


def wiring(epoch: int, *devices: tuple[str, ...]) -> Wiring:
    return Wiring(
        epoch=epoch,
        devices=devices,
        stage_ms=(1.0,) * len(devices),
        bottleneck_ms=1.0,
        latency_ms=2.0,
    )


def part(first: int, last: int) -> Part:
    digest = digest_of(f"{first} {last}")
    return Part(first=first, last=last, digest=digest, size=1, shapes={"x": (1, 4)})


PLAN = Plan(
    name="p",
    model="cat",
    version="1",
    digest=digest_of("cat"),
    parts=(part(0, 2), part(2, 5)),
    current=wiring(4, ("a",), ("b", "c")),
    fallbacks={"a": wiring(6, ("b",), ("b", "c")), "b": wiring(5, ("a",), ("c",))},
)


def test_what_a_plan_tells_of_itself() -> None:
    assert PLAN.key == ("cat", "1")
    assert PLAN.bounds == (0, 2, 5)
    assert [w.epoch for w in PLAN.wirings] == [4, 5, 6]
    assert PLAN.last_epoch == 6
    assert PLAN.current.members == {"a", "b", "c"}
    assert PLAN.stages_on("b") == (0, 1)
    assert PLAN.stages_on("c") == (1,)
    assert PLAN.stages_on("d") == ()


@given(version=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]", fullmatch=True), n=st.integers())
def test_parts_have_names_that_devices_take(version: str, n: int) -> None:
    model, name = part_key("cat", version, digest_of(str(n)))
    assert model == "cat"
    assert is_name(name)
    assert name != part_key("cat", version, digest_of(f"other {n}"))[1]
