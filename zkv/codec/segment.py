"""A sealed segment as bytes: header, frames, block payloads, key index, directory, footer.

Owns: every byte of a segment file except the inside of a compressed chunk (codec/block) and of a record's meta (codec/records). Must not know:
files, versions, what a reader does about damage. docs/log-format.md has the picture and a worked example.

Invariants: every byte lies under exactly one checksum; all but the header's are seeded with (store, segment), so bytes of another segment never
verify, wherever they lie; a frame tells its block's number, partition and lengths by itself, so directory and key index can be made anew from
the frames alone. Nothing here returns bytes whose checksum it was given to check and that fail it. Source: storage reference, 6.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple
from zlib import crc32

from zkv.codec.block import BLOCK_BYTES, CODEC_NAMES, PAYLOAD_BYTES_MAX
from zkv.errors import CorruptData, VersionMismatch

SEGMENT_VERSION: Final = 1
HEADER_BYTES: Final = 64
FRAME_BYTES: Final = 32
FOOTER_BYTES: Final = 128
#: key index: hash, seq, digest, place, size, flags
INDEX_ROW_BYTES: Final = 8 + 8 + 8 + 4 + 4 + 1

TOMBSTONE: Final = 1
EXPIRES: Final = 2
_FLAGS: Final = TOMBSTONE | EXPIRES

#: a place is block number << SLOT_BITS | slot
SLOT_BITS: Final = 12
BLOCK_RECORDS_MAX: Final = 1 << SLOT_BITS
BLOCKS_MAX: Final = 1 << (32 - SLOT_BITS)
SIZE_MAX: Final = 0xFFFF_FFFF

_MAGIC: Final = b"ZKVS"
FRAME_MAGIC: Final = b"ZKVF"
_FOOTER_MAGIC: Final = b"ZKVE"
_HEADER = struct.Struct("<4sHBBI16sQQ16s")
_SEED = struct.Struct("<16sQ")
_FRAME = struct.Struct("<4sIIIHHBBHI")
_FOOTER = struct.Struct("<4sHBBQQQQQQQQQQQIII16s")
_CRC = struct.Struct("<I")
_COUNT = struct.Struct("<H")
#: seq, key bytes, flags, meta bytes, value bytes; then the expiry if the flags say so
_RECORD = struct.Struct("<QHBII")
_EXPIRES = struct.Struct("<Q")


class SegmentHeader(NamedTuple):
    """`codec` is what blocks were compressed with where that gained something; hash seed and shift say how partitions were found."""

    codec: int
    shift: int
    store_id: bytes
    segment_id: int
    hash_seed: int


class Frame(NamedTuple):
    stored_bytes: int
    payload_bytes: int
    block_no: int
    pid: int
    record_count: int
    codec: int
    chunk_crc: int


class Footer(NamedTuple):
    codec: int
    segment_id: int
    records: int
    tombstones: int
    raw_bytes: int
    min_seq: int
    max_seq: int
    min_expires_ms: int
    max_expires_ms: int
    index_offset: int
    directory_offset: int
    file_bytes: int
    blocks: int
    partitions: int
    directory_crc: int


class SegmentRecord(NamedTuple):
    """`expires_ms`: the first moment at which a value of the set expires, 0 for never."""

    key: bytes
    seq: int
    meta: bytes
    values: bytes
    flags: int = 0
    expires_ms: int = 0

    @property
    def raw_bytes(self) -> int:
        return len(self.key) + len(self.meta) + len(self.values)


def seed_of(store_id: bytes, segment_id: int) -> int:
    """Starts every checksum of one segment but the header's."""
    return crc32(_SEED.pack(store_id, segment_id))


# --- header and footer -----------------------------------------------------------------------------------------------------------


def encode_header(header: SegmentHeader) -> bytes:
    codec, shift, store_id, segment_id, hash_seed = header
    packed = _HEADER.pack(
        _MAGIC, SEGMENT_VERSION, codec, shift, BLOCK_BYTES, store_id, segment_id, hash_seed, bytes(16)
    )
    return packed + _CRC.pack(crc32(packed))


def decode_header(data: bytes) -> SegmentHeader:
    """Raises: CorruptData for bytes that do not verify, VersionMismatch for a whole header that this build cannot read."""
    if len(data) < HEADER_BYTES:
        raise CorruptData(f"a segment of {len(data)} bytes is shorter than its header")
    body = data[: HEADER_BYTES - 4]
    if data[:4] != _MAGIC or _CRC.unpack_from(data, HEADER_BYTES - 4)[0] != crc32(body):
        raise CorruptData("the header of a segment does not verify")
    _, version, codec, shift, block_bytes, store_id, segment_id, hash_seed, _ = _HEADER.unpack(body)
    if version != SEGMENT_VERSION or codec not in CODEC_NAMES or block_bytes != BLOCK_BYTES or shift > 64:
        raise VersionMismatch(
            f"segment version {version}, codec {codec}, blocks of {block_bytes} bytes; this build reads version"
            f" {SEGMENT_VERSION}, codecs {sorted(CODEC_NAMES)}, blocks of {BLOCK_BYTES}"
        )
    return SegmentHeader(codec, shift, store_id, segment_id, hash_seed)


def encode_footer(footer: Footer, seed: int) -> tuple[bytes, int]:
    """(bytes, their crc)."""
    codec, *numbers = footer
    packed = _FOOTER.pack(_FOOTER_MAGIC, SEGMENT_VERSION, codec, 0, *numbers, bytes(16))
    crc = crc32(packed, seed)
    return packed + _CRC.pack(crc), crc


def decode_footer(data: bytes, seed: int) -> tuple[Footer, int]:
    """(footer, its crc). Raises: CorruptData."""
    if len(data) != FOOTER_BYTES or data[:4] != _FOOTER_MAGIC:
        raise CorruptData("a segment does not end in a footer")
    body = data[: FOOTER_BYTES - 4]
    (crc,) = _CRC.unpack_from(data, FOOTER_BYTES - 4)
    if crc != crc32(body, seed):
        raise CorruptData("the footer of a segment does not verify")
    _, _, codec, _, *numbers, _ = _FOOTER.unpack(body)
    footer = Footer(codec, *numbers)
    index_end = footer.index_offset + footer.records * INDEX_ROW_BYTES
    if (
        not footer.records
        or not footer.blocks
        or footer.index_offset < HEADER_BYTES
        or footer.directory_offset != index_end
        or footer.file_bytes < index_end + FOOTER_BYTES
    ):
        raise CorruptData("the footer of a segment contradicts itself")
    return footer, crc


# --- frames and payloads ---------------------------------------------------------------------------------------------------------


def encode_frame(chunk: bytes, payload_bytes: int, block_no: int, pid: int, count: int, codec: int, seed: int) -> bytes:
    """The 32 bytes in front of a chunk."""
    packed = _FRAME.pack(FRAME_MAGIC, len(chunk), payload_bytes, block_no, pid, count, codec, 0, 0, crc32(chunk, seed))
    return packed + _CRC.pack(crc32(packed, seed))


def decode_frame(data: bytes, offset: int, seed: int) -> Frame | None:
    """The frame header at `offset`, or None for anything that is not one of this segment."""
    if data[offset : offset + 4] != FRAME_MAGIC or offset + FRAME_BYTES > len(data):
        return None
    end = offset + FRAME_BYTES - 4
    if _CRC.unpack_from(data, end)[0] != crc32(data[offset:end], seed):
        return None
    _, stored_bytes, payload_bytes, block_no, pid, count, codec, flags, zero, chunk_crc = _FRAME.unpack_from(
        data, offset
    )
    if (
        not BLOCK_BYTES <= payload_bytes <= PAYLOAD_BYTES_MAX
        or stored_bytes > payload_bytes
        or not 0 < count <= (BLOCK_RECORDS_MAX if payload_bytes == BLOCK_BYTES else 1)
        or flags
        or zero
    ):
        return None
    return Frame(stored_bytes, payload_bytes, block_no, pid, count, codec, chunk_crc)


def chunk_of(data: bytes, seed: int, block_no: int, pid: int | None = None) -> tuple[Frame, bytes]:
    """Frame and chunk of the bytes that a directory says are one block. Raises: CorruptData."""
    frame = decode_frame(data, 0, seed)
    if frame is None or frame.block_no != block_no or (pid is not None and frame.pid != pid):
        raise CorruptData(f"no frame of block {block_no}")
    chunk = data[FRAME_BYTES:]
    if len(chunk) != frame.stored_bytes or crc32(chunk, seed) != frame.chunk_crc:
        raise CorruptData(f"block {block_no} does not verify")
    return frame, chunk


def scan_frames(data: bytes, seed: int) -> Iterator[tuple[int, Frame, bytes]]:
    """(offset, frame, chunk) of all frames in a file's bytes that verify, in their order, whatever lies between them."""
    offset = HEADER_BYTES
    while (offset := data.find(FRAME_MAGIC, offset)) >= 0:
        frame = decode_frame(data, offset, seed)
        if frame is None:
            offset += 1
            continue
        begin = offset + FRAME_BYTES
        chunk = data[begin : begin + frame.stored_bytes]
        if len(chunk) == frame.stored_bytes and crc32(chunk, seed) == frame.chunk_crc:
            yield offset, frame, chunk
            offset = begin + frame.stored_bytes
        else:
            offset += 1


def encode_record(record: SegmentRecord) -> bytes:
    key, seq, meta, values, flags, expires_ms = record
    head = _RECORD.pack(seq, len(key), flags, len(meta), len(values))
    if flags & EXPIRES:
        head += _EXPIRES.pack(expires_ms)
    return b"".join((head, key, meta, values))


def room_of(record_bytes: int, count: int) -> int:
    """Payload bytes that `count` encoded records of `record_bytes` together take."""
    return 2 + 2 * count + record_bytes


def encode_payload(encoded: Sequence[bytes]) -> bytes:
    """Encoded records as one payload: `BLOCK_BYTES` of it, or more for one large record."""
    n = len(encoded)
    starts = list(accumulate(map(len, encoded), initial=room_of(0, n)))[:n]
    return b"".join((struct.pack(f"<{n + 1}H", n, *starts), *encoded)).ljust(BLOCK_BYTES, b"\0")


def record_at(payload: bytes, slot: int) -> SegmentRecord:
    """The record in a slot of a payload. Raises: CorruptData for a slot that it does not have."""
    try:
        if slot < 0 or slot >= _COUNT.unpack_from(payload)[0]:
            raise CorruptData(f"a block without slot {slot}")
        (at,) = _COUNT.unpack_from(payload, 2 + 2 * slot)
        seq, key_bytes, flags, meta_bytes, value_bytes = _RECORD.unpack_from(payload, at)
        key_at = at + _RECORD.size
        expires_ms = 0
        if flags:
            if flags & ~_FLAGS:
                raise CorruptData(f"a record with the unknown flags {flags}")
            if flags & EXPIRES:
                (expires_ms,) = _EXPIRES.unpack_from(payload, key_at)
                key_at += _EXPIRES.size
    except struct.error as error:
        raise CorruptData(f"a block that ends within a record: {error}") from error
    meta_at = key_at + key_bytes
    values_at = meta_at + meta_bytes
    end = values_at + value_bytes
    if end > len(payload):
        raise CorruptData("a block that ends within a record")
    return SegmentRecord(
        payload[key_at:meta_at], seq, payload[meta_at:values_at], payload[values_at:end], flags, expires_ms
    )
