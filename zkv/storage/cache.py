"""What was read from segments and may be asked again: whole records, and decoded blocks.

Owns: which records stay, and the count of their bytes. Must not know: where they come from, who asks.

Records are kept by S3-FIFO: a new one waits in a small queue; if it is asked again before its turn ends it goes on to the main queue, else only its key
is remembered for a while, and a key that comes back in that time goes straight to the main queue. So a scan of everything passes through the small queue
and leaves the main one alone. A hit only sets a flag. Nothing is admitted that is larger than a sixteenth of the budget.
Invariant: `bytes` is what the entries and the remembered keys cost by the constants below (measured, see the test of it), and never above `bytes_max`.
Source: Yang and others, FIFO queues are all you need for cache eviction (SOSP 2023); storage reference, 6.4.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from zkv.core.versions import VersionSet

#: of an entry without siblings and past: place in a queue, key object, set, dictionary of its past
ENTRY_BYTES: Final = 520
SIBLING_BYTES: Final = 440
#: of one actor in a past or a cloud
ACTOR_BYTES: Final = 100
VOID_BYTES: Final = 40
#: of a remembered key: bytes object, place in a set
GHOST_BYTES: Final = 150
BLOCK_BYTES: Final = 320

#: shares of the budget
SMALL_SHARE: Final = 0.1
GHOST_SHARE: Final = 0.1
LARGEST_SHARE: Final = 1 / 16


def record_bytes(key: bytes, versions: VersionSet) -> int:
    """What a cached record costs in memory, all in."""
    cost = ENTRY_BYTES + len(key) + ACTOR_BYTES * (len(versions.past) + len(versions.cloud))
    for sibling in versions.siblings:
        cost += SIBLING_BYTES + len(sibling.value) + VOID_BYTES * len(sibling.voids)
    return cost


class _Entry:
    __slots__ = ("asked", "bytes", "versions")

    def __init__(self, versions: VersionSet, cost: int) -> None:
        self.versions = versions
        self.bytes = cost
        self.asked = False


class RecordCache:
    """stored key -> version set. In batches of 100 a hit takes 0.4 us for hot keys, 0.8 us over 60,000 of them (measured on a busy machine)."""

    __slots__ = ("_ghost_bytes", "_ghosts", "_main", "_main_bytes", "_older_bytes", "_older_ghosts", "_small", "_small_bytes", "bytes_max", "hits", "misses")  # fmt: skip

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max: Final = bytes_max
        self._small: OrderedDict[bytes, _Entry] = OrderedDict()
        self._main: OrderedDict[bytes, _Entry] = OrderedDict()
        self._small_bytes = 0
        self._main_bytes = 0
        #: two generations: forgetting the older one needs no order
        self._ghosts: set[bytes] = set()
        self._older_ghosts: set[bytes] = set()
        self._ghost_bytes = 0
        self._older_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def get_many(self, keys: Sequence[bytes]) -> list[VersionSet | None]:
        main, small = self._main.get, self._small.get
        found: list[VersionSet | None] = []
        misses = 0
        for key in keys:
            entry = main(key) or small(key)
            if entry is None:
                misses += 1
                found.append(None)
            else:
                entry.asked = True
                found.append(entry.versions)
        self.misses += misses
        self.hits += len(keys) - misses
        return found

    def put(self, key: bytes, versions: VersionSet) -> None:
        """A record as it was just read from a segment."""
        self.drop((key,))
        cost = record_bytes(key, versions)
        if cost > self.bytes_max * LARGEST_SHARE:
            return
        if key in self._ghosts or key in self._older_ghosts:
            self._main[key] = _Entry(versions, cost)
            self._main_bytes += cost
        else:
            self._small[key] = _Entry(versions, cost)
            self._small_bytes += cost
        while self.bytes > self.bytes_max:
            self._evict()

    def drop(self, keys: Iterable[bytes]) -> None:
        """These were written, or their records are in doubt."""
        main, small = self._main, self._small
        for key in keys:
            if (entry := main.pop(key, None)) is not None:
                self._main_bytes -= entry.bytes
            elif (entry := small.pop(key, None)) is not None:
                self._small_bytes -= entry.bytes

    def clear(self) -> None:
        self._small.clear()
        self._main.clear()
        self._small_bytes = self._main_bytes = 0
        self._ghosts, self._older_ghosts = set(), set()
        self._ghost_bytes = self._older_bytes = 0

    def _evict(self) -> None:
        """One step: an entry leaves its queue, goes on to the next one, or round again."""
        if self._small_bytes > self.bytes_max * SMALL_SHARE or not self._main:
            key, entry = self._small.popitem(last=False)
            self._small_bytes -= entry.bytes
            if entry.asked:
                entry.asked = False
                self._main[key] = entry
                self._main_bytes += entry.bytes
            else:
                self._remember(key)
            return
        key, entry = self._main.popitem(last=False)
        if entry.asked:
            entry.asked = False
            self._main[key] = entry
        else:
            self._main_bytes -= entry.bytes

    def _remember(self, key: bytes) -> None:
        if key in self._ghosts:
            return
        self._ghosts.add(key)
        self._ghost_bytes += GHOST_BYTES + len(key)
        if self._ghost_bytes > self.bytes_max * GHOST_SHARE / 2:
            self._older_ghosts, self._older_bytes = self._ghosts, self._ghost_bytes
            self._ghosts, self._ghost_bytes = set(), 0

    @property
    def bytes(self) -> int:
        return self._small_bytes + self._main_bytes + self._ghost_bytes + self._older_bytes

    def check_invariants(self) -> None:
        """For tests."""
        assert not self._small.keys() & self._main.keys()
        for queue, counted in ((self._small, self._small_bytes), (self._main, self._main_bytes)):
            assert counted == sum(entry.bytes for entry in queue.values())
            assert all(entry.bytes == record_bytes(key, entry.versions) for key, entry in queue.items())
        for ghosts, counted in ((self._ghosts, self._ghost_bytes), (self._older_ghosts, self._older_bytes)):
            assert counted == sum(GHOST_BYTES + len(key) for key in ghosts)
        assert self.bytes <= self.bytes_max


class BlockCache:
    """(segment id, block number) -> decoded block, the least recently used go first. Small: for scans, and neighbours in a batch."""

    __slots__ = ("_blocks", "bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max: Final = bytes_max
        self.bytes = 0
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, segment: int, block: int) -> bytes | None:
        payload = self._blocks.get((segment, block))
        if payload is not None:
            self._blocks.move_to_end((segment, block))
        return payload

    def put(self, segment: int, block: int, payload: bytes) -> None:
        before = self._blocks.pop((segment, block), None)
        if before is not None:
            self.bytes -= BLOCK_BYTES + len(before)
        if BLOCK_BYTES + len(payload) > self.bytes_max:
            return
        self._blocks[segment, block] = payload
        self.bytes += BLOCK_BYTES + len(payload)
        while self.bytes > self.bytes_max:
            _, gone = self._blocks.popitem(last=False)
            self.bytes -= BLOCK_BYTES + len(gone)

    def drop_segment(self, segment: int) -> None:
        """The segment is closed, or its blocks are in doubt."""
        for place in [place for place in self._blocks if place[0] == segment]:
            self.bytes -= BLOCK_BYTES + len(self._blocks.pop(place))
