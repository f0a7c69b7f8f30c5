"""`zkv sim --members`: the table, the document, and an exit code that says whether the gates hold."""

from __future__ import annotations

import json

import pytest

from zkv.cli.main import main
from zkv.testing.members import gates

FEW = {name: gates.TRIALS[name] for name in ("crashes with resets", "returns")}


@pytest.fixture(autouse=True)
def _few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "TRIALS", FEW)


def test_sim_members_prints_the_gates_beside_those_of_memberlist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--members", "5", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "memberlist" in shown and "no such path" in shown and "5 members" in shown
    assert shown.count(" ok") == 3 and "BROKEN" not in shown


def test_sim_members_exits_1_and_names_the_seed_when_a_gate_does_not_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gates.GATES, "reset_dead", gates.GATES["reset_dead"]._replace(limit=1.0))
    assert main(["sim", "--members", "5", "--seeds", "3..5", "--jobs", "1", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {gate["gate"]: gate["holds"] for gate in document["gates"]} == {
        "reset_suspect": True,
        "reset_dead": False,
        "return": True,
    }
    assert document["seeds"] == [3, 4] and "zkv sim --members 5 --seed 4" in err
