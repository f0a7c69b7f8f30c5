"""Sealed segments: what went in comes out, and whatever happened to the bytes, never anything else."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zkv
from tests.fuzz import objects
from tests.unit.storage.segments import (
    ACTOR,
    OTHER,
    PATH,
    SEED,
    SHIFT,
    contents,
    damaged,
    disk,
    get,
    key,
    one,
    pid_of,
    put,
    sibling,
    tombstone,
    write_segment,
)
from zkv.codec import segment_index
from zkv.codec.block import BLOCK_BYTES, LZ4, RAW, ZSTD
from zkv.codec.records import set_from_bytes, set_to_bytes
from zkv.codec.segment import (
    EXPIRES,
    TOMBSTONE,
    SegmentHeader,
    chunk_of,
    decode_frame,
    encode_frame,
    encode_payload,
    encode_record,
    scan_frames,
    seed_of,
)
from zkv.codec.segment_index import decode_index, encode_index
from zkv.core.columns import Columns
from zkv.core.ring import record_hash
from zkv.core.versions import VersionSet
from zkv.errors import CorruptData, ProtocolError, StorageError, VersionMismatch
from zkv.storage import segment_writer
from zkv.storage.files import read_whole
from zkv.storage.sealing import digest_of, record_of
from zkv.storage.segment import Segment, SegmentSummary, record_at

Sets = dict[bytes, tuple[int, VersionSet]]


def check(sets: Sets, **options: Any) -> tuple[Segment, SegmentSummary]:
    """Writes and reads back in every way."""
    files = disk()
    summary = write_segment(files, [(k, seq, versions) for k, (seq, versions) in sets.items()], **options)
    segment = Segment.open(files, PATH, summary)
    assert SegmentSummary.from_tree(summary.to_tree()) == summary
    assert contents(segment) == {
        k: (seq, set_to_bytes(versions)[0], [s.value for s in versions.siblings]) for k, (seq, versions) in sets.items()
    }
    for k, (seq, versions) in sets.items():
        found = get(segment, k)
        assert found is not None and (found.key, found.seq) == (k, seq)
        assert (found.meta, found.values) == set_to_bytes(versions)
        assert bool(found.flags & TOMBSTONE) == versions.is_tombstone
        assert bool(found.flags & EXPIRES) == any(s.expires_ms for s in versions.siblings)
    partitions = segment.partitions()
    assert list(partitions) == sorted({pid_of(k, segment.header.shift) for k in sets})
    at_block = at_record = 0
    for pid in partitions:
        run = segment.run(pid)
        index = segment.key_index(pid)
        assert run is not None and index is not None
        assert run[0] == at_block and run[2] == at_record
        at_block += run[1]
        at_record += run[3]
        keys = sorted(k for k in sets if pid_of(k, segment.header.shift) == pid)
        assert list(index.hashes) == [record_hash(k, SEED, segment.header.shift) for k in keys]
        assert list(index.seqs) == [sets[k][0] for k in keys]
        assert list(index.digests) == [digest_of(set_to_bytes(sets[k][1])[0]) for k in keys]
        assert list(index.sizes) == [len(k) + sum(map(len, set_to_bytes(sets[k][1]))) for k in keys]
        for after in (keys[0], keys[len(keys) // 2], keys[-1], keys[0] + b"\0"):
            assert [record.key for record in segment.records(pid, after)] == [k for k in keys if k > after]
    assert (at_block, at_record) == (segment.n_blocks, len(sets))
    assert (summary.records, summary.tombstones) == (len(sets), sum(v.is_tombstone for _, v in sets.values()))
    assert (summary.min_seq, summary.max_seq) == (min(s for s, _ in sets.values()), max(s for s, _ in sets.values()))
    return segment, summary


@given(
    st.dictionaries(objects.stored_keys, objects.version_sets(), min_size=1, max_size=30),
    st.sampled_from([64, 62, 58]),
    st.sampled_from([1, 3, 4096]),
    st.sampled_from([LZ4, ZSTD]),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_what_was_written_is_read_back(
    sets: dict[bytes, VersionSet], shift: int, block_records_max: int, codec: int
) -> None:
    numbered = {k: (3 * i + 1, versions) for i, (k, versions) in enumerate(sets.items())}
    check(numbered, shift=shift, block_records_max=block_records_max, codec=codec)


@given(objects.columns())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_a_set_that_is_held_in_columns_has_the_bytes_of_the_set(columns: Columns) -> None:
    for held in columns.places():
        assert set_to_bytes(held) == set_to_bytes(columns.versions(held[1]))
        assert record_of(b"key", 1, held) == record_of(b"key", 1, columns.versions(held[1]))


@given(objects.version_sets())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_set_bytes_are_read_back_and_say_the_same_of_equal_sets(versions: VersionSet) -> None:
    meta, values = set_to_bytes(versions)
    read = set_from_bytes(meta, values)
    assert read.same_as(versions)
    assert set_to_bytes(read) == (meta, values)
    reordered = VersionSet(read.siblings, dict(reversed(list(read.past.items()))), read.cloud)
    reordered.log_seq = 12345
    assert set_to_bytes(reordered)[0] == meta
    with pytest.raises(ProtocolError):
        set_from_bytes(meta, values + b"x")


def test_set_bytes_that_are_none_are_refused() -> None:
    for meta in (b"", b"\x90", b"\x93\x90\x90", b"\x93\x01\x90\xc0", b"\x92\x90\x90"):
        with pytest.raises(ProtocolError):
            set_from_bytes(meta, b"")


def test_blocks_of_three_records_and_partitions_without_any() -> None:
    sets: Sets = {key(i): (i + 1, one(b"v%d" % i)) for i in range(40) if pid_of(key(i)) != 2}
    segment, _ = check(sets, block_records_max=3)
    assert segment.run(2) is None and segment.key_index(2) is None and list(segment.records(2)) == []
    assert segment.n_blocks == sum(-(-sum(pid_of(k) == pid for k in sets) // 3) for pid in (0, 1, 3))


def test_records_of_every_size_around_a_block() -> None:
    sizes = [0, 1, 800, BLOCK_BYTES // 2, *range(BLOCK_BYTES - 120, BLOCK_BYTES + 3), 100_000, 1 << 20]
    dice = random.Random(5)
    sets: Sets = {key(i): (i + 1, one(dice.randbytes(size) if i % 2 else bytes(size))) for i, size in enumerate(sizes)}
    for codec in (LZ4, ZSTD):
        check(sets, codec=codec)


def test_values_that_cannot_be_compressed_are_stored_as_they_are() -> None:
    dice = random.Random(5)
    sets: Sets = {key(i): (i + 1, one(dice.randbytes(800))) for i in range(200)}
    segment, summary = check(sets)
    codecs = [segment.check_block(block).codec for block in range(segment.n_blocks)]
    assert codecs.count(RAW) >= len(codecs) - len(segment.partitions()), "all but the last ones, which are mostly zeros"
    assert summary.file_bytes < summary.raw_bytes * 1.15
    text: Sets = {key(i): (i + 1, one(b"all work and no play " * 40)) for i in range(200)}
    segment, summary = check(text)
    assert {segment.check_block(block).codec for block in range(segment.n_blocks)} == {LZ4}
    assert summary.file_bytes < summary.raw_bytes // 3


def test_tombstones_expiries_and_many_siblings_are_counted() -> None:
    many = VersionSet(tuple(sibling(b"%d" % n, n) for n in range(1, 33)), {ACTOR: 32})
    gap = VersionSet((sibling(b"x", 9, OTHER),), {ACTOR: 1}, ((OTHER, 9),))
    sets: Sets = {
        key(1): (5, tombstone()),
        key(2): (9, one(b"a", expires_ms=5000)),
        key(3): (7, one(b"b", expires_ms=4000)),
        key(4): (8, many),
        key(5): (2**63, gap),
    }
    _, summary = check(sets)
    assert summary.tombstones == 1
    assert (summary.min_expires_ms, summary.max_expires_ms) == (4000, 5000)
    assert (summary.min_seq, summary.max_seq) == (5, 2**63)


def small() -> Sets:
    sets: Sets = {key(i): (i + 1, one(b"value %d" % i, expires_ms=i % 2)) for i in range(5)}
    sets[key(9)] = (9, tombstone())
    sets[key(8)] = (8, one(random.Random(1).randbytes(300)))
    return sets


def test_every_bit_of_a_segment_flipped_is_noticed_or_changes_nothing() -> None:
    files = disk()
    sets = small()
    # Two blocks are compressed, two are raw.
    sets[key(7)] = (7, one(b"again and again " * 30))
    summary = write_segment(files, [(k, *v) for k, v in sets.items()], block_records_max=3)
    good = {k: set_to_bytes(versions) for k, (_, versions) in sets.items()}
    refused = 0
    for offset in range(summary.file_bytes):
        for bit in range(8):
            damaged(files, PATH, offset, bit, "/bad")
            notices: list[CorruptData] = []
            try:
                segment = Segment.open(files, "/bad", summary)
            except CorruptData as error:
                refused += "/bad" in str(error)
                continue
            for k, (meta, values) in good.items():
                try:
                    record = get(segment, k)
                except CorruptData as error:
                    notices.append(error)
                    continue
                assert record is not None, "corrupt is never absent"
                assert (record.key, record.meta, record.values) == (k, meta, values)
            try:
                scanned = {record.key: record.meta for pid in segment.partitions() for record in segment.records(pid)}
                assert scanned == {k: meta for k, (meta, _) in good.items()}
            except CorruptData as error:
                notices.append(error)
            segment.close()
            assert notices, f"byte {offset} bit {bit} went unnoticed"
            assert all("/bad, offset " in str(error) for error in notices)
    assert refused == (64 + 128) * 8, "header and footer"


def test_a_segment_cut_at_every_byte_is_refused() -> None:
    files = disk()
    summary = write_segment(files, [(k, *v) for k, v in small().items()])
    data = read_whole(files, PATH)
    for length in range(len(data)):
        put(files, "/bad", data[:length])
        for told in (summary, replace(summary, file_bytes=length)):
            with pytest.raises(CorruptData, match="/bad"):
                Segment.open(files, "/bad", told)
    put(files, "/bad", data + b"\0")
    with pytest.raises(CorruptData, match="/bad"):
        Segment.open(files, "/bad", summary)


def test_another_segment_under_the_name_is_refused() -> None:
    files = disk()
    summary = write_segment(files, [(key(1), 1, one(b"a"))])
    other = write_segment(files, [(key(1), 1, one(b"b"))], "/other", segment_id=2)
    assert summary.file_bytes == other.file_bytes
    with pytest.raises(CorruptData, match="another file"):
        Segment.open(files, "/other", summary)
    with pytest.raises(FileNotFoundError):
        Segment.open(files, "/gone", summary)


def test_a_block_or_slot_that_is_not_there_is_corrupt() -> None:
    files = disk()
    segment = Segment.open(files, PATH, write_segment(files, [(key(1), 1, one(b"a"))]))
    for block_no in (-1, 1):
        with pytest.raises(CorruptData, match=PATH):
            segment.read_block(block_no)
    for slot in (-1, 1, 4095):
        with pytest.raises(CorruptData):
            record_at(segment.read_block(0), slot)


def test_frames_are_found_without_directory() -> None:
    files = disk()
    sets = {key(i): (i + 1, one(b"v%d" % i * 100)) for i in range(60)}
    summary = write_segment(files, [(k, *v) for k, v in sets.items()], block_records_max=3)
    segment = Segment.open(files, PATH, summary)
    data = bytearray(read_whole(files, PATH))
    data[segment.directory.offsets[-1] :] = b""
    begin = segment.directory.offsets[3]
    data[begin + 40] ^= 1
    found = [frame.block_no for _, frame, _ in scan_frames(bytes(data), seed_of(bytes(range(16)), 1))]
    assert found == [n for n in range(segment.n_blocks) if n != 3]
    assert list(scan_frames(bytes(data), seed_of(bytes(range(16)), 2))) == []


def test_a_header_of_another_version_is_told_from_damage() -> None:
    files = disk()
    summary = write_segment(files, [(key(1), 1, one(b"a"))])
    data = bytearray(read_whole(files, PATH))
    data[4] = 2
    data[60:64] = crc32(data[:60]).to_bytes(4, "little")
    put(files, PATH, bytes(data))
    with pytest.raises(VersionMismatch, match=f"{PATH}, offset 0: segment version 2"):
        Segment.open(files, PATH, summary)


def test_what_does_not_fit_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    files = disk()
    sets = [(key(n), n + 1, one(b"v" * 20_000)) for n in range(3)]
    monkeypatch.setattr(segment_writer, "PAYLOAD_BYTES_MAX", 20_000)
    with pytest.raises(StorageError, match="larger than any block"):
        write_segment(files, sets)
    monkeypatch.undo()
    monkeypatch.setattr(segment_writer, "BLOCKS_MAX", 2)
    with pytest.raises(StorageError, match="more than 2 blocks"):
        write_segment(files, sets)


def test_records_that_are_none_are_corrupt() -> None:
    good = encode_payload([encode_record(record_of(key(1), 1, one(b"a", expires_ms=5)))])
    assert record_at(good, 0).expires_ms == 5
    begin = int.from_bytes(good[2:4], "little")
    flags_at, value_bytes_at = begin + 10, begin + 15
    changes = {
        "unknown flags": good[:flags_at] + b"\x04" + good[flags_at + 1 :],
        "ends within a record": good[:value_bytes_at] + b"\xff\xff\0\0" + good[value_bytes_at + 4 :],
        "ends within a record: ": good[:2] + b"\xff\xff" + good[4:],
    }
    for what, payload in changes.items():
        with pytest.raises(CorruptData, match=what):
            record_at(payload, 0)


def test_columns_are_little_endian_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be shown on one: what a machine of the other kind does to its own order comes back through itself."""
    files = disk()
    sets = [(key(n), n + 1, one(b"v")) for n in range(9)]
    segment = Segment.open(files, PATH, write_segment(files, sets, shift=64))
    index = segment.key_index(0)
    assert index is not None
    data = encode_index(index)
    assert data[:8] == index.hashes[0].to_bytes(8, "little")
    monkeypatch.setattr(segment_index, "_BIG_ENDIAN", sys.byteorder == "little")
    swapped = encode_index(index)
    assert swapped[:8] == index.hashes[0].to_bytes(8, "big")
    run = segment.directory.runs[0]
    assert decode_index(swapped, run._replace(index_crc=crc32(swapped, 7)), 7) == index
    assert Segment.open(files, PATH, write_segment(files, sets, shift=64)).key_index(0) == index


def test_a_frame_that_contradicts_itself_is_none() -> None:
    chunk = b"x" * 100
    for payload_bytes, count in (
        (BLOCK_BYTES - 1, 1),
        (BLOCK_BYTES, 0),
        (BLOCK_BYTES, 4097),
        (BLOCK_BYTES + 1, 2),
        (2**31, 1),
    ):
        frame = encode_frame(chunk, payload_bytes, 0, 0, count, LZ4, 7)
        assert decode_frame(frame + chunk, 0, 7) is None
    frame = encode_frame(chunk, BLOCK_BYTES, 0, 3, 1, LZ4, 7)
    assert chunk_of(frame + chunk, 7, 0, 3)[1] == chunk
    for block_no, pid in ((1, 3), (0, 4)):
        with pytest.raises(CorruptData, match=f"no frame of block {block_no}"):
            chunk_of(frame + chunk, 7, block_no, pid)


@pytest.mark.parametrize("wrong", ["order", "twice", "partition"])
def test_records_out_of_order_are_a_mistake(wrong: str) -> None:
    writer = segment_writer.SegmentWriter(disk(), PATH, SegmentHeader(LZ4, SHIFT, bytes(16), 1, SEED))
    first, second = {"order": (2, 1), "twice": (1, 1), "partition": (1, 2)}[wrong]
    writer.add(1, [1], [1], [record_of(key(first), 1, one(b"a"))])
    with pytest.raises(AssertionError):
        writer.add(0 if wrong == "partition" else 1, [1], [1], [record_of(key(second), 2, one(b"a"))])
    writer.abandon()


@pytest.mark.parametrize(
    "tree",
    [{}, {"id": 1}, {"codec": "lz4"}],
)
def test_a_summary_that_is_none_is_refused(tree: object) -> None:
    with pytest.raises(CorruptData):
        SegmentSummary.from_tree(tree)
    files = disk()
    good = write_segment(files, [(key(1), 1, one(b"a"))]).to_tree()
    for change in ({"id": -1}, {"records": "1"}, {"codec": "zip"}, {"more": 1}, {"max_seq": True}):
        with pytest.raises(CorruptData):
            SegmentSummary.from_tree({**good, **change})


# --- what this must not use ------------------------------------------------------------------------------------------------------


def test_no_module_uses_what_corrupts_or_kills() -> None:
    for path in Path(zkv.__file__).parent.glob("**/*.py"):
        text = path.read_text(encoding="utf-8")
        for banned in ("blosc2.compress(", "use_dict", "mmap", "SChunk", "blosc2.open", "blosc2.NDArray"):
            assert banned not in text, f"{path} uses {banned}"


@pytest.mark.parametrize(
    "modules", ["zkv", "zkv.cli.main, zkv.client", "zkv.node", "zkv.storage.sealing, zkv.storage.segment"]
)
def test_neither_blosc2_nor_numpy_is_loaded_before_it_is_needed(modules: str) -> None:
    code = f"import sys, {modules}; print([m for m in ('blosc2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
