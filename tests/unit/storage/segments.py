"""Small segments and logs, on a disk in memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from zlib import crc32

from tests.unit.storage.faulty import FaultyFiles
from zkv.codec.block import LZ4
from zkv.codec.log import FileHeader, chain_seed, encode_batch_header, encode_file_header
from zkv.codec.records import block_to_log, set_from_bytes
from zkv.codec.segment import FOOTER_BYTES, SegmentHeader, SegmentRecord, decode_footer, encode_footer, seed_of
from zkv.codec.segment_index import encode_directory, encode_index
from zkv.core.columns import Columns
from zkv.core.messages import Record, RecordBlock
from zkv.core.ring import record_hash
from zkv.core.versions import Sibling, VersionSet
from zkv.ids import Actor, checksum_of, stored_key
from zkv.storage.files import FileSystem, read_whole, write_whole
from zkv.storage.sealing import digest_of, record_of
from zkv.storage.segment import Segment, SegmentSummary, record_at
from zkv.storage.segment_jobs import LogSource, SealJob, SegmentSource
from zkv.storage.segment_writer import SegmentWriter
from zkv.testing.sim.disk import SimFiles

STORE_ID = bytes(range(16))
SEED = 0x5EED
#: four partitions
SHIFT = 62
ACTOR = Actor(b"open-id!" + bytes(4))
OTHER = Actor(b"open-id?" + bytes(4))
PATH = "/seg"
LOG = "/log"


class EveryCall(FaultyFiles):
    """Reads and sizes fail as well."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._called("pread")
        return super().pread(fd, length, offset)

    def size(self, fd: int) -> int:
        self._called("size")
        return super().size(fd)


def disk() -> SimFiles:
    return SimFiles(random.Random(1))


def sibling(value: bytes, counter: int = 1, actor: Actor = ACTOR, expires_ms: int = 0) -> Sibling:
    return Sibling(actor, counter, 77, expires_ms, checksum_of(value), 7, counter, (), value)


def one(value: bytes, counter: int = 1, expires_ms: int = 0) -> VersionSet:
    return VersionSet((sibling(value, counter, expires_ms=expires_ms),), {ACTOR: counter})


def tombstone(counter: int = 1) -> VersionSet:
    return VersionSet((), {ACTOR: counter})


def key(number: int) -> bytes:
    return stored_key(1, b"key:%05d" % number)


def pid_of(stored: bytes, shift: int = SHIFT) -> int:
    return record_hash(stored, SEED, shift) >> shift


def write_segment(
    files: FileSystem,
    sets: Iterable[tuple[bytes, int, VersionSet]],
    path: str = PATH,
    *,
    segment_id: int = 1,
    codec: int = LZ4,
    shift: int = SHIFT,
    block_records_max: int = 4096,
) -> SegmentSummary:
    """A segment of (key, seq, set) in any order."""
    header = SegmentHeader(codec, shift, STORE_ID, segment_id, SEED)
    writer = SegmentWriter(files, path, header, block_records_max=block_records_max)
    for stored, seq, versions in sorted(sets, key=lambda item: (pid_of(item[0], shift), item[0])):
        record = record_of(stored, seq, versions)
        writer.add(pid_of(stored, shift), [record_hash(stored, SEED, shift)], [digest_of(record.meta)], [record])
    return writer.finish()


def get(segment: Segment, stored: bytes) -> SegmentRecord | None:
    """As an index finds it: by hash in the key index, then one block."""
    hashed = record_hash(stored, SEED, segment.header.shift)
    index = segment.key_index(hashed >> segment.header.shift)
    if index is None or hashed not in index.hashes:
        return None
    place = index.places[index.hashes.index(hashed)]
    return record_at(segment.read_block(place >> 12), place & 4095)


def contents(segment: Segment) -> dict[bytes, tuple[int, bytes, list[bytes]]]:
    """key -> (seq, meta, values) by scanning."""
    found = {}
    for pid in segment.partitions():
        for record in segment.records(pid):
            versions = set_from_bytes(record.meta, record.values)
            found[record.key] = (record.seq, record.meta, [s.value for s in versions.siblings])
    return found


class Told:
    """What key index and directory of a segment say; to be changed and written again, with right checksums."""

    def __init__(self, files: FileSystem, source: SegmentSource) -> None:
        self._files = files
        segment = Segment.open(files, *source)
        directory = segment.directory
        self.runs = list(directory.runs.values())
        self.offsets = directory.offsets
        self.first_keys = [directory.first_key(block_no) for block_no in range(segment.n_blocks)]
        self.indexes = [segment.key_index(run.pid) for run in self.runs]
        self.footer: dict[str, int] = {}
        data = read_whole(files, source.path)
        self._frames = data[: directory.offsets[-1]]
        self._seed = seed_of(STORE_ID, segment.header.segment_id)
        self._written = decode_footer(data[-FOOTER_BYTES:], self._seed)[0]
        self._summary = source.summary

    def write(self, path: str) -> SegmentSource:
        data = self._frames
        indexes = [encode_index(index) for index in self.indexes if index is not None]
        runs = [run._replace(index_crc=crc32(index, self._seed)) for run, index in zip(self.runs, indexes, strict=True)]
        directory = encode_directory(runs, self.offsets, self.first_keys)
        at = len(data) + sum(map(len, indexes))
        footer = self._written._replace(
            directory_crc=crc32(directory, self._seed),
            directory_offset=at,
            file_bytes=at + len(directory) + FOOTER_BYTES,
            **self.footer,
        )
        end, crc = encode_footer(footer, self._seed)
        put(self._files, path, data + b"".join(indexes) + directory + end)
        return SegmentSource(path, replace(self._summary, file_bytes=footer.file_bytes, footer_crc=crc))


# --- logs --------------------------------------------------------------------------------------------------------------------


def rows(*records: tuple[bytes, VersionSet]) -> RecordBlock:
    return RecordBlock([Record(stored, 1, 0, (7, 1, i, 1), versions) for i, (stored, versions) in enumerate(records)])


def columns(keys: Sequence[bytes], values: Sequence[bytes], counter: int = 1) -> RecordBlock:
    n = len(keys)
    checksums = [checksum_of(value) for value in values]
    runs = [(7, 1, list(range(n)))]
    return RecordBlock(
        columns=Columns(
            list(keys), ACTOR, [counter] * n, 77, list(values), checksums, runs, [1] * n, [0] * n, None, {}, {}
        )
    )


def size_of(block: RecordBlock) -> int:
    return len(block.records) if block.columns is None else len(block.columns)


def write_log(
    files: FileSystem, blocks: Sequence[RecordBlock], path: str = LOG, *, generation: int = 1, first_seq: int = 1
) -> LogSource:
    """A log file of these blocks and some of its preallocated zeros; limited to what is in it."""
    seed = crc = chain_seed(STORE_ID, generation, first_seq)
    data = encode_file_header(FileHeader(STORE_ID, generation, first_seq, first_seq - 1))
    seq = first_seq
    for block in blocks:
        codec, parts = block_to_log(block)
        header, _, crc = encode_batch_header(parts, size_of(block), codec, seq, seq - 1, crc, seed)
        data += header + b"".join(parts)
        seq += size_of(block)
    put(files, path, data + bytes(100))
    return LogSource(path, generation, first_seq, seq)


def seal_job(*sources: LogSource, output: str = PATH, **fields: object) -> SealJob:
    first_seq, last_seq = sources[0].first_seq, sources[-1].limit_seq - 1
    given = {"shift": SHIFT, "first_seq": first_seq, "last_seq": last_seq, **fields}
    return SealJob(output, STORE_ID, 1, SEED, sources=sources, **given)  # type: ignore[arg-type]


def put(files: FileSystem, path: str, data: bytes) -> None:
    fd = files.open(path, write=True, create=True)
    files.ftruncate(fd, 0)
    write_whole(files, fd, data)
    files.close(fd)


def damaged(files: FileSystem, path: str, offset: int, bit: int, target: str) -> None:
    """A copy of a file with one bit changed."""
    data = bytearray(read_whole(files, path))
    data[offset] ^= 1 << bit
    put(files, target, bytes(data))
