"""The write-ahead log of one directory: appends, group commit, rotation.

Owns: the file being written, sequence numbers, what is durable, the policy of when to sync. Must not know: what a
record is (a body is opaque bytes), versions, requests, the event loop.

One owner thread calls everything; a worker thread runs at most one sync at a time. Invariants: `durable_seq` grows
only after fdatasync of every byte up to it, and fsync of the directory that names its file, returned without error;
seqs are consecutive from 1; an append is in the log whole or not at all; after any failure that leaves a doubt the
store is dead: every call raises StorageFailed, nothing is retried, and no seq is given out again by this process. A
restart begins a new generation (storage/opening). Full files stay in wal/ and recovery reads them all from `wal_floor`
of the manifest on. Who seals them takes `closed_files`, puts their records elsewhere, raises `wal_floor` by
`update_manifest`, and only then says `drop_closed`. Source: storage reference, 6.2 and 6.9.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from zkv.codec.log import (
    BATCH_HEADER_BYTES,
    COUNT_MAX,
    FILE_HEADER_BYTES,
    MARK_CODEC,
    FileHeader,
    chain_seed,
    encode_batch_header,
    encode_file_header,
)
from zkv.counters import Histogram
from zkv.errors import DiskFull, StorageFailed
from zkv.storage.files import IOV_MAX, FileSystem, write_whole
from zkv.storage.log_jobs import NEXT, PrepareJob, SyncJob
from zkv.storage.manifest import TMP, Manifest, save_manifest
from zkv.storage.opening import LogOptions, Opened, WriteFile, is_full, open_directory
from zkv.storage.recovery import WAL, LogFile, Recovery, log_name
from zkv.storage.space import SpaceGuard
from zkv.storage.worker import ThreadWorker, Worker

#: (records in it, codec id, parts of the body)
Block = tuple[int, int, Sequence[bytes]]

#: the next file is made when this share of the current one is used
_PREPARE_AT: Final = 0.5
#: one writev carries less than 2 GiB; a turn has some MiB
_APPEND_BYTES_MAX: Final = 1 << 30


def _nobody() -> None:
    """The wake-up of an owner that only polls."""


class LogStore:
    """Made by `open`. See the module for who may call and what holds."""

    __slots__ = (
        "_closed",
        "_closed_files",
        "_dirty_since_ns",
        "_durable_seq",
        "_failure",
        "_file",
        "_files",
        "_full_fds",
        "_lock_fd",
        "_manifest",
        "_mark_due_ns",
        "_marked_seq",
        "_new_name",
        "_options",
        "_path",
        "_prepare",
        "_prepared_fd",
        "_space",
        "_sync",
        "_sync_again",
        "_worker",
        "_written_seq",
        "appended_bytes",
        "appends",
        "sync_durations",
    )

    def __init__(self, files: FileSystem, path: str, options: LogOptions, opened: Opened, worker: Worker) -> None:
        last_seq = opened.recovery.last_seq
        self._files = files
        self._path = path
        self._options = options
        self._worker = worker
        self._lock_fd = opened.lock_fd
        self._manifest = opened.manifest
        self._file = opened.file
        self._written_seq = last_seq
        self._durable_seq = last_seq
        self._marked_seq = last_seq
        self._mark_due_ns: int | None = None
        self._dirty_since_ns: int | None = None
        #: files that were filled but whose last sync is still to come
        self._full_fds: list[int] = []
        #: the current file has a name that no directory fsync has covered
        self._new_name = False
        self._sync: SyncJob | None = None
        self._sync_again = False
        self._prepare: PrepareJob | None = None
        self._prepared_fd = -1
        self._space = SpaceGuard(files, path, options.reserve_bytes, options.reserve_check_appends)
        self._failure: StorageFailed | None = None
        self._closed = False
        #: files that are not written any more and that recovery reads, in order of seq
        self._closed_files = list(
            dict.fromkeys(kept.file for kept in opened.recovery.kept if kept.file.name != self._file.name)
        )
        self.appends = 0
        self.appended_bytes = 0
        self.sync_durations = Histogram()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        files: FileSystem,
        *,
        options: LogOptions | None = None,
        create: bool = False,
        on_wake: Callable[[], None] = _nobody,
        worker: Callable[[Callable[[], None]], Worker] = ThreadWorker,
        mint: Callable[[int], bytes] = os.urandom,
        accept: Callable[[Manifest | None], None] = lambda manifest: None,
    ) -> tuple[LogStore, Recovery]:
        """Locks, recovers, begins a new file. Everything in the recovery is on disk by then.

        `accept` may refuse what stands in the manifest (None: a new store) before anything is changed.

        `on_wake` is called from the worker's thread when `drain_completions` has something. `mint` gives random bytes
        (store and open ids). Raises: StoreLocked, ConfigError (no store there and not `create`), CorruptData (no
        readable manifest), VersionMismatch, DiskFull, StorageError.
        """
        options = options or LogOptions()
        opened = open_directory(files, os.fspath(path), options, create, mint, accept)
        return cls(files, os.fspath(path), options, opened, worker(on_wake)), opened.recovery

    @property
    def written_seq(self) -> int:
        return self._written_seq

    @property
    def durable_seq(self) -> int:
        return self._durable_seq

    @property
    def closed_seq(self) -> int:
        """The last seq before the file that is written now: a sealer may take everything up to here."""
        return self._file.first_seq - 1

    @property
    def busy_since_ns(self) -> int:
        """When the file call began that the worker is in, 0 if it is in none. From any thread."""
        return self._worker.busy_since_ns

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def open_id(self) -> bytes:
        """Drawn at this opening and on disk since."""
        return self._manifest.open_ids[-1]

    # --- writing ----------------------------------------------------------

    def append(self, blocks: Sequence[Block], *, allow_reserve: bool = False) -> int:
        """Write all blocks with one call; the last seq given out. Not durable yet: see `request_sync`.

        Raises: DiskFull (definite: nothing of it is kept; later appends work when there is space again;
        `allow_reserve` may use the reserve, which is for deletes), StorageFailed.
        """
        self._check_alive()
        if not blocks:
            return self._written_seq
        self._check_space(allow_reserve)
        total = BATCH_HEADER_BYTES * len(blocks)
        for _count, _codec, body in blocks:
            total += sum(map(len, body))
        assert total <= _APPEND_BYTES_MAX, f"an append of {total} bytes"
        if self._file.offset + total > self._options.file_bytes and self._file.offset > FILE_HEADER_BYTES:
            self._rotate()
        return self._write(blocks)

    def _write(self, blocks: Sequence[Block]) -> int:
        file = self._file
        seq = self._written_seq
        prev_crc = file.prev_crc
        parts: list[bytes] = []
        total = 0
        for count, codec, body in blocks:
            assert count <= COUNT_MAX and (count > 0 or codec == MARK_CODEC), f"a batch of {count} records"
            header, batch_bytes, prev_crc = encode_batch_header(
                body, count, codec, seq + 1, self._durable_seq, prev_crc, file.seed
            )
            parts.append(header)
            parts.extend(body)
            total += batch_bytes
            seq += count
        if len(parts) > IOV_MAX:
            parts = [b"".join(parts)]
        try:
            written = self._files.writev(file.fd, parts, file.offset)
        except OSError as error:
            raise self._cut(error, 0, total) from error
        if written != total:
            raise self._cut(None, written, total)
        file.offset += total
        file.prev_crc = prev_crc
        self._written_seq = seq
        self.appends += 1
        self.appended_bytes += total
        self._marked_seq = self._durable_seq
        self._space.written(total)
        if self._prepare is None and self._prepared_fd < 0 and file.offset > self._options.file_bytes * _PREPARE_AT:
            self._begin_prepare()
        return seq

    def _cut(self, error: OSError | None, written: int, total: int) -> DiskFull | StorageFailed:
        """Take an append that went out in part off the file again, for good, before anybody is told that it failed.

        The cut itself must be on disk: without that a power loss could bring back the batches in front of the missing
        part.
        """
        if error is not None and not is_full(error):
            return self._die(f"append failed: {error}")
        try:
            self._files.ftruncate(self._file.fd, self._file.offset)
            self._wait_for_sync()
            self._files.fdatasync(self._file.fd)
        except OSError as broken:
            return self._die(f"an append went out in part and could not be cut off: {broken}")
        self._space.ask_soon()
        return DiskFull(f"{self._path}: {written} of {total} bytes could be written; nothing of it is kept")

    def _wait_for_sync(self) -> None:
        """Never two syncs at a time: the kernel reports an error to one of them only."""
        if self._sync is not None:
            self._worker.wait(self._sync)
            if self._sync.error is not None:
                raise OSError(f"the sync under way failed: {self._sync.error}")

    def _check_space(self, allow_reserve: bool) -> None:
        try:
            self._space.check(allow_reserve)
        except OSError as error:
            raise self._die(f"cannot ask for free space: {error}") from error

    # --- rotation ----------------------------------------------------------

    def _begin_prepare(self) -> None:
        self._prepare = PrepareJob(self._files, self._path, self._options)
        self._worker.submit(self._prepare)

    def _rotate(self) -> None:
        """The next file takes over. Its name and the rest of this one become durable with the next sync.

        Steps: header into the file in tmp/, rename, switch. A crash between leaves nothing that recovery reads.
        Raises: DiskFull (the current file stays, the next append tries again), StorageFailed.
        """
        first_seq = self._written_seq + 1
        generation = self._file.generation
        name = log_name(generation, first_seq)
        seed = chain_seed(self._manifest.store_id, generation, first_seq)
        header = encode_file_header(FileHeader(self._manifest.store_id, generation, first_seq, self._durable_seq))
        try:
            fd = self._take_prepared()
            write_whole(self._files, fd, header)
            self._files.rename(f"{self._path}/{TMP}/{NEXT}", f"{self._path}/{WAL}/{name}")
        except OSError as error:
            if not is_full(error):
                raise self._die(f"cannot begin the next log file: {error}") from error
            raise DiskFull(f"{self._path}: no space for the next log file: {error}") from error
        self._prepared_fd = -1
        self._full_fds.append(self._file.fd)
        self._closed_files.append(LogFile(self._file.name, self._file.generation, self._file.first_seq, first_seq))
        self._file = WriteFile(fd, name, generation, first_seq, seed, seed, FILE_HEADER_BYTES)
        self._new_name = True
        self._space.ask_soon()
        self.request_sync()

    def _take_prepared(self) -> int:
        """The file in tmp/; made now if the worker has not got to it or could not."""
        if self._prepare is not None:
            self._worker.wait(self._prepare)
            self._prepared(self._prepare)
        if self._prepared_fd < 0:
            job = PrepareJob(self._files, self._path, self._options)
            job.run()
            self._prepared_fd = job.fd
        return self._prepared_fd

    def _prepared(self, job: PrepareJob) -> None:
        """Without success there is no file yet, and the rotation tries again, where an error counts."""
        if self._prepare is job:
            self._prepare = None
            self._prepared_fd = job.fd

    # --- durability ----------------------------------------------------------

    def request_sync(self) -> None:
        """What is written now becomes durable soon; asked again meanwhile, the rest is the next group. Raises:
        StorageFailed."""
        self._check_alive()
        if self._sync is not None:
            self._sync_again = self._sync_again or self._written_seq > self._sync.seq or bool(self._full_fds)
            self._dirty_since_ns = None
        elif self._written_seq > self._durable_seq or self._full_fds:
            self._begin_sync()

    def _begin_sync(self) -> None:
        directory = f"{self._path}/{WAL}" if self._new_name else None
        self._sync = SyncJob(self._files, self._written_seq, self._full_fds, directory, self._file.fd)
        self._sync_again = False
        self._full_fds = []
        self._new_name = False
        self._dirty_since_ns = None
        self._worker.submit(self._sync)

    def drain_completions(self) -> int | None:
        """The new `durable_seq` if it grew since the last call. Begins the next group if one is wanted. Raises:
        StorageFailed."""
        self._check_alive()
        before = self._durable_seq
        for job in self._worker.completed():
            if isinstance(job, PrepareJob):
                self._prepared(job)
            elif isinstance(job, SyncJob):
                self._synced(job)
        if self._sync is None and self._sync_again:
            self._begin_sync()
        return self._durable_seq if self._durable_seq > before else None

    def _synced(self, job: SyncJob) -> None:
        if job.error is not None:
            raise self._die(f"a sync failed, so nobody knows what is on disk: {job.error}") from job.error
        self._sync = None
        self._durable_seq = job.seq
        self.sync_durations.observe(job.took_ns)

    def turn_done(self, now_ns: int, durable_wanted: bool) -> None:
        """The owner wrote what it had: decide by policy whether to sync. `durable_wanted`: somebody waits for this
        turn's writes to be durable.

        Raises: StorageFailed.
        """
        self._check_alive()
        policy = self._options.fsync
        if self._written_seq > (self._durable_seq if self._sync is None else self._sync.seq):
            if self._dirty_since_ns is None:
                self._dirty_since_ns = now_ns
            due = policy == "interval" and now_ns - self._dirty_since_ns >= self._options.fsync_interval_ns
            if durable_wanted or policy == "group" or due:
                self.request_sync()
        elif self._idle_unmarked():
            self._mark(now_ns)

    def _mark(self, now_ns: int) -> None:
        """An idle log writes down how much of it is durable: what comes after a mark is a torn tail if it is damaged,
        what is before is not."""
        if self._mark_due_ns is None:
            self._mark_due_ns = now_ns + self._options.mark_interval_ns
        elif now_ns >= self._mark_due_ns:
            self._mark_due_ns = None
            # Full: a mark is worth less than the space of a delete; the next idle moment tries again.
            with suppress(DiskFull):
                self._write([(0, MARK_CODEC, ())])

    def next_sync_due_ns(self, now_ns: int) -> int | None:
        """When `turn_done` should be called though nothing happened; None: not before the next append or completion."""
        if self._dirty_since_ns is not None and self._options.fsync == "interval":
            return max(now_ns, self._dirty_since_ns + self._options.fsync_interval_ns)
        if self._mark_due_ns is None or not self._idle_unmarked():
            return None
        return max(now_ns, self._mark_due_ns)

    def _idle_unmarked(self) -> bool:
        return self._written_seq == self._durable_seq > self._marked_seq

    # --- what is sealed ----------------------------------------------------------

    def closed_files(self, through_seq: int) -> list[LogFile]:
        """The files that hold the records up to `through_seq`, where one of them ends. Durable only as far as `durable_seq` says."""
        following = [*(file.first_seq for file in self._closed_files[1:]), self._file.first_seq]
        return [
            file._replace(limit_seq=min(file.limit_seq, next_seq))  # beyond it lies what a recovery left out
            for file, next_seq in zip(self._closed_files, following, strict=True)
            if file.first_seq <= through_seq
        ]

    def drop_closed(self, through_seq: int) -> list[str]:
        """Unlink the files of these runs, which the manifest does not need any more; what could not be unlinked and why.

        Such a file is in nobody's way: the next opening tries again.
        """
        trouble = []
        gone = self.closed_files(through_seq)
        del self._closed_files[: len(gone)]
        for file in gone:
            try:
                self._files.unlink(f"{self._path}/{WAL}/{file.name}")
            except OSError as error:
                trouble.append(f"{WAL}/{file.name}: {error}")
        self._space.ask_soon()
        return trouble

    # --- manifest and end ----------------------------------------------------------

    def update_manifest(self, **changes: Any) -> Manifest:
        """Fields of Manifest by name, in force and on disk when it returns (about 1.5 ms). Raises: StorageFailed,
        DiskFull (the old one stays)."""
        self._check_alive()
        manifest = replace(self._manifest, durable_seq=max(self._durable_seq, self._manifest.durable_seq))
        manifest = replace(manifest, **changes)
        try:
            save_manifest(self._files, self._path, manifest)
        except OSError as error:
            if is_full(error):
                raise DiskFull(f"{self._path}: no space for the manifest: {error}") from error
            raise self._die(f"cannot replace the manifest: {error}") from error
        self._manifest = manifest
        return manifest

    def close(self) -> None:
        """Sync everything and mark the shutdown as clean; after a failure only let go. Raises: StorageFailed,
        DiskFull (it was not clean)."""
        if self._closed:
            return
        self._closed = True
        self._worker.stop()
        try:
            if self._failure is None:
                self._finish()
        finally:
            self._let_go()
            if self._failure is None:
                self._failure = StorageFailed(f"{self._path}: the log is closed")

    def abandon(self, why: str) -> None:
        """Let go of the directory as it is, synced or not, as a crash would. For an owner that cannot vouch for what it did, and for a forked
        child, which must not keep its parent's lock."""
        if not self._closed:
            self._die(why)
            self.close()

    def _finish(self) -> None:
        self._sync_again = False
        self.drain_completions()
        job = SyncJob(self._files, self._written_seq, self._full_fds, f"{self._path}/{WAL}", self._file.fd)
        self._full_fds = []
        self._sync = job
        try:
            self._files.ftruncate(self._file.fd, self._file.offset)
            job.run()
        except OSError as error:
            raise self._die(f"the last sync failed: {error}") from error
        self._durable_seq = self._written_seq
        self.update_manifest(clean_shutdown=True, durable_seq=self._durable_seq)

    def _let_go(self) -> None:
        fds = [self._file.fd, *self._full_fds, *(self._sync.full_fds if self._sync is not None else ())]
        if self._prepare is not None:
            self._prepared(self._prepare)
        if self._prepared_fd >= 0:
            fds.append(self._prepared_fd)
        for fd in (*fds, self._lock_fd):
            self._files.close(fd)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise StorageFailed(str(self._failure))

    def _die(self, why: str) -> StorageFailed:
        self._failure = StorageFailed(
            f"{self._path}: {why}. The store takes nothing more; restart to recover from the log"
        )
        return self._failure
