"""An embedded store is killed at random moments of a mixed load: what was acknowledged is there, what was deleted stays away.

SIGKILL leaves the page cache alone, so that is true of every acknowledged write, whatever it was told of durability; what a loss of power
takes is for the recording file system to show (tests/unit/storage).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zkv

pytestmark = pytest.mark.integration

KEYS = 40
#: a directory lives through so many; its log is read whole at each opening
ROUNDS_OF_ONE = 20

#: Writes a line before each call and one after it. Values name the key and a number that grows, so that any value tells when it was written.
CHILD = """
import random, sys, zkv

path, (keys_max, seed, number) = sys.argv[1], map(int, sys.argv[2:])
dice = random.Random(seed)
print("opening", flush=True)
with zkv.open(path, fsync=dice.choice(("interval", "group")), wal_bytes="1MiB", fsync_interval_ms=dice.choice((1, 20, 1000))) as kv:
    print("open", flush=True)
    while True:
        number += 1
        key = f"k{dice.randrange(keys_max)}"
        kind = dice.random()
        durable = dice.random() < 0.5
        if kind < 0.15:
            print("begin delete", key, number, flush=True)
            acked = kv.delete(key, durable=durable)
        elif kind < 0.8:
            print("begin put", key, number, flush=True)
            acked = kv.put(key, b"%s:%d:" % (key.encode(), number) + bytes(dice.randrange(8000)), durable=durable)
        else:
            keys = [f"k{i}" for i in dice.sample(range(keys_max), 8)]
            for key in keys:
                print("begin put", key, number, flush=True)
            acked = kv.put_many({key: b"%s:%d:" % (key.encode(), number) + bytes(dice.randrange(800)) for key in keys}, durable=durable)
        assert acked.durable >= durable
        print("done", number, flush=True)
"""


class Ledger:
    """Per key: its last acknowledged write, and what was begun since, any of which may be what is there now."""

    def __init__(self) -> None:
        self.certain: dict[str, int] = {}
        self.since: dict[str, list[tuple[int, bool]]] = {}
        self.deleted: dict[str, bool] = {}
        self.number = 0
        self._begun: dict[int, list[tuple[str, bool]]] = {}

    def read(self, line: str) -> None:
        match line.split():
            case ["begin", kind, key, number]:
                self.number = int(number)
                self._begun.setdefault(self.number, []).append((key, kind == "put"))
                self.since.setdefault(key, []).append((self.number, kind == "put"))
            case ["done", number]:
                for key, put in self._begun[int(number)]:
                    self.certain[key] = int(number)
                    self.deleted[key] = not put
                    self.since[key] = []
            case ["opening"] | ["open"]:
                pass
            case _:
                raise AssertionError(f"the child said {line!r}")

    def check(self, kv: zkv.Store, where: str) -> None:
        found = {f"k{i}": kv.get_item(f"k{i}") for i in range(KEYS)}
        for key, item in found.items():
            assert len(item.values) <= 1, f"{where}: {key} has {len(item.values)} siblings"
            allowed = {number for number, put in self.since.get(key, []) if put}
            absent = key not in self.certain or any(not put for _, put in self.since.get(key, []))
            if key in self.certain:
                if self.deleted[key]:
                    absent = True
                else:
                    allowed.add(self.certain[key])
            if not item.found:
                assert absent, f"{where}: {key} is gone; {self.certain[key]} was acknowledged"
                continue
            name, number, _ = item.value.split(b":", 2)
            assert name.decode() == key, where
            assert int(number) in allowed, f"{where}: {key} is {int(number)}, allowed {sorted(allowed)}"
        # What was found is on disk by now: an opening syncs what it recovered.
        for key, item in found.items():
            self.since[key] = []
            self.deleted[key] = not item.found
            self.certain[key] = int(item.value.split(b":", 2)[1]) if item.found else 0


def run_until_killed(path: Path, dice: random.Random, ledger: Ledger) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(KEYS), str(dice.randrange(1 << 30)), str(ledger.number)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(dice.choice((1, 2, 20, 300, 2_000))):
        ledger.read(child.stdout.readline())  # fails on "": the child died by itself
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    assert child.returncode == -signal.SIGKILL
    for line in rest.splitlines(keepends=True):
        if line.endswith("\n"):
            ledger.read(line)


@pytest.mark.timeout(1_800)
def test_killed_store_keeps_what_was_acknowledged_and_returns_nothing_deleted(
    tmp_path: Path, embedded_kills: int
) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    acknowledged = 0
    for round_ in range(embedded_kills):
        if round_ % ROUNDS_OF_ONE == 0:
            path, ledger = tmp_path / f"data-{round_}", Ledger()
        run_until_killed(path, dice, ledger)
        with zkv.open(path) as kv:
            ledger.check(kv, f"seed {seed}, round {round_}")
        acknowledged = max(acknowledged, len(ledger.certain))
    assert acknowledged > KEYS // 2, "else nothing was at stake"
