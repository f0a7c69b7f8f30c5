"""Every byte of a sealed segment looked at: what does not verify, where, and whose records it was.

Owns: what must hold between the parts of a segment. Must not know: what is done about damage (quarantine, repair from replicas), how fast to look.

A checker never stops at the first thing that is wrong; what cannot be read counts as damage too. Source: storage reference, 6.8 (scrub) and 50-storage 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from zkv.codec.records import set_from_bytes
from zkv.codec.segment import INDEX_ROW_BYTES, SLOT_BITS, SegmentRecord, record_at
from zkv.codec.segment_index import KeyIndex
from zkv.core.ring import record_hash
from zkv.errors import CorruptData, VersionMismatch, ZkvError
from zkv.ids import checksum_of
from zkv.storage.files import FileSystem
from zkv.storage.manifest import Manifest
from zkv.storage.opening import segment_path
from zkv.storage.sealing import digest_of
from zkv.storage.segment import Segment, SegmentSummary
from zkv.storage.segment_jobs import SegmentSource


class Damage(NamedTuple):
    """`pid` is the partition whose records cannot be trusted; None: any of the segment's."""

    path: str
    what: str
    pid: int | None


class SegmentCheck:
    """Iterate `steps` to the end, as fast or slowly as is wanted; `damages` has what was found so far."""

    def __init__(self, files: FileSystem, source: SegmentSource) -> None:
        self._files = files
        self._source = source
        self.damages: list[Damage] = []
        self.records = 0

    def steps(self) -> Iterator[int]:
        """One step is a block or so; yields how many bytes it read."""
        path, summary = self._source
        try:
            segment = Segment.open(self._files, path, summary)
        except (CorruptData, VersionMismatch, OSError) as error:
            self._found(error, None)
            return
        try:
            try:
                partitions = segment.partitions()
            except (CorruptData, OSError) as error:
                self._found(error, None)
                return
            for pid in partitions:
                yield from self._partition(segment, pid)
        finally:
            segment.close()

    def _partition(self, segment: Segment, pid: int) -> Iterator[int]:
        run = segment.run(pid)
        assert run is not None
        first_block, n_blocks, _, n_records = run
        index: KeyIndex | None = None
        try:
            index = segment.key_index(pid)
        except (CorruptData, OSError) as error:
            self._found(error, pid)
        yield n_records * INDEX_ROW_BYTES
        at = 0
        last_key = b""
        whole = index is not None
        for block_no in range(first_block, first_block + n_blocks):
            try:
                frame = segment.check_block(block_no)
                payload = segment.read_block(block_no)
                records = [record_at(payload, slot) for slot in range(frame.record_count)]
                if frame.pid != pid:
                    raise CorruptData(f"{segment.path}: block {block_no} is of partition {frame.pid}, not {pid}")
                if records[0].key != segment.directory.first_key(block_no):
                    raise CorruptData(
                        f"{segment.path}: block {block_no} does not begin with the key that the directory has"
                    )
            except (CorruptData, OSError) as error:
                self._found(error, pid)
                whole = False
            else:
                for slot, record in enumerate(records):
                    self._record(segment, pid, record, last_key)
                    last_key = record.key
                    if whole and index is not None and not _indexed(index, at, block_no << SLOT_BITS | slot, record):
                        self._wrong(f"block {block_no} and the key index differ at record {slot}", pid)
                        whole = False
                    at += 1
                self.records += len(records)
            offsets = segment.directory.offsets
            yield offsets[block_no + 1] - offsets[block_no]
        if whole and at != n_records:
            self._wrong(f"partition {pid} holds {at} records, its key index {n_records}", pid)

    def _record(self, segment: Segment, pid: int, record: SegmentRecord, last_key: bytes) -> None:
        header = segment.header
        if record.key <= last_key:
            self._wrong(f"record {record.seq} is out of order", pid)
        if record_hash(record.key, header.hash_seed, header.shift) >> header.shift != pid:
            self._wrong(f"record {record.seq} is not of partition {pid}", pid)
        try:
            versions = set_from_bytes(record.meta, record.values)
        except ZkvError as error:
            self._wrong(f"record {record.seq} holds no set: {error}", pid)
            return
        if any(checksum_of(s.value) != s.checksum for s in versions.siblings):
            self._wrong(f"record {record.seq} has a value that is not the one its client wrote", pid)

    def _found(self, error: Exception, pid: int | None) -> None:
        self.damages.append(Damage(self._source.path, str(error), pid))

    def _wrong(self, what: str, pid: int | None) -> None:
        self.damages.append(Damage(self._source.path, f"{self._source.path}: {what}", pid))


def _indexed(index: KeyIndex, at: int, place: int, record: SegmentRecord) -> bool:
    """Whether entry `at` is the one of this record."""
    return at < len(index.seqs) and (
        index.seqs[at],
        index.places[at],
        index.digests[at],
        index.sizes[at],
        index.flags[at],
    ) == (record.seq, place, digest_of(record.meta), record.raw_bytes, record.flags)


def check_segment(files: FileSystem, source: SegmentSource) -> list[Damage]:
    """All that is wrong with a segment; nothing if it is as it was sealed."""
    check = SegmentCheck(files, source)
    for _ in check.steps():
        pass
    return check.damages


def checks_of(files: FileSystem, path: str, manifest: Manifest) -> list[SegmentCheck]:
    """One check for each segment that the manifest of the directory `path` names. Raises: CorruptData for one that it does not describe."""
    summaries = [SegmentSummary.from_tree(tree) for tree in manifest.segments]
    return [SegmentCheck(files, SegmentSource(segment_path(path, s.id), s)) for s in summaries]
