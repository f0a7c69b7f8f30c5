"""The quickstart runs against a fresh cluster and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_cli_serve import environment
from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


def test_quickstart_tells_the_truth_and_can_be_run_again() -> None:
    with LocalCluster(1) as cluster:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, str(EXAMPLE), cluster.url],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            assert "get user:1: b'Ada'" in done.stdout
            assert "siblings of cart:7: [b'apples,bread', b'apples,cheese']" in done.stdout
            assert "cart:7 joined: b'apples,bread,cheese'" in done.stdout
            assert "their sum: 499500" in done.stdout
            assert "exists after the delete: False" in done.stdout
