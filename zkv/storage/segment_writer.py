"""A sealed segment that is written: records in order in, one synced and verified file out.

Owns: how records fill blocks, the parts of the file, its checks before anybody may publish it. Must not know: where records come from, names in
seg/, manifests.

Invariants: records come in the order of (partition, key), each key once; a block never spans two partitions; when `finish` returns, every block has
been decompressed and compared, the whole file was read back with its checksums, and it is synced. Source: storage reference, 6.3 and 6.5.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from zkv.codec.block import BLOCK_BYTES, CODEC_NAMES, PAYLOAD_BYTES_MAX, compress
from zkv.codec.segment import (
    BLOCK_RECORDS_MAX,
    BLOCKS_MAX,
    EXPIRES,
    FOOTER_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    INDEX_ROW_BYTES,
    SLOT_BITS,
    TOMBSTONE,
    Footer,
    SegmentHeader,
    SegmentRecord,
    encode_footer,
    encode_frame,
    encode_header,
    encode_payload,
    encode_record,
    room_of,
    seed_of,
)
from zkv.codec.segment_index import Run, encode_directory, encode_index, new_index
from zkv.errors import CorruptData, StorageError
from zkv.storage.files import FileSystem, write_whole
from zkv.storage.segment import Segment, SegmentSummary

#: written with one call
_WRITE_BYTES: Final = 1 << 20


class SegmentWriter:
    """`add` all records, then `finish`; after any exception `abandon`."""

    def __init__(
        self, files: FileSystem, path: str, header: SegmentHeader, *, block_records_max: int = BLOCK_RECORDS_MAX
    ) -> None:
        assert 0 < block_records_max <= BLOCK_RECORDS_MAX
        self._files = files
        self._path = path
        self._header = header
        self._seed = seed_of(header.store_id, header.segment_id)
        self._block_records_max = block_records_max
        self._fd = files.open(path, write=True, create=True)
        self._out: list[bytes] = [encode_header(header)]
        self._out_bytes = HEADER_BYTES
        self._written = 0
        #: the block and the partition that are being filled
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._pid = -1
        self._last_key = b""
        self._index = new_index()
        self._pid_blocks = 0
        self._pid_bytes = 0
        #: what was filled
        self._offsets = array("Q", [HEADER_BYTES])
        self._first_keys: list[bytes] = []
        self._runs: list[Run] = []
        self._indexes: list[bytes] = []
        self.records = 0
        self._tombstones = 0
        self.raw_bytes = 0
        self._seqs = (1 << 64, 0)
        self._expiries = (1 << 64, 0)

    @property
    def file_bytes(self) -> int:
        return self._written + self._out_bytes

    def add(self, pid: int, hashes: Sequence[int], digests: Sequence[int], records: Sequence[SegmentRecord]) -> None:
        """The next records, all of one partition; a partition may come in several calls. Raises: OSError, StorageError for
        what does not fit the format."""
        if pid != self._pid:
            assert pid > self._pid, f"partition {pid} after {self._pid}"
            self._end_partition()
            self._pid = pid
        last_key, block_records_max = self._last_key, self._block_records_max
        places: list[int] = []
        sizes: list[int] = []
        for record in records:
            key, _, meta, values, _, _ = record
            assert key > last_key, f"key {key!r} after {last_key!r}"
            last_key = key
            encoded = encode_record(record)
            count = len(self._block)
            if count == block_records_max or room_of(self._block_bytes + len(encoded), count + 1) > BLOCK_BYTES:
                self._end_block()
                count = 0
            if not count:
                self._begin_block(key, len(encoded))
            self._block.append(encoded)
            self._block_bytes += len(encoded)
            places.append((len(self._first_keys) - 1) << SLOT_BITS | count)
            sizes.append(len(key) + len(meta) + len(values))
        self._last_key = last_key
        seqs = [record.seq for record in records]
        flags = [record.flags for record in records]
        for column, new in zip(self._index, (hashes, seqs, digests, places, sizes, flags), strict=True):
            column.extend(new)
        self._pid_bytes += sum(sizes)
        self.records += len(records)
        self._seqs = (min(self._seqs[0], *seqs), max(self._seqs[1], *seqs))
        if any(flags):
            self._note(records)

    def _note(self, records: Sequence[SegmentRecord]) -> None:
        self._tombstones += sum(record.flags & TOMBSTONE for record in records)
        expiries = [record.expires_ms for record in records if record.flags & EXPIRES]
        if expiries:
            self._expiries = (min(self._expiries[0], *expiries), max(self._expiries[1], *expiries))

    def _begin_block(self, key: bytes, record_bytes: int) -> None:
        if room_of(record_bytes, 1) > PAYLOAD_BYTES_MAX:
            raise StorageError(f"{self._path}: a record of {record_bytes} bytes is larger than any block")
        if len(self._first_keys) == BLOCKS_MAX:
            raise StorageError(f"{self._path}: more than {BLOCKS_MAX} blocks")
        self._first_keys.append(key)

    def _end_block(self) -> None:
        if not self._block:
            return
        payload = encode_payload(self._block)
        codec, chunk = compress(payload, self._header.codec)
        block_no = len(self._first_keys) - 1
        frame = encode_frame(chunk, len(payload), block_no, self._pid, len(self._block), codec, self._seed)
        self._put(frame, chunk)
        self._offsets.append(self._offsets[-1] + FRAME_BYTES + len(chunk))
        self._block = []
        self._block_bytes = 0
        self._pid_blocks += 1

    def _end_partition(self) -> None:
        self._end_block()
        n = len(self._index.seqs)
        if not n:
            return
        data = encode_index(self._index)
        crc = crc32(data, self._seed)
        first_block = len(self._first_keys) - self._pid_blocks
        self._runs.append(Run(self._pid, first_block, self._pid_blocks, self.records - n, n, crc, self._pid_bytes))
        self._indexes.append(data)
        self.raw_bytes += self._pid_bytes
        self._last_key = b""
        self._index = new_index()
        self._pid_blocks = self._pid_bytes = 0

    def _put(self, *parts: bytes) -> None:
        self._out += parts
        self._out_bytes += sum(map(len, parts))
        if self._out_bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._out)
        write_whole(self._files, self._fd, data, self._written)
        self._written += len(data)
        self._out = []
        self._out_bytes = 0

    def finish(self) -> SegmentSummary:
        """The file is whole, verified and synced; the caller gives it its name. At least one record. Raises: OSError, StorageError."""
        self._end_partition()
        assert self.records, "a segment has records"
        directory = encode_directory(self._runs, self._offsets, self._first_keys)
        index_offset = self._offsets[-1]
        directory_offset = index_offset + self.records * INDEX_ROW_BYTES
        self._put(*self._indexes, directory)
        file_bytes = self.file_bytes + FOOTER_BYTES
        min_expires_ms, max_expires_ms = self._expiries if self._expiries[1] else (0, 0)
        footer = Footer(
            self._header.codec,
            self._header.segment_id,
            self.records,
            self._tombstones,
            self.raw_bytes,
            *self._seqs,
            min_expires_ms,
            max_expires_ms,
            index_offset,
            directory_offset,
            file_bytes,
            len(self._first_keys),
            len(self._runs),
            crc32(directory, self._seed),
        )
        data, footer_crc = encode_footer(footer, self._seed)
        self._put(data)
        self._flush()
        # A run that was interrupted may have left a longer file under this name.
        self._files.ftruncate(self._fd, file_bytes)
        self._files.fsync(self._fd)
        summary = SegmentSummary(
            self._header.segment_id,
            self.records,
            self._tombstones,
            self.raw_bytes,
            file_bytes,
            *self._seqs,
            min_expires_ms,
            max_expires_ms,
            footer_crc,
            CODEC_NAMES[self._header.codec],
        )
        self._read_back(summary)
        self._close()
        return summary

    def _read_back(self, summary: SegmentSummary) -> None:
        """Every checksum of the file as it is now. What blocks decompress to was compared when they were made."""
        try:
            segment = Segment.open(self._files, self._path, summary)
        except CorruptData as error:
            raise StorageError(f"{self._path} does not read back as it was written: {error}") from error
        try:
            records = 0
            for block_no in range(segment.n_blocks):
                records += segment.check_block(block_no).record_count
            indexed = 0
            for pid in segment.partitions():
                index = segment.key_index(pid)
                indexed += len(index.seqs) if index is not None else 0
            assert records == indexed == self.records, f"{self.records} records, {records} in blocks, {indexed} indexed"
        except CorruptData as error:
            raise StorageError(f"{self._path} does not read back as it was written: {error}") from error
        finally:
            segment.close()

    def abandon(self) -> None:
        """Leaves no file, as far as that is possible: what stays in tmp/ is removed at the next opening."""
        self._close()
        try:
            self._files.unlink(self._path)
        except OSError:
            pass  # why it was abandoned matters more

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)
