"""The simulator finds what it should: each planted bug breaks a promise at its pinned seed, and the long run counts from how many seeds on."""

from __future__ import annotations

import json

import pytest

from tests.sim.medians import main, seeds_needed
from tests.sim.pin import PINNED, finds
from tests.sim.planted import PLANTED

PINNED_SEEDS: dict[str, list[int]] = json.loads(PINNED.read_text(encoding="utf-8"))


def test_every_planted_bug_is_pinned() -> None:
    assert set(PLANTED) == set(PINNED_SEEDS)
    assert all(PINNED_SEEDS.values())


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_pinned_seed_finds_its_planted_bug(bug: str) -> None:
    assert any(finds(bug, seed) for seed in PINNED_SEEDS[bug]), "pin anew: python -m tests.sim.pin"


def test_the_seeds_that_a_bug_needs_are_counted_from_each_start(capsys: pytest.CaptureFixture[str]) -> None:
    """The long run does this for all of them, from five starts."""
    assert all(1 <= needed <= 20 for needed in seeds_needed("ack_counted_twice", (10_000, 20_000)))
    assert main(["ack_counted_twice"]) == 0
    assert "| ack_counted_twice |" in capsys.readouterr().out
