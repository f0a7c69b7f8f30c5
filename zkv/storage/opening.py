"""From a path to a log that can be written: lock, manifest, recovery, a new generation.

Owns: the order of these steps, LOCK, quarantine/, the emptying of tmp/, what is removed after a recovery. Must not
know: appends, syncs, policies beyond their names.

Invariants: nothing is changed before the lock is held; nothing is removed before the new generation and the manifest
are on disk, and nothing at all after damage; a log file of an earlier opening is never written again; whatever
recovery returned is on disk when `open_directory` returns, because records above the watermark are copied into the
new generation and synced (the page cache may show what a failed sync never wrote). Source: storage reference, 6.1,
6.6 and 6.9.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from zkv.codec.log import (
    FILE_HEADER_BYTES,
    SEQ_MAX,
    Batch,
    FileHeader,
    Run,
    chain_seed,
    encode_batch_header,
    encode_file_header,
    offset_of_seq,
    read_batches,
)
from zkv.errors import ConfigError, CorruptData, DiskFull, StorageError, StoreLocked
from zkv.ids import OPEN_ID_BYTES, StoreId
from zkv.storage.adopting import adopt_segments
from zkv.storage.files import FileSystem, read_whole, write_whole
from zkv.storage.manifest import MANIFEST, MANIFEST_PREV, STORE_ID_BYTES, TMP, Manifest, load_manifest, save_manifest
from zkv.storage.recovery import WAL, Kept, LogFile, Recovery, list_log_files, log_name, recover

LOCK: Final = "LOCK"
QUARANTINE: Final = "quarantine"
SEGMENTS: Final = "seg"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: posix_fallocate on a file system that cannot
_CANNOT_ALLOCATE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}) | _FULL


def segment_name(segment_id: int) -> str:
    return f"{segment_id:016x}.seg"


def segment_path(path: str, segment_id: int) -> str:
    return f"{path}/{SEGMENTS}/{segment_name(segment_id)}"


@dataclass(frozen=True, slots=True)
class LogOptions:
    fsync: str = "group"
    #: policy "interval": the longest time that an acknowledged write may lie in the page cache only
    fsync_interval_ns: int = 100_000_000
    #: a file is full when the next append would pass this
    file_bytes: int = 64 * 1024 * 1024
    #: puts are refused when less than this is free, so that deletes and clean-up still find room
    reserve_bytes: int = 64 * 1024 * 1024
    #: ask the file system for its free space at most once in so many appends (or half a reserve of bytes)
    reserve_check_appends: int = 64
    #: an idle log records its durable mark this long after the last one
    mark_interval_ns: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.fsync not in ("group", "interval", "never"):
            raise ConfigError(f"fsync is {self.fsync!r}; it must be group, interval or never")


@dataclass(slots=True)
class WriteFile:
    """A log file that this process writes. `offset` is the end of its last good batch."""

    fd: int
    name: str
    generation: int
    first_seq: int
    seed: int
    prev_crc: int
    offset: int


@dataclass(slots=True)
class Opened:
    lock_fd: int
    manifest: Manifest
    recovery: Recovery
    file: WriteFile


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


@contextmanager
def as_storage_errors(path: str) -> Iterator[None]:
    """OSError becomes the storage error that says what the caller can do."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"{path}: {error}") from error
        raise StorageError(f"{path}: {error}") from error


def open_directory(
    files: FileSystem,
    path: str,
    options: LogOptions,
    create: bool,
    mint: Callable[[int], bytes],
    accept: Callable[[Manifest | None], None] = lambda manifest: None,
) -> Opened:
    """accept: looks at the manifest (None: there is no store yet) and raises if this is not what its caller wants to open.

    Raises: StoreLocked, ConfigError (no store there, or no directory), CorruptData (no manifest can be read), VersionMismatch,
    and what `accept` raises, all with nothing changed; DiskFull, StorageError."""
    with ExitStack() as undo, as_storage_errors(path):
        _check_places(files, path)
        if not _holds_store(files, path):
            if not create:
                raise ConfigError(f"{path} holds no zkv store")
            accept(None)
            _make_directory(files, path)
        lock_fd, holder_before = _lock(files, path)
        undo.callback(files.close, lock_fd)
        try:
            found = _find_manifest(files, path)
            accept(found[0] if found else None)
            not_adopted: list[str] = []
            if found and found[1]:
                manifest, not_adopted = adopt_segments(files, f"{path}/{SEGMENTS}", found[0])
                found = manifest, True
            recovery = recover(files, path, found[0]) if found else None
        except BaseException:
            _write_holder(files, lock_fd, holder_before)
            raise
        _make_directory(files, path, TMP, WAL, SEGMENTS, QUARANTINE)
        if recovery is None:
            manifest = Manifest(store_id=StoreId(mint(STORE_ID_BYTES)), clean_shutdown=True)
            save_manifest(files, path, manifest)
            recovery = recover(files, path, manifest)
        for name in files.listdir(f"{path}/{TMP}"):
            files.unlink(f"{path}/{TMP}/{name}")
        recovery.notes.extend(f"{SEGMENTS}/{text}; it does not count" for text in not_adopted)
        recovery.created = found is None
        recovery.manifest_fell_back = found is not None and found[1]
        recovery.clean_shutdown = recovery.manifest.clean_shutdown and not recovery.manifest_fell_back
        _quarantine(recovery)
        _explain(recovery)
        file = _begin_generation(recovery, options)
        undo.callback(files.close, file.fd)
        manifest = _opened_manifest(recovery, options, mint(OPEN_ID_BYTES))
        save_manifest(files, path, manifest)
        recovery.manifest = manifest
        if not recovery.degraded and not recovery.damaged_files:
            _tidy(recovery, file)
        undo.pop_all()
        return Opened(lock_fd, manifest, recovery, file)


def _check_places(files: FileSystem, path: str) -> None:
    """What must be a directory, if it is there, is one."""
    place = os.path.abspath(path)
    while not files.is_directory(place):
        parent, name = os.path.split(place)
        if files.is_directory(parent) and name in files.listdir(parent):
            raise ConfigError(
                f"{path}: {place} is not a directory (a file, or a link to nothing); choose another --data"
            )
        if parent == place:
            break
        place = parent
    if files.is_directory(path):
        for name in files.listdir(path):
            if name in (TMP, WAL, SEGMENTS, QUARANTINE) and not files.is_directory(f"{path}/{name}"):
                raise ConfigError(
                    f"{path}/{name} is not a directory: {path} is no data directory, or was changed by hand"
                )
            if name in (LOCK, MANIFEST, MANIFEST_PREV) and files.is_directory(f"{path}/{name}"):
                raise ConfigError(f"{path}/{name} is a directory: {path} is no data directory, or was changed by hand")


def _holds_store(files: FileSystem, path: str) -> bool:
    if not files.is_directory(path):
        return False
    names = files.listdir(path)
    return MANIFEST in names or MANIFEST_PREV in names or (WAL in names and bool(files.listdir(f"{path}/{WAL}")))


def _make_directory(files: FileSystem, path: str, *names: str) -> None:
    """With names: these below `path`. Without: `path` and what is missing above it."""
    for name in names:
        if not files.is_directory(f"{path}/{name}"):
            files.mkdir(f"{path}/{name}")
            files.fsync_dir(path)
    if not names and not files.is_directory(path):
        parent = os.path.dirname(os.path.abspath(path))
        _make_directory(files, parent)
        files.mkdir(path)
        files.fsync_dir(parent)


def _lock(files: FileSystem, path: str) -> tuple[int, bytes]:
    """(descriptor, what stood in the file). The lock is the flock; the number inside is a courtesy for the message and never trusted."""
    fd = files.open(f"{path}/{LOCK}", write=True, create=True)
    try:
        before = files.pread(fd, 20, 0)
        if not files.flock(fd):
            pid = before.strip().decode("ascii", "replace")
            raise StoreLocked(f"{path}: directory in use by pid {pid if pid.isdigit() else 'unknown'}")
        _write_holder(files, fd, f"{os.getpid()}\n".encode())
    except BaseException:
        files.close(fd)
        raise
    return fd, before


def _write_holder(files: FileSystem, fd: int, text: bytes) -> None:
    files.ftruncate(fd, 0)
    write_whole(files, fd, text)


def _find_manifest(files: FileSystem, path: str) -> tuple[Manifest, bool] | None:
    """(manifest, fell back), or None where there is no store. Changes nothing."""
    try:
        return load_manifest(files, path)
    except FileNotFoundError:
        found, _strange = list_log_files(files, path)
        if found:
            raise CorruptData(
                f"{path} has {len(found)} log files but no {MANIFEST}. Nothing was changed. Run `zkv repair {path}`"
            ) from None
    return None


def _opened_manifest(recovery: Recovery, options: LogOptions, open_id: bytes) -> Manifest:
    """Unsynced: after damage, and after a crash in which acknowledged writes may have been in memory only."""
    before = recovery.manifest
    lost_writes = not recovery.clean_shutdown and before.fsync != "group"
    corrupt = tuple((lost.first_seq, lost.last_seq) for lost in recovery.corrupt)
    # Known damage was reported and, if `unsynced` was taken back since, made good from elsewhere.
    news = recovery.manifest_fell_back or any(seqs not in before.known_corrupt for seqs in corrupt)
    return replace(
        before,
        clean_shutdown=False,
        durable_seq=recovery.last_seq,
        unsynced=before.unsynced or news or lost_writes,
        fsync=options.fsync,
        open_ids=(*before.open_ids, open_id),
        known_corrupt=corrupt,
    )


def _explain(recovery: Recovery) -> None:
    if recovery.manifest_fell_back:
        recovery.notes.append(f"{MANIFEST} is damaged or gone; {MANIFEST_PREV} stands in and may be old")
    for name, offset, first_seq, last_seq in recovery.corrupt:
        where = f"{WAL}/{name} from byte {offset}" if name else "a log file that is gone"
        recovery.notes.append(f"durable records {first_seq} to {last_seq} cannot be read: {where}")
    if recovery.torn_bytes:
        recovery.notes.append(
            f"{recovery.torn_bytes} bytes after record {recovery.last_seq} were never promised; left out"
        )


def _quarantine(recovery: Recovery) -> None:
    """A second name for each damaged file: log files are never written again, so the bytes stay as they were found."""
    files, path = recovery.files, recovery.path
    have = files.listdir(f"{path}/{QUARANTINE}")
    for name in recovery.damaged_files:
        if name in have:
            continue
        try:
            files.link(f"{path}/{WAL}/{name}", f"{path}/{QUARANTINE}/{name}")
        except OSError as error:
            recovery.notes.append(f"{WAL}/{name} is damaged and could not be linked into {QUARANTINE}/: {error}")
    if recovery.damaged_files:
        files.fsync_dir(f"{path}/{QUARANTINE}")


# --- the new generation ----------------------------------------------------------


def allocate(files: FileSystem, path: str, fd: int, options: LogOptions) -> None:
    """Preallocates one log file, unless that would eat the reserve. A file without it works the same, only slower."""
    if files.free_bytes(path) < options.file_bytes + options.reserve_bytes:
        return
    try:
        files.posix_fallocate(fd, 0, options.file_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_ALLOCATE:
            raise
        files.ftruncate(fd, 0)


def _begin_generation(recovery: Recovery, options: LogOptions) -> WriteFile:
    """A new file with everything above the watermark in it, complete and synced before it gets its name."""
    files, path = recovery.files, recovery.path
    store_id = recovery.manifest.store_id
    tail = _take_tail(recovery)
    first_seq = tail[0].first_seq if tail else recovery.last_seq + 1
    generation = max((file.generation for file in recovery.log_files), default=0) + 1
    name = log_name(generation, first_seq)
    seed = chain_seed(store_id, generation, first_seq)
    fresh = f"{path}/{TMP}/{name}"
    fd = files.open(fresh, write=True, create=True, exclusive=True)
    try:
        allocate(files, path, fd, options)
        write_whole(files, fd, encode_file_header(FileHeader(store_id, generation, first_seq, first_seq - 1)))
        file = WriteFile(fd, name, generation, first_seq, seed, seed, FILE_HEADER_BYTES)
        for batch in tail:
            header, batch_bytes, crc = encode_batch_header(
                [batch.body], batch.record_count, batch.codec, batch.first_seq, first_seq - 1, file.prev_crc, seed
            )
            write_whole(files, fd, header + batch.body, file.offset)
            file.offset += batch_bytes
            file.prev_crc = crc
        files.fsync(fd)
        files.rename(fresh, f"{path}/{WAL}/{name}")
        files.fsync_dir(f"{path}/{WAL}")
    except BaseException:
        files.close(fd)
        raise
    if tail:
        run = Run(FILE_HEADER_BYTES, file.offset, first_seq, recovery.last_seq + 1, True)
        recovery.kept.append(Kept(LogFile(name, generation, first_seq, SEQ_MAX), run))
    return file


def _take_tail(recovery: Recovery) -> list[Batch]:
    """Cuts what is above the watermark off `kept` and returns it."""
    tail: list[Batch] = []
    kept: list[Kept] = []
    for file, run in recovery.kept:
        if run.next_seq - 1 <= recovery.watermark:
            kept.append(Kept(file, run))
            continue
        data = read_whole(recovery.files, f"{recovery.path}/{WAL}/{file.name}")[run.offset : run.end]
        seed = chain_seed(recovery.manifest.store_id, file.generation, file.first_seq)
        cut = offset_of_seq(data, seed, recovery.watermark + 1)
        tail.extend(read_batches(data[cut:], seed))
        if cut:
            next_seq = recovery.watermark + 1
            kept.append(Kept(file, run._replace(end=run.offset + cut, next_seq=next_seq)))
    recovery.kept = kept
    return tail


def _tidy(recovery: Recovery, current: WriteFile) -> None:
    """Gives back space that holds nothing: files that the new generation took over whole or that are sealed, and preallocated rests.

    A torn tail holds nothing that anybody was promised; all the same its file stays until the opening after this one.
    """
    files, path = recovery.files, recovery.path
    for file in recovery.log_files:
        name = f"{path}/{WAL}/{file.name}"
        if min(file.limit_seq, current.first_seq) <= file.first_seq:
            if not recovery.torn_bytes:
                files.unlink(name)
        elif file.limit_seq <= recovery.manifest.wal_floor:
            files.unlink(name)
        elif (used_bytes := recovery.used_bytes.get(file.name)) is not None:
            fd = files.open(name, write=True)
            try:
                if files.size(fd) > used_bytes:
                    files.ftruncate(fd, used_bytes)
            finally:
                files.close(fd)
