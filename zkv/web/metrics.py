"""Families as Prometheus reads them. The home module of prometheus_client.

Owns: the registry of one node and the text it makes. Must not know: what is counted, or how it is asked for.

A custom collector hands over what the node counted when somebody scrapes; nothing of prometheus_client is on a request's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from zkv.counters import Family, HistogramSnapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """`text()` asks for the families, once, and writes them with those of the process."""

    def __init__(self, families: Callable[[], Sequence[Family]]) -> None:
        self._families = families
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def text(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Collected(self._families()))
        return generate_latest(registry) + generate_latest(self._process)


class _Collected(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return [_metric(family) for family in self._families]


def _metric(family: Family) -> Metric:
    match family.kind:
        case "counter":
            counters = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for sample in family.samples:
                assert not isinstance(sample.value, HistogramSnapshot)
                counters.add_metric(sample.labels, sample.value)
            return counters
        case "gauge":
            gauges = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for sample in family.samples:
                assert not isinstance(sample.value, HistogramSnapshot)
                gauges.add_metric(sample.labels, sample.value)
            return gauges
        case _:
            histograms = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for sample in family.samples:
                assert isinstance(sample.value, HistogramSnapshot)
                bounds = [*(str(bound) for bound in sample.value.bounds_s), "+Inf"]
                buckets = list(zip(bounds, accumulate(sample.value.counts), strict=True))
                histograms.add_metric(sample.labels, buckets, sample.value.sum_s)
            return histograms
