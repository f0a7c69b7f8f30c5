"""The write-ahead log as bytes: file header, batch header, chain, and the scan that finds what of a file still
verifies.

Owns: every byte of a log file except the inside of a batch body. Must not know: files, directories, what a body
means, what a reader decides about damage (storage/recovery). docs/log-format.md has the picture and a worked example.

Invariants: a header checksum is seeded with (store, generation, first seq), so bytes of another file never parse,
wherever they lie; the chain starts at that seed; the durable mark of a batch is below its first seq; the scan never
returns a batch whose checksums fail. Source: storage reference, 6.2 and 6.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from xxhash import xxh3_64, xxh3_64_intdigest

from zkv.errors import CorruptData, VersionMismatch

LOG_VERSION: Final = 1
FILE_MAGIC: Final = b"ZKVW"
BATCH_MAGIC: Final = b"ZKVB"
FILE_HEADER_BYTES: Final = 64
BATCH_HEADER_BYTES: Final = 40
#: a mark is a batch without records; its codec says so
MARK_CODEC: Final = 0
COUNT_MAX: Final = 0xFFFF
#: flag of a batch: its body is checked by the low 32 bits of xxh3_64, which costs a tenth of CRC-32; without it by CRC-32
XXH3_BODY: Final = 1
BODY_BYTES_MAX: Final = 0xFFFF_FFFF
SEQ_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

_FILE_HEADER = struct.Struct("<4sHH16sQQQ12sI")
_BATCH_HEADER = struct.Struct("<4sHBBIIQQI")
_SEED = struct.Struct("<16sQQ")
_CRC = struct.Struct("<I")
_FILE_CRC_AT: Final = FILE_HEADER_BYTES - 4
_BATCH_CRC_AT: Final = BATCH_HEADER_BYTES - 4
_ZEROS: Final = bytes(12)


class FileHeader(NamedTuple):
    """`durable_seq` is what was known to be on disk when the file was begun."""

    store_id: bytes
    generation: int
    first_seq: int
    durable_seq: int


class BatchHeader(NamedTuple):
    record_count: int
    codec: int
    flags: int
    body_bytes: int
    body_sum: int
    first_seq: int
    durable_seq: int
    prev_crc: int
    header_crc: int

    def fits(self, body: bytes | memoryview) -> bool:
        """Whether this is the whole body that was written."""
        if len(body) != self.body_bytes:
            return False
        return self.body_sum == (xxh3_64_intdigest(body) & 0xFFFF_FFFF if self.flags & XXH3_BODY else crc32(body))


class Run(NamedTuple):
    """Neighbouring batches that all verify: bytes [offset, end), seqs [first_seq, next_seq).

    `chained`: the chain leads here from the start of the file. Only the first run of a file can be; a break of some
    kind lies before any other.
    """

    offset: int
    end: int
    first_seq: int
    next_seq: int
    chained: bool


class Scan(NamedTuple):
    """What verifies in one file.

    `durable_seq` is the highest mark of any batch header that verifies, 0 without one.
    """

    runs: list[Run]
    durable_seq: int


class Batch(NamedTuple):
    first_seq: int
    record_count: int
    codec: int
    body: bytes


def chain_seed(store_id: bytes, generation: int, first_seq: int) -> int:
    """Starts the chain and every header checksum of one file. Known from manifest and file name, so a lost file
    header loses nothing."""
    return crc32(_SEED.pack(store_id, generation, first_seq))


def encode_file_header(header: FileHeader) -> bytes:
    packed = _FILE_HEADER.pack(FILE_MAGIC, LOG_VERSION, 0, *header, _ZEROS, 0)[:_FILE_CRC_AT]
    return packed + _CRC.pack(crc32(packed))


def decode_file_header(data: bytes) -> FileHeader:
    """Raises: CorruptData for bytes that do not verify, VersionMismatch for a whole header of a version that this
    build does not know."""
    if len(data) < FILE_HEADER_BYTES:
        raise CorruptData(f"a log file of {len(data)} bytes is shorter than its header")
    magic, version, _flags, store_id, generation, first_seq, durable_seq, _rest, crc = _FILE_HEADER.unpack_from(data)
    if magic != FILE_MAGIC or crc != crc32(data[:_FILE_CRC_AT]):
        raise CorruptData("the header of a log file does not verify")
    if version != LOG_VERSION:
        raise VersionMismatch(f"log version {version}; this build reads version {LOG_VERSION}")
    return FileHeader(store_id, generation, first_seq, durable_seq)


def encode_batch_header(
    parts: Sequence[bytes], count: int, codec: int, first_seq: int, durable_seq: int, prev_crc: int, seed: int
) -> tuple[bytes, int, int]:
    """(header, bytes of header and body, header crc). The parts are checksummed one after the other and never
    joined."""
    body_bytes = body_sum = flags = 0
    if parts:
        flags = XXH3_BODY
        digest = xxh3_64()
        for part in parts:
            body_bytes += len(part)
            digest.update(part)
        body_sum = digest.intdigest() & 0xFFFF_FFFF
    packed = _BATCH_HEADER.pack(
        BATCH_MAGIC, count, codec, flags, body_bytes, body_sum, first_seq, durable_seq, prev_crc
    )
    header_crc = crc32(packed, seed)
    return packed + _CRC.pack(header_crc), BATCH_HEADER_BYTES + body_bytes, header_crc


def decode_batch_header(data: bytes, offset: int, seed: int) -> BatchHeader | None:
    """The header at `offset`, or None for anything that is not one of this file."""
    if data[offset : offset + 4] != BATCH_MAGIC or offset + BATCH_HEADER_BYTES > len(data):
        return None
    _magic, count, codec, flags, body_bytes, body_sum, first_seq, durable_seq, prev_crc = _BATCH_HEADER.unpack_from(
        data, offset
    )
    (header_crc,) = _CRC.unpack_from(data, offset + _BATCH_CRC_AT)
    if header_crc != crc32(data[offset : offset + _BATCH_CRC_AT], seed) or flags > XXH3_BODY:
        return None
    if durable_seq >= first_seq:
        return None
    return BatchHeader(count, codec, flags, body_bytes, body_sum, first_seq, durable_seq, prev_crc, header_crc)


def scan_file(data: bytes, seed: int, first_seq: int, limit_seq: int) -> Scan:
    """Everything in a file that verifies, below `limit_seq` (where a later file took over).

    A damaged body is stepped over by its header; after a damaged header the next place is searched where a header of
    this file with a higher seq stands. Costs one checksum pass over the file.
    """
    runs: list[Run] = []
    durable_seq = 0
    offset = FILE_HEADER_BYTES
    expected_seq = first_seq
    prev_crc = seed
    whole = True  # does the chain lead here without a break?
    with memoryview(data) as view:
        while (found := _next_header(data, offset, seed, expected_seq)) is not None:
            offset, header = found
            if header.first_seq >= limit_seq:
                break
            durable_seq = max(durable_seq, header.durable_seq)
            body = offset + BATCH_HEADER_BYTES
            end = body + header.body_bytes
            next_seq = header.first_seq + header.record_count
            if end > len(data) or not header.fits(view[body:end]):
                whole = False
            elif whole and header.prev_crc == prev_crc and header.first_seq == expected_seq and _touches(runs, offset):
                begin = runs.pop() if runs else Run(offset, offset, first_seq, first_seq, True)
                runs.append(begin._replace(end=end, next_seq=next_seq))
            else:
                runs.append(Run(offset, end, header.first_seq, next_seq, False))
                whole = True
            expected_seq = next_seq
            prev_crc = header.header_crc
            offset = end
    return Scan(runs, durable_seq)


def _touches(runs: list[Run], offset: int) -> bool:
    return offset == (runs[-1].end if runs else FILE_HEADER_BYTES)


def _next_header(data: bytes, offset: int, seed: int, seq_min: int) -> tuple[int, BatchHeader] | None:
    """The first header at or after `offset` that verifies and has at least `seq_min`, with its place; None at the end."""
    while (offset := data.find(BATCH_MAGIC, offset)) >= 0:
        header = decode_batch_header(data, offset, seed)
        if header is not None and header.first_seq >= seq_min:
            return offset, header
        offset += 1
    return None


def offset_of_seq(data: bytes, seed: int, seq: int) -> int:
    """Where in one run's bytes the first batch begins that reaches `seq` or beyond; the length of `data` if none
    does."""
    offset = 0
    while (
        header := decode_batch_header(data, offset, seed)
    ) is not None and header.first_seq + header.record_count <= seq:
        offset += BATCH_HEADER_BYTES + header.body_bytes
    return offset


def read_batches(data: bytes, seed: int) -> Iterator[Batch]:
    """The batches of one run's bytes, marks left out. Raises: CorruptData if the bytes are no longer what the scan
    saw."""
    offset = 0
    while offset < len(data):
        header = decode_batch_header(data, offset, seed)
        if header is None:
            raise CorruptData(f"a log batch changed while it was read, {offset} bytes into its run")
        begin = offset + BATCH_HEADER_BYTES
        offset = begin + header.body_bytes
        body = data[begin:offset]
        if not header.fits(body):
            raise CorruptData(f"the body of log batch {header.first_seq} changed while it was read")
        if header.record_count:
            yield Batch(header.first_seq, header.record_count, header.codec, body)
