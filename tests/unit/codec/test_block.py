"""Compressed blocks: what is written can be read, and a chunk that blosc2 should not see never gets there."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from zkv.codec import block
from zkv.codec.block import BLOCK_BYTES, LZ4, RAW, ZSTD, compress, decompress
from zkv.errors import CorruptData

TEXT = (b"all work and no play makes jack a dull boy; " * 500)[:BLOCK_BYTES]
NOISE = random.Random(1).randbytes(BLOCK_BYTES)


@pytest.mark.parametrize("codec", [LZ4, ZSTD])
def test_text_is_compressed_and_noise_is_not(codec: int) -> None:
    for payload, expected in (
        (TEXT, codec),
        (TEXT * 5, codec),
        (NOISE, RAW),
        (NOISE * 3, RAW),
        (TEXT[:9].ljust(BLOCK_BYTES, b"\0"), RAW),
    ):
        used, stored = compress(payload, codec)
        # A payload that repeats itself at a distance of a block does not gain from it: blocks are compressed by themselves.
        assert used == expected
        assert len(stored) <= len(payload)
        assert decompress(used, stored, len(payload)) == payload


def test_ten_thousand_blocks_of_all_kinds_are_read_back() -> None:
    dice = random.Random(2)
    for _ in range(2_000):
        size = dice.choice((10, 1_000, BLOCK_BYTES))
        payload = (dice.randbytes(dice.randrange(1, size)) + TEXT[: dice.randrange(BLOCK_BYTES)])[:BLOCK_BYTES]
        payload = payload.ljust(BLOCK_BYTES, b"\0")
        used, stored = compress(payload, dice.choice((LZ4, ZSTD)))
        assert decompress(used, stored, BLOCK_BYTES) == payload


def test_bytes_that_were_never_written_are_refused() -> None:
    _, stored = compress(TEXT, LZ4)
    with pytest.raises(CorruptData, match="unknown codec 3"):
        decompress(3, stored, BLOCK_BYTES)
    for codec, chunk, payload_bytes in (
        (ZSTD, stored, BLOCK_BYTES),
        (LZ4, stored + b"\0", BLOCK_BYTES),
        (LZ4, stored, BLOCK_BYTES + 1),
        (LZ4, b"", BLOCK_BYTES),
    ):
        with pytest.raises(CorruptData, match="do not begin as they must"):
            decompress(codec, chunk, payload_bytes)
    for bit in range(32 * 8):
        changed = bytearray(stored)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData, match="do not begin as they must"):
            decompress(LZ4, bytes(changed), BLOCK_BYTES)
    for raw, payload_bytes in ((TEXT + b"x", BLOCK_BYTES), (TEXT, BLOCK_BYTES + 1), (TEXT * 2, BLOCK_BYTES)):
        with pytest.raises(CorruptData, match="a raw block"):
            decompress(RAW, raw, payload_bytes)


def test_a_chunk_that_cannot_be_decompressed_is_corrupt() -> None:
    _, stored = compress(TEXT, ZSTD)
    for body in (bytes(len(stored) - 32), b"\xff" * (len(stored) - 32)):
        with pytest.raises(CorruptData):
            decompress(ZSTD, stored[:32] + body, BLOCK_BYTES)


@pytest.mark.parametrize("way", ["other bytes", "fewer bytes", "another header"])
def test_a_library_that_fails_costs_space_and_no_data(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """As it did with dictionaries: what it wrote could not be read. The payload is stored as it is then."""
    real = block._blosc2()

    def compress2(payload: bytes, **options: Any) -> bytes:
        chunk: bytes = real.compress2(payload, **options)
        return b"\x06" + chunk[1:] if way == "another header" else chunk

    def decompress_(chunk: bytes) -> bytes:
        payload: bytes = real.decompress(chunk)
        return {"other bytes": b"x" + payload[1:], "fewer bytes": payload[:-1], "another header": payload}[way]

    fake = SimpleNamespace(
        compress2=compress2, decompress=decompress_, Codec=real.Codec, SplitMode=real.SplitMode, Filter=real.Filter
    )
    chunk = compress(TEXT, LZ4)[1]
    monkeypatch.setattr(block, "_blosc2", lambda: fake)
    assert compress(TEXT, LZ4) == (RAW, TEXT)
    if way == "fewer bytes":
        with pytest.raises(CorruptData, match="that decompresses to"):
            decompress(LZ4, chunk, BLOCK_BYTES)
