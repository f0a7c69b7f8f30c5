"""A process that appends and acknowledges is killed at random moments: what it acknowledged is there, and nothing that it never wrote."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore

pytestmark = pytest.mark.integration

CHILD = """
import random, sys, threading
from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions

path, seed = sys.argv[1:]
dice = random.Random(int(seed))
woken = threading.Event()
options = LogOptions(file_bytes=65_536, mark_interval_ns=1)
store, recovery = LogStore.open(path, RealFiles(), options=options, create=True, on_wake=woken.set)
print("acked", recovery.last_seq, flush=True)
turn = 0
while True:
    turn += 1
    blocks = []
    seq = store.written_seq
    for _ in range(dice.randrange(1, 5)):
        records = dice.randrange(1, 4)
        blocks.append((records, 1, [b"%d:" % (seq + 1), bytes([(seq + 1) % 256]) * dice.randrange(3000)]))
        seq += records
    assert store.append(blocks) == seq
    store.turn_done(turn, True)
    if dice.random() < 0.8:
        woken.wait(1)
        woken.clear()
    if (durable := store.drain_completions()) is not None:
        print("acked", durable, flush=True)
"""


def run_until_killed(path: Path, dice: random.Random) -> int:
    """The highest seq that the child said is durable before SIGKILL hit it."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(dice.randrange(1000))], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acked = 0
    for _ in range(dice.randrange(1, 60)):
        word, number = child.stdout.readline().split()  # fails on "": the child died by itself
        assert word == "acked"
        acked = int(number)
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    assert child.returncode == -signal.SIGKILL
    for line in rest.splitlines(keepends=True):
        if line.endswith("\n"):
            acked = int(line.split()[1])
    return acked


def test_killed_writer_keeps_every_acknowledged_record(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    path = tmp_path / "data"
    known: dict[int, bytes] = {}
    for round_ in range(12):
        acked = run_until_killed(path, dice)
        store, recovery = LogStore.open(path, RealFiles())
        where = f"seed {seed}, round {round_}"
        assert not recovery.degraded, where
        assert not recovery.clean_shutdown, where
        assert recovery.last_seq >= acked, where
        next_seq = 1
        found: dict[int, bytes] = {}
        for batch in recovery.batches():
            assert batch.first_seq == next_seq, where
            assert batch.body.startswith(b"%d:" % batch.first_seq), where
            assert set(batch.body.split(b":", 1)[1]) <= {batch.first_seq % 256}, where
            found[batch.first_seq] = batch.body
            next_seq += batch.record_count
        assert next_seq == recovery.last_seq + 1, where
        assert found.items() >= known.items(), f"{where}: what was recovered once stays"
        known = found
        store.close()
    assert len(known) > 100
