"""Alternation, quartiles and targets, on sides whose figures are known."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from zkv.testing.bench.rounds import LATENCY, RATE, SIZE, Case, NotRun, Sample, Spread, Target, WrongAnswer, compare


class Scripted:
    """A side that has done `keys` in one second of each round, in turn."""

    processes: Mapping[str, int] = {}

    def __init__(self, name: str, keys: list[int], calls: list[str]) -> None:
        self._name = name
        self._keys = iter(keys)
        self._calls = calls

    def run(self, seconds: float) -> Sample:
        self._calls.append(self._name)
        return Sample(next(self._keys), 1.0, [0.001, 0.002, 0.009])

    def check(self) -> str:
        self._calls.append(f"check {self._name}")
        return self._name


def test_rounds_alternate_and_the_first_of_each_does_not_count() -> None:
    calls: list[str] = []
    ours = Scripted("a", [1, 100, 200, 300], calls)
    peer = Scripted("b", [1, 100, 100, 100], calls)
    result = compare(Case("x", "", ours, "b", peer, bound=1.5), rounds=3, seconds=0.1)
    assert calls == ["a", "b"] * 4 + ["check a", "check b"]
    assert result.ours is not None and result.ours.figures == [100, 200, 300]
    assert result.ours.keys == 600
    assert result.ratio == Spread(1.5, 2.0, 2.5)
    assert result.met is True


def test_ratio_is_of_pairs_not_of_medians() -> None:
    """The machine slows down by ten in the middle: both sides feel it, the ratio does not."""
    calls: list[str] = []
    case = Case("x", "", Scripted("a", [1, 10, 100], calls), "b", Scripted("b", [1, 20, 200], calls))
    ratio = compare(case, rounds=2, seconds=0.1).ratio
    assert ratio == Spread(0.5, 0.5, 0.5)


def test_missing_peer_is_said_and_ours_runs() -> None:
    result = compare(Case("x", "", Scripted("a", [1, 5], []), "b", NotRun("get it")), rounds=1, seconds=0.1)
    assert result.ratio is None and result.met is None
    assert result.document()["not_run"] == "get it"
    assert result.ours is not None and result.ours.spread == Spread(5, 5, 5)


def test_round_without_a_key_done_fails() -> None:
    with pytest.raises(WrongAnswer, match="without one key"):
        compare(Case("x", "", Scripted("a", [0], []), "b", NotRun("")), rounds=1, seconds=0.1)


def test_latency_is_the_median_wait_in_microseconds() -> None:
    assert Sample(3, 1.0, [0.001, 0.002, 0.009]).figure(LATENCY) == pytest.approx(2000)
    assert Sample(30, 2.0).figure(RATE) == 15


def test_size_is_bytes_per_key_and_its_target_an_upper_bound() -> None:
    assert Sample(10, 1.0, held_bytes=320).figure(SIZE) == 32
    assert Target(1.0, SIZE).met(0.9) and not Target(1.0, SIZE).met(1.1)
    assert str(Target(1.0, SIZE)) == "<= 1"


def test_target_of_a_latency_is_an_upper_bound_of_a_rate_a_lower_one() -> None:
    assert Target(1.5, LATENCY).met(1.4) and not Target(1.5, LATENCY).met(1.6)
    assert Target(0.8).met(0.9) and not Target(0.8).met(0.7)


def test_cpu_of_the_client_is_counted_per_key() -> None:
    class Busy(Scripted):
        def run(self, seconds: float) -> Sample:
            sum(i * i for i in range(200_000))
            return super().run(seconds)

    result = compare(Case("x", "", Busy("a", [1, 10], []), "b", NotRun("")), rounds=1, seconds=0.1)
    assert result.ours is not None
    assert result.ours.cpu_us_per_key()["client"] > 10
