"""A real file system that fails where it is told to, and helpers to make small logs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions
from zkv.storage.recovery import Recovery
from zkv.storage.worker import InlineWorker

STORE_ID = bytes(range(16))


def mint(length: int) -> bytes:
    """Ids that tests can know: a store id of 0..15, open ids of 0..7."""
    return bytes(range(length))


class FaultyFiles(RealFiles):
    """Counts calls by name. `fail("fdatasync")` makes the next one raise; `short` cuts the next writev; `free` overrides free space.

    Syncs do nothing: power is never cut here, and tests run faster.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.synced_directories: list[str] = []
        self.faults: dict[str, list[OSError | None]] = {}
        self.short: int | None = None
        self.free: int | None = None
        self.open_fds: set[int] = set()
        self.fail_at: int | None = None

    def fail(self, name: str, number: int = errno.EIO, after: int = 0, times: int = 1) -> None:
        self.faults[name] = [None] * after + [OSError(number, os.strerror(number)) for _ in range(times)]

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise OSError(errno.EIO, f"call {len(self.calls)} and all after it fail")
        waiting = self.faults.get(name)
        if waiting and (error := waiting.pop(0)) is not None:
            raise error

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        self._called("open")
        fd = super().open(path, write=write, create=create, exclusive=exclusive)
        self.open_fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.open_fds.remove(fd)
        super().close(fd)

    def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        self._called("writev")
        if self.short is not None:
            parts, self.short = [b"".join(parts)[: self.short]], None
        return super().writev(fd, parts, offset)

    def fsync(self, fd: int) -> None:
        self._called("fsync")

    def fdatasync(self, fd: int) -> None:
        assert fd in self.open_fds
        self._called("fdatasync")

    def fsync_dir(self, path: str) -> None:
        self._called("fsync_dir")
        self.synced_directories.append(os.path.basename(path))

    def ftruncate(self, fd: int, length: int) -> None:
        self._called("ftruncate")
        super().ftruncate(fd, length)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._called("posix_fallocate")
        super().posix_fallocate(fd, offset, length)

    def rename(self, source: str, target: str) -> None:
        self._called("rename")
        super().rename(source, target)

    def link(self, source: str, target: str) -> None:
        self._called("link")
        super().link(source, target)

    def unlink(self, path: str) -> None:
        self._called("unlink")
        super().unlink(path)

    def free_bytes(self, path: str) -> int:
        self._called("free_bytes")
        return super().free_bytes(path) if self.free is None else self.free


class Rig:
    """One directory with a store whose syncs end when the test says so."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.files = FaultyFiles()
        self.options = LogOptions(**{"file_bytes": 4096, "reserve_bytes": 0, **options})
        self.store: LogStore
        self.recovery: Recovery
        self.worker: InlineWorker
        self.wakes = 0

    def open(self, **arguments: Any) -> Rig:
        def worker(on_wake: Callable[[], None]) -> InlineWorker:
            self.worker = InlineWorker(on_wake)
            return self.worker

        self.store, self.recovery = LogStore.open(
            str(self.path),
            self.files,
            options=self.options,
            create=True,
            on_wake=self._wake,
            worker=worker,
            **{"mint": mint, **arguments},
        )
        return self

    def _wake(self) -> None:
        self.wakes += 1

    def append(self, *bodies: bytes, records: int = 1, **arguments: bool) -> int:
        return self.store.append([(records, 1, [body]) for body in bodies], **arguments)

    def sync(self) -> int | None:
        self.store.request_sync()
        self.worker.run_pending()
        return self.store.drain_completions()

    def crash(self, target: Path) -> Rig:
        """A copy of the directory as a killed process leaves it, not opened yet."""
        shutil.copytree(self.path, target)
        return Rig(target, **{name: getattr(self.options, name) for name in ("fsync", "file_bytes", "reserve_bytes")})

    @property
    def wal(self) -> list[Path]:
        return sorted((self.path / "wal").iterdir())


def bodies_of(recovery: Recovery) -> dict[int, bytes]:
    """first seq -> body; fails on a seq that comes twice or out of order."""
    found: dict[int, bytes] = {}
    last = 0
    for batch in recovery.batches():
        assert batch.first_seq > last, "batches come in order, each once"
        last = batch.first_seq + batch.record_count - 1
        found[batch.first_seq] = batch.body
    return found


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
