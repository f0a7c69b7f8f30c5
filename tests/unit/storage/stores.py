"""A store without a network: log, table, segments and upkeep over some file system, with jobs that run when the test says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zkv.codec import records
from zkv.core.effects import Mint
from zkv.core.messages import RecordBlock
from zkv.core.request_memory import RequestMemory
from zkv.core.ring import position_of
from zkv.ids import checksum_of
from zkv.storage.files import FileSystem
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions
from zkv.storage.record_table import RecordTable
from zkv.storage.sealed_opening import open_sealed
from zkv.storage.upkeep import Upkeep
from zkv.storage.worker import InlineWorker

SEED = 5
PARTITIONS = 4
SHIFT = 62


class Store:
    def __init__(
        self, files: FileSystem, path: str, *, file_bytes: int = 4096, cache_bytes: int = 1 << 20, **options: Any
    ) -> None:
        self.files = files
        self.path = path
        self.notes: list[str] = []
        self.now_ns = 0
        self.closed = False
        self._sequence = 0
        workers: list[InlineWorker] = []

        def worker(on_wake: object) -> InlineWorker:
            workers.append(InlineWorker(on_wake))  # type: ignore[arg-type]
            return workers[-1]

        self.log, self.recovery = LogStore.open(
            path,
            files,
            options=LogOptions(file_bytes=file_bytes, reserve_bytes=0, **options),
            create=True,
            worker=worker,
        )
        self.syncs = workers[0]
        self.jobs = InlineWorker(lambda: None)
        try:
            self.sealed = open_sealed(
                files,
                path,
                self.log,
                self.recovery,
                partitions=PARTITIONS,
                hash_seed=SEED,
                cache_bytes=cache_bytes,
                note=self._note,
            )
            self.table = RecordTable(
                self.log.open_id, RequestMemory(), lambda key: position_of(key, SEED) >> SHIFT, self.sealed
            )
            for batch in self.recovery.batches():
                self.table.load(records.block_from_log(batch.body))
            self.upkeep = Upkeep(files, path, self.log, self.table, self.sealed, self.jobs, self.jobs, self._note)
        except BaseException:
            self.log.close()
            raise
        self._closed_seq = self.log.closed_seq
        self._session = int.from_bytes(self.log.open_id, "big")

    def _note(self, level: str, event: str, text: str) -> None:
        self.notes.append(f"{level} {event}: {text}")

    def mint(self, values: Mapping[bytes, bytes | None]) -> tuple[RecordBlock, list[int], list[int] | None]:
        self._sequence += 1
        keys = list(values)
        mint = Mint(
            1,
            True,
            keys,
            list(values.values()),
            [checksum_of(value or b"") for value in values.values()],
            [((self._session, self._sequence), list(range(len(keys))))],
            True,
            None,
            None,
            None,
            [1] * len(keys),
            [0] * len(keys),
        )
        return self.table.mint(mint)

    def put(self, values: Mapping[bytes, bytes | None]) -> None:
        """Values that replace whatever is there, None deletes. Durable when it returns."""
        block, _, statuses = self.mint(values)
        assert statuses is None, statuses
        try:
            seq = self.log.append([(len(block), *records.block_to_log(block))]) if len(block) else self.log.written_seq
        except BaseException:
            self.table.roll_back()
            raise
        self.table.commit(seq)
        if self.log.closed_seq > self._closed_seq:
            self._closed_seq = self.log.closed_seq
            self.table.freeze(self._closed_seq)
        self.sync()

    def sync(self) -> None:
        while self.log.durable_seq < self.log.written_seq:
            self.log.request_sync()
            self.syncs.run_pending()
            self.log.drain_completions()

    def turn(self) -> None:
        """One turn of upkeep; jobs that it began have run when it returns."""
        self.upkeep.turn(self.now_ns)
        self.jobs.run_pending()

    def settle(self, turns: int = 10_000) -> None:
        """Turns until nothing is left to do."""
        for _ in range(turns):
            self.turn()
            if self.upkeep.next_due_ns(self.now_ns) is None and not self.table.frozen and not self.jobs.pending:
                return
        raise AssertionError(f"upkeep does not come to an end: {self.notes[-5:]} {len(self.table.frozen)}")

    def get(self, key: bytes) -> bytes | None:
        (versions,), _ = self.table.read([key])
        if versions is None or not versions.siblings:
            return None
        (sibling,) = versions.siblings
        return sibling.value

    def close(self) -> None:
        self.closed = True
        self.sealed.close()
        self.log.close()

    def drop(self) -> None:
        """Let go of the directory as a process does that is killed."""
        if not self.closed:
            self.closed = True
            self.sealed.close()
            self.log._let_go()
