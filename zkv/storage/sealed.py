"""The sealed records of a store: its segments, the index over them, what of them is cached.

Owns: which segments are open and under which slot, look-ups, what of each segment is dead. Must not know: log files, steps, when something is
sealed or merged (upkeep).

An unreadable record is never an absent one: look-ups name it. Everything runs on the thread that owns the store; a look-up is one probe of the
index and at most one block read per key, in the order of the blocks. Source: 50-storage, shape and 7.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from heapq import merge
from typing import Any, Final, NamedTuple

from zkv.codec.records import set_from_bytes
from zkv.codec.segment import SLOT_BITS
from zkv.core.ring import record_hash
from zkv.core.versions import VersionSet
from zkv.errors import CorruptData, DiskFull, ProtocolError
from zkv.storage.cache import BlockCache, RecordCache
from zkv.storage.files import FileSystem
from zkv.storage.index import Columns, HashIndex, Superseded, pack_loc, place_of, slot_of
from zkv.storage.opening import segment_path
from zkv.storage.policy import SegmentState
from zkv.storage.segment import KeyIndex, Segment, SegmentRecord, SegmentSummary, record_at

#: records that are installed or moved in one share of work
ROWS_AT_ONCE: Final = 250
#: what a look-up can meet: other bytes than were written, a disk that does not answer, no space to note that two keys share a hash
_UNREADABLE: Final = (CorruptData, ProtocolError, DiskFull, OSError)
_SLOT_MASK: Final = (1 << SLOT_BITS) - 1


class Move(NamedTuple):
    """Rows of one partition that a merge wrote: where the record was, and where it is now."""

    pid: int
    hashes: list[int]
    old: list[int]
    new: list[int]


class SealedStore:
    def __init__(
        self,
        files: FileSystem,
        path: str,
        *,
        partitions: int,
        hash_seed: int,
        shared: Sequence[int],
        keep_shared: Callable[[tuple[int, ...]], None],
        note: Callable[[str, str, str], None],
        record_cache: RecordCache,
        block_cache: BlockCache,
    ) -> None:
        """shared, keep_shared: hashes that several keys have, as the manifest has them, and how to put them there.

        note: writes a line to the operator's log: level, name of the event, text.
        """
        self._files = files
        self._path = path
        self.hash_seed: Final = hash_seed
        self.shift: Final = 64 - (partitions.bit_length() - 1)
        self._note = note
        self.records = record_cache
        self._blocks = block_cache
        #: slot -> segment
        self._segments: dict[int, Segment] = {}
        #: slot -> partition -> (records, raw bytes) that the index does not point to, of partitions that are loaded
        self._dead: dict[int, dict[int, tuple[int, int]]] = {}
        #: slots of which the index does not know every record yet
        self._incomplete: set[int] = set()
        #: slots of segments in which something is damaged
        self._doubtful: set[int] = set()
        #: partition -> a record at or below this seq may have a later one that cannot be read, and an absent key too
        self._holes: dict[int, int] = {}
        self.index: Final = HashIndex(
            partitions,
            self.shift,
            self._columns_of,
            self._key_at,
            shared=shared,
            on_superseded=self._superseded,
            on_shared=keep_shared,
        )
        self.warm = False
        self.unreadable = 0

    def __len__(self) -> int:
        """Keys, tombstones among them; before everything is loaded, records."""
        return len(self.index) if self.warm else sum(s.summary.records for s in self._segments.values())

    def __bool__(self) -> bool:
        return bool(self._segments)

    # --- segments ---

    def add(self, summary: SegmentSummary) -> int:
        """Open a segment that lies in its place, if it is not open; its slot. Its records count as soon as they are installed, or loaded; no merge takes it
        before it is `complete`. Raises: CorruptData, OSError."""
        path = segment_path(self._path, summary.id)
        for slot, known in self._segments.items():
            if known.summary.id == summary.id:
                return slot
        slot = next(n for n in range(1, len(self._segments) + 2) if n not in self._segments)
        self._segments[slot] = Segment.open(self._files, path, summary)
        self._dead[slot] = {}
        self._incomplete.add(slot)
        return slot

    def retire(self, slot: int) -> str:
        """The index does not point into this segment any more: let go of it. The path of its file."""
        segment = self._segments.pop(slot)
        del self._dead[slot]
        self._incomplete.discard(slot)
        self._doubtful.discard(slot)
        self._blocks.drop_segment(segment.summary.id)
        segment.close()
        return segment.path

    def segment(self, slot: int) -> Segment:
        return self._segments[slot]

    def close(self) -> None:
        while self._segments:
            self._segments.popitem()[1].close()

    def hash_of(self, key: bytes) -> int:
        return record_hash(key, self.hash_seed, self.shift)

    # --- look-ups ---

    def look_up(self, keys: list[bytes]) -> tuple[dict[bytes, VersionSet], Set[bytes]]:
        """(what is held of those keys that are held, keys whose record cannot be read)."""
        found: dict[bytes, VersionSet] = {}
        unreadable: set[bytes] = set()
        wanted: list[tuple[int, bytes]] = []
        for key, cached in zip(keys, self.records.get_many(keys), strict=True):
            if cached is not None:
                found[key] = cached
                continue
            hashed = record_hash(key, self.hash_seed, self.shift)
            try:
                loc = self.index.find(key, hashed)
            except _UNREADABLE as error:
                self._say_unreadable(unreadable, key, error)
                continue
            if loc:
                wanted.append((loc, key))
            elif self._holes and hashed >> self.shift in self._holes:
                self._say_unreadable(unreadable, key, CorruptData("its partition has records that cannot be read"))
        wanted.sort()
        for loc, key in wanted:
            try:
                versions = self._read(loc, key)
            except _UNREADABLE as error:
                self._say_unreadable(unreadable, key, error)
                continue
            if versions is not None:
                found[key] = versions
                self.records.put(key, versions)
        return found, unreadable

    def _read(self, loc: int, key: bytes) -> VersionSet | None:
        """None: this is the record of another key. Raises: CorruptData, ProtocolError."""
        record = self._record_at(loc)
        if record.key != key:
            hashed = self.hash_of(key)
            self.index.share(hashed)
            loc = self.index.find(key, hashed)
            if not loc:
                return None
            record = self._record_at(loc)
        if self._holes and record.seq <= self._holes.get(self.hash_of(key) >> self.shift, -1):
            raise CorruptData("its partition has later records that cannot be read")
        return set_from_bytes(record.meta, record.values)

    def _record_at(self, loc: int) -> SegmentRecord:
        slot, place = slot_of(loc), place_of(loc)
        segment = self._segments[slot]
        block_no = place >> SLOT_BITS
        payload = self._blocks.get(segment.summary.id, block_no)
        if payload is None:
            payload = segment.read_block(block_no)
            self._blocks.put(segment.summary.id, block_no, payload)
        return record_at(payload, place & _SLOT_MASK)

    def _key_at(self, loc: int) -> bytes:
        return self._record_at(loc).key

    def _say_unreadable(self, unreadable: set[bytes], key: bytes, error: Exception) -> None:
        unreadable.add(key)
        self.unreadable += 1
        self._note("error", "record_unreadable", str(error))

    def compare(self, keys: list[bytes]) -> None:
        """Finds keys whose hash another key has. For keys that came without a look-up. Raises: CorruptData."""
        hashes = [self.hash_of(key) for key in keys]
        present = sorted(
            (loc, key, h) for loc, key, h in zip(self.index.find_many(keys, hashes), keys, hashes, strict=True) if loc
        )
        for loc, key, hashed in present:
            try:
                other = self._key_at(loc) != key
            except (CorruptData, OSError):
                continue  # whichever key it was, its record is lost
            if other:
                self.index.share(hashed)

    def keys_of(self, partition: int, after: bytes) -> Iterator[bytes]:
        """Keys above `after` in order; one may come that is not held any more, or twice. Raises: CorruptData."""
        return merge(*[_keys(segment, partition, after) for segment in self._segments.values()])

    # --- the index ---

    def _columns_of(self, pid: int) -> list[Columns]:
        sources = []
        self._holes.pop(pid, None)
        for slot, segment in sorted(self._segments.items(), key=lambda entry: entry[1].summary.id):
            try:
                key_index = segment.key_index(pid)
            except (CorruptData, OSError) as error:
                self._note("error", "key_index_unreadable", str(error))
                sources.append(self._columns_from_records(slot, pid))
                continue
            if key_index is not None:
                locs = locs_of(slot, key_index)
                sources.append(Columns(key_index.hashes, key_index.seqs, locs, key_index.sizes))
        return sources

    def _columns_from_records(self, slot: int, pid: int) -> Columns:
        """What the key index would say, from the records themselves; a hole where they cannot be read either."""
        self._doubtful.add(slot)  # a merge that trusts the index must not drop what is missing in it
        segment = self._segments[slot]
        hashes, seqs, locs, sizes = array("Q"), array("Q"), array("Q"), array("Q")
        try:
            for place, record in segment.placed_records(pid):
                hashes.append(self.hash_of(record.key))
                seqs.append(record.seq)
                locs.append(pack_loc(slot, place, record.flags))
                sizes.append(len(record.key) + len(record.meta) + len(record.values))
        except (CorruptData, OSError) as error:
            self._note("error", "partition_unreadable", str(error))
            self._holes[pid] = max(segment.summary.max_seq, self._holes.get(pid, 0))
        return Columns(hashes, seqs, locs, sizes)

    def _superseded(self, pid: int, dead: list[Superseded]) -> None:
        for partitions in self._dead.values():
            partitions.pop(pid, None)
        for slot, records, raw_bytes in dead:
            self._dead[slot][pid] = records, raw_bytes

    def warm_next(self) -> bool:
        """Load a partition that nobody has asked for; False when all are loaded. Raises: CorruptData."""
        self.warm = not self.index.warm(1)
        return not self.warm

    def install(self, slot: int) -> Iterator[None]:
        """Put the records of a segment in force, a share at a time. Raises: CorruptData."""
        segment = self._segments[slot]
        rows = 0
        for pid in segment.partitions():
            key_index = segment.key_index(pid)
            assert key_index is not None
            replaced = self.index.install(pid, key_index.hashes, locs_of(slot, key_index))
            self._bury(pid, [loc for loc in replaced if loc])
            rows += len(replaced)
            if rows >= ROWS_AT_ONCE:
                rows = 0
                yield

    def complete(self, slot: int) -> None:
        """All of a segment is in force: from now on it may be merged."""
        self._incomplete.remove(slot)

    def doubt(self, slots: list[int], error: Exception) -> None:
        """A merge of these failed: leave out the one that the error names, or the others would never be merged again."""
        if isinstance(error, CorruptData):
            self._doubtful.update(slot for slot in slots if self._segments[slot].path in str(error))

    def _bury(self, pid: int, locs: list[int]) -> None:
        """These records of a partition are dead."""
        import numpy as np

        by_slot: dict[int, list[int]] = {}
        for loc in locs:
            by_slot.setdefault(slot_of(loc), []).append(place_of(loc))
        for slot, places in by_slot.items():
            segment = self._segments[slot]
            records, raw_bytes = self._dead[slot].get(pid, (0, 0))
            try:
                key_index = segment.key_index(pid)
                assert key_index is not None
                rows = np.searchsorted(np.asarray(key_index.places), np.array(places, np.uint32))
                freed = int(np.asarray(key_index.sizes)[rows].sum())
            except (CorruptData, OSError) as error:  # what is merged when depends on it, nothing else
                self._note("error", "key_index_unreadable", str(error))
                freed = segment.summary.raw_bytes * len(places) // segment.summary.records
            self._dead[slot][pid] = records + len(places), raw_bytes + freed

    def moves(self, output: int, inputs: list[int], origins: Sequence[int]) -> list[Move]:
        """What of the index must point to the output of a merge, partition by partition.

        origins: of each record of the output, number of the input << 32 | place in it. Raises: CorruptData, OSError.
        """
        import numpy as np

        slots = np.array(inputs, np.uint64)
        origin = np.array(origins, np.uint64)
        old = slots[origin >> np.uint64(32)] << np.uint64(40) | (origin & np.uint64(0xFFFFFFFF)) << np.uint64(8)
        segment = self._segments[output]
        moves = []
        for pid in segment.partitions():
            run, key_index = segment.run(pid), segment.key_index(pid)
            assert run is not None and key_index is not None
            new = locs_of(output, key_index)
            before = old[run[2] : run[2] + run[3]] | new & np.uint64(0xFF)
            moves.append(Move(pid, list(key_index.hashes), before.tolist(), new.tolist()))
        return moves

    def move(self, moves: list[Move]) -> Iterator[None]:
        """Point from what a merge read to what it wrote, a share at a time, wherever the index still points to the former."""
        rows = 0
        for pid, hashes, old, new in moves:
            moved = self.index.move(pid, hashes, old, new)
            self._bury(pid, [loc for loc, alive in zip(new, moved, strict=True) if not alive])
            rows += len(new)
            if rows >= ROWS_AT_ONCE:
                rows = 0
                yield

    def share_with(self, slot: int, keys: list[bytes]) -> None:
        """Finds keys, none of them of this segment, whose hash one of its keys has."""
        self.index.share_with(slot, map(self.hash_of, keys))

    def forget(self, keys: Iterable[bytes]) -> None:
        """What is cached of these keys is older than what is held."""
        self.records.drop(keys)

    def states(self) -> list[SegmentState]:
        """What the policy of compaction judges by, with the slot as id; exact when everything is loaded.

        Without segments that the index does not know whole: what it does not point to is not dead.
        """
        states = []
        for slot, segment in sorted(self._segments.items()):
            if slot in self._incomplete or slot in self._doubtful:
                continue
            summary = segment.summary
            dead = list(self._dead[slot].values())
            records, raw_bytes = sum(r for r, _ in dead), sum(b for _, b in dead)
            states.append(
                SegmentState(
                    slot,
                    summary.records,
                    summary.raw_bytes,
                    summary.file_bytes,
                    summary.records - records,
                    summary.raw_bytes - raw_bytes,
                )
            )
        return states


def locs_of(slot: int, key_index: KeyIndex) -> Any:
    """The location of each row, as an array of u64."""
    import numpy as np

    places, flags = np.array(key_index.places, np.uint64), np.array(key_index.flags, np.uint64)
    return np.uint64(slot << 40) | places << np.uint64(8) | flags


def _keys(segment: Segment, partition: int, after: bytes) -> Iterator[bytes]:
    try:
        for record in segment.records(partition, after):
            yield record.key
    except OSError as error:
        raise CorruptData(f"{segment.path}: {error}") from error
