"""The simulator finds what it should: each planted bug breaks a promise at its pinned seed, and in the long run within few seeds of any start."""

from __future__ import annotations

import json
import statistics

import pytest

from tests.sim.pin import PINNED, finds
from tests.sim.planted import PLANTED

STARTS = 5
SEEDS_MAX = 200
PINNED_SEEDS: dict[str, list[int]] = json.loads(PINNED.read_text(encoding="utf-8"))


def test_every_planted_bug_is_pinned() -> None:
    assert set(PLANTED) == set(PINNED_SEEDS)
    assert all(PINNED_SEEDS.values())


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_pinned_seed_finds_its_planted_bug(bug: str) -> None:
    assert any(finds(bug, seed) for seed in PINNED_SEEDS[bug]), "pin anew: python -m tests.sim.pin"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_planted_bug_is_found_within_a_median_of_200_seeds(bug: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--seeds-scale") < 10:
        pytest.skip("takes hours: run with --seeds-scale=10")
    needed = []
    for start in range(STARTS):
        seeds = range(10_000 * (start + 1), 10_000 * (start + 1) + 2 * SEEDS_MAX)
        needed.append(next((i for i, seed in enumerate(seeds, 1) if finds(bug, seed)), 2 * SEEDS_MAX))
    assert statistics.median(needed) <= SEEDS_MAX, f"seeds needed from {STARTS} starts: {needed}"
