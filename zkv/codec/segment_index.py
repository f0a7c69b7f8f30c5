"""Where things are in a sealed segment: its key index and its directory, as bytes.

Owns: the bytes of both. Must not know: files, blocks, versions. docs/log-format.md has the picture.

Both could be made anew from the frames of the segment. Columns are arrays: eight bytes a number, and numpy takes them without a copy.
Source: storage reference, 6.3.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

from zkv.codec.segment import HEADER_BYTES, INDEX_ROW_BYTES, Footer
from zkv.errors import CorruptData

_ROW = struct.Struct("<HHIIIIIQ")
_BIG_ENDIAN: Final = sys.byteorder == "big"


class Run(NamedTuple):
    """What a segment holds of one partition: neighbouring blocks, neighbouring records."""

    pid: int
    first_block: int
    n_blocks: int
    first_record: int
    n_records: int
    index_crc: int
    raw_bytes: int


class KeyIndex(NamedTuple):
    """One entry per record of a partition, in key order. All are arrays: numpy takes them without a copy."""

    hashes: array[int]
    seqs: array[int]
    digests: array[int]
    places: array[int]
    #: key, meta and values
    sizes: array[int]
    flags: array[int]


def new_index() -> KeyIndex:
    return KeyIndex(array("Q"), array("Q"), array("Q"), array("I"), array("I"), array("B"))


class Directory:
    """Where the blocks are and which keys they begin with. About 12 bytes and a key per block in memory."""

    __slots__ = ("_blob", "_key_ends", "offsets", "runs")

    def __init__(self, runs: dict[int, Run], offsets: array[int], key_ends: array[int], blob: bytes) -> None:
        #: by partition, ascending
        self.runs = runs
        #: of each frame, and where the last one ends
        self.offsets = offsets
        self._key_ends = key_ends
        self._blob = blob

    def first_key(self, block_no: int) -> bytes:
        begin = self._key_ends[block_no - 1] if block_no else 0
        return self._blob[begin : self._key_ends[block_no]]

    def block_for(self, run: Run, key: bytes) -> int:
        """The last block of a run that begins at or before `key`; its first block if none does."""
        low, high = run.first_block, run.first_block + run.n_blocks
        while high - low > 1:
            middle = (low + high) // 2
            if self.first_key(middle) <= key:
                low = middle
            else:
                high = middle
        return low


def encode_directory(runs: Sequence[Run], offsets: array[int], first_keys: Sequence[bytes]) -> bytes:
    ends = array("I")
    end = 0
    for key in first_keys:
        end += len(key)
        ends.append(end)
    rows = [_ROW.pack(pid, 0, *rest) for pid, *rest in runs]
    return b"".join((*rows, _out(offsets), _out(ends), *first_keys))


def decode_directory(data: bytes, footer: Footer, seed: int) -> Directory:
    """Raises: CorruptData."""
    rows_end = footer.partitions * _ROW.size
    offsets_end = rows_end + 8 * (footer.blocks + 1)
    ends_end = offsets_end + 4 * footer.blocks
    if crc32(data, seed) != footer.directory_crc or len(data) < ends_end:
        raise CorruptData("the directory of a segment does not verify")
    rows = [Run(pid, *rest) for pid, _, *rest in _ROW.iter_unpack(data[:rows_end])]
    offsets = _in("Q", data[rows_end:offsets_end])
    ends = _in("I", data[offsets_end:ends_end])
    block = record = 0
    pid = -1
    for row in rows:
        if row.pid <= pid or row.first_block != block or row.first_record != record or not row.n_blocks:
            raise CorruptData("the partitions of a segment do not follow one another")
        pid = row.pid
        block += row.n_blocks
        record += row.n_records
    if (
        block != footer.blocks
        or record != footer.records
        or offsets[0] != HEADER_BYTES
        or offsets[-1] != footer.index_offset
        or list(offsets) != sorted(offsets)
        or list(ends) != sorted(ends)
        or ends[-1] != len(data) - ends_end
    ):
        raise CorruptData("the directory of a segment contradicts itself")
    return Directory({row.pid: row for row in rows}, offsets, ends, data[ends_end:])


def encode_index(index: KeyIndex) -> bytes:
    return b"".join(map(_out, index))


def decode_index(data: bytes, run: Run, seed: int) -> KeyIndex:
    """Raises: CorruptData."""
    n = run.n_records
    if len(data) != n * INDEX_ROW_BYTES or crc32(data, seed) != run.index_crc:
        raise CorruptData(f"the key index of partition {run.pid} does not verify")
    index = new_index()
    at = 0
    for column in index:
        size = n * column.itemsize
        column.frombytes(data[at : at + size])
        if _BIG_ENDIAN:
            column.byteswap()
        at += size
    return index


def _out(column: array[int]) -> bytes:
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _in(kind: str, data: bytes) -> array[int]:
    column: array[int] = array(kind)
    column.frombytes(data)
    if _BIG_ENDIAN:
        column.byteswap()
    return column
