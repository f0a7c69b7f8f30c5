"""The hash index: where the sealed record of a key is, at 20 to 24 bytes of memory a key.

Owns: one shard per partition, made from the segments' own columns at first touch; keys that share a hash; which copy of a record is alive.
Must not know: files, blocks, version sets. Single-threaded: what a call does, it does whole.

A location is `slot << 40 | place << 8 | flags`: slot 1.. is the number that the store gave to an open segment, place its block and slot in the
block, and 0 means absent. A shard knows hashes, not keys, so whoever reads a record compares its key. Where that shows another key, `share` declares
that the hash belongs to several: from then on all keys of this hash stand with their full keys in a dictionary, which is exact.

The columns of a segment cannot tell two keys of one hash from two records of one key. So the caller
1. calls `share(hash)` when a look-up meets another key, before the new key is logged, and keeps `shared` over restarts (`on_shared`);
2. installs memory tables one after another, each as a whole, its segment being among the sources of `load` and `key_at` before;
3. after it installed one, calls `share_with` on the hashes of keys that came to later tables meanwhile and are not in this one: their look-up missed it.
Invariants: a hash is in its shard or in `shared`, never in both; after any history `find` answers the newest location that was installed, moved
or loaded for exactly this key. Nothing is stored: the index is derived data. Source: 50-storage; storage reference, 6.4 and 6.5.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.storage.shard import EMPTY, LOW_32, OBJECT_BYTES, Shard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    #: unsigned integers: what a segment has on disk, or a test in a list
    Column = NDArray[np.uint64] | array[int] | Sequence[int]

TOMBSTONE: Final = 1
EXPIRES: Final = 2
SLOT_MAX: Final = (1 << 24) - 2
_PLACE_MASK: Final = (1 << 32) - 1
#: of a key in the dictionary of shared hashes: entries, an int, a bytes object
_SHARED_BYTES: Final = 300


class Columns(NamedTuple):
    """What one segment has of one partition, one row per record."""

    hashes: Column
    seqs: Column
    locs: Column
    #: raw bytes of each record
    sizes: Column


class Superseded(NamedTuple):
    """What a load found dead in one segment."""

    slot: int
    records: int
    raw_bytes: int


def pack_loc(slot: int, place: int, flags: int = 0) -> int:
    return slot << 40 | place << 8 | flags


def slot_of(loc: int) -> int:
    return loc >> 40


def place_of(loc: int) -> int:
    return loc >> 8 & _PLACE_MASK


class HashIndex:
    def __init__(
        self,
        partitions: int,
        shift: int,
        load: Callable[[int], Sequence[Columns]],
        key_at: Callable[[int], bytes],
        shared: Iterable[int] = (),
        on_superseded: Callable[[int, list[Superseded]], None] | None = None,
        on_shared: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        """
        shift: partition = hash >> shift
        load: the columns of a partition, of every segment, oldest segment first. Its errors pass through; the shard stays unloaded.
        key_at: the stored key of the record at a location. Asked only about hashes that several keys share.
        shared: as `shared` was when it was last kept
        on_superseded: told once per loaded partition what is dead in which segment
        on_shared: keeps what `shared` will be, before it is. A hash may turn out to be shared in `share`, in an installation or in a load. Its errors
            pass through, and nothing has changed then.
        """
        assert shift >= 32, f"{partitions} partitions leave fewer than 32 bits of a hash"
        self._shift: Final = shift
        #: so that the 32 bits below the partition decide the home
        self._skip: Final = shift - 32
        self._load: Final = load
        self._key_at: Final = key_at
        self._on_superseded: Final = on_superseded
        self._on_shared: Final = on_shared
        self._shards: Final[list[Shard | None]] = [None] * partitions
        self._warmed = 0
        #: hash -> stored key -> location, of partitions that are loaded
        self._shared: Final[dict[int, dict[bytes, int]]] = {}
        self._known_shared = frozenset(shared)

    # --- reading ---

    def get(self, hashed: int) -> int:
        """The location of whichever key has this hash, 0 if none. About 1 us. Knows nothing of shared hashes: use `find` where there is a key."""
        shard = self._shards[hashed >> self._shift] or self._loaded_shard(hashed >> self._shift)
        cells = shard.cells
        at = ((hashed >> self._skip & LOW_32) * shard.capacity >> 32) << 1
        while (held := cells[at]) < hashed:
            at += 2
        return cells[at + 1] if held == hashed else 0

    def get_many(self, hashes: Iterable[int]) -> list[int]:
        shards, shift, skip = self._shards, self._shift, self._skip
        locs = []
        for hashed in hashes:
            shard = shards[hashed >> shift] or self._loaded_shard(hashed >> shift)
            cells = shard.cells
            at = ((hashed >> skip & LOW_32) * shard.capacity >> 32) << 1
            while (held := cells[at]) < hashed:
                at += 2
            locs.append(cells[at + 1] if held == hashed else 0)
        return locs

    def find(self, key: bytes, hashed: int) -> int:
        """The location of this key; of another key with its hash, if that was not declared shared: compare the key of what is read."""
        loc = self.get(hashed)  # first: it loads what is shared, too
        if self._shared and (keys := self._shared.get(hashed)) is not None:
            return keys.get(key, 0)
        return loc

    def find_many(self, keys: Sequence[bytes], hashes: Sequence[int]) -> list[int]:
        locs = self.get_many(hashes)
        if self._shared:
            for i, hashed in enumerate(hashes):
                if (among := self._shared.get(hashed)) is not None:
                    locs[i] = among.get(keys[i], 0)
        return locs

    def live_places(self, pid: int, slot: int) -> list[int]:
        """Places of a segment that the index points to, in order: what a merge of it must keep."""
        import numpy as np

        _, locs = self._shard(pid).columns()
        locs = locs[locs >> np.uint64(40) == slot]
        places: list[int] = (locs >> np.uint64(8) & np.uint64(_PLACE_MASK)).tolist()
        places += [place_of(loc) for keys in self._shared_of(pid) for loc in keys.values() if loc >> 40 == slot]
        return sorted(places)

    @property
    def shared(self) -> tuple[int, ...]:
        """Hashes that several keys have or had, sorted: the one thing to keep over a restart. Normally empty."""
        return tuple(sorted(self._known_shared))

    # --- changing ---

    def install(self, pid: int, hashes: Column, locs: Column) -> list[int]:
        """A sealed memory table supersedes whatever is there: the location that each row replaced, 0 for none. About 1.5 us a row.

        Rows of one partition of one segment; any number of calls for one partition. A shard that was loaded when the segment was a source already
        has them, and nothing is replaced then. After an error of `key_at` the partition is unloaded.
        """
        shard = self._shards[pid]
        if shard is None:
            self._loaded_shard(pid)
            assert 0 not in self.get_many(h for h in _ints(hashes) if h not in self._shared), "not among the sources"
            return [0] * len(hashes)
        try:
            return self._install(shard, _ints(hashes), _ints(locs))
        except BaseException:
            self.unload(pid)  # half of it is in
            raise

    def _install(self, shard: Shard, hashes: list[int], locs: list[int]) -> list[int]:
        shard.reserve(len(hashes))
        replaced = []
        for hashed, loc in zip(hashes, locs, strict=True):
            if hashed == EMPTY:
                self.share(hashed)  # a shard cannot hold it
            if self._shared and hashed in self._shared:
                replaced.append(self._install_shared(hashed, loc))
                continue
            before = shard.put(hashed, loc)
            if before == loc:
                before = 0
            elif before >> 40 == loc >> 40:
                # a segment has each key once: this is another key of it
                self.share(hashed)
                self._shared[hashed][self._key_at(before)] = before
                before = 0
            replaced.append(before)
        return replaced

    def move(self, pid: int, hashes: Column, old_locs: Column, new_locs: Column) -> list[bool]:
        """Compare and set, per row: the copy that a merge wrote is alive only where the index still holds the one that it read."""
        shard = self._shard(pid)
        moved = []
        for hashed, old, new in zip(_ints(hashes), _ints(old_locs), _ints(new_locs), strict=True):
            keys = self._shared.get(hashed) if self._shared else None
            if keys is None:
                moved.append(shard.swap(hashed, old, new))
                continue
            for key, loc in keys.items():
                if loc in (old, new):
                    keys[key] = new
                    moved.append(True)
                    break
            else:
                moved.append(False)
        return moved

    def discard(self, hashed: int, loc: int) -> bool:
        """The key of this record is gone (its tombstone was reaped), if the index still points to exactly this record."""
        shard = self._shard(hashed >> self._shift)
        keys = self._shared.get(hashed) if self._shared else None
        if keys is None:
            return shard.remove(hashed, loc)
        for key, held in keys.items():
            if held == loc:
                del keys[key]
                return True
        return False

    # --- keys that share a hash ---

    def share(self, hashed: int) -> bool:
        """More than one key has this hash: they are told apart from now on. True if that is news."""
        fresh = hashed not in self._known_shared
        shard = self._shards[hashed >> self._shift]
        if shard is None or hashed in self._shared:
            self._know_shared((hashed,))
            return fresh
        loc = shard.get(hashed)
        keys = {self._key_at(loc): loc} if loc else {}
        self._know_shared((hashed,))
        if loc:
            shard.remove(hashed, loc)
        self._shared[hashed] = keys
        return fresh

    def _know_shared(self, hashes: Iterable[int]) -> None:
        known = self._known_shared.union(hashes)
        if len(known) > len(self._known_shared):
            if self._on_shared is not None:
                self._on_shared(tuple(sorted(known)))
            self._known_shared = known

    def share_with(self, slot: int, hashes: Iterable[int]) -> list[int]:
        """Shares each of these hashes that a segment holds; they are of keys that it does not hold. Those that are news."""
        hashes = list(hashes)
        return [
            hashed
            for hashed, loc in zip(hashes, self.get_many(hashes), strict=True)
            if loc >> 40 == slot and self.share(hashed)
        ]

    def _install_shared(self, hashed: int, loc: int) -> int:
        key = self._key_at(loc)
        before = self._shared[hashed].get(key, 0)
        self._shared[hashed][key] = loc
        return before if before != loc else 0

    def _shared_of(self, pid: int) -> list[dict[bytes, int]]:
        return [keys for hashed, keys in self._shared.items() if hashed >> self._shift == pid]

    # --- loading ---

    def loaded(self, pid: int) -> bool:
        return self._shards[pid] is not None

    def warm(self, limit: int) -> int:
        """Loads up to `limit` partitions that nobody has touched yet; how many it did. 0: there are no more.

        The partition that an error of `load` is about is passed over by the next call: it must not keep the others cold.
        """
        count = 0
        while count < limit and self._warmed < len(self._shards):
            pid = self._warmed
            self._warmed += 1
            if self._shards[pid] is None:
                self._loaded_shard(pid)
                count += 1
        return count

    def unload(self, pid: int) -> None:
        """Forgets a partition; the next touch loads it again, and tells again what is superseded."""
        self._shards[pid] = None
        for hashed in [hashed for hashed in self._shared if hashed >> self._shift == pid]:
            del self._shared[hashed]
        self._warmed = 0

    def _shard(self, pid: int) -> Shard:
        return self._shards[pid] or self._loaded_shard(pid)

    def _loaded_shard(self, pid: int) -> Shard:
        """The newest record of each hash, from the columns of all segments."""
        import numpy as np

        sources = [source for source in self._load(pid) if len(source.hashes)]
        if not sources:
            self._adopt(pid, {})
            shard = self._shards[pid] = Shard(self._skip)
            return shard
        hashes, seqs, locs, sizes = (
            np.concatenate([np.asarray(column, np.uint64) for column in columns])
            for columns in zip(*sources, strict=True)
        )
        # of equal seqs (what a merge read and what it wrote) the later source comes last
        order = np.lexsort((seqs, hashes))
        hashes, seqs, locs, sizes = hashes[order], seqs[order], locs[order], sizes[order]
        several = self._several_keys(pid, hashes, locs)
        shared: dict[int, dict[bytes, int]] = {}
        last = np.append(hashes[1:] != hashes[:-1], True)
        newest = last.copy()
        for hashed in several:
            rows = slice(int(np.searchsorted(hashes, hashed)), int(np.searchsorted(hashes, hashed, "right")))
            by_key = {self._key_at(loc): loc for loc in locs[rows].tolist()}  # in order of seq: the newest stays
            shared[hashed] = by_key
            newest[rows] = np.isin(locs[rows], np.fromiter(by_key.values(), np.uint64))
            last[rows] = False
        shard = Shard(self._skip, hashes[last], locs[last])
        # nothing of it counts before all of it could be read, and kept
        self._adopt(pid, shared)
        self._shards[pid] = shard
        if self._on_superseded is not None:
            dead, which = np.unique(locs[~newest] >> np.uint64(40), return_inverse=True)
            records = np.bincount(which, minlength=len(dead))
            sums = np.bincount(which, weights=sizes[~newest], minlength=len(dead))
            self._on_superseded(
                pid,
                [Superseded(int(slot), int(n), int(size)) for slot, n, size in zip(dead, records, sums, strict=True)],
            )
        return shard

    def _several_keys(self, pid: int, hashes: NDArray[np.uint64], locs: NDArray[np.uint64]) -> set[int]:
        """Hashes of a partition that are known to be shared, or of which one segment has two records."""
        import numpy as np

        known = [hashed for hashed in self._known_shared if hashed >> self._shift == pid]
        several = set(known).intersection(hashes[np.isin(hashes, np.array(known, np.uint64))].tolist() if known else ())
        if len(hashes) and hashes[-1] == EMPTY:
            several.add(EMPTY)
        same = hashes[1:] == hashes[:-1]
        if same.any():
            again = np.append(same, False) | np.insert(same, 0, False)
            slots = locs[again] >> np.uint64(40)
            order = np.lexsort((slots, hashes[again]))
            runs, slots = hashes[again][order], slots[order]
            several.update(runs[1:][(runs[1:] == runs[:-1]) & (slots[1:] == slots[:-1])].tolist())
        return several

    def _adopt(self, pid: int, shared: dict[int, dict[bytes, int]]) -> None:
        self._know_shared(shared)
        for hashed in self._known_shared:
            if hashed >> self._shift == pid:
                shared.setdefault(hashed, {})
        self._shared.update(shared)

    # --- figures ---

    def __len__(self) -> int:
        """Keys of the partitions that are loaded."""
        return sum(s.count for s in self._shards if s is not None) + sum(map(len, self._shared.values()))

    @property
    def bytes(self) -> int:
        """Memory of the partitions that are loaded."""
        held = sum(s.bytes for s in self._shards if s is not None)
        return held + OBJECT_BYTES + len(self._shards) * 8 + sum(map(len, self._shared.values())) * _SHARED_BYTES

    def check_invariants(self) -> None:
        """For tests."""
        for pid, shard in enumerate(self._shards):
            if shard is not None:
                shard.check_invariants()
                hashes, _ = shard.columns()
                assert all(hashed >> self._shift == pid for hashed in hashes.tolist())
                assert not self._shared.keys() & set(hashes.tolist()), f"partition {pid} has shared hashes"
        assert self._shared.keys() <= self._known_shared


def _ints(column: Column) -> list[int]:
    """Plain ints: elements of an array are three times as dear."""
    return column if type(column) is list else column.tolist() if hasattr(column, "tolist") else list(column)
