"""Options of the suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-rounds", type=int, default=5, help="how often all nodes are killed at once under load")
    parser.addoption("--stanzas", type=int, default=5_000, help="how many Debian stanzas go through import and export")
    parser.addoption("--storm-seconds", type=float, default=6, help="how long a thousand tasks are cancelled at random")
    parser.addoption("--fuzz-scale", type=float, default=1, help="feed decoders this many times the usual inputs")
    parser.addoption("--seeds-scale", type=float, default=1, help="run this many times the usual random histories")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seeds(count): runs for each `seed` below count * --seeds-scale")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds = metafunc.definition.get_closest_marker("seeds")
    if seeds is not None:
        scale = metafunc.config.getoption("--seeds-scale")
        metafunc.parametrize("seed", range(max(1, int(seeds.args[0] * scale))))


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


@pytest.fixture
def embedded_kills(kill_rounds: int) -> int:
    """An embedded store starts in a fraction of the time of three nodes."""
    return kill_rounds * 4 if kill_rounds <= 5 else kill_rounds


@pytest.fixture
def storm_seconds(request: pytest.FixtureRequest) -> float:
    seconds = request.config.getoption("--storm-seconds")
    assert isinstance(seconds, float | int)
    return seconds


@pytest.fixture
def fuzz_scale(request: pytest.FixtureRequest) -> float:
    scale = request.config.getoption("--fuzz-scale")
    assert isinstance(scale, float | int)
    return scale
