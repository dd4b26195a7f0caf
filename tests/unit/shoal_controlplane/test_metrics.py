"""What `/metrics` shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.gateway.hedging import Hedging
from shoal_controlplane.gateway.saturation import Picture
from shoal_controlplane.gateway.statistics import BUCKETS_S, Statistics
from shoal_controlplane.metrics import FleetCollector, OffloadSources, registry
from shoal_controlplane.offload.state import ModelOnTarget, State, TargetPicture
from shoal_controlplane.offload.target import Price

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(
    statistics: Statistics,
    conditions: dict[str, int] | None = None,
    offload: OffloadSources | None = None,
) -> Samples:
    collector = FleetCollector(statistics, lambda: conditions or {}, lambda: 3, lambda: 4, offload)
    text = generate_latest(registry(collector)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_an_empty_fleet() -> None:
    samples = scrape(Statistics())
    assert samples["shoal_requests_in_flight", ()] == 3
    assert samples["shoal_mqtt_messages_ignored_total", ()] == 4
    assert not any(name.startswith("shoal_request_seconds") for name, _ in samples)


def test_devices_by_condition() -> None:
    samples = scrape(Statistics(), {"online": 2, "offline": 0})
    assert samples["shoal_devices", (("condition", "online"),)] == 2
    assert samples["shoal_devices", (("condition", "offline"),)] == 0


def test_requests_and_latency_per_model() -> None:
    statistics = Statistics()
    figures = statistics.of("cat", "1")
    for total_ms in (0.5, 3, 3, 60_000):
        figures.answered(
            items=2,
            batch=2,
            total_ns=int(total_ms * 1e6),
            input_ns=0,
            infer_ns=250_000_000,
            output_ns=0,
            wall_ms=0,
        )
    figures.failed(1)
    samples = scrape(statistics)
    model = (("model", "cat"), ("version", "1"))

    def requests(outcome: str) -> float:
        return samples["shoal_requests_total", (model[0], ("outcome", outcome), model[1])]

    assert (requests("success"), requests("failure")) == (4, 1)
    assert samples["shoal_items_total", model] == 8
    assert samples["shoal_service_seconds_total", model] == 1.0
    assert samples["shoal_request_seconds_count", model] == 4
    assert samples["shoal_request_seconds_sum", model] == 60.0065

    def within(bound: str) -> float:
        return samples["shoal_request_seconds_bucket", (("le", bound), *model)]

    counts = [within(str(bound)) for bound in BUCKETS_S]
    assert counts == sorted(counts)
    assert (within("0.001"), within("0.002"), within("0.005"), within("+Inf")) == (1, 1, 3, 4)


def test_two_control_planes_fit_in_one_process() -> None:
    first, second = Statistics(), Statistics()
    first.of("cat", "1").failed(1)
    assert scrape(first) != scrape(second)


def picture(**changes: Any) -> TargetPicture:
    model = ModelOnTarget(
        "cat", "1", State.READY, "", 2, 3, 40.0, 80.0, 4.0, 60.0, 0.25, 1, 12, 20, 2
    )
    facts: dict[str, Any] = {
        "name": "aks",
        "kind": "kserve",
        "where": "Kubernetes",
        "facts": {},
        "trouble": "",
        "price": Price(),
        "max_replicas": 3,
        "cap_per_hour": None,
        "left": None,
        "spent": 3.25,
        "spent_last_hour": 0.75,
        "affordable_in_s": 0.0,
        "models": (model, replace(model, model="dog", mean_ms=None, p95_ms=None)),
    }
    return TargetPicture(**facts | changes)


def offload(*pictures: TargetPicture) -> Samples:
    hedging = Hedging()
    hedging.sent, hedging.won = 7, 3
    full = {("cat", "1"): Picture(Level.SATURATED, rho=1.31), ("dog", "1"): Picture()}
    return scrape(Statistics(), offload=OffloadSources(lambda: pictures, lambda: full, hedging))


def test_targets() -> None:
    samples = offload(picture(), picture(name="ray", trouble="401"))

    def state(target: str) -> dict[str, float]:
        found = {}
        for (name, labels), value in samples.items():
            if name == "shoal_target_state" and ("target", target) in labels:
                found[dict(labels)["state"]] = value
        return found

    assert state("aks").pop("ready") == 1 and sum(state("aks").values()) == 1
    assert state("ray").pop("failed") == 1 and sum(state("ray").values()) == 1
    place = (("model", "cat"), ("target", "aks"), ("version", "1"))
    assert samples["shoal_target_ready_replicas", place] == 2
    assert samples["shoal_target_requests_total", place] == 12
    assert samples["shoal_target_failures_total", place] == 2
    assert samples["shoal_target_spent_total", (("target", "aks"),)] == 3.25
    p95 = (("model", "cat"), ("quantile", "0.95"), ("target", "aks"), ("version", "1"))
    assert samples["shoal_target_latency_seconds", p95] == 0.08
    # What was not learnt is not zero.
    assert ("model", "dog") not in {
        label for name, labels in samples if "latency" in name for label in labels
    }


def test_saturation_and_hedges() -> None:
    samples = offload()
    cat, dog = (("model", "cat"), ("version", "1")), (("model", "dog"), ("version", "1"))
    assert samples["shoal_saturation_rho", cat] == 1.31
    assert (samples["shoal_saturation_level", cat], samples["shoal_saturation_level", dog]) == (
        2,
        0,
    )
    assert samples["shoal_hedges_total", (("outcome", "sent"),)] == 7
    assert samples["shoal_hedges_total", (("outcome", "won"),)] == 3


def test_without_sources_nothing_is_claimed() -> None:
    assert not any("target" in name or "hedges" in name for name, _ in scrape(Statistics()))
