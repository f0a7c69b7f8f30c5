"""A damaged segment made whole again from the frames in it that verify, and an exact account of what was lost.

Owns: which frames count, what a gap between them means. Must not know: replicas, manifests, when this is right to do (`zkv repair`).

Directory, key index and footer are not trusted to find a frame; if the directory verifies, it says whose records a lost block held. Else the
partitions are those between the frames around it. Source: storage reference, row 5 of section 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from zkv.codec.block import LZ4, decompress
from zkv.codec.segment import (
    BLOCK_RECORDS_MAX,
    FOOTER_BYTES,
    HEADER_BYTES,
    SegmentHeader,
    SegmentRecord,
    decode_footer,
    record_at,
    scan_frames,
    seed_of,
)
from zkv.codec.segment_index import Run, decode_directory
from zkv.core.ring import record_hash
from zkv.errors import CorruptData
from zkv.storage.files import FileSystem, read_whole
from zkv.storage.sealing import digest_of
from zkv.storage.segment import SegmentSummary
from zkv.storage.segment_writer import SegmentWriter

PIDS_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class SalvageJob:
    """The damaged file at `path`, sealed as `damaged_id`, into segment `segment_id` at `output`."""

    path: str
    damaged_id: int
    output: str
    store_id: bytes
    segment_id: int
    hash_seed: int
    shift: int
    block_records_max: int = BLOCK_RECORDS_MAX


class Lost(NamedTuple):
    """Blocks [first_block, last_block] (-1: nobody knows up to where), which held records of some of [first_pid, last_pid]."""

    offset: int
    first_block: int
    last_block: int
    first_pid: int
    last_pid: int


class Salvage(NamedTuple):
    """`summary` is None, and there is no file, if nothing verified."""

    summary: SegmentSummary | None
    lost: list[Lost]


class _Block(NamedTuple):
    pid: int
    records: list[SegmentRecord]


def salvage(files: FileSystem, job: SalvageJob) -> Salvage:
    """Raises: OSError, StorageError; no file is left then."""
    data = read_whole(files, job.path)
    seed = seed_of(job.store_id, job.damaged_id)
    lost: list[Lost] = []
    header = SegmentHeader(LZ4, job.shift, job.store_id, job.segment_id, job.hash_seed)
    writer = SegmentWriter(files, job.output, header, block_records_max=job.block_records_max)
    try:
        for pid, records in _blocks(job, data, seed, lost):
            hashes = [record_hash(record.key, job.hash_seed, job.shift) for record in records]
            writer.add(pid, hashes, [digest_of(record.meta) for record in records], records)
        if writer.records:
            return Salvage(writer.finish(), lost)
        writer.abandon()
        return Salvage(None, lost)
    except BaseException:
        writer.abandon()
        raise


def _blocks(job: SalvageJob, data: bytes, seed: int, lost: list[Lost]) -> Iterator[_Block]:
    """Whole blocks in their order; the gaps between them go to `lost`."""
    runs = _runs(data, seed)
    due = 0
    end = HEADER_BYTES
    last_pid = 0
    last_key = b""
    for offset, frame, chunk in scan_frames(data, seed):
        if frame.block_no < due or frame.pid < last_pid:
            continue  # bytes of this segment within a value of it, laid bare by damage around them
        if frame.block_no > due:
            lost.append(_lost(runs, end, due, frame.block_no - 1, last_pid, frame.pid))
        try:
            payload = decompress(frame.codec, chunk, frame.payload_bytes)
            records = [record_at(payload, slot) for slot in range(frame.record_count)]
            _check_order(job, frame.pid, records, last_key if frame.pid == last_pid else b"")
        except CorruptData:
            lost.append(Lost(offset, frame.block_no, frame.block_no, frame.pid, frame.pid))
        else:
            last_key = records[-1].key
            yield _Block(frame.pid, records)
        due = frame.block_no + 1
        end = offset + len(chunk)
        last_pid = frame.pid
    if runs is None:
        lost.append(Lost(end, due, -1, last_pid, PIDS_MAX - 1))
    elif due < (blocks := runs[-1].first_block + runs[-1].n_blocks):
        lost.append(_lost(runs, end, due, blocks - 1, last_pid, runs[-1].pid))


def _check_order(job: SalvageJob, pid: int, records: list[SegmentRecord], last_key: bytes) -> None:
    for record in records:
        if record.key <= last_key or record_hash(record.key, job.hash_seed, job.shift) >> job.shift != pid:
            raise CorruptData(f"record {record.seq} is not where it belongs")
        last_key = record.key


def _lost(
    runs: Sequence[Run] | None, offset: int, first_block: int, last_block: int, first_pid: int, last_pid: int
) -> Lost:
    if runs is not None:
        hit = [
            run.pid for run in runs if run.first_block <= last_block and run.first_block + run.n_blocks > first_block
        ]
        first_pid, last_pid = hit[0], hit[-1]
    return Lost(offset, first_block, last_block, first_pid, last_pid)


def _runs(data: bytes, seed: int) -> list[Run] | None:
    """What the directory says, if it and the footer verify."""
    try:
        footer, _ = decode_footer(data[-FOOTER_BYTES:], seed)
        directory = decode_directory(data[footer.directory_offset : footer.file_bytes - FOOTER_BYTES], footer, seed)
    except CorruptData:
        return None
    return list(directory.runs.values())
