"""Rounds of two sides in turn, and what may be said about them.

Owns: alternation, quartiles, CPU accounting, the shape of a result. Must not know: any workload.

Only ratios of one run count: A and B alternate in short rounds, each pair gives one ratio, and the median of the ratios is reported with
its quartiles. Whatever a side wrote is read back when its rounds are over; a fast wrong answer raises WrongAnswer.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from zkv.errors import ZkvError

RATE: Final = "keys/s"
LATENCY: Final = "us p50"
SIZE: Final = "B/key"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class WrongAnswer(ZkvError):
    """A side did not hold what it had acknowledged, or gave back something else."""


@dataclass(frozen=True, slots=True)
class NotRun:
    """What is missing, and how to get it."""

    why: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: keys done, the seconds that took, the seconds of each call where somebody waits for each, the bytes that the keys take where that is asked."""

    keys: int
    seconds: float
    waits: Sequence[float] = ()
    held_bytes: int = 0

    def figure(self, unit: str) -> float:
        if unit == LATENCY:
            return 1e6 * statistics.median(self.waits)
        if unit == SIZE:
            return self.held_bytes / self.keys
        return self.keys / self.seconds


class Side(Protocol):
    """One half of a benchmark. processes: name -> pid of the servers it makes work."""

    @property
    def processes(self) -> Mapping[str, int]: ...

    def run(self, seconds: float) -> Sample:
        """One round of about that long. Raises: WrongAnswer, or what the store raises."""

    def check(self) -> str:
        """Read all back and return its digest. Raises: WrongAnswer."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles; of one round all three are the same."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        return cls(*statistics.quantiles(figures, n=4, method="inclusive"))

    def document(self) -> dict[str, float]:
        return {"q1": self.low, "median": self.median, "q3": self.high}


@dataclass(frozen=True, slots=True)
class Target:
    """Of the ratio ours / peer: at least so much for rates, at most so much for latencies and sizes."""

    bound: float
    unit: str = RATE

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.unit == RATE else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.unit == RATE else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Case:
    """One benchmark, its servers running."""

    name: str
    shape: str
    ours: Side | NotRun
    peer_name: str
    peer: Side | NotRun
    unit: str = RATE
    bound: float | None = None

    @property
    def target(self) -> Target | None:
        return None if self.bound is None else Target(self.bound, self.unit)


@dataclass(slots=True)
class SideResult:
    """Figures of each round, CPU microseconds per key, and the digest of what was read back."""

    figures: list[float] = field(default_factory=list)
    keys: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    digest: str = ""

    @property
    def spread(self) -> Spread:
        return Spread.of(self.figures)

    def cpu_us_per_key(self) -> dict[str, float]:
        return {name: 1e6 * seconds / self.keys for name, seconds in self.cpu_seconds.items()} if self.keys else {}

    def document(self) -> dict[str, Any]:
        cpu = {name: round(value, 2) for name, value in self.cpu_us_per_key().items()}
        return {
            **self.spread.document(),
            "rounds": self.figures,
            "keys": self.keys,
            "cpu_us_per_key": cpu,
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case. peer is absent where it did not run, and then `not_run` says why."""

    case: Case
    ours: SideResult | None
    peer: SideResult | None
    not_run: str = ""

    @property
    def ratio(self) -> Spread | None:
        if self.ours is None or self.peer is None:
            return None
        return Spread.of([a / b for a, b in zip(self.ours.figures, self.peer.figures, strict=True)])

    @property
    def met(self) -> bool | None:
        target, ratio = self.case.target, self.ratio
        return None if target is None or ratio is None else target.met(ratio.median)

    def document(self) -> dict[str, Any]:
        case, ratio = self.case, self.ratio
        return {
            "name": case.name,
            "shape": case.shape,
            "unit": case.unit,
            "ours": self.ours.document() if self.ours else None,
            "peer_name": case.peer_name,
            "peer": self.peer.document() if self.peer else None,
            "not_run": self.not_run or None,
            "ratio": ratio.document() if ratio else None,
            "target": str(case.target) if case.target else None,
            "met": self.met,
        }


def compare(case: Case, rounds: int, seconds: float) -> Result:
    """A round of each that does not count (connections, page cache), then A B A B ..., then both are read back."""
    ours, peer = case.ours, case.peer
    reasons = [side.why for side in (ours, peer) if isinstance(side, NotRun)]
    results: list[SideResult | None] = [None if isinstance(side, NotRun) else SideResult() for side in (ours, peer)]
    for turn in range(-1, rounds):
        for side, result in zip((ours, peer), results, strict=True):
            if result is not None and not isinstance(side, NotRun):
                _round(side, result, case.unit, seconds if turn >= 0 else min(seconds, 0.2), counted=turn >= 0)
    for side, result in zip((ours, peer), results, strict=True):
        if result is not None and not isinstance(side, NotRun):
            result.digest = side.check()
    return Result(case, results[0], results[1], "; ".join(reasons))


def _round(side: Side, result: SideResult, unit: str, seconds: float, *, counted: bool) -> None:
    before = cpu_seconds(side.processes)
    sample = side.run(seconds)
    after = cpu_seconds(side.processes)
    if not sample.keys:
        raise WrongAnswer(f"a round of {seconds} s ended without one key done")
    if counted:
        result.figures.append(sample.figure(unit))
        result.keys += sample.keys
        for name, spent in after.items():
            result.cpu_seconds[name] = result.cpu_seconds.get(name, 0.0) + spent - before[name]


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """User and system seconds of this process (`client`) and of each named one, so far."""
    spent = {"client": time.process_time()}
    for name, pid in processes.items():
        # the command's name may hold blanks and brackets: count the fields after the last one
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        spent[name] = (int(fields[11]) + int(fields[12])) / _TICKS
    return spent
