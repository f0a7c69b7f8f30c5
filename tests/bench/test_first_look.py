"""The benchmark at a size that takes a moment, so that it does not rot. Nothing here judges a time."""

from __future__ import annotations

import pytest

from tests.bench import first_look


@pytest.mark.integration
def test_first_look_runs_at_a_tiny_size(capsys: pytest.CaptureFixture[str]) -> None:
    first_look.one_node([f"key{n}" for n in range(200)], rounds=1)
    first_look.three_nodes([f"key{n}" for n in range(200)], rounds=1, fsync="group", probe=None)
    out = capsys.readouterr().out
    assert out.count("keys/s") >= 3
    assert "get_many(100)" in out
    assert "NOT RUN" in out, "the bare probe was not given"
