"""A store for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import zkv
from zkv import Store


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[Store]:
    with zkv.open(tmp_path / "data") as store:
        yield store
