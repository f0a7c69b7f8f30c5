"""The simulator finds what it should: each planted bug breaks a promise at its pinned seed, and in the long run within few seeds of any start."""

from __future__ import annotations

import statistics

import pytest

from tests.sim.planted import PLANTED
from zkv.testing import Simulation

#: bug -> a seed that finds it
PINNED = {
    "absent_is_said_for_all": 0,
    "ack_before_fsync": 133,
    "ack_counted_twice": 0,
    "bases_forgotten_and_nothing_read": 0,
    "blind_put_on_strict_reads_nothing_first": 0,
    "damaged_append_not_cut": 1,
    "deletes_replace_nothing": 0,
    "failed_fsync_retried": 46,
    "join_loses_a_sibling": 0,
    "join_takes_theirs": 0,
    "no_write_back": 0,
    "only_the_coordinator_keeps_it": 34,
    "open_id_not_renewed": 9,
    "puts_replace_more_than_was_stated": 0,
    "recovery_stops_at_the_watermark": 0,
    "refused_step_stays": 18,
    "request_memory_lost": 242,
    "sync_does_not_sync": 7,
    "tombstone_dropped": 0,
    "unknown_said_to_be_failed": 0,
    "voids_forgotten": 0,
}
#: planted and not found by the seeds tried so far: the workload is not sharp enough for them, and the long run fails until it is
OPEN = {"own_unsynced_copy_counts", "strict_reads_like_sloppy", "unsynced_store_answers"}
STARTS = 5
SEEDS_MAX = 200


def test_every_planted_bug_is_pinned_or_said_to_be_open() -> None:
    assert set(PLANTED) == set(PINNED) | OPEN
    assert not set(PINNED) & OPEN


@pytest.mark.parametrize("bug", sorted(PINNED))
def test_a_pinned_seed_finds_its_planted_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[bug](monkeypatch)
    assert not Simulation(PINNED[bug]).run().ok


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_planted_bug_is_found_within_a_median_of_200_seeds(
    bug: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--seeds-scale") < 10:
        pytest.skip("takes hours: run with --seeds-scale=10")
    PLANTED[bug](monkeypatch)
    needed = []
    for start in range(STARTS):
        seeds = range(10_000 * (start + 1), 10_000 * (start + 1) + 2 * SEEDS_MAX)
        needed.append(next((i for i, seed in enumerate(seeds, 1) if not Simulation(seed).run().ok), 2 * SEEDS_MAX))
    assert statistics.median(needed) <= SEEDS_MAX, f"seeds needed from {STARTS} starts: {needed}"
