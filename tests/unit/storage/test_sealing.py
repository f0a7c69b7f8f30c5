"""Logs into segments: the last record of each key, or an error that says where; never half a file under its name."""

from __future__ import annotations

import errno
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import objects
from tests.unit.storage.faulty import FaultyFiles
from tests.unit.storage.segments import (
    LOG,
    PATH,
    EveryCall,
    columns,
    contents,
    damaged,
    disk,
    get,
    key,
    one,
    put,
    rows,
    seal_job,
    size_of,
    tombstone,
    write_log,
)
from zkv.codec.log import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from zkv.codec.records import set_from_bytes
from zkv.core.messages import RecordBlock
from zkv.core.versions import VersionSet
from zkv.errors import CorruptData
from zkv.storage.files import read_whole
from zkv.storage.sealing import seal
from zkv.storage.segment import Segment
from zkv.storage.segment_jobs import SealJob

CRC = BATCH_HEADER_BYTES


def blocks() -> list[RecordBlock]:
    """Seqs 1 to 9: rows and columns, keys 1 and 2 overwritten, key 3 deleted, a delete of nothing."""
    return [
        rows((key(1), one(b"old")), (key(2), one(b"two"))),
        columns([key(3), key(1), key(4)], [b"three", b"newer", b"four"], 2),
        rows((key(3), tombstone(2)), (key(5), VersionSet((), {}))),
        columns([key(6), key(2)], [b"six", b"last"], 3),
    ]


EXPECTED = {
    key(1): (4, [b"newer"]),
    key(2): (9, [b"last"]),
    key(3): (6, []),
    key(4): (5, [b"four"]),
    key(6): (8, [b"six"]),
}


def states(
    blocks: list[RecordBlock], first_seq: int, last_seq: int, begin: int = 1
) -> dict[bytes, tuple[int, VersionSet]]:
    """What a table would hold."""
    found: dict[bytes, tuple[int, VersionSet]] = {}
    seq = begin
    for block in blocks:
        for record in block.records:
            if first_seq <= seq <= last_seq and (record.versions.past or record.versions.cloud):
                found[record.key] = (seq, record.versions)
            seq += 1
    return found


def sealed(job: SealJob, files: object) -> dict[bytes, tuple[int, list[bytes]]]:
    summary = seal(files, job)  # type: ignore[arg-type]
    assert summary is not None
    segment = Segment.open(files, job.output, summary)  # type: ignore[arg-type]
    found = {k: (seq, values) for k, (seq, _, values) in contents(segment).items()}
    assert all(get(segment, k) is not None for k in found)
    segment.close()
    return found


def test_rows_and_columns_with_overwritten_keys_are_sealed() -> None:
    files = disk()
    assert sealed(seal_job(write_log(files, blocks())), files) == EXPECTED


def test_a_run_that_begins_behind_the_range_is_not_looked_at() -> None:
    files = disk()
    first = write_log(files, blocks()[:1], "/log1")
    second = write_log(files, blocks()[1:], "/log2", first_seq=3)
    job = seal_job(first, second, last_seq=4, missing=((2, 2),))
    assert sealed(job, files)[key(1)] == (4, [b"newer"])
    place = read_whole(files, "/log2").index(b"three")
    damaged(files, "/log2", place, 1, "/log2")
    job = seal_job(first, second, last_seq=4, missing=((3, 4),))
    assert sealed(job, files) == {key(1): (1, [b"old"]), key(2): (2, [b"two"])}


def test_only_the_range_is_sealed() -> None:
    files = disk()
    source = write_log(files, blocks())
    assert sealed(seal_job(source, first_seq=2, last_seq=4), files) == {
        key(2): (2, [b"two"]),
        key(3): (3, [b"three"]),
        key(1): (4, [b"newer"]),
    }
    assert sealed(seal_job(source, first_seq=9, last_seq=9), files) == {key(2): (9, [b"last"])}


def test_a_range_without_a_state_is_no_segment() -> None:
    files = disk()
    source = write_log(files, blocks())
    assert seal(files, seal_job(source, first_seq=7, last_seq=7)) is None
    assert PATH not in files.snapshot()


def test_many_records_of_one_partition_are_sealed() -> None:
    files = disk()
    keys = [key(n) for n in range(700)]
    source = write_log(files, [columns(keys, [b"%d" % n for n in range(700)])])
    found = sealed(seal_job(source, shift=64), files)
    assert found == {k: (n + 1, [b"%d" % n]) for n, k in enumerate(keys)}


@given(st.lists(objects.blocks, min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_any_log_is_sealed_as_a_table_would_hold_it(written: list[RecordBlock], data: st.DataObject) -> None:
    written = [block for block in written if size_of(block)]
    last = sum(map(size_of, written))
    if not last:
        return
    first_seq = data.draw(st.integers(1, last))
    last_seq = data.draw(st.integers(first_seq, last))
    expected = states(list(written), first_seq, last_seq)
    files = disk()
    job = seal_job(write_log(files, written), first_seq=first_seq, last_seq=last_seq)
    summary = seal(files, job)
    if summary is None:
        assert not expected
        return
    segment = Segment.open(files, PATH, summary)
    found = {
        record.key: (record.seq, set_from_bytes(record.meta, record.values))
        for pid in segment.partitions()
        for record in segment.records(pid)
    }
    assert {k: seq for k, (seq, _) in found.items()} == {k: seq for k, (seq, _) in expected.items()}
    for k, (_, versions) in expected.items():
        assert found[k][1].same_as(versions)
        assert [s.value for s in found[k][1].siblings] == [s.value for s in versions.siblings]


def test_several_files_follow_and_take_over_from_one_another() -> None:
    files = disk()
    first = write_log(files, blocks()[:2], "/log1")
    taken_over = write_log(files, [rows((key(7), one(b"7"))), rows((key(1), one(b"not this")))], "/log2", first_seq=6)
    taken_over = taken_over._replace(limit_seq=7)
    third = write_log(files, [rows((key(8), one(b"8")))], "/log3", generation=2, first_seq=7)
    assert sealed(seal_job(first, taken_over, third), files) == {
        key(1): (4, [b"newer"]),
        key(2): (2, [b"two"]),
        key(3): (3, [b"three"]),
        key(4): (5, [b"four"]),
        key(7): (6, [b"7"]),
        key(8): (7, [b"8"]),
    }


def test_a_batch_counts_up_to_where_another_file_took_over() -> None:
    files = disk()
    first = write_log(files, blocks()[:2], "/log1")._replace(limit_seq=5)
    second = write_log(files, [rows((key(8), one(b"8")))], "/log2", generation=2, first_seq=5)
    assert sealed(seal_job(first, second), files) == {
        key(1): (4, [b"newer"]),
        key(2): (2, [b"two"]),
        key(3): (3, [b"three"]),
        key(8): (5, [b"8"]),
    }


def test_sealing_again_over_a_longer_leftover_gives_the_same_file() -> None:
    files = disk()
    job = seal_job(write_log(files, blocks()))
    summary = seal(files, job)
    data = read_whole(files, PATH)
    put(files, PATH, random.Random(1).randbytes(10_000))
    assert seal(files, job) == summary
    assert read_whole(files, PATH) == data


def test_a_log_that_ends_early_is_an_error_that_says_where() -> None:
    files = disk()
    source = write_log(files, blocks())
    whole = read_whole(files, LOG)
    end = len(whole.rstrip(b"\0"))
    for length in range(end):
        put(files, LOG, whole[:length])
        with pytest.raises(CorruptData, match=r"/log, offset \d+: log records \d+ to 9 cannot be read"):
            seal(files, seal_job(source))
        assert PATH not in files.snapshot()


def test_every_damaged_byte_of_a_log_is_an_error_that_says_where() -> None:
    files = disk()
    source = write_log(files, blocks())
    whole = read_whole(files, LOG)
    for offset in range(FILE_HEADER_BYTES, len(whole.rstrip(b"\0"))):
        damaged(files, LOG, offset, offset % 8, "/bad")
        with pytest.raises(CorruptData, match=r"/bad, offset \d+: log records \d+ to \d+ cannot be read"):
            seal(files, seal_job(source._replace(path="/bad")))


def test_records_that_are_known_to_be_lost_do_not_hold_up_the_rest() -> None:
    files = disk()
    source = write_log(files, blocks())
    place = read_whole(files, LOG).index(b"three")
    damaged(files, LOG, place, 1, LOG)
    job = seal_job(source)
    with pytest.raises(CorruptData, match="log records 3 to 5 cannot be read"):
        seal(files, job)
    with pytest.raises(CorruptData, match="log records 5 to 5 cannot be read"):
        seal(files, replace(job, missing=((3, 4),)))
    assert sealed(replace(job, missing=((5, 5), (1, 4))), files) == {
        key(1): (1, [b"old"]),
        key(2): (9, [b"last"]),
        key(3): (6, []),
        key(6): (8, [b"six"]),
    }


def test_a_body_that_verifies_and_is_no_block_is_an_error_that_says_where() -> None:
    files = disk()
    block = rows((key(1), one(b"a")))
    block.encoded = (b"\xc1", b"")
    with pytest.raises(CorruptData, match="/log, offset 64: log batch 1: "):
        seal(files, seal_job(write_log(files, [block])))
    block = rows((key(1), one(b"a")))
    block.encoded = rows((key(1), one(b"a")), (key(2), one(b"a"))).encoded or (b"\x90", b"")
    with pytest.raises(CorruptData, match="/log, offset 64: log batch 1 holds 0 records, not 1"):
        seal(files, seal_job(write_log(files, [block])))


def test_jobs_cross_a_pipe() -> None:
    files = disk()
    job = seal_job(write_log(files, blocks()), missing=((1, 2),), block_records_max=3)
    assert SealJob.from_tree(job.to_tree()) == job


# --- a disk that fails -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_any_file_call_comes_out_and_leaves_no_file(tmp_path: Path, number: int) -> None:
    dice = random.Random(3)
    many = [columns([key(i)], [dice.randbytes(10_000)]) for i in range(110)]
    calls = EveryCall()
    job = seal_job(write_log(calls, many, str(tmp_path / "log")), output=str(tmp_path / "out"))
    calls.calls.clear()
    assert seal(calls, job) is not None
    (tmp_path / "out").unlink()
    names = ("open", "writev", "pread", "size", "fsync", "ftruncate")
    total = {name: calls.calls.count(name) for name in names}
    assert all(total[name] for name in names), total
    assert total["writev"] > 1
    for name in names:
        for nth in range(total[name]):
            files = EveryCall()
            files.fail(name, number, after=nth)
            with pytest.raises(OSError) as raised:  # noqa: PT011  # the number is looked at below
                seal(files, job)
            assert raised.value.errno == number
            assert not files.open_fds
            assert [path.name for path in tmp_path.iterdir()] == ["log"], f"{name} {nth}"


def test_a_short_write_is_finished(tmp_path: Path) -> None:
    files = FaultyFiles()
    job = seal_job(write_log(files, blocks(), str(tmp_path / "log")), output=str(tmp_path / "out"))
    files.short = 100
    assert sealed(job, files) == EXPECTED


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_what_the_disk_did_not_keep_is_noticed_before_it_is_published(tmp_path: Path, share: float) -> None:
    """A write that went astray: every checksum of the file is looked at again after the sync."""

    class Forgetful(FaultyFiles):
        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            self.writev(fd, [b"\xff\xff"], int(self.size(fd) * share))

    files = Forgetful()
    job = seal_job(write_log(files, blocks(), str(tmp_path / "log")), output=str(tmp_path / "out"))
    with pytest.raises(Exception, match="does not read back as it was written"):
        seal(files, job)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_file_that_cannot_be_removed_after_an_error_does_not_hide_the_error(tmp_path: Path) -> None:
    files = FaultyFiles()
    job = seal_job(write_log(files, blocks(), str(tmp_path / "log")), output=str(tmp_path / "out"))
    files.fail("fsync", errno.EIO)
    files.fail("unlink", errno.EACCES)
    with pytest.raises(OSError, match="Input/output") as raised:
        seal(files, job)
    assert raised.value.errno == errno.EIO
