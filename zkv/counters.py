"""What a node counts, in the shape that is shown: families of samples, histograms in plain ints.

Owns: `Histogram`, `Family`, and a family as a part of a JSON document. Must not know: who counts, Prometheus, HTTP.

Whoever counts keeps plain ints of its own and hands them over when somebody looks; nothing here is touched per key.
Names follow the Prometheus conventions, so `zkv status --json` and `/metrics` say the same under the same name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

NS_PER_S: Final = 1_000_000_000
#: 100 us to 10 s, three steps a decade: a tail of twice the usual is seen, and a scrape stays small
LATENCY_BOUNDS_S: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


class Histogram:
    """Counts of durations in fixed buckets. An observation is a bisect and two additions."""

    __slots__ = ("_bounds_ns", "bounds_s", "counts", "sum_ns")

    def __init__(self, bounds_s: Sequence[float] = LATENCY_BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self._bounds_ns = [round(bound * NS_PER_S) for bound in bounds_s]
        #: one per bound, and one for all above
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int, times: int = 1) -> None:
        """`times` events that each took `duration_ns`. A bound belongs to the bucket that it ends."""
        self.counts[bisect_left(self._bounds_ns, duration_ns)] += times
        self.sum_ns += duration_ns * times

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(self.bounds_s, tuple(self.counts), self.sum_ns / NS_PER_S)


class HistogramSnapshot(NamedTuple):
    bounds_s: tuple[float, ...]
    #: not cumulative; the last one is for all above the last bound
    counts: tuple[int, ...]
    sum_s: float

    @property
    def total(self) -> int:
        return sum(self.counts)


class Sample(NamedTuple):
    #: values of the family's labels, in its order
    labels: tuple[str, ...]
    value: int | float | HistogramSnapshot


class Family(NamedTuple):
    """kind: "counter" (the name ends in _total), "gauge" or "histogram"."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    samples: list[Sample]


def counter(name: str, text: str, value: int) -> Family:
    return Family(name, "counter", text, (), [Sample((), value)])


def gauge(name: str, text: str, value: int | float) -> Family:
    return Family(name, "gauge", text, (), [Sample((), value)])


def histogram(name: str, text: str, value: Histogram) -> Family:
    return Family(name, "histogram", text, (), [Sample((), value.snapshot())])


def document(families: Sequence[Family]) -> dict[str, object]:
    """By name: a number, or a tree of them by `label=value`; a histogram as count, sum and its buckets that are not empty."""
    tree: dict[str, object] = {}
    for family in families:
        values = {
            ",".join(f"{name}={value}" for name, value in zip(family.labels, sample.labels, strict=True)): _plain(
                sample.value
            )
            for sample in family.samples
        }
        tree[family.name] = values if family.labels else values.get("", 0)
    return tree


def _plain(value: int | float | HistogramSnapshot) -> object:
    if not isinstance(value, HistogramSnapshot):
        return value
    bounds = [f"{bound:g}" for bound in value.bounds_s] + ["+Inf"]
    filled = {bound: count for bound, count in zip(bounds, value.counts, strict=True) if count}
    return {"count": value.total, "sum": value.sum_s, "at_most": filled}
