"""What is good enough, beside what memberlist does with its defaults in a simulator of the same kind.

Owns: the gates, which trial measures them, how figures of several seeds become one. Must not know: how a trial works, how a table looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from zkv.testing.members import trials
from zkv.testing.members.world import World

Make = Callable[..., World]

CUT: Final = 60


class Gate(NamedTuple):
    """limit: what is measured must not be above it. unit: "s", "ms", "B", "B/s", "x" or "" for a count. memberlist: its figure, as text."""

    title: str
    limit: float
    unit: str
    memberlist: str


#: by key, in the order of the table
GATES: Final[dict[str, Gate]] = {
    "suspect_first": Gate("silent crash: first suspicion, p50", 2.0, "s", "2.2 s"),
    "suspect_all": Gate("silent crash: 99 % know suspect, p50", 2.2, "s", "2.85 s"),
    "dead_all": Gate("silent crash: 99 % know dead, p50", 6.5, "s", "14.6 s"),
    "dead_worst": Gate("silent crash: 99 % know dead, worst of 10", 9.5, "s", "15.6 s"),
    "reset_suspect": Gate("crash with reset: 99 % know suspect, worst of 10", 0.6, "s", "no such path"),
    "reset_dead": Gate("crash with reset: 99 % know dead, worst of 10", 5.5, "s", "no such path"),
    "return": Gate("restart, also elsewhere and with nothing remembered: up everywhere after", 5, "s", "up to 30 s"),
    "spread": Gate("update reaches all, no loss", 100, "ms", "1,040 ms"),
    "spread_loss": Gate("update reaches all, 10 % loss", 500, "ms", "-"),
    "idle": Gate("idle cost of a member", 200, "B/s", "80 B/s"),
    "idle_growth": Gate("idle cost of a member, beside 10 members", 1.2, "x", "1"),
    "update": Gate("cost of one update for a member", 2_500, "B", "2,100 B"),
    "loss_5": Gate("false deaths, 5 % packet loss", 0, "", "-"),
    "loss_10": Gate("false deaths, 10 % packet loss", 0, "", "-"),
    "loss_20": Gate("false deaths, 20 % packet loss", 0, "", "483 (UDP)"),
    "loss_30": Gate("false deaths, 30 % packet loss", 0, "", "-"),
    "loss_20_suspect": Gate("silent crash at 20 % loss: 99 % know suspect, p50", 2.2, "s", "-"),
    "stopped_2": Gate("false deaths, 5 % of members stopped 2 s in a loop", 0, "", "0"),
    "stopped_8": Gate("false deaths, stopped 8 s", 0, "", "0"),
    "stopped_16": Gate("false deaths, stopped 16 s", 0, "", "0"),
    "stopped_30": Gate("false deaths, stopped 30 s", 0, "", "0"),
    "returned": Gate("members called dead 2 s after they ran again", 0, "", "-"),
    "isolated_8": Gate("false deaths at healthy members, 5 % isolated 8 s in a loop", 0, "", "0"),
    "isolated_16": Gate("false deaths at healthy members, isolated 16 s", 0, "", "0"),
    "isolated_30": Gate("false deaths at healthy members, isolated 30 s", 0, "", "0"),
    "isolated_60": Gate("false deaths at healthy members, isolated 60 s", 0, "", "-"),
    "accused": Gate("healthy members suspected for each isolated one, in a minute", 20, "", "-"),
    "heal_50": Gate("partition of 60 s, 50 % cut off: all agree after", 20, "s", "never"),
    "heal_30": Gate("partition, 30 % cut off", 20, "s", "never"),
    "heal_10": Gate("partition, 10 % cut off", 20, "s", "never"),
    "heal_1": Gate("partition, 1 % cut off", 20, "s", "never"),
    "heal_long": Gate("partition of 200 s, 50 % cut off", 20, "s", "never"),
    "stuck": Gate("pairs that disagree 60 s after a heal", 0, "", "known, open"),
}
#: the widths that Lifeguard's and the partition's figures were taken at
DISTURBED_MEMBERS: Final = 200
CUT_MEMBERS: Final = 500

Figures = dict[str, float]


def _crashes(count: int, seed: int, make: Make) -> Figures:
    found = trials.crashes(count, seed, make=make)
    p50, worst = found.p50(), found.worst()
    return {"suspect_first": p50.first, "suspect_all": p50.suspect, "dead_all": p50.dead, "dead_worst": worst.dead}


def _resets(count: int, seed: int, make: Make) -> Figures:
    worst = trials.crashes(count, seed, make=make, resets=True).worst()
    return {"reset_suspect": worst.suspect, "reset_dead": worst.dead}


def _costs(count: int, seed: int, make: Make) -> Figures:
    found, few = trials.costs(count, seed, make=make), trials.costs(10, seed, make=make)
    return {
        "spread": found.spread * 1_000,
        "idle": found.idle_bytes_s,
        "idle_growth": found.idle_bytes_s / few.idle_bytes_s,
        "update": found.update_bytes,
    }


def _costs_with_loss(count: int, seed: int, make: Make) -> Figures:
    return {"spread_loss": trials.costs(count, seed, make=make, loss=0.1).spread * 1_000}


def _loss(percent: int) -> Callable[[int, int, Make], Figures]:
    def trial(count: int, seed: int, make: Make) -> Figures:
        found = trials.crashes(count, seed, make=make, loss=percent / 100)
        figures: Figures = {f"loss_{percent}": found.false_deaths}
        if percent == 20:
            figures["loss_20_suspect"] = found.p50().suspect
        return figures

    return trial


def _stopped(seconds: int) -> Callable[[int, int, Make], Figures]:
    def trial(count: int, seed: int, make: Make) -> Figures:
        found = trials.disturbed(min(count, DISTURBED_MEMBERS), seed, seconds, isolated=False, make=make)
        return {f"stopped_{seconds}": found.everywhere, "returned": found.returned}

    return trial


def _isolated(seconds: int) -> Callable[[int, int, Make], Figures]:
    def trial(count: int, seed: int, make: Make) -> Figures:
        found = trials.disturbed(min(count, DISTURBED_MEMBERS), seed, seconds, isolated=True, make=make)
        figures: Figures = {f"isolated_{seconds}": found.among_healthy}
        if seconds == 30:
            figures["accused"] = found.suspicions
        return figures

    return trial


def _partition(percent: int) -> Callable[[int, int, Make], Figures]:
    def trial(count: int, seed: int, make: Make) -> Figures:
        found = trials.partition(min(count, CUT_MEMBERS), seed, percent / 100, cut_s=CUT, make=make)
        return {f"heal_{percent}": found.seconds, "stuck": found.stuck}

    return trial


def _long_partition(count: int, seed: int, make: Make) -> Figures:
    found = trials.partition(min(count, DISTURBED_MEMBERS), seed, 0.5, cut_s=200, make=make)
    return {"heal_long": found.seconds, "stuck": found.stuck}


def _returns(count: int, seed: int, make: Make) -> Figures:
    return {"return": trials.returns(min(count, DISTURBED_MEMBERS), seed, make=make)}


#: by name; the longest first, so that several processes end together
TRIALS: Final[dict[str, Callable[[int, int, Make], Figures]]] = {
    **{f"partition of {percent} %": _partition(percent) for percent in (50, 30, 10, 1)},
    "long partition": _long_partition,
    "costs": _costs,
    "costs at 10 % loss": _costs_with_loss,
    **{f"loss of {percent} %": _loss(percent) for percent in (30, 20, 10, 5)},
    "crashes": _crashes,
    "crashes with resets": _resets,
    "returns": _returns,
    **{f"stopped {seconds} s": _stopped(seconds) for seconds in (2, 8, 16, 30)},
    **{f"isolated {seconds} s": _isolated(seconds) for seconds in (8, 16, 30, 60)},
}


def measure(trial: str, count: int, seed: int, make: Make = World) -> Figures:
    return TRIALS[trial](count, seed, make)


def worst(figures: Iterable[Figures]) -> Figures:
    """Of several trials and seeds: the largest of each."""
    merged: Figures = {}
    for one in figures:
        for key, value in one.items():
            merged[key] = max(value, merged.get(key, value))
    return merged


def broken(figures: Figures) -> list[str]:
    """Keys of the gates that do not hold, in the order of the table."""
    return [key for key in GATES if key in figures and not figures[key] <= GATES[key].limit]


def shown(value: float, unit: str) -> str:
    if value == float("inf"):
        return "never"
    number = f"{value:,.0f}" if unit in ("", "B", "B/s", "ms") else f"{value:.2f}"
    return f"{number} {unit}".strip()


def rows(figures: Figures) -> Sequence[tuple[str, str, str, str, bool]]:
    """(what, memberlist's, measured, gate, whether it holds)."""
    bad = set(broken(figures))
    return [
        (gate.title, gate.memberlist, shown(figures[key], gate.unit), shown(gate.limit, gate.unit), key not in bad)
        for key, gate in GATES.items()
        if key in figures
    ]
