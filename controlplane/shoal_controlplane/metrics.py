"""What `/metrics` shows, read from live state at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shoal_controlplane.gateway.clouds import Level
from shoal_controlplane.gateway.saturation import Picture
from shoal_controlplane.gateway.statistics import BUCKETS_S, ModelFigures, Statistics
from shoal_controlplane.offload.state import TargetPicture
from shoal_controlplane.planner.snapshot import ModelKey
from shoal_controlplane.targets.views import TargetCondition, condition

_MODEL = ["model", "version"]
_PLACE = ["target", *_MODEL]

_LEVELS = {Level.CALM: 0, Level.RISING: 1, Level.SATURATED: 2}


class Hedges(Protocol):
    """Counts of second attempts, as `gateway.hedging.Hedging` has them."""

    @property
    def sent(self) -> int:
        """Requests that were sent to a second device."""

    @property
    def won(self) -> int:
        """Those that the second device answered first."""


@dataclass(frozen=True)
class OffloadSources:
    """Where figures of overload come from: `pictures` of all targets, `pressures` by model and
    version, and `hedges`."""

    pictures: Callable[[], Iterable[TargetPicture]]
    pressures: Callable[[], Mapping[ModelKey, Picture]]
    hedges: Hedges


class FleetCollector(Collector):
    """Requests per model, latency, devices per condition; with `offload`, what targets and models
    that are full do."""

    def __init__(
        self,
        statistics: Statistics,
        conditions: Callable[[], dict[str, int]],
        in_flight: Callable[[], int],
        ignored_messages: Callable[[], int],
        offload: OffloadSources | None = None,
    ) -> None:
        self._statistics = statistics
        self._conditions = conditions
        self._in_flight = in_flight
        self._ignored_messages = ignored_messages
        self._offload = offload

    def collect(self) -> Iterator[Metric]:
        devices = GaugeMetricFamily("shoal_devices", "Devices by condition.", labels=["condition"])
        for name, count in self._conditions().items():
            devices.add_metric([name], count)
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
        if self._offload is not None:
            yield from _targets(self._offload.pictures())
            yield from _saturation(self._offload.pressures())
            yield from _hedges(self._offload.hedges)


def registry(collector: Collector) -> CollectorRegistry:
    """A registry of its own, so that several control planes fit in one process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _targets(pictures: Iterable[TargetPicture]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "shoal_target_state", "1 for the state that a target is in.", labels=["target", "state"]
    )
    spent = CounterMetricFamily(
        "shoal_target_spent", "What a target has cost since the start.", labels=["target"]
    )
    ready = GaugeMetricFamily(
        "shoal_target_ready_replicas", "Replicas on targets that answer.", labels=_PLACE
    )
    requests = CounterMetricFamily(
        "shoal_target_requests", "Requests that were sent to targets.", labels=_PLACE
    )
    failures = CounterMetricFamily(
        "shoal_target_failures", "Those that failed there.", labels=_PLACE
    )
    latency = GaugeMetricFamily(
        "shoal_target_latency_seconds",
        "Time of one item, transfer included, as it was learnt.",
        labels=[*_PLACE, "quantile"],
    )
    for target in pictures:
        now, _ = condition(target)
        for state in TargetCondition:
            states.add_metric([target.name, state.value], float(state is now))
        spent.add_metric([target.name], target.spent)
        for model in target.models:
            place = [target.name, model.model, model.version]
            ready.add_metric(place, model.ready)
            requests.add_metric(place, model.requests)
            failures.add_metric(place, model.failures)
            for quantile, value in (("mean", model.mean_ms), ("0.95", model.p95_ms)):
                if value is not None:
                    latency.add_metric([*place, quantile], value / 1e3)
    yield from (states, spent, ready, requests, failures, latency)


def _saturation(pressures: Mapping[ModelKey, Picture]) -> Iterator[Metric]:
    rho = GaugeMetricFamily(
        "shoal_saturation_rho",
        "Work that comes against what the devices can do in time.",
        labels=_MODEL,
    )
    level = GaugeMetricFamily(
        "shoal_saturation_level", "0 calm, 1 rising, 2 saturated.", labels=_MODEL
    )
    for key, picture in pressures.items():
        rho.add_metric(list(key), picture.rho)
        level.add_metric(list(key), _LEVELS[picture.level])
    yield from (rho, level)


def _hedges(hedges: Hedges) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "shoal_hedges", "Second attempts: all, and those that answered first.", labels=["outcome"]
    )
    family.add_metric(["sent"], hedges.sent)
    family.add_metric(["won"], hedges.won)
    yield family


def _cumulative(figures: ModelFigures) -> list[tuple[str, float]]:
    total, out = 0, []
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], figures.histogram, strict=True):
        total += count
        out.append((bound, float(total)))
    return out
