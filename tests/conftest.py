"""Options of the suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-rounds", type=int, default=5, help="how often all nodes are killed at once under load")
    parser.addoption("--stanzas", type=int, default=5_000, help="how many Debian stanzas go through import and export")


@pytest.fixture
def stanza_count(request: pytest.FixtureRequest) -> int:
    count = request.config.getoption("--stanzas")
    assert isinstance(count, int)
    return count


@pytest.fixture
def kill_rounds(request: pytest.FixtureRequest) -> int:
    rounds = request.config.getoption("--kill-rounds")
    assert isinstance(rounds, int)
    return rounds
