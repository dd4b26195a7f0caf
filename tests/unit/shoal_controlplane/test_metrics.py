"""What `/metrics` shows."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shoal_controlplane.gateway.statistics import BUCKETS_S, Statistics
from shoal_controlplane.metrics import FleetCollector, registry

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(statistics: Statistics, conditions: dict[str, int] | None = None) -> Samples:
    collector = FleetCollector(statistics, lambda: conditions or {}, lambda: 3, lambda: 4)
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
