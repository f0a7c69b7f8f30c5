"""Compressed blocks: one payload as the bytes that go into a segment, and back.

Owns: blosc2, its parameters, what a chunk of it must look like before it is decoded. Must not know: frames, records, files.

blosc2 keeps no checksum and trusts its own headers, and some ways to use it write chunks that nothing can read (a dictionary in each chunk, the
older compressing call and its shared state). So: one call with one set of parameters, each chunk decoded and compared before it leaves here,
and a chunk is only decoded when its caller has checked its bytes and its header is exactly the one that this module writes. A chunk that fails
either test is not an error: its payload is stored as it is. Source: storage reference, 2.3.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, Final

from zkv.errors import CorruptData

#: payload bytes of a block; one size for all lets blosc2 keep its context from block to block
BLOCK_BYTES: Final = 16_384
#: a record larger than a block is a block of its own, up to what one append of the log can carry
PAYLOAD_BYTES_MAX: Final = 1 << 30

RAW: Final = 0
LZ4: Final = 1
ZSTD: Final = 2
CODEC_NAMES: Final = {LZ4: "lz4", ZSTD: "zstd"}
CODEC_IDS: Final = {name: number for number, name in CODEC_NAMES.items()}

#: a block that would lose less than this part of its size is read faster as it is
_GAIN_MIN: Final = 16
_CHUNK_HEADER_BYTES: Final = 32
#: format version, inner version, flags, type size, payload, block and chunk bytes; then filters (none) and the codec again
_CHUNK_HEADER = struct.Struct("<BBBBIII6xB9x")
#: our codec -> its flags (codec number, no splitting, no shuffle), its number, level
_FLAGS: Final = {LZ4: 0x35, ZSTD: 0x95}
_NUMBERS: Final = {LZ4: 1, ZSTD: 5}
_LEVELS: Final = {LZ4: 9, ZSTD: 1}


def compress(payload: bytes, codec: int) -> tuple[int, bytes]:
    """(codec, stored bytes); RAW and the payload itself, without the zeros that fill it up, where compressing gains nothing."""
    blosc2 = _blosc2()
    chunk: bytes = blosc2.compress2(
        payload,
        codec=blosc2.Codec.LZ4 if codec == LZ4 else blosc2.Codec.ZSTD,
        clevel=_LEVELS[codec],
        typesize=1,
        nthreads=1,
        blocksize=BLOCK_BYTES,
        splitmode=blosc2.SplitMode.NEVER_SPLIT,
        filters=[blosc2.Filter.NOFILTER],
        filters_meta=[0],
    )
    raw = payload.rstrip(b"\0") if len(payload) == BLOCK_BYTES else payload
    gained = len(raw) - len(chunk)
    if gained < len(raw) // _GAIN_MIN or chunk[:_CHUNK_HEADER_BYTES] != _header(codec, len(payload), len(chunk)):
        return RAW, raw
    if blosc2.decompress(chunk) != payload:
        return RAW, raw
    return codec, chunk


def decompress(codec: int, stored: bytes, payload_bytes: int) -> bytes:
    """The payload of stored bytes whose checksum the caller has verified. Raises: CorruptData for bytes that `compress` never made."""
    if codec == RAW:
        if len(stored) == payload_bytes:
            return stored
        if payload_bytes != BLOCK_BYTES or len(stored) > payload_bytes:
            raise CorruptData(f"a raw block of {len(stored)} bytes for a payload of {payload_bytes}")
        return stored.ljust(payload_bytes, b"\0")
    if codec not in CODEC_NAMES:
        raise CorruptData(f"a block of the unknown codec {codec}")
    if stored[:_CHUNK_HEADER_BYTES] != _header(codec, payload_bytes, len(stored)):
        raise CorruptData("a block whose compressed bytes do not begin as they must")
    try:
        payload: bytes = _blosc2().decompress(stored)
    except (RuntimeError, ValueError) as error:
        raise CorruptData(f"a block that cannot be decompressed: {error}") from error
    if len(payload) != payload_bytes:
        raise CorruptData(f"a block of {payload_bytes} bytes that decompresses to {len(payload)}")
    return payload


@cache
def _blosc2() -> Any:
    """Half a second and 40 MB, so not before the first block; without threads of its own, for they do not outlive a fork."""
    import blosc2

    blosc2.set_nthreads(1)
    return blosc2


def _header(codec: int, payload_bytes: int, chunk_bytes: int) -> bytes:
    return _CHUNK_HEADER.pack(5, 1, _FLAGS[codec], 1, payload_bytes, BLOCK_BYTES, chunk_bytes, _NUMBERS[codec])
