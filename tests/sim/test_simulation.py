"""Seeds keep every promise, a seed is always the same run, saved scenarios stay fixed, and failures are shrunk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.planted import PLANTED
from zkv.testing import Simulation
from zkv.testing.sim import Plan, draw, run_seed, save, shrink

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
BLOCK = 20


@pytest.mark.seeds(50)
def test_seeds_keep_every_promise(seed: int) -> None:
    """`seed` names a block of seeds, so that a thousand runs are not a thousand lines."""
    for number in range(seed * BLOCK, (seed + 1) * BLOCK):
        result = run_seed(number)
        assert result.ok, result.explain()
        assert result.operations == 200


def test_a_seed_is_the_same_run_under_two_hash_seeds() -> None:
    code = "from zkv.testing import Simulation\nfor s in (3, 8): print(Simulation(s).run().digest)"
    digests = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert len(ran.stdout.split()) == 2
        digests.add(ran.stdout)
    assert len(digests) == 1
    assert Simulation(3).run().digest == next(iter(digests)).split()[0]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_saved_scenarios_hold(path: Path) -> None:
    result = Simulation(plan=Plan.from_json(path.read_text(encoding="utf-8"))).run()
    assert result.ok, result.explain()


def test_a_failing_seed_is_shrunk_told_and_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    PLANTED["puts_replace_more_than_was_stated"](monkeypatch)
    result = next(r for r in (Simulation(seed, operations=60).run() for seed in range(20)) if not r.ok)
    assert result.command in result.explain()
    assert any("mints" in line for line in result.story)
    small = shrink(result.plan, result.rule, 120)
    assert len(small.operations) < 20
    again = Plan.from_json(save(small, tmp_path, "small").read_text(encoding="utf-8"))
    assert Simulation(plan=again).run().rule == result.rule
    monkeypatch.undo()
    assert Simulation(plan=again).run().ok


def test_a_plan_is_the_same_for_one_seed_and_survives_its_plain_form() -> None:
    plan = draw(11, 50)
    assert plan == draw(11, 50)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan != draw(12, 50)
