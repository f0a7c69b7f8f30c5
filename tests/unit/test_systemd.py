"""The unit as systemd judges it: well-formed, and as closed as a network store can be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"


def analyze(*words: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT RUN: systemd-analyze is not on this machine (Debian: apt install systemd)")
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_is_exposed_at_most_1_5() -> None:
    text = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(SYSTEMD / "zkv@.service"))
    assert "Overall exposure level" in text


def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    """Under a name of an instance, with a program that exists in place of the one under /opt."""
    unit = (SYSTEMD / "zkv@.service").read_text()
    assert "ExecStart=/opt/zkv/bin/zkv serve --config /etc/zkv/%i.toml" in unit
    (tmp_path / "zkv@.service").write_text(unit.replace("/opt/zkv/bin/zkv", "/bin/true"))
    (tmp_path / "zkv.target").write_text((SYSTEMD / "zkv.target").read_text())
    text = analyze("verify", "--recursive-errors=no", str(tmp_path / "zkv@.service"), str(tmp_path / "zkv.target"))
    assert "Unknown key" not in text
