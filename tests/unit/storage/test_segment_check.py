"""Verifying a segment byte for byte, and saving what is left of a damaged one."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.storage.segments import (
    ACTOR,
    PATH,
    SEED,
    SHIFT,
    STORE_ID,
    Told,
    contents,
    damaged,
    disk,
    key,
    one,
    pid_of,
    put,
    sibling,
    tombstone,
    write_segment,
)
from zkv.codec.block import LZ4
from zkv.codec.segment import FRAME_BYTES, SegmentHeader, SegmentRecord
from zkv.core.ring import record_hash
from zkv.core.versions import VersionSet
from zkv.errors import CorruptData
from zkv.storage.files import read_whole
from zkv.storage.merging import merge
from zkv.storage.salvaging import PIDS_MAX, Salvage, SalvageJob, salvage
from zkv.storage.sealing import digest_of, record_of
from zkv.storage.segment import Segment, SegmentSummary
from zkv.storage.segment_check import Damage, SegmentCheck, check_segment
from zkv.storage.segment_jobs import MergeJob, SegmentSource
from zkv.storage.segment_writer import SegmentWriter
from zkv.testing.sim.disk import SimFiles

SETS = {
    **{key(n): (n + 1, one(b"value %d " % n * n)) for n in range(12)},
    key(12): (20, tombstone()),
    key(13): (21, one(random.Random(1).randbytes(100), expires_ms=5)),
}


def written(files: SimFiles, path: str = PATH) -> SegmentSource:
    sets = [(k, seq, versions) for k, (seq, versions) in SETS.items()]
    return SegmentSource(path, write_segment(files, sets, path, block_records_max=2))


def test_a_good_segment_has_no_damage_and_is_looked_at_as_a_whole() -> None:
    files = disk()
    source = written(files)
    check = SegmentCheck(files, source)
    read_bytes = sum(check.steps())
    assert check.damages == [] and check.records == len(SETS)
    segment = Segment.open(files, *source)
    blocks = segment.directory.offsets[-1] - segment.directory.offsets[0]
    assert read_bytes == blocks + 33 * len(SETS)


def test_every_flipped_bit_is_found_and_its_partition_told() -> None:
    files = disk()
    source = written(files)
    segment = Segment.open(files, *source)
    owner: list[int | None] = [None] * source.summary.file_bytes
    for pid in segment.partitions():
        first_block, n_blocks, first_record, n_records = segment.run(pid) or (0, 0, 0, 0)
        begin, end = segment.directory.offsets[first_block], segment.directory.offsets[first_block + n_blocks]
        owner[begin:end] = [pid] * (end - begin)
        begin = segment.directory.offsets[-1] + 33 * first_record
        owner[begin : begin + 33 * n_records] = [pid] * (33 * n_records)
    for offset, told in enumerate(owner):
        damaged(files, PATH, offset, offset % 8, "/bad")
        found = check_segment(files, SegmentSource("/bad", source.summary))
        assert [damage.pid for damage in found] == [told], f"byte {offset}"
        assert found[0].path == "/bad" and found[0].what.startswith("/bad")


def test_one_bad_block_does_not_hide_another() -> None:
    files = disk()
    source = written(files)
    segment = Segment.open(files, *source)
    hit = [segment.partitions()[0], segment.partitions()[-1]]
    for wanted in hit:
        damaged(files, PATH, segment.directory.offsets[(segment.run(wanted) or (0,))[0]] + FRAME_BYTES, 0, PATH)
    check = SegmentCheck(files, source)
    for _ in check.steps():
        pass
    assert [damage.pid for damage in check.damages] == hit and check.records == len(SETS) - 4


def test_what_cannot_be_read_is_damage() -> None:
    class Unreadable(SimFiles):
        bad = -1

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            if offset == self.bad:
                raise OSError(errno.EIO, "a bad sector")
            return super().pread(fd, length, offset)

    files = Unreadable(random.Random(1))
    source = written(files)
    segment = Segment.open(files, *source)
    last = segment.partitions()[-1]
    index = segment.directory.offsets[-1]
    directory = index + 33 * len(SETS)
    expected = {
        0: None,
        segment.directory.offsets[segment.n_blocks - 1]: last,
        index: segment.partitions()[0],
        directory: None,
    }
    for files.bad, pid in expected.items():
        found = check_segment(files, source)
        assert [damage.pid for damage in found] == [pid] and "a bad sector" in found[0].what
    assert len(check_segment(disk(), source)) == 1, "a file that is gone"


def damage_of(**wrong: Any) -> Damage:
    """Of a segment whose checksums are right and in which one thing is not."""
    files = disk()
    writer = SegmentWriter(files, PATH, SegmentHeader(LZ4, SHIFT, STORE_ID, 1, SEED))
    keys = sorted([key(n) for n in range(20)], key=lambda k: (pid_of(k), k))
    for stored in keys:
        record = record_of(stored, 7, one(b"a"))
        first = stored == keys[0]
        if first and "record" in wrong:
            record = record._replace(**wrong["record"])
        pid = pid_of(stored) + (4 if stored == keys[-1] and "pid" in wrong else 0)
        digest = digest_of(record.meta) ^ (1 if first and "digest" in wrong else 0)
        writer.add(pid, [record_hash(stored, SEED, SHIFT)], [digest], [record])
    found = check_segment(files, SegmentSource(PATH, replace(writer.finish(), **wrong.get("summary", {}))))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"digest": 1}, "block 0 and the key index differ at record 0"),
        ({"record": {"meta": b"\x90"}}, "record 7 holds no set"),
        ({"record": {"values": b"b"}}, "record 7 has a value that is not the one its client wrote"),
        ({"pid": 1}, "record 7 is not of partition"),
    ],
)
def test_what_contradicts_itself_under_right_checksums_is_damage(wrong: dict[str, Any], what: str) -> None:
    assert what in damage_of(**wrong).what


def test_a_record_out_of_order_is_damage() -> None:
    files = disk()
    writer = SegmentWriter(files, PATH, SegmentHeader(LZ4, SHIFT, STORE_ID, 1, SEED))
    for stored in sorted([key(n) for n in range(20) if pid_of(key(n)) == 0], reverse=True):
        record = record_of(stored, 7, one(b"a"))
        writer.add(0, [record_hash(stored, SEED, SHIFT)], [digest_of(record.meta)], [record])
        writer._last_key = b""
    found = check_segment(files, SegmentSource(PATH, writer.finish()))
    assert found and all("record 7 is out of order" in damage.what for damage in found)


# --- an index or directory that lies under right checksums --------------------------------------------------------------------------


def refused(source: SegmentSource, files: SimFiles, what: str) -> None:
    """By a check, by a merge, and by whoever scans it."""
    found = check_segment(files, source)
    assert any(what in damage.what for damage in found), found
    job = MergeJob("/out", STORE_ID, 9, SEED, SHIFT, (source,), (None,))
    with pytest.raises(CorruptData, match=source.path):
        merge(files, job)


def test_what_was_written_again_unchanged_is_good() -> None:
    files = disk()
    source = written(files)
    assert Told(files, source).write("/told") == source._replace(path="/told")
    assert check_segment(files, source._replace(path="/told")) == []


def test_a_run_of_another_partition_is_damage() -> None:
    files = disk()
    told = Told(files, written(files))
    told.runs[-1] = told.runs[-1]._replace(pid=told.runs[-1].pid + 4)
    refused(told.write("/told"), files, "is of partition")


def test_a_key_index_that_points_elsewhere_is_damage() -> None:
    files = disk()
    told = Told(files, written(files))
    index = told.indexes[0]
    assert index is not None
    index.places[0] ^= 1
    refused(told.write("/told"), files, "the key index differ at record 0")


def test_a_key_index_with_fewer_or_more_entries_than_blocks_have_is_damage() -> None:
    for one_more, one_less in ((0, 1), (1, 0)):
        files = disk()
        told = Told(files, written(files))
        more, less = told.indexes[one_more], told.indexes[one_less]
        assert more is not None and less is not None
        for taken, given in zip(less, more, strict=True):
            given.append(taken.pop())
        for number in (0, 1):
            index = told.indexes[number]
            assert index is not None
            first = 0 if number == 0 else told.runs[0].n_records
            told.runs[number] = told.runs[number]._replace(n_records=len(index.seqs), first_record=first)
        source = told.write("/told")
        refused(source, files, "its key index" if one_more == 0 else "the key index differ")
        assert any(
            f"holds {told.runs[1].n_records - 1} records, its" in d.what for d in check_segment(files, source)
        ) == (one_more == 1)


def test_a_directory_with_another_first_key_is_damage() -> None:
    files = disk()
    told = Told(files, written(files))
    told.first_keys[0] = b"0000a"
    found = check_segment(files, told.write("/told"))
    assert ["does not begin with the key that the directory has" in damage.what for damage in found] == [True]


def test_a_directory_or_footer_that_contradicts_itself_is_damage() -> None:
    files = disk()
    source = written(files)
    changes: list[tuple[Callable[[Told], Any], str]] = [
        (lambda told: told.runs.reverse(), "do not follow one another"),
        (lambda told: told.runs.__setitem__(0, told.runs[0]._replace(first_block=1)), "do not follow one another"),
        (lambda told: told.offsets.__setitem__(1, 1), "the directory of a segment contradicts itself"),
        (lambda told: told.footer.update(blocks=told.runs[0].n_blocks), "of a segment"),
        (lambda told: told.footer.update(records=0), "the footer of a segment contradicts itself"),
        (lambda told: told.footer.update(index_offset=1), "the footer of a segment contradicts itself"),
    ]
    for change, what in changes:
        told = Told(files, source)
        change(told)
        found = check_segment(files, told.write("/told"))
        assert [damage.pid for damage in found] == [None] and what in found[0].what


# --- salvage ---------------------------------------------------------------------------------------------------------------------


def job() -> SalvageJob:
    return SalvageJob("/bad", 1, "/saved", STORE_ID, 2, SEED, SHIFT, 2)


def saved(files: SimFiles) -> tuple[dict[bytes, int], Salvage]:
    result = salvage(files, job())
    if result.summary is None:
        return {}, result
    segment = Segment.open(files, "/saved", result.summary)
    found = contents(segment)
    assert check_segment(files, SegmentSource("/saved", result.summary)) == []
    for k, (seq, meta, _) in found.items():
        expected = record_of(k, *SETS[k])
        assert (seq, meta) == (expected.seq, expected.meta), "never other bytes"
    return {k: seq for k, (seq, _, _) in found.items()}, result


def test_a_flipped_bit_costs_one_block_at_most_and_the_account_is_exact() -> None:
    files = disk()
    source = written(files)
    segment = Segment.open(files, *source)
    blocks = {
        block_no: {record.key for place, record in segment.placed_records(pid) if place >> 12 == block_no}
        for pid in segment.partitions()
        for block_no in range((segment.run(pid) or (0,))[0], sum((segment.run(pid) or (0, 0))[:2]))
    }
    offsets = segment.directory.offsets
    for offset in range(0, source.summary.file_bytes, 3):
        damaged(files, PATH, offset, offset % 8, "/bad")
        found, result = saved(files)
        hit = [n for n in blocks if offsets[n] <= offset < offsets[n + 1]]
        gone = blocks[hit[0]] if hit else set()
        assert set(found) == set(SETS) - gone, f"byte {offset}"
        if hit:
            pid = pid_of(min(gone))
            assert [(lost[1:]) for lost in result.lost] == [(hit[0], hit[0], pid, pid)]
        elif offset >= offsets[-1] + 33 * len(SETS):
            # Directory or footer: whether there was more behind the last frame, nobody knows.
            assert [lost[1:] for lost in result.lost] == [(len(blocks), -1, segment.partitions()[-1], PIDS_MAX - 1)]
        else:
            assert result.lost == []


def test_a_cut_file_gives_what_is_before_the_cut() -> None:
    files = disk()
    source = written(files)
    segment = Segment.open(files, *source)
    data = read_whole(files, PATH)
    offsets = segment.directory.offsets
    for length in range(0, len(data), 7):
        put(files, "/bad", data[:length])
        found, result = saved(files)
        whole = sum(end <= length for end in offsets[1:])
        assert len(found) == sum(segment.check_block(n).record_count for n in range(whole))
        assert (result.summary is None) == (whole == 0)
        assert result.lost[-1].first_block == whole and result.lost[-1].last_block == -1
    assert salvage(files, replace(job(), store_id=bytes(16))).summary is None


def test_two_lost_blocks_without_directory_are_between_the_frames_around_them() -> None:
    files = disk()
    source = written(files)
    segment = Segment.open(files, *source)
    offsets = segment.directory.offsets
    data = bytearray(read_whole(files, PATH))
    data[offsets[1] + 40] ^= 1
    data[offsets[2] + 2] ^= 1
    put(files, "/bad", bytes(data))
    _, result = saved(files)
    exact = result.lost
    assert [lost[1:3] for lost in exact] == [(1, 2)]
    data[-1] ^= 1
    put(files, "/bad", bytes(data))
    _, result = saved(files)
    first, last = segment.check_block(0).pid, segment.check_block(3).pid
    assert result.lost[0][1:] == (1, 2, first, last)
    assert first <= exact[0].first_pid <= exact[0].last_pid <= last


def test_a_frame_within_a_value_is_not_taken_for_one_of_the_file() -> None:
    """The value is a copy of the segment's own first frame, and the frame around it is damaged."""
    files = disk()
    plain = written(files)
    segment = Segment.open(files, *plain)
    frame = read_whole(files, PATH)[64 : segment.directory.offsets[1]]
    last = max(SETS, key=lambda k: (pid_of(k), k))
    noise = random.Random(2).randbytes(40)
    sets = [(k, seq, versions) for k, (seq, versions) in SETS.items() if k != last]
    sets.append((last, 99, one(noise + frame + noise)))
    summary = write_segment(files, sets, "/inner", block_records_max=2)
    data = bytearray(read_whole(files, "/inner"))
    assert data.count(frame) == 2
    data[data.rindex(noise)] ^= 1
    put(files, "/bad", bytes(data))
    found, result = saved(files)
    assert last not in found and len(found) >= len(SETS) - 2
    assert result.summary is not None and len(result.lost) == 1
    assert summary.records == len(SETS)


def test_a_block_whose_records_do_not_belong_there_is_lost() -> None:
    files = disk()
    writer = SegmentWriter(files, "/bad", SegmentHeader(LZ4, SHIFT, STORE_ID, 1, SEED))
    for pid in (0, 1):
        stored = next(key(n) for n in range(100) if pid_of(key(n)) == 0)
        record: SegmentRecord = record_of(stored, 1, VersionSet((sibling(b"a"),), {ACTOR: 1}))
        writer.add(pid, [record_hash(stored, SEED, SHIFT)], [1], [record])
    assert isinstance(writer.finish(), SegmentSummary)
    result = salvage(files, job())
    assert result.summary is not None and result.summary.records == 1
    assert [lost[1:] for lost in result.lost] == [(1, 1, 1, 1)]


def test_an_error_leaves_no_file() -> None:
    files = disk()
    written(files, "/bad")
    files.armed.add("short")
    files.full = True
    with pytest.raises(OSError, match="no space"):
        salvage(files, job())
    assert "/saved" not in files.snapshot()
