"""Several sealed segments into one.

Owns: which of their records go on, what may be purged, the sums that must add up. Must not know: processes, manifests, when to merge, time: what
expires or is reaped is decided elsewhere and comes as a list. A pure function from files to one file: doing it again gives the same.

A record goes on when it is the one of its key: where the index knows, the one at a place that it holds; else the one with the highest seq. It is
purged when it is on the list with the digest that it has (a set that was written since has another) and no segment outside the merge knows its
hash: an older copy there would come back. Segments that are sealed meanwhile hold later seqs only, so they cannot. Source: storage reference, 6.5
points 3 and 5, 6.7.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final, NamedTuple

from zkv.codec.block import LZ4, ZSTD
from zkv.codec.segment import SegmentHeader, SegmentRecord
from zkv.errors import CorruptData, StorageError
from zkv.storage.files import FileSystem
from zkv.storage.segment import Segment, SegmentSummary
from zkv.storage.segment_jobs import MergeJob, MergeResult, SegmentSource
from zkv.storage.segment_writer import SegmentWriter

#: records that are handed on at a time
_RUN: Final = 256


class _Entry(NamedTuple):
    """Sorts by key, then the later record first; no two have both."""

    key: bytes
    earlier: int
    number: int
    place: int
    alive: bool
    hashed: int
    digest: int
    record: SegmentRecord


def merge(files: FileSystem, job: MergeJob) -> MergeResult:
    """The file at `job.output`, verified and synced, unless nothing is left.

    Raises: CorruptData naming file and offset of an input that does not verify, StorageError if the sums do not add up, OSError; no file is left then.
    """
    assert len(job.inputs) == len(job.live)
    with ExitStack() as opened:

        def open_source(source: SegmentSource) -> Segment:
            segment = Segment.open(files, source.path, source.summary)
            opened.callback(segment.close)
            return segment

        inputs = [
            _Input(number, open_source(source), live)
            for number, (source, live) in enumerate(zip(job.inputs, job.live, strict=True))
        ]
        others = [open_source(source) for source in job.others] if job.reap else []
        return _Merge(files, job, inputs, others).run()


class _Input:
    """One segment that is taken apart, partition by partition, and what was seen of it."""

    def __init__(self, number: int, segment: Segment, live: array[int] | None) -> None:
        self.number = number
        self.segment = segment
        self._live = None if live is None else iter(sorted(live))
        self._next_live = None if self._live is None else next(self._live, None)
        self.records = 0
        self.raw_bytes = 0

    def entries(self, pid: int) -> Iterator[_Entry]:
        """In key order. Places ascend from the first partition to the last, so live places are met in their order."""
        index = self.segment.key_index(pid)
        if index is None:
            return
        number, path = self.number, self.segment.path
        hashes, seqs, digests, places = index.hashes, index.seqs, index.digests, index.places
        i = 0
        for place, record in self.segment.placed_records(pid):
            if i >= len(seqs) or seqs[i] != record.seq or places[i] != place:
                raise CorruptData(
                    f"{path}: block {place >> 12} does not hold what the key index of partition {pid} says"
                )
            alive = True
            if self._live is not None:
                alive = place == self._next_live
                if alive:
                    self._next_live = next(self._live, None)
            self.records += 1
            self.raw_bytes += record.raw_bytes
            yield _Entry(record.key, -record.seq, number, place, alive, hashes[i], digests[i], record)
            i += 1
        if i != len(seqs):
            raise CorruptData(f"{path}: partition {pid} holds {i} records, its key index {len(seqs)}")

    def check_all_seen(self) -> None:
        summary = self.segment.summary
        if (self.records, self.raw_bytes) != (summary.records, summary.raw_bytes):
            raise StorageError(
                f"{self.segment.path}: {self.records} records of {self.raw_bytes} bytes were read; it was sealed with"
                f" {summary.records} of {summary.raw_bytes}"
            )
        if self._next_live is not None:
            raise StorageError(f"{self.segment.path}: the index holds place {self._next_live}, where no record is")


class _Merge:
    def __init__(self, files: FileSystem, job: MergeJob, inputs: list[_Input], others: list[Segment]) -> None:
        self._files = files
        self._job = job
        self._inputs = inputs
        self._others = others
        self._reap = dict(job.reap)
        self._elsewhere: tuple[int, set[int]] = (-1, set())
        self._superseded = self._bytes_superseded = 0
        self._purged = self._bytes_purged = 0
        self._origins: array[int] = array("Q")

    def run(self) -> MergeResult:
        job = self._job
        for source in self._inputs:
            if (source.segment.header.hash_seed, source.segment.header.shift) != (job.hash_seed, job.shift):
                raise StorageError(f"{source.segment.path}: was placed by another hash than this store's")
        header = SegmentHeader(self._codec(), job.shift, job.store_id, job.segment_id, job.hash_seed)
        writer = SegmentWriter(self._files, job.output, header, block_records_max=job.block_records_max)
        try:
            for pid in sorted({pid for source in self._inputs for pid in source.segment.partitions()}):
                self._merge_partition(pid, writer)
            for source in self._inputs:
                source.check_all_seen()
            if not writer.records:
                writer.abandon()
                return self._result(None)
            return self._result(writer.finish())
        except BaseException:
            writer.abandon()
            raise

    def _codec(self) -> int:
        """By the size that the output would have if it were packed as its inputs are."""
        expected = 0
        for source, live in zip(self._job.inputs, self._job.live, strict=True):
            share = 1.0 if live is None else len(live) / source.summary.records
            expected += int(source.summary.file_bytes * share)
        return ZSTD if expected >= self._job.zstd_from_bytes else LZ4

    def _merge_partition(self, pid: int, writer: SegmentWriter) -> None:
        hashes: list[int] = []
        digests: list[int] = []
        records: list[SegmentRecord] = []
        streams = [source.entries(pid) for source in self._inputs]
        last_key: bytes | None = None
        last_alive = False
        for entry in streams[0] if len(streams) == 1 else heapq.merge(*streams):
            record = entry.record
            first = entry.key != last_key
            if first:
                last_key, last_alive = entry.key, entry.alive
            elif entry.alive and not last_alive:
                raise StorageError(
                    f"{self._inputs[entry.number].segment.path}: the index holds record {record.seq} of a key, and another"
                    " input has a later one"
                )
            if not first or not entry.alive:
                self._superseded += 1
                self._bytes_superseded += record.raw_bytes
                continue
            if self._reap and self._may_purge(pid, entry):
                self._purged += 1
                self._bytes_purged += record.raw_bytes
                continue
            hashes.append(entry.hashed)
            digests.append(entry.digest)
            records.append(record)
            self._origins.append(entry.number << 32 | entry.place)
            if len(records) == _RUN:
                writer.add(pid, hashes, digests, records)
                hashes, digests, records = [], [], []
        if records:
            writer.add(pid, hashes, digests, records)

    def _may_purge(self, pid: int, entry: _Entry) -> bool:
        if self._reap.get(entry.key) != entry.digest:
            return False
        if self._elsewhere[0] != pid:
            indexes = [segment.key_index(pid) for segment in self._others]
            self._elsewhere = (pid, {hashed for index in indexes if index is not None for hashed in index.hashes})
        return entry.hashed not in self._elsewhere[1]

    def _result(self, summary: SegmentSummary | None) -> MergeResult:
        result = MergeResult(
            summary,
            sum(source.records for source in self._inputs),
            self._superseded,
            self._purged,
            sum(source.raw_bytes for source in self._inputs),
            self._bytes_superseded,
            self._bytes_purged,
            len(self._reap) - self._purged,
            self._origins,
        )
        check_sums(self._job, result)
        return result


def check_sums(job: MergeJob, result: MergeResult) -> None:
    """in = out + superseded + purged, for records and bytes, and in = what was sealed. Raises: StorageError; the inputs stay then.

    The owner asks this once more of what came back through the pipe.
    """
    summaries = [source.summary for source in job.inputs]
    sums = (
        ("records", result.records_in, result.records_out, result.superseded, result.purged),
        ("bytes", result.bytes_in, result.bytes_out, result.bytes_superseded, result.bytes_purged),
    )
    sealed = (sum(summary.records for summary in summaries), sum(summary.raw_bytes for summary in summaries))
    for (what, came, went, superseded, purged), expected in zip(sums, sealed, strict=True):
        if came != went + superseded + purged or came != expected:
            raise StorageError(
                f"{job.output}: a merge took {came} {what} of {expected} and left {went}, superseded {superseded}, purged {purged}"
            )
    if len(result.origins) != result.records_out:
        raise StorageError(f"{job.output}: {result.records_out} records with {len(result.origins)} origins")
