"""The real core at several sizes passes its gates, and each planted bug breaks one. All sizes and seeds: `zkv sim --members N --seeds A..B`."""

from __future__ import annotations

import pytest

from tests.unit.core.membership.planted import PLANTED
from zkv.testing.members import gates

#: small sizes, where a trial takes a second; 1,000 members and more seeds belong to the long run
MEMBERS = {"crashes": 100, "costs": 100, "loss of 30 %": 12, "loss of 20 %": 20}
USUAL = 30


@pytest.mark.parametrize("trial", gates.TRIALS)
def test_membership_gates_hold(trial: str) -> None:
    figures = gates.measure(trial, MEMBERS.get(trial, USUAL), 1)
    assert figures and not gates.broken(figures), figures


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_membership_bug_breaks_a_gate(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = PLANTED[bug]
    plant.patch(monkeypatch)
    assert plant.gates & set(gates.broken(gates.measure(plant.trial, plant.members, 1)))


def test_every_gate_is_measured_and_the_worst_of_all_is_shown() -> None:
    figures = {key: gate.limit for key, gate in gates.GATES.items()}
    assert not gates.broken(figures)
    over = gates.worst([figures, {key: limit + 1 for key, limit in figures.items()}, figures])
    assert gates.broken(over) == list(gates.GATES)
    assert [row[-1] for row in gates.rows(figures | {"stuck": float("inf")})].count(False) == 1
    assert gates.shown(float("inf"), "s") == "never" and gates.shown(1234.5, "B") == "1,234 B"
