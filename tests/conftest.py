"""Options of the suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-rounds", type=int, default=5, help="how often all nodes are killed at once under load")


@pytest.fixture
def kill_rounds(request: pytest.FixtureRequest) -> int:
    rounds = request.config.getoption("--kill-rounds")
    assert isinstance(rounds, int)
    return rounds
