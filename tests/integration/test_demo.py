"""`zkv demo` from outside, small: the story is told, nothing acknowledged is lost, nothing stays behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "zkv", "demo", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_demo_tells_its_story_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--records", "4000", "--json", "--data", str(tmp_path / "d")),
        capture_output=True,
        text=True,
        timeout=90,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["records"], document["verified"], document["lost"]) == (1, 4000, 4000, 0)
    assert document["verdict"] == "nothing acknowledged was lost"
    assert document["acked_while_down"] > 0
    assert document["down_seconds"] > 0
    assert "is killed with SIGKILL" in done.stderr
    assert "serves again" in done.stderr
    assert {path.name for path in (tmp_path / "d").iterdir()} >= {"n1", "n2", "n3", "n2.log"}
    assert (tmp_path / "d" / "n2.log").read_text().count("serving n2") == 2


def test_demo_draws_the_ring_and_prints_figures() -> None:
    done = subprocess.run(
        command("--records", "1000"), capture_output=True, text=True, timeout=90, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1024 partitions" in done.stdout
    assert "records/s" in done.stdout
    assert "nothing acknowledged was lost: 1,000 of 1,000" in done.stdout
    assert "\x1b[" not in done.stdout


def test_interrupted_demo_exits_130_and_leaves_no_node(tmp_path: Path) -> None:
    running, nodes = started_demo(tmp_path)
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    rest = running.stderr.read()
    running.stderr.close()
    assert running.wait(30) == 130, rest
    assert all_ended(nodes, within_s=0)


def test_nodes_of_a_killed_demo_end_by_themselves(tmp_path: Path) -> None:
    running, nodes = started_demo(tmp_path)
    running.kill()
    assert running.stderr is not None
    running.stderr.close()
    running.wait(30)
    assert all_ended(nodes, within_s=20)


def started_demo(directory: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A demo whose three nodes run, and a pidfd for each of them."""
    running = subprocess.Popen(
        command("--records", "60000", "--data", str(directory / "d")),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert running.stderr is not None
    nodes: list[int] = []
    while len(nodes) < 3:
        line = running.stderr.readline()
        assert line, "the demo ended before its nodes ran"
        if ": process " in line:
            nodes.append(os.pidfd_open(int(line.split(": process ")[1].split()[0])))
    return running, nodes


def all_ended(nodes: list[int], within_s: float) -> bool:
    """Whether the processes of these pidfds end in time; closes the pidfds."""
    deadline = time.monotonic() + within_s
    ended = 0
    for node in nodes:
        poll = select.poll()
        poll.register(node, select.POLLIN)
        ended += bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        os.close(node)
    return ended == len(nodes)
