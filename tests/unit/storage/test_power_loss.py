"""Power is cut, or the process killed, after any call, again and again: acknowledged records stay, refused ones never appear."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.storage.faulty import bodies_of
from tests.unit.storage.powerless import PowerCut, PowerlessFiles
from zkv.errors import DiskFull
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions
from zkv.storage.worker import InlineWorker

LIVES = 8
OPTIONS = LogOptions(file_bytes=1500, reserve_bytes=0, mark_interval_ns=1)


class Writer:
    """One machine with one directory. `log` holds what the log must read as up to `acked`, and may read as beyond."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.files = PowerlessFiles(self.dice)
        self.log: dict[int, bytes] = {}
        self.acked = 0
        self.bodies = 0
        self.now_ns = 0

    def live(self) -> None:
        """Open, check, write, until the power is cut or somebody closes."""
        if self.dice.random() < 0.9:
            self.files.cut_after = self.dice.randrange(120)
        try:
            store, worker = self._open()
            for _ in range(self.dice.randrange(60)):
                self._step(store, worker)
            if self.dice.random() < 0.5:
                store.close()
                self.acked = store.durable_seq
        except PowerCut:
            pass
        if self.dice.random() < 0.4:
            self.files.kill()
        else:
            self.files.crash()

    def _open(self) -> tuple[LogStore, InlineWorker]:
        workers: list[InlineWorker] = []

        def worker(on_wake: Callable[[], None]) -> InlineWorker:
            workers.append(InlineWorker(on_wake))
            return workers[0]

        store, recovery = LogStore.open("/d", self.files, options=OPTIONS, create=True, worker=worker)
        found = bodies_of(recovery)
        assert not recovery.degraded, recovery.notes
        assert recovery.last_seq >= self.acked
        assert found == {seq: body for seq, body in self.log.items() if seq <= recovery.last_seq}
        self.log = found
        self.acked = store.durable_seq
        return store, workers[0]

    def _step(self, store: LogStore, worker: InlineWorker) -> None:
        self.now_ns += 1
        choice = self.dice.randrange(10)
        if choice < 5:
            self._append(store)
        elif choice < 7:
            store.turn_done(self.now_ns, False)
        elif choice < 9:
            worker.run_pending()
            self.acked = store.drain_completions() or self.acked
        else:
            store.update_manifest(high_water_stamp=self.now_ns)

    def _append(self, store: LogStore) -> None:
        """Written down before the call: a power cut inside it leaves the outcome open."""
        new: dict[int, bytes] = {}
        seq = store.written_seq
        blocks = []
        for _ in range(self.dice.randrange(1, 4)):
            self.bodies += 1
            body = b"%d " % self.bodies * self.dice.randrange(1, 60)
            blocks.append((2, 1, [body]))
            new[seq + 1] = body
            seq += 2
        self.log.update(new)
        if self.dice.random() < 0.1:
            self.files.full_after = self.dice.randrange(300)
        try:
            store.append(blocks)
        except DiskFull:
            for first_seq in new:
                del self.log[first_seq]


@pytest.mark.parametrize("part", range(8))
def test_power_cut_at_any_call_keeps_what_was_acknowledged(part: int) -> None:
    for seed in range(part * 100, part * 100 + 100):
        writer = Writer(seed)
        for life in range(LIVES):
            try:
                writer.live()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, life {life}") from error
