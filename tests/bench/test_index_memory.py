"""The yardstick of the index's memory, on sizes that take a moment."""

from __future__ import annotations

import json
import subprocess

import pytest

from zkv.testing.bench.index_memory import BUDGET_BYTES, IndexMemory, measure
from zkv.testing.bench.rounds import WrongAnswer


@pytest.mark.parametrize("kind", ["index", "dict", "budget"])
def test_each_kind_holds_its_keys_and_answers_right(kind: str) -> None:
    report = measure(kind, 3_000)
    assert (report["keys"], report["wrong"]) == (3_000, 0)


def test_yardstick_reads_the_budget_right() -> None:
    sample = IndexMemory("budget", 400_000).run(0.0)
    assert 0.95 < sample.held_bytes / sample.keys / BUDGET_BYTES < 1.1


def test_wrong_answers_and_missing_keys_fail_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"keys": 10, "bytes": 320, "checked": 5, "wrong": 1, "get_us": 1.0}
    for change in ({}, {"wrong": 0, "keys": 9}):
        answer = json.dumps(report | change)
        monkeypatch.setattr(
            subprocess, "run", lambda *args, answer=answer, **options: subprocess.CompletedProcess(args, 0, answer)
        )
        with pytest.raises(WrongAnswer):
            IndexMemory("index", 10).run(0.0)
