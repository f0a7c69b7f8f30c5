"""What of a log is left: reads every file, tells a torn tail from damage to durable data, and keeps all that may be
kept.

Owns: names and order of log files, the verdict on every break. Changes nothing on disk. Must not know: what a batch
body means, how the log is written on (storage/opening, storage/log_store).

How it judges. Log files are sorted by (generation, first seq); each opening of a directory begins a new generation. A
later file takes over at its first seq: what an earlier one holds from there on was judged lost, or copied, by an
earlier recovery and is not looked at. The *watermark* is the highest durable mark of any header that verifies, of any
file header, and of the manifest. A break at seq s with watermark >= s is damage to durable data: noted, and every
later batch that verifies is kept. With watermark < s nobody was promised anything from s on: a torn tail, the log
ends there. Invariants: batches come out in order of seq, each once, each verified; nothing at or below the watermark
is left out without standing in `corrupt`. Source: storage reference, 6.6; rows 7, 8, 10 of section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from zkv.codec.log import (
    FILE_HEADER_BYTES,
    SEQ_MAX,
    Batch,
    FileHeader,
    Run,
    Scan,
    chain_seed,
    decode_file_header,
    read_batches,
    scan_file,
)
from zkv.errors import CorruptData, VersionMismatch
from zkv.storage.files import FileSystem, read_whole
from zkv.storage.manifest import Manifest

WAL: Final = "wal"
_SUFFIX: Final = ".wal"


class LogFile(NamedTuple):
    """Owns the seqs from `first_seq` up to, not including, `limit_seq`; none when a later file took over all of it."""

    name: str
    generation: int
    first_seq: int
    limit_seq: int

    @property
    def superseded(self) -> bool:
        return self.limit_seq <= self.first_seq


class CorruptRange(NamedTuple):
    """Durable records that cannot be read. `file` is where they should be ("": that file is gone), `offset` where in
    it the readable part before them ends."""

    file: str
    offset: int
    first_seq: int
    last_seq: int


class Kept(NamedTuple):
    """A run that is part of the recovered log, and the file it lies in."""

    file: LogFile
    run: Run


@dataclass(slots=True)
class Recovery:
    """What `LogStore.open` found. `batches` may be read any number of times, also while the store is being written."""

    files: FileSystem
    path: str
    manifest: Manifest
    #: the directory was made by this opening
    created: bool = False
    #: the last process closed the store
    clean_shutdown: bool = True
    #: MANIFEST was damaged or gone; MANIFEST.prev stood in
    manifest_fell_back: bool = False
    #: the last seq in use, 0 for an empty log; the next record gets the one after it
    last_seq: int = 0
    watermark: int = 0
    #: bytes after the end of the log that nobody was promised
    torn_bytes: int = 0
    corrupt: list[CorruptRange] = field(default_factory=list)
    #: log files in which a byte is wrong; copies of them are in quarantine/
    damaged_files: list[str] = field(default_factory=list)
    #: sealed segments that the manifest names and that cannot be opened
    lost_segments: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    log_files: list[LogFile] = field(default_factory=list)
    #: name -> where the preallocated rest begins, for files that were read
    used_bytes: dict[str, int] = field(default_factory=dict)
    #: sentences for the log of the node
    notes: list[str] = field(default_factory=list)

    @property
    def degraded(self) -> bool:
        """Durable records are missing, or may be: nothing that this store does not have counts as absent."""
        return bool(self.corrupt or self.lost_segments) or self.manifest_fell_back

    def batches(self) -> Iterator[Batch]:
        """Every kept batch in order, marks left out. Raises: CorruptData if a file changed since, OSError."""
        floor = self.manifest.wal_floor
        for file, run in self.kept:
            seed = chain_seed(self.manifest.store_id, file.generation, file.first_seq)
            fd = self.files.open(f"{self.path}/{WAL}/{file.name}")
            try:
                data = self.files.pread(fd, run.end - run.offset, run.offset)
            finally:
                self.files.close(fd)
            if len(data) != run.end - run.offset:
                raise CorruptData(f"{file.name} became shorter while it was read")
            for batch in read_batches(data, seed):
                if batch.first_seq + batch.record_count > floor:
                    yield batch


def log_name(generation: int, first_seq: int) -> str:
    return f"{generation:08x}-{first_seq:016x}{_SUFFIX}"


def list_log_files(files: FileSystem, path: str) -> tuple[list[LogFile], list[str]]:
    """(log files in order, other names found there)."""
    names: list[tuple[int, int, str]] = []
    strange: list[str] = []
    for name in files.listdir(f"{path}/{WAL}") if files.is_directory(f"{path}/{WAL}") else ():
        try:
            generation, first_seq = (int(part, 16) for part in name.removesuffix(_SUFFIX).split("-"))
        except ValueError:
            strange.append(name)
            continue
        if name == log_name(generation, first_seq):
            names.append((generation, first_seq, name))
        else:
            strange.append(name)
    limit_seq = SEQ_MAX
    found: list[LogFile] = []
    for generation, first_seq, name in sorted(names, reverse=True):
        found.append(LogFile(name, generation, first_seq, limit_seq))
        limit_seq = min(limit_seq, first_seq)
    found.reverse()
    return found, strange


def recover(files: FileSystem, path: str, manifest: Manifest) -> Recovery:
    """Reads the whole log once. Raises: VersionMismatch, OSError (nothing was changed)."""
    log_files, strange = list_log_files(files, path)
    recovery = Recovery(files, path, manifest, log_files=log_files)
    recovery.watermark = max(manifest.durable_seq, manifest.wal_floor - 1)
    recovery.notes.extend(f"{WAL}/{name} is not a log file; left alone" for name in strange)
    needed = [file for file in log_files if not file.superseded and file.limit_seq > manifest.wal_floor]
    _Walk(recovery).through([_read_file(recovery, file) for file in needed])
    return recovery


class _Scanned(NamedTuple):
    file: LogFile
    scan: Scan
    #: where the bytes that are not zero end; the rest was preallocated and never written
    content_end: int


def _read_file(recovery: Recovery, file: LogFile) -> _Scanned:
    """Scans one file and raises the watermark to what it says."""
    data = read_whole(recovery.files, f"{recovery.path}/{WAL}/{file.name}")
    content_end = _content_end(data)
    store_id = recovery.manifest.store_id
    mark = 0
    if content_end:  # else power was lost before the header of a new file was on disk
        try:
            header = _header_of(data, f"{recovery.path}/{WAL}/{file.name}")
            if header[:3] != (store_id, file.generation, file.first_seq):
                raise CorruptData("the header is that of another file")
            mark = header.durable_seq
        except CorruptData as error:
            recovery.damaged_files.append(file.name)
            recovery.notes.append(f"{WAL}/{file.name}: {error}")
    seed = chain_seed(store_id, file.generation, file.first_seq)
    scan = scan_file(data, seed, file.first_seq, file.limit_seq)
    recovery.watermark = max(recovery.watermark, mark, scan.durable_seq)
    # A body may end in zeros of its own.
    recovery.used_bytes[file.name] = max([content_end, FILE_HEADER_BYTES, *(run.end for run in scan.runs)])
    return _Scanned(file, scan, content_end)


def _header_of(data: bytes, name: str) -> FileHeader:
    try:
        return decode_file_header(data)
    except VersionMismatch as error:
        raise VersionMismatch(f"{name}: {error}. It was written by another zkv; nothing was changed") from error


def _content_end(data: bytes) -> int:
    """Looks at 64 KiB at a time from the end, so that a preallocated tail costs neither a copy nor a byte loop."""
    step = 65_536
    zeros = bytes(step)
    end = len(data)
    while end:
        begin = max(0, end - step)
        if data[begin:end] != zeros[: end - begin]:
            return begin + len(data[begin:end].rstrip(b"\0"))
        end = begin
    return 0


class _Walk:
    """Goes over the runs in order of seq and gives the verdict on each break. `_seq` is the next seq that is due."""

    __slots__ = ("_recovery", "_seq")

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._seq = recovery.manifest.wal_floor

    def through(self, scans: list[_Scanned]) -> None:
        recovery = self._recovery
        for at, scanned in enumerate(scans):
            file = scanned.file
            if file.first_seq > self._seq and not self._lost("", 0, file.first_seq - 1):
                self._tear(scans[at:], 0)
                break
            self._seq = file.first_seq
            torn_at = self._through_file(scanned)
            if torn_at is not None:
                self._tear(scans[at:], torn_at)
                break
        if self._seq <= recovery.watermark:
            name = scans[-1].file.name if scans else ""
            ends = [run.end for file, run in recovery.kept if file.name == name]
            self._lost(name, ends[-1] if ends else 0, recovery.watermark)
            self._seq = recovery.watermark + 1
        recovery.last_seq = max(self._seq, recovery.manifest.wal_floor) - 1

    def _through_file(self, scanned: _Scanned) -> int | None:
        """Keeps the runs of one file; the offset of the torn tail if there is one."""
        file, scan, content_end = scanned
        end = FILE_HEADER_BYTES
        for run in scan.runs:
            if not run.chained and not self._lost(file.name, end, run.first_seq - 1):
                return end
            self._recovery.kept.append(Kept(file, run))
            self._seq = run.next_seq
            end = run.end
        if file.limit_seq != SEQ_MAX:
            if self._seq < file.limit_seq and not self._lost(file.name, end, file.limit_seq - 1):
                return end
            self._seq = file.limit_seq
        elif content_end > end and self._seq > self._recovery.watermark:
            return end
        return None

    def _lost(self, name: str, offset: int, last_seq: int) -> bool:
        """A break at the due seq, with records up to `last_seq` missing. False: it is a torn tail instead."""
        recovery = self._recovery
        if recovery.watermark < self._seq:
            return False
        if name and name not in recovery.damaged_files:
            recovery.damaged_files.append(name)
        first_seq = max(self._seq, recovery.manifest.wal_floor)
        if last_seq >= first_seq:
            recovery.corrupt.append(CorruptRange(name, offset, first_seq, last_seq))
        return True

    def _tear(self, scans: list[_Scanned], offset: int) -> None:
        """The log ends at `offset` of the first of these files."""
        recovery = self._recovery
        recovery.torn_bytes = sum(max(0, scanned.content_end - FILE_HEADER_BYTES) for scanned in scans[1:])
        recovery.torn_bytes += max(0, scans[0].content_end - max(offset, FILE_HEADER_BYTES))
