"""`python -m tests.sim.medians [BUG ...]`: how many seeds it takes to find each planted bug, from several starts; fails above the bound.

Owns: the ranges, the table. Part of the long run; docs/proof.md holds what it printed. The ranges are none that a seed is pinned from.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from tests.sim.pin import finds
from tests.sim.planted import PLANTED

STARTS = tuple(10_000 * start for start in range(1, 6))
#: what the median over all starts may be at most
MEDIAN_MAX = 200
#: where a search is given up, and counted as so many
SEEDS_MAX = 2 * MEDIAN_MAX


def seeds_needed(bug: str, starts: Sequence[int] = STARTS) -> list[int]:
    """From each start, which seed is the first that finds it."""
    return [
        next((i for i, seed in enumerate(range(start, start + SEEDS_MAX), 1) if finds(bug, seed)), SEEDS_MAX)
        for start in starts
    ]


def main(bugs: list[str]) -> int:
    worst = 0.0
    print(f"| planted bug | seeds needed from {', '.join(f'{start:,}' for start in STARTS)} | median |\n|---|---|---|")
    for bug in bugs or sorted(PLANTED):
        needed = seeds_needed(bug)
        median = statistics.median(needed)
        worst = max(worst, median)
        print(f"| {bug} | {', '.join(map(str, needed))} | {median} |", flush=True)
    return 1 if worst > MEDIAN_MAX else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
