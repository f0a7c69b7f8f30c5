"""Merges: of each key the record that counts, sums that add up, and nothing purged that another file would bring back."""

from __future__ import annotations

import errno
import random
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.storage.segments import (
    SEED,
    SHIFT,
    STORE_ID,
    EveryCall,
    contents,
    damaged,
    disk,
    get,
    key,
    one,
    tombstone,
    write_segment,
)
from zkv.codec.records import set_to_bytes
from zkv.core.versions import VersionSet
from zkv.errors import CorruptData, StorageError
from zkv.storage.files import FileSystem
from zkv.storage.merging import check_sums, merge
from zkv.storage.sealing import digest_of
from zkv.storage.segment import Segment
from zkv.storage.segment_jobs import MergeJob, MergeResult, SegmentSource

OUT = "/out"
#: (key number, seq, set) of one segment
Written = list[tuple[int, int, VersionSet]]


def write(files: FileSystem, *segments: Written, folder: str = "") -> list[SegmentSource]:
    made = []
    for number, written in enumerate(segments, 1):
        sets = [(key(n), seq, versions) for n, seq, versions in written]
        path = f"{folder}/in{number}"
        made.append(SegmentSource(path, write_segment(files, sets, path, segment_id=number, block_records_max=3)))
    return made


def job_of(sources: list[SegmentSource], live: list[Any] | None = None, **fields: Any) -> MergeJob:
    given = {"output": OUT, "block_records_max": 3, **fields}
    return MergeJob(
        store_id=STORE_ID,
        segment_id=99,
        hash_seed=SEED,
        shift=SHIFT,
        inputs=tuple(sources),
        live=tuple(live or [None] * len(sources)),
        **given,
    )


def places(files: FileSystem, source: SegmentSource) -> dict[bytes, int]:
    segment = Segment.open(files, source.path, source.summary)
    found = {record.key: place for pid in segment.partitions() for place, record in segment.placed_records(pid)}
    segment.close()
    return found


def digest(versions: VersionSet) -> int:
    return digest_of(set_to_bytes(versions)[0])


def merged(files: FileSystem, job: MergeJob) -> tuple[MergeResult, dict[int, tuple[int, list[bytes]]]]:
    """The result and what the output holds: key number -> (seq, values)."""
    result = merge(files, job)
    if result.summary is None:
        return result, {}
    segment = Segment.open(files, job.output, result.summary)
    found = {int(k[-5:]): (seq, values) for k, (seq, _, values) in contents(segment).items()}
    at = 0
    sources = [places(files, source) for source in job.inputs]
    for pid in segment.partitions():
        for record in segment.records(pid):
            origin = result.origins[at]
            assert sources[origin >> 32][record.key] == origin & 0xFFFFFFFF, "origins follow the output"
            assert get(segment, record.key) == record
            at += 1
    segment.close()
    return result, found


def test_the_last_record_of_each_key_goes_on() -> None:
    files = disk()
    sources = write(
        files,
        [(1, 1, one(b"old")), (2, 2, one(b"two")), (3, 3, one(b"three"))],
        [(1, 10, one(b"new", 2)), (4, 11, one(b"four")), (3, 12, tombstone(2))],
        [(1, 5, one(b"middle"))],
    )
    result, found = merged(files, job_of(sources))
    assert found == {1: (10, [b"new"]), 2: (2, [b"two"]), 3: (12, []), 4: (11, [b"four"])}
    assert (result.records_in, result.records_out, result.superseded, result.purged) == (7, 4, 3, 0)
    assert result.summary is not None
    assert (result.summary.tombstones, result.summary.codec, result.summary.id) == (1, "lz4", 99)
    assert (result.summary.min_seq, result.summary.max_seq) == (2, 12)


def test_what_the_index_does_not_hold_is_left_behind() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"a")), (2, 2, one(b"b"))], [(3, 3, one(b"c")), (1, 4, one(b"d"))])
    first, second = (places(files, source) for source in sources)
    live = [array("I", [first[key(2)]]), array("I", [second[key(3)]])]
    result, found = merged(files, job_of(sources, live))
    assert found == {2: (2, [b"b"]), 3: (3, [b"c"])}
    assert (result.records_in, result.superseded) == (4, 2)
    result, found = merged(files, job_of(sources, [array("I"), None]))
    assert found == {1: (4, [b"d"]), 3: (3, [b"c"])}


def test_a_merge_of_dead_records_leaves_no_file() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"a")), (2, 2, one(b"b"))])
    result, _ = merged(files, job_of(sources, [array("I")]))
    assert (result.summary, result.records_in, result.superseded, result.bytes_out) == (None, 2, 2, 0)
    assert OUT not in files.snapshot()


def test_an_index_that_contradicts_the_files_ends_the_merge() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"old")), (2, 2, one(b"b"))], [(1, 4, one(b"new"))])
    first = places(files, sources[0])
    with pytest.raises(
        StorageError, match="/in1: the index holds record 1 of a key, and another input has a later one"
    ):
        merge(files, job_of(sources, [array("I", sorted(first.values())), array("I")]))
    for place in (4000, 1 << 31):
        with pytest.raises(StorageError, match=f"/in1: the index holds place {place}, where no record is"):
            merge(files, job_of(sources, [array("I", [place]), None]))
    assert OUT not in files.snapshot()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=30), st.booleans()), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
def test_any_merge_holds_what_a_dict_would(drawn: list[list[tuple[int, bytes, bool]]], data: st.DataObject) -> None:
    """Segments are sealed in order; some merges know the index, some do not; some of what is there is given up."""
    files = disk()
    seq = 0
    segments: list[Written] = []
    for written in drawn:
        states: dict[int, tuple[int, VersionSet]] = {}
        for number, value, deleted in written:
            seq += 1
            states[number] = (seq, tombstone(seq) if deleted else one(value, seq))
        segments.append([(number, *state) for number, state in states.items()])
    sources = write(files, *segments)
    index: dict[int, tuple[int, VersionSet, int]] = {}
    for at, segment in enumerate(segments):
        index.update({number: (seq, versions, at) for number, seq, versions in segment})
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(segments))), min_size=1)))
    live: list[array[int] | None] = []
    knows = data.draw(st.booleans())
    for at in chosen:
        held = places(files, sources[at])
        live.append(array("I", [held[key(n)] for n, (_, _, where) in index.items() if where == at]) if knows else None)
    expected: dict[int, tuple[int, VersionSet]] = {}
    for at in chosen:
        for number, seq, versions in segments[at]:
            if not knows or index[number][2] == at:
                expected[number] = (seq, versions)
    given_up = data.draw(st.sets(st.sampled_from(range(13))))
    reap = [(key(n), digest(index[n][1]) if n in index else 1) for n in given_up]
    elsewhere = {n for at, segment in enumerate(segments) if at not in chosen for n, _, _ in segment}
    purged = {n for n in given_up if n in expected and n not in elsewhere and index[n][0] == expected[n][0]}
    others = tuple(source for at, source in enumerate(sources) if at not in chosen)
    job = job_of(
        [sources[at] for at in chosen],
        live,
        reap=tuple(reap),
        others=others,
        zstd_from_bytes=data.draw(st.sampled_from([0, 10**9])),
    )
    result, found = merged(files, job)
    assert found == {
        n: (seq, [s.value for s in versions.siblings]) for n, (seq, versions) in expected.items() if n not in purged
    }
    assert result.purged == len(purged) and result.kept_back == len(given_up) - len(purged)
    assert result.records_in == sum(len(segments[at]) for at in chosen)
    assert MergeResult.from_tree(result.to_tree()) == result
    assert MergeJob.from_tree(job.to_tree()) == job
    check_sums(job, result)


def test_many_records_of_one_partition_are_merged() -> None:
    files = disk()
    sources = write(
        files, [(n, n + 1, one(b"a")) for n in range(3_000)], [(n, n + 5_000, one(b"b")) for n in range(500)]
    )
    result, found = merged(files, job_of(sources))
    assert found == {n: (n + 5_000, [b"b"]) if n < 500 else (n + 1, [b"a"]) for n in range(3_000)}
    assert result.superseded == 500


def test_large_outputs_are_packed_more_tightly() -> None:
    files = disk()
    sources = write(files, [(n, n + 1, one(b"all work and no play " * 40)) for n in range(100)])
    size = sources[0].summary.file_bytes
    result, _ = merged(files, job_of(sources, zstd_from_bytes=size))
    assert result.summary is not None and result.summary.codec == "zstd"
    result, _ = merged(files, job_of(sources, zstd_from_bytes=size + 1))
    assert result.summary is not None and result.summary.codec == "lz4"
    half = array("I", sorted(places(files, sources[0]).values())[:50])
    result, _ = merged(files, job_of(sources, [half], zstd_from_bytes=size))
    assert result.summary is not None and result.summary.codec == "lz4"


# --- purging ---------------------------------------------------------------------------------------------------------------------


def test_a_tombstone_is_purged_with_all_that_it_replaced() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"a")), (2, 2, one(b"b"))], [(1, 3, tombstone(2))])
    result, found = merged(files, job_of(sources, reap=((key(1), digest(tombstone(2))),)))
    assert found == {2: (2, [b"b"])}
    assert (result.records_in, result.records_out, result.superseded, result.purged) == (3, 1, 1, 1)
    assert result.bytes_purged == len(key(1)) + sum(map(len, set_to_bytes(tombstone(2))))


def test_a_tombstone_stays_while_another_segment_knows_the_key() -> None:
    """bitcask#82: purged, it would let the older value come back at the next start."""
    files = disk()
    sources = write(files, [(1, 1, one(b"old"))], [(1, 3, tombstone(2)), (2, 4, tombstone())])
    reap = ((key(1), digest(tombstone(2))), (key(2), digest(tombstone())))
    result, found = merged(files, job_of(sources[1:], reap=reap, others=(sources[0],)))
    assert found == {1: (3, [])}
    assert (result.purged, result.kept_back) == (1, 1)


def test_what_was_written_since_is_not_purged() -> None:
    files = disk()
    sources = write(files, [(1, 1, tombstone(1))], [(1, 3, one(b"back", 2))])
    result, found = merged(files, job_of(sources, reap=((key(1), digest(tombstone(1))),)))
    assert found == {1: (3, [b"back"])}
    assert (result.purged, result.kept_back) == (0, 1)


# --- sums ------------------------------------------------------------------------------------------------------------------------


def test_sums_that_do_not_add_up_are_refused() -> None:
    files = disk()
    job = job_of(write(files, [(1, 1, one(b"a")), (2, 2, one(b"b"))], [(1, 4, one(b"new"))]))
    result = merge(files, job)
    check_sums(job, result)
    assert result.summary is not None
    for changed in (
        replace(result, superseded=result.superseded + 1),
        replace(result, purged=1),
        replace(result, bytes_in=result.bytes_in + 1),
        replace(result, bytes_superseded=0),
        replace(result, records_in=2, superseded=0),
        replace(result, summary=None),
        replace(result, summary=replace(result.summary, records=3)),
        replace(result, origins=array("Q")),
    ):
        with pytest.raises(StorageError, match=OUT):
            check_sums(job, changed)


def test_an_input_with_other_sums_than_its_summary_ends_the_merge() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"a")), (2, 2, one(b"b"))])
    wrong = replace(sources[0].summary, raw_bytes=1)
    with pytest.raises(StorageError, match=r"/in1: 2 records of \d+ bytes were read; it was sealed with 2 of 1"):
        merge(files, job_of([SegmentSource("/in1", wrong)]))
    assert OUT not in files.snapshot()


def test_segments_that_were_placed_otherwise_are_refused() -> None:
    files = disk()
    sources = write(files, [(1, 1, one(b"a"))])
    job = job_of(sources)
    for changed in (replace(job, shift=SHIFT - 1), replace(job, hash_seed=1)):
        with pytest.raises(StorageError, match="was placed by another hash"):
            merge(files, changed)


def test_every_damaged_byte_of_an_input_ends_the_merge() -> None:
    files = disk()
    sources = write(files, [(n, n + 1, one(b"value")) for n in range(3)])
    for offset in range(sources[0].summary.file_bytes):
        damaged(files, "/in1", offset, offset % 8, "/bad")
        with pytest.raises(CorruptData, match="/bad"):
            merge(files, job_of([sources[0]._replace(path="/bad")]))
        assert OUT not in files.snapshot()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_any_file_call_comes_out_and_leaves_no_file(tmp_path: Path, number: int) -> None:
    dice = random.Random(3)
    folder = str(tmp_path)
    first: Written = [(n, n + 1, one(dice.randbytes(40_000))) for n in range(30)]
    sources = write(
        EveryCall(), first, [(n, n + 99, tombstone(2)) for n in range(2)], [(50, 98, one(b"x"))], folder=folder
    )
    job = job_of(sources[:2], output=f"{folder}/out", others=(sources[2],), reap=((key(1), digest(tombstone(2))),))
    calls = EveryCall()
    assert merge(calls, job).purged == 1
    (tmp_path / "out").unlink()
    names = ("open", "writev", "pread", "size", "fsync", "ftruncate")
    total = {name: calls.calls.count(name) for name in names}
    assert all(total.values()) and total["writev"] > 1, total
    for name in names:
        for nth in range(total[name]):
            files = EveryCall()
            files.fail(name, number, after=nth)
            with pytest.raises(OSError) as raised:  # noqa: PT011  # the number is looked at below
                merge(files, job)
            assert raised.value.errno == number
            assert not files.open_fds
            assert not (tmp_path / "out").exists(), f"{name} {nth}"
