"""A sealed segment that is read: what it holds of a partition, its blocks, its records in key order.

Owns: the open file, its directory (read at first use), the order in which checksums are looked at. Must not know: versions, which record of a key
counts, caches, what is done about damage.

Invariants: a segment never changes; whatever cannot be verified is CorruptData that names file and offset, never absent and never other bytes.
Source: storage reference, 6.3 and row 5 of section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ParamSpec, TypeVar

from zkv.codec.block import CODEC_NAMES, decompress
from zkv.codec.segment import (
    FOOTER_BYTES,
    HEADER_BYTES,
    INDEX_ROW_BYTES,
    SLOT_BITS,
    Footer,
    Frame,
    SegmentHeader,
    SegmentRecord,
    chunk_of,
    decode_footer,
    decode_header,
    record_at,
    seed_of,
)
from zkv.codec.segment_index import Directory, KeyIndex, decode_directory, decode_index
from zkv.errors import CorruptData, VersionMismatch
from zkv.storage.files import FileSystem

_P = ParamSpec("_P")
_T = TypeVar("_T")

__all__ = ["KeyIndex", "Segment", "SegmentRecord", "SegmentSummary", "record_at"]


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """What a manifest keeps of a segment. `to_tree` and `from_tree`: as canonical CBOR has it."""

    id: int
    records: int
    tombstones: int
    #: keys, metas and values before compression
    raw_bytes: int
    file_bytes: int
    min_seq: int
    max_seq: int
    #: over the records in which something expires; 0 without one
    min_expires_ms: int
    max_expires_ms: int
    #: of all checksums of the file, for the footer holds that of the directory, which holds those of the key index
    footer_crc: int
    codec: str

    def to_tree(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: Any) -> SegmentSummary:
        """Raises: CorruptData for a tree that is none."""
        try:
            summary = cls(**tree)
        except TypeError as error:
            raise CorruptData(f"not the summary of a segment: {error}") from error
        for name, value in asdict(summary).items():
            if name == "codec":
                if value not in ("lz4", "zstd"):
                    raise CorruptData(f"a segment of the unknown codec {value!r}")
            elif type(value) is not int or value < 0:
                raise CorruptData(f"{name} of a segment is {value!r}")
        return summary


class Segment:
    """Made by `open`. One owner; `read_block` and `record_at` are what a get costs."""

    __slots__ = ("_directory", "_fd", "_files", "_footer", "_seed", "header", "path", "summary")

    def __init__(
        self,
        files: FileSystem,
        path: str,
        fd: int,
        header: SegmentHeader,
        footer: Footer,
        seed: int,
        summary: SegmentSummary,
    ) -> None:
        self._files = files
        self._fd = fd
        self._footer = footer
        self._seed = seed
        self._directory: Directory | None = None
        self.path = path
        self.header = header
        self.summary = summary

    @classmethod
    def open(cls, files: FileSystem, path: str, summary: SegmentSummary) -> Segment:
        """Checks length, header and footer. Raises: CorruptData, VersionMismatch, OSError (a file that is gone, for one)."""
        fd = files.open(path)
        try:
            size = files.size(fd)
            if size != summary.file_bytes:
                raise CorruptData(f"{path}: has {size} bytes, {summary.file_bytes} were written")
            header = _at(path, 0, decode_header, files.pread(fd, HEADER_BYTES, 0))
            seed = seed_of(header.store_id, header.segment_id)
            offset = max(0, size - FOOTER_BYTES)
            footer, crc = _at(path, offset, decode_footer, files.pread(fd, FOOTER_BYTES, offset), seed)
            if (
                crc != summary.footer_crc
                or header.segment_id != summary.id
                or footer.segment_id != summary.id
                or footer.file_bytes != size
                or footer.records != summary.records
            ):
                raise CorruptData(f"{path}: is another file than the one that was sealed as segment {summary.id}")
        except BaseException:
            files.close(fd)
            raise
        return cls(files, path, fd, header, footer, seed, summary)

    @property
    def directory(self) -> Directory:
        """Read and verified at first use. Raises: CorruptData, OSError."""
        if self._directory is None:
            offset = self._footer.directory_offset
            data = self._files.pread(self._fd, self.summary.file_bytes - FOOTER_BYTES - offset, offset)
            self._directory = _at(self.path, offset, decode_directory, data, self._footer, self._seed)
        return self._directory

    @property
    def n_blocks(self) -> int:
        return self._footer.blocks

    def partitions(self) -> Sequence[int]:
        """Those of which the segment has records, ascending."""
        return list(self.directory.runs)

    def run(self, pid: int) -> tuple[int, int, int, int] | None:
        """(first block, blocks, first record, records) of a partition; None: it has none."""
        run = self.directory.runs.get(pid)
        return None if run is None else (run.first_block, run.n_blocks, run.first_record, run.n_records)

    def key_index(self, pid: int) -> KeyIndex | None:
        run = self.directory.runs.get(pid)
        if run is None:
            return None
        offset = self._footer.index_offset + run.first_record * INDEX_ROW_BYTES
        data = self._files.pread(self._fd, run.n_records * INDEX_ROW_BYTES, offset)
        return _at(self.path, offset, decode_index, data, run, self._seed)

    def read_block(self, block_no: int) -> bytes:
        """The payload of a block, for `record_at`. Raises: CorruptData, OSError."""
        frame, chunk, offset = self._verified(block_no)
        return _at(self.path, offset, decompress, frame.codec, chunk, frame.payload_bytes)

    def check_block(self, block_no: int) -> Frame:
        """Verifies the stored bytes of a block without decompressing them."""
        return self._verified(block_no)[0]

    def _verified(self, block_no: int) -> tuple[Frame, bytes, int]:
        offsets = self.directory.offsets
        if not 0 <= block_no < self._footer.blocks:
            raise CorruptData(f"{self.path}: has {self._footer.blocks} blocks and none with the number {block_no}")
        offset = offsets[block_no]
        data = self._files.pread(self._fd, offsets[block_no + 1] - offset, offset)
        frame, chunk = _at(self.path, offset, chunk_of, data, self._seed, block_no)
        return frame, chunk, offset

    def records(self, pid: int, after: bytes = b"") -> Iterator[SegmentRecord]:
        """Records of a partition with a key above `after`, in key order. Raises: CorruptData, OSError."""
        for _, record in self.placed_records(pid, after):
            yield record

    def placed_records(self, pid: int, after: bytes = b"") -> Iterator[tuple[int, SegmentRecord]]:
        """The same, each with its place."""
        run = self.directory.runs.get(pid)
        if run is None:
            return
        for block_no in range(self.directory.block_for(run, after), run.first_block + run.n_blocks):
            frame, chunk, offset = self._verified(block_no)
            if frame.pid != pid:
                raise CorruptData(f"{self.path}, offset {offset}: a block of partition {frame.pid} in that of {pid}")
            payload = _at(self.path, offset, decompress, frame.codec, chunk, frame.payload_bytes)
            for slot in range(frame.record_count):
                record = _at(self.path, offset, record_at, payload, slot)
                if record.key > after:
                    yield block_no << SLOT_BITS | slot, record

    def close(self) -> None:
        self._files.close(self._fd)


def _at(path: str, offset: int, read: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What `read` returns; its CorruptData names file and offset."""
    try:
        return read(*args, **kwargs)
    except (CorruptData, VersionMismatch) as error:
        raise type(error)(f"{path}, offset {offset}: {error}") from error


def summary_of(files: FileSystem, path: str, store_id: bytes) -> SegmentSummary:
    """What a file says of itself, where no manifest does. Raises: CorruptData, VersionMismatch, OSError."""
    fd = files.open(path)
    try:
        size = files.size(fd)
        header = _at(path, 0, decode_header, files.pread(fd, HEADER_BYTES, 0))
        offset = max(0, size - FOOTER_BYTES)
        seed = seed_of(header.store_id, header.segment_id)
        footer, crc = _at(path, offset, decode_footer, files.pread(fd, FOOTER_BYTES, offset), seed)
    finally:
        files.close(fd)
    if header.store_id != store_id or footer.segment_id != header.segment_id or footer.file_bytes != size:
        raise CorruptData(f"{path}: is no whole segment of this store")
    return SegmentSummary(
        footer.segment_id,
        footer.records,
        footer.tombstones,
        footer.raw_bytes,
        size,
        footer.min_seq,
        footer.max_seq,
        footer.min_expires_ms,
        footer.max_expires_ms,
        crc,
        CODEC_NAMES[footer.codec],
    )
