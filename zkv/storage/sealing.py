"""Log files into one sealed segment.

Owns: which records of the log go in (of each key the last one), their order, what a gap in the log means. Must not know: processes, manifests, when
to seal. A pure function from files to one file: doing it again gives the same.

Source: storage reference, 6.5 point 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from operator import itemgetter
from typing import Final, TypeVar

from xxhash import xxh3_64_intdigest

from zkv.codec.block import LZ4
from zkv.codec.log import FILE_HEADER_BYTES, Batch, chain_seed, read_batches, scan_file
from zkv.codec.records import block_from_log, set_to_bytes
from zkv.codec.segment import EXPIRES, TOMBSTONE, SegmentHeader, SegmentRecord
from zkv.core.columns import Held, logged_at, versions_of
from zkv.core.ring import record_hash
from zkv.errors import CorruptData, ProtocolError
from zkv.storage.files import FileSystem, read_whole
from zkv.storage.segment import SegmentSummary
from zkv.storage.segment_jobs import LogSource, SealJob
from zkv.storage.segment_writer import SegmentWriter

#: records that are encoded and handed on at a time
_RUN: Final = 256
_T = TypeVar("_T")
_first = itemgetter(0)


def digest_of(meta: bytes) -> int:
    """64 bits that are equal on replicas with equal sets: the meta of a set is canonical and has the checksums of its values."""
    return xxh3_64_intdigest(meta)


def record_of(key: bytes, seq: int, held: Held) -> SegmentRecord:
    """What a segment holds of a set."""
    meta, values = set_to_bytes(held)
    if type(held) is tuple:
        columns, i = held
        if columns.expires_ms is None or not columns.expires_ms[i]:
            return SegmentRecord(key, seq, meta, values)
    versions = versions_of(held)
    assert versions is not None
    expiries = [s.expires_ms for s in versions.siblings if s.expires_ms]
    flags = (0 if versions.siblings else TOMBSTONE) | (EXPIRES if expiries else 0)
    return SegmentRecord(key, seq, meta, values, flags, min(expiries, default=0))


def seal(files: FileSystem, job: SealJob) -> SegmentSummary | None:
    """The file at `job.output`, verified and synced; None (and no file) if the log holds no records there.

    Raises: CorruptData naming file and offset if a record of the range cannot be read, OSError, StorageError; no file is left then.
    """
    state: dict[bytes, tuple[int, Held]] = {}
    for source, offset, batch in _batches(files, job):
        _take(state, job, source, offset, batch)
    return _write(files, job, state)


def seal_layer(files: FileSystem, job: SealJob, sets: Mapping[bytes, Held]) -> SegmentSummary | None:
    """The same from what memory holds of these log files, for when they cannot be read any more. Takes the caller's time.

    A seq is that of the last record of its step here: above the key's older records and below its later ones all the same.
    """
    return _write(files, job, {key: (logged_at(held), held) for key, held in sets.items()})


def _write(files: FileSystem, job: SealJob, state: Mapping[bytes, tuple[int, Held]]) -> SegmentSummary | None:
    if not state:
        return None
    hashes = {key: record_hash(key, job.hash_seed, job.shift) for key in state}
    shift = job.shift
    order = sorted((hashed >> shift, key) for key, hashed in hashes.items())
    header = SegmentHeader(LZ4, shift, job.store_id, job.segment_id, job.hash_seed)
    writer = SegmentWriter(files, job.output, header, block_records_max=job.block_records_max)
    try:
        for pid, keys in groupby(order, _first):
            for run in _batched(keys, _RUN):
                records = [record_of(key, *state[key]) for _, key in run]
                digests = [digest_of(record.meta) for record in records]
                writer.add(pid, [hashes[key] for _, key in run], digests, records)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _batched(items: Iterator[_T], n: int) -> Iterator[list[_T]]:
    while batch := list(islice(items, n)):
        yield batch


def _take(state: dict[bytes, tuple[int, Held]], job: SealJob, source: LogSource, offset: int, batch: Batch) -> None:
    """The records of one batch that are in the range, over what came before of their keys."""
    where = f"{source.path}, offset {offset}: log batch {batch.first_seq}"
    try:
        block = block_from_log(batch.body)
    except ProtocolError as error:
        raise CorruptData(f"{where}: {error}") from error
    held: list[tuple[bytes, Held]]
    if block.columns is not None:
        held = list(zip(block.columns.keys, block.columns.places(), strict=True))
    else:
        held = [(record.key, record.versions) for record in block.records]
    if len(held) != batch.record_count:
        raise CorruptData(f"{where} holds {len(held)} records, not {batch.record_count}")
    last_seq = min(job.last_seq, source.limit_seq - 1)
    for seq, (key, versions) in enumerate(held, batch.first_seq):
        if job.first_seq <= seq <= last_seq and not _says_nothing(versions):
            state[key] = (seq, versions)


def _says_nothing(held: Held) -> bool:
    """A delete of what was never there leaves such a record; it is no state (as in RecordTable.load)."""
    return type(held) is not tuple and not held.past and not held.cloud  # type: ignore[union-attr]


def _batches(files: FileSystem, job: SealJob) -> Iterator[tuple[LogSource, int, Batch]]:
    """(file, offset of its run, batch) of the range in order of seq, every record of it or an error."""
    due = job.first_seq
    path, end = "the log", 0
    for source in job.sources:
        path, end = source.path, FILE_HEADER_BYTES
        data = read_whole(files, path)
        seed = chain_seed(job.store_id, source.generation, source.first_seq)
        for run in scan_file(data, seed, source.first_seq, source.limit_seq).runs:
            if run.first_seq > due:
                _check_missing(job, path, end, due, min(run.first_seq - 1, job.last_seq))
            if run.first_seq > job.last_seq:
                return
            for batch in read_batches(data[run.offset : run.end], seed):
                if batch.first_seq + batch.record_count > due:
                    yield source, run.offset, batch
            due = max(due, min(run.next_seq, source.limit_seq))
            end = run.end
        if due > job.last_seq:
            return
    _check_missing(job, path, end, due, job.last_seq)


def _check_missing(job: SealJob, path: str, offset: int, first_seq: int, last_seq: int) -> None:
    """Raises: CorruptData unless all of [first_seq, last_seq] is known to be missing."""
    due = first_seq
    for first, last in sorted(job.missing):
        if first <= due <= last:
            due = last + 1
    if due <= last_seq:
        raise CorruptData(f"{path}, offset {offset}: log records {due} to {last_seq} cannot be read")
