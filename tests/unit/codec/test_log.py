from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.codec import log
from zkv.errors import CorruptData, VersionMismatch

STORE_ID = bytes(range(16))
SEED = log.chain_seed(STORE_ID, 1, 1)
NO_LIMIT = log.SEQ_MAX


def build(
    bodies: list[bytes], *, seed: int = SEED, first_seq: int = 1, records: int = 1, durable_seq: int = 0
) -> bytes:
    """A file of one batch per body; an empty body is a mark."""
    data = log.encode_file_header(log.FileHeader(STORE_ID, 1, first_seq, first_seq - 1))
    prev_crc = seed
    seq = first_seq
    for body in bodies:
        count = records if body else 0
        header, _size, prev_crc = log.encode_batch_header([body], count, 1, seq, durable_seq, prev_crc, seed)
        data += header + body
        seq += count
    return data


def test_file_header_round_trip() -> None:
    header = log.FileHeader(STORE_ID, 7, 81, 80)
    data = log.encode_file_header(header)
    assert len(data) == log.FILE_HEADER_BYTES
    assert log.decode_file_header(data + b"more") == header


def test_file_header_damage_anywhere_is_seen() -> None:
    data = log.encode_file_header(log.FileHeader(STORE_ID, 7, 81, 80))
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData):
            log.decode_file_header(bytes(flipped))
    for length in range(len(data)):
        with pytest.raises(CorruptData, match="shorter"):
            log.decode_file_header(data[:length])


def test_file_header_of_a_newer_version_is_named() -> None:
    body = bytearray(log.encode_file_header(log.FileHeader(STORE_ID, 7, 81, 80))[:-4])
    struct.pack_into("<H", body, 4, 2)
    with pytest.raises(VersionMismatch, match="log version 2; this build reads version 1"):
        log.decode_file_header(bytes(body) + struct.pack("<I", crc32(body)))


@given(parts=st.lists(st.binary(max_size=20), max_size=5), count=st.integers(0, 0xFFFF), first=st.integers(1, 2**63))
def test_batch_header_round_trip(parts: list[bytes], count: int, first: int) -> None:
    header, size, crc = log.encode_batch_header(parts, count, 9, first, first - 1, 123, SEED)
    body = b"".join(parts)
    assert size == len(header) + len(body)
    read = log.decode_batch_header(b"??" + header, 2, SEED)
    assert read is not None and read.fits(body)
    assert read[:4] == (count, 9, log.XXH3_BODY if parts else 0, len(body))
    assert read[5:] == (first, first - 1, 123, crc)


def test_batch_header_damage_anywhere_is_seen() -> None:
    header, _size, _crc = log.encode_batch_header([b"body"], 3, 1, 8, 7, 123, SEED)
    for bit in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        assert log.decode_batch_header(bytes(flipped), 0, SEED) is None
    for length in range(len(header)):
        assert log.decode_batch_header(header[:length], 0, SEED) is None


@pytest.mark.parametrize("other", [(bytes(16), 1, 1), (STORE_ID, 2, 1), (STORE_ID, 1, 2)])
def test_batch_header_of_another_file_never_parses(other: tuple[bytes, int, int]) -> None:
    header, _size, _crc = log.encode_batch_header([b"body"], 3, 1, 8, 7, 123, log.chain_seed(*other))
    assert log.decode_batch_header(header, 0, SEED) is None


def test_batch_header_that_claims_itself_durable_is_refused() -> None:
    header, _size, _crc = log.encode_batch_header([b"body"], 3, 1, 8, 8, 123, SEED)
    assert log.decode_batch_header(header, 0, SEED) is None


def test_scan_of_a_whole_file_is_one_chained_run() -> None:
    data = build([b"a", b"bb", b"", b"ccc"], records=2)
    assert log.scan_file(data + bytes(1000), SEED, 1, NO_LIMIT) == ([log.Run(64, len(data), 1, 7, True)], 0)
    assert log.scan_file(data[:64], SEED, 1, NO_LIMIT) == ([], 0)
    assert log.scan_file(b"", SEED, 1, NO_LIMIT) == ([], 0)


def test_scan_stops_where_a_later_file_took_over() -> None:
    data = build([b"a", b"bb", b"ccc"])
    assert log.scan_file(data, SEED, 1, 3).runs == [log.Run(64, 64 + 41 + 42, 1, 3, True)]
    assert log.scan_file(data, SEED, 1, 1).runs == []


def test_scan_steps_over_a_damaged_body_and_keeps_its_mark() -> None:
    data = bytearray(build([b"a", b"bb", b"ccc", b"d"]))
    data[64 + 41 + 40] ^= 1
    third = 64 + 41 + 42
    assert log.scan_file(bytes(data), SEED, 1, NO_LIMIT).runs == [
        log.Run(64, 64 + 41, 1, 2, True),
        log.Run(third, len(data), 3, 5, False),
    ]
    data[64 + 40] ^= 1  # the first body too: nothing is chained any more
    assert [run[2:] for run in log.scan_file(bytes(data), SEED, 1, NO_LIMIT).runs] == [(3, 5, False)]


def test_scan_finds_the_next_header_after_a_damaged_one() -> None:
    data = bytearray(build([b"a", b"ZKVB" * 30, b"ccc"]))
    data[64 + 41 + 9] ^= 1
    runs = log.scan_file(bytes(data), SEED, 1, NO_LIMIT).runs
    assert [run[2:] for run in runs] == [(1, 2, True), (3, 4, False)]


def test_scan_is_not_taken_in_by_log_bytes_inside_a_body() -> None:
    """After damage the search runs through bodies: values that hold log bytes must not become records."""
    own = build([b"old"])[64:]
    foreign_seed = log.chain_seed(bytes(16), 1, 1)
    foreign = build([b"foreign"], seed=foreign_seed, first_seq=50)[64:]
    data = bytearray(build([b"first", own + foreign, b"last"]))
    data[64 + 45 + 20] ^= 1
    runs = log.scan_file(bytes(data), SEED, 1, NO_LIMIT).runs
    assert [run[2:] for run in runs] == [(1, 2, True), (3, 4, False)]


def test_scan_does_not_follow_a_broken_chain() -> None:
    first = build([b"a"])
    header, _size, _crc = log.encode_batch_header([b"b"], 1, 1, 2, 0, 99, SEED)
    runs = log.scan_file(first + header + b"b", SEED, 1, NO_LIMIT).runs
    assert [run[2:] for run in runs] == [(1, 2, True), (2, 3, False)]
    alone = log.scan_file(first[:64] + header + b"b", SEED, 1, NO_LIMIT).runs
    assert [run[2:] for run in alone] == [(2, 3, False)]


def test_scan_reports_the_highest_mark_even_of_a_batch_with_a_damaged_body() -> None:
    data = bytearray(build([b"a", b"b"], first_seq=10, durable_seq=9))
    assert log.scan_file(bytes(data), log.chain_seed(STORE_ID, 1, 1), 10, NO_LIMIT).durable_seq == 9
    data[-1] ^= 1
    assert log.scan_file(bytes(data[:64] + data[64 + 41 :]), SEED, 10, NO_LIMIT) == ([], 9)


def test_scan_of_a_body_cut_short_keeps_what_is_before() -> None:
    data = build([b"a", b"bb"])
    for length in range(64 + 41, len(data)):
        assert log.scan_file(data[:length], SEED, 1, NO_LIMIT).runs == [log.Run(64, 64 + 41, 1, 2, True)]


def test_read_batches_gives_bodies_without_marks() -> None:
    data = build([b"a", b"", b"ccc"], records=5)[64:]
    assert list(log.read_batches(data, SEED)) == [log.Batch(1, 5, 1, b"a"), log.Batch(6, 5, 1, b"ccc")]


def test_read_batches_of_changed_bytes_is_corrupt() -> None:
    data = build([b"a", b"ccc"])[64:]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData, match="changed while it was read"):
            list(log.read_batches(bytes(flipped), SEED))
    with pytest.raises(CorruptData):
        list(log.read_batches(data[:-1], SEED))


def test_offset_of_seq_is_a_batch_border() -> None:
    data = build([b"a", b"bb", b"", b"ccc"], records=2)[64:]
    assert [log.offset_of_seq(data, SEED, seq) for seq in (1, 2, 3, 4, 5, 7)] == [0, 0, 41, 41, 123, len(data)]
