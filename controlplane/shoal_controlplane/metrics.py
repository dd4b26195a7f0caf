"""What `/metrics` shows, read from live state at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shoal_controlplane.gateway.statistics import BUCKETS_S, ModelFigures, Statistics

_MODEL = ["model", "version"]


class FleetCollector(Collector):
    """Requests per model, latency, and devices per condition."""

    def __init__(
        self,
        statistics: Statistics,
        conditions: Callable[[], dict[str, int]],
        in_flight: Callable[[], int],
        ignored_messages: Callable[[], int],
    ) -> None:
        self._statistics = statistics
        self._conditions = conditions
        self._in_flight = in_flight
        self._ignored_messages = ignored_messages

    def collect(self) -> Iterator[Metric]:
        devices = GaugeMetricFamily("shoal_devices", "Devices by condition.", labels=["condition"])
        for condition, count in self._conditions().items():
            devices.add_metric([condition], count)
        yield devices
        yield GaugeMetricFamily(
            "shoal_requests_in_flight", "Requests on devices now.", self._in_flight()
        )
        yield CounterMetricFamily(
            "shoal_mqtt_messages_ignored",
            "Messages from devices that could not be used.",
            self._ignored_messages(),
        )
        requests = CounterMetricFamily(
            "shoal_requests", "Requests by outcome.", labels=[*_MODEL, "outcome"]
        )
        items = CounterMetricFamily("shoal_items", "Batch items answered.", labels=_MODEL)
        seconds = HistogramMetricFamily(
            "shoal_request_seconds", "Time from request to answer.", labels=_MODEL
        )
        service = CounterMetricFamily(
            "shoal_service_seconds", "Pure compute time on devices.", labels=_MODEL
        )
        for name, version, figures in self._statistics.all():
            labels = [name, version]
            requests.add_metric([*labels, "success"], figures.success.count)
            requests.add_metric([*labels, "failure"], figures.fail.count)
            items.add_metric(labels, figures.items)
            service.add_metric(labels, figures.compute_infer.ns / 1e9)
            seconds.add_metric(labels, _cumulative(figures), figures.success.ns / 1e9)
        yield from (requests, items, service, seconds)


def registry(collector: Collector) -> CollectorRegistry:
    """A registry of its own, so that several control planes fit in one process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _cumulative(figures: ModelFigures) -> list[tuple[str, float]]:
    total, out = 0, []
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], figures.histogram, strict=True):
        total += count
        out.append((bound, float(total)))
    return out
