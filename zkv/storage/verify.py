"""Is a data directory whole? Everything in it is read and checked, and nothing is changed.

Owns: what counts as damage, the report. Must not know: how damage is repaired, who prints.

Checked: the manifest; the chain of log files and of the batches in them, up to what was promised to be durable (a torn tail beyond that is no
damage); that each record decodes to a version set; the checksum of each value, which its writer made. Sealed segments are checked by
whoever knows them and join the report. A store that is open elsewhere is refused: its log grows while it is read. Source: 50-storage 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from zkv.codec.records import BLOCK_CODECS, block_from_log
from zkv.core.messages import RecordBlock
from zkv.errors import ConfigError, CorruptData, ProtocolError, StoreLocked
from zkv.ids import BUCKET_BYTES, checksum_of
from zkv.storage.files import FileSystem
from zkv.storage.manifest import MANIFEST, Manifest, load_manifest
from zkv.storage.opening import LOCK, QUARANTINE
from zkv.storage.recovery import WAL, Recovery, recover

#: damages that are told one by one; the rest is counted
DAMAGES_KEPT: Final = 1_000


class Damage(NamedTuple):
    """file: below the directory."""

    file: str
    what: str


class Found(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def what(self) -> str: ...


class SegmentChecker(Protocol):
    """One sealed segment: run `steps` to the end, then `damages` and `records` are what was found."""

    @property
    def damages(self) -> Sequence[Found]: ...

    @property
    def records(self) -> int: ...

    def steps(self) -> Iterator[object]: ...


@dataclass(slots=True)
class Report:
    path: str
    store_id: str = ""
    node_name: str = ""
    clean_shutdown: bool = False
    log_files: int = 0
    #: the log holds (first_seq, last_seq]; up to durable_seq it was promised
    last_seq: int = 0
    durable_seq: int = 0
    batches: int = 0
    records: int = 0
    values: int = 0
    value_bytes: int = 0
    segments: int = 0
    sealed_records: int = 0
    #: bytes behind the end of the log that nobody was promised; no damage
    torn_bytes: int = 0
    #: durable records that an earlier start reported as lost, (first seq, last seq)
    known_lost: tuple[tuple[int, int], ...] = ()
    damages: list[Damage] = field(default_factory=list)
    more_damages: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.damages

    def damaged(self, file: str, what: str) -> None:
        if len(self.damages) < DAMAGES_KEPT:
            self.damages.append(Damage(file, what))
        else:
            self.more_damages += 1


def verify_directory(
    files: FileSystem,
    path: str,
    segments: Callable[[Manifest], Iterable[SegmentChecker]] = lambda manifest: (),
) -> Report:
    """segments: a checker for each segment that a manifest names.

    Reads every byte of the store once, file by file. Raises: ConfigError (no store
    there), StoreLocked, VersionMismatch, OSError.
    """
    report = Report(path)
    with _held(files, path):
        try:
            manifest, fell_back = load_manifest(files, path)
        except FileNotFoundError as error:
            raise ConfigError(f"{path} holds no zkv store: it has no {MANIFEST}") from error
        except CorruptData as error:
            report.damaged(MANIFEST, str(error))
            return report
        if fell_back:
            report.damaged(MANIFEST, f"missing or damaged; {MANIFEST}.prev stands in, and may be old")
        report.store_id = bytes(manifest.store_id).hex()
        report.node_name = manifest.node_name
        report.clean_shutdown = manifest.clean_shutdown
        report.known_lost = manifest.known_corrupt
        recovery = recover(files, path, manifest)
        _log(report, recovery)
        for kept in recovery.kept:
            _records(report, replace(recovery, kept=[kept]), f"{WAL}/{kept.file.name}")
        try:
            checkers = list(segments(manifest))
        except CorruptData as error:
            report.damaged(MANIFEST, str(error))
            checkers = []
        for checker in checkers:
            _segment(report, checker)
        if files.is_directory(f"{path}/{QUARANTINE}") and (names := files.listdir(f"{path}/{QUARANTINE}")):
            report.notes.append(f"{QUARANTINE}/ keeps {len(names)} damaged files of earlier starts")
    return report


@contextmanager
def _held(files: FileSystem, path: str) -> Iterator[None]:
    """Nobody opens the store meanwhile. A copy may come without the lock file, and is then nobody's."""
    if not files.is_directory(path):
        raise ConfigError(f"{path} is no directory")
    try:
        fd = files.open(f"{path}/{LOCK}")
    except FileNotFoundError:
        yield
        return
    try:
        if not files.flock(fd):
            raise StoreLocked(f"{path} is open in another process; stop it, or verify a copy")
        yield
    finally:
        files.close(fd)


def _log(report: Report, recovery: Recovery) -> None:
    report.log_files = len(recovery.log_files)
    report.last_seq = recovery.last_seq
    report.durable_seq = recovery.watermark
    report.torn_bytes = recovery.torn_bytes
    for lost in recovery.corrupt:
        file = f"{WAL}/{lost.file}" if lost.file else WAL
        where = f" from offset {lost.offset} on" if lost.file else ": their file is missing"
        report.damaged(file, f"durable records {lost.first_seq} to {lost.last_seq} cannot be read{where}")
    told = {lost.file for lost in recovery.corrupt}
    for name in recovery.damaged_files:
        if name not in told:
            report.damaged(f"{WAL}/{name}", "the file header does not verify; no record is missing")
    report.notes += recovery.notes


def _records(report: Report, run: Recovery, file: str) -> None:
    """Decodes what a run of batches says, which the checksums of the log know nothing of."""
    for batch in run.batches():
        report.batches += 1
        report.records += batch.record_count
        where = f"record {batch.first_seq}"
        if batch.codec not in BLOCK_CODECS:
            report.damaged(file, f"{where}: codec {batch.codec}; this build reads {sorted(BLOCK_CODECS)}")
            continue
        try:
            block = block_from_log(batch.body)
        except ProtocolError as error:
            report.damaged(file, f"{where}: the batch verifies and is no batch of records: {error}")
            continue
        if len(block) != batch.record_count:
            report.damaged(file, f"{where}: {len(block)} records in a batch of {batch.record_count}")
        _values(report, block, batch.first_seq, file)


def _values(report: Report, block: RecordBlock, first_seq: int, file: str) -> None:
    if block.columns is not None:
        rows = [
            (at, block.columns.values[at], block.columns.checksums[at], block.columns.keys[at])
            for at in range(len(block.columns))
        ]
    else:
        rows = [
            (at, sibling.value, sibling.checksum, record.key)
            for at, record in enumerate(block.records)
            for sibling in record.versions.siblings
        ]
    report.values += len(rows)
    for at, value, checksum, key in rows:
        report.value_bytes += len(value)
        if checksum_of(value) != checksum:
            report.damaged(
                file, f"record {first_seq + at}, key {key[BUCKET_BYTES:]!r}: the value is not what its writer summed"
            )


def _segment(report: Report, checker: SegmentChecker) -> None:
    for _ in checker.steps():
        pass
    report.segments += 1
    report.sealed_records += checker.records
    for found in checker.damages:
        report.damaged(found.path.removeprefix(f"{report.path}/"), found.what)
