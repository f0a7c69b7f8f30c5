"""One shard of the hash index: 64-bit hashes with a 64-bit word each, at 16 bytes a pair.

Owns: the layout of the table, its growth. Must not know: keys, segments, what a word means, that two keys may share a hash.

An open table of pairs [hash, word] in one `array('Q')`, in ordered linear probing: the home of a hash grows with the hash, pairs stand in order of their
hashes, and every pair between its home and its place is taken. So a look-up ends at the first hash that is not smaller: a miss costs no more than
a hit, and rebuilding needs no sort. An empty pair is [EMPTY, 0]: it ends a look-up as a larger hash does and answers 0, which means absent.
The last pair is always empty. Invariants: no hash is EMPTY, no word is 0 or EMPTY.
Source: Amble and Knuth, Ordered hash tables (1974); figures in the storage reference, 3.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # numpy takes 0.2 s to import and is needed only where whole columns are handled
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

EMPTY: Final = (1 << 64) - 1
LOAD_MAX: Final = 0.8
LOW_32: Final = (1 << 32) - 1
#: growth where a rebuild is as cheap as its numpy calls, and beyond: memory swings between 20 and 24 bytes a pair
GROWTH_SMALL: Final = 2.0
GROWTH: Final = 1.2
SMALL: Final = 512
CAPACITY_MIN: Final = 8
#: room behind the last home for pairs that were pushed on; a full one costs a rebuild
SPILL: Final = 16
#: bytes of an object besides its pairs, as sys.getsizeof tells them
OBJECT_BYTES: Final = 160


class Shard:
    """`cells` is read directly by the index: pair i is at 2i. The home of a hash is `((hash >> skip & LOW_32) * capacity >> 32)`."""

    __slots__ = ("capacity", "cells", "count", "skip")

    def __init__(self, skip: int, hashes: Words | None = None, words: Words | None = None) -> None:
        """hashes: in strictly rising order; words: one of each."""
        self.skip = skip
        self.count = 0
        self.capacity = CAPACITY_MIN
        self.cells = _empty_cells(CAPACITY_MIN + SPILL)
        if hashes is not None and words is not None:
            self._build(hashes, words, _capacity_for(len(hashes)))

    @property
    def bytes(self) -> int:
        return len(self.cells) * 8 + OBJECT_BYTES

    def get(self, hashed: int) -> int:
        cells = self.cells
        at = ((hashed >> self.skip & LOW_32) * self.capacity >> 32) << 1
        while (held := cells[at]) < hashed:
            at += 2
        return cells[at + 1] if held == hashed else 0

    def put(self, hashed: int, word: int) -> int:
        """The word that was there before, or 0."""
        cells = self.cells
        at = ((hashed >> self.skip & LOW_32) * self.capacity >> 32) << 1
        while (held := cells[at]) < hashed:
            at += 2
        if held == hashed:
            before = cells[at + 1]
            cells[at + 1] = word
            return before
        end = at
        if held != EMPTY:
            # words are never EMPTY, so this finds a pair's hash
            end = cells.index(EMPTY, at + 2)
            cells[at + 2 : end + 2] = cells[at:end]
        cells[at] = hashed
        cells[at + 1] = word
        self.count += 1
        if self.count > self.capacity * LOAD_MAX:
            self._grow(int(self.capacity * (GROWTH_SMALL if self.capacity < SMALL else GROWTH)) + 1)
        elif end == len(cells) - 2:
            self._grow(self.capacity)  # the same homes, and spill again
        return 0

    def swap(self, hashed: int, expected: int, word: int) -> bool:
        """Compare and set. True also if `word` is there already."""
        cells = self.cells
        at = ((hashed >> self.skip & LOW_32) * self.capacity >> 32) << 1
        while (held := cells[at]) < hashed:
            at += 2
        if held != hashed:
            return False
        found = cells[at + 1]
        if found == expected:
            cells[at + 1] = word
            return True
        return found == word

    def remove(self, hashed: int, word: int) -> bool:
        """Removes the pair if it is exactly this one; those behind it that stand off their home move up by one."""
        cells = self.cells
        skip, capacity = self.skip, self.capacity
        at = ((hashed >> skip & LOW_32) * capacity >> 32) << 1
        while (held := cells[at]) < hashed:
            at += 2
        if held != hashed or cells[at + 1] != word:
            return False
        end = at + 2
        while (held := cells[end]) != EMPTY and ((held >> skip & LOW_32) * capacity >> 32) << 1 < end:
            end += 2
        cells[at : end - 2] = cells[at + 2 : end]
        cells[end - 2] = EMPTY
        cells[end - 1] = 0
        self.count -= 1
        return True

    def reserve(self, more: int) -> None:
        """Room for so many new pairs in one rebuild, where growing step by step would take several."""
        wanted = _capacity_for(self.count + more)
        if wanted > self.capacity * GROWTH:
            self._grow(wanted)

    def columns(self) -> tuple[Words, Words]:
        """(hashes in rising order, words), copied."""
        import numpy as np

        pairs = np.frombuffer(self.cells, np.uint64).reshape(-1, 2)
        taken = pairs[pairs[:, 1] != 0]
        return taken[:, 0].copy(), taken[:, 1].copy()

    def _grow(self, capacity: int) -> None:
        hashes, words = self.columns()
        self._build(hashes, words, capacity)

    def _build(self, hashes: Words, words: Words, capacity: int) -> None:
        """A pair stands at its home, or behind the pair before it: the running maximum of (home - rank), plus rank."""
        import numpy as np

        homes = (hashes >> np.uint64(self.skip) & np.uint64(LOW_32)) * np.uint64(capacity) >> np.uint64(32)
        ranks = np.arange(len(hashes), dtype=np.int64)
        places = np.maximum.accumulate(homes.astype(np.int64) - ranks) + ranks
        cells = _empty_cells(max(capacity, int(places[-1]) + 1 if len(places) else 0) + SPILL)
        pairs = np.frombuffer(cells, np.uint64).reshape(-1, 2)
        pairs[places, 0] = hashes
        pairs[places, 1] = words
        self.cells = cells
        self.capacity = capacity
        self.count = len(hashes)

    def check_invariants(self) -> None:
        """For tests."""
        cells, before, count = self.cells, -1, 0
        assert (cells[-2], cells[-1]) == (EMPTY, 0)
        for at in range(0, len(cells), 2):
            hashed, word = cells[at], cells[at + 1]
            if hashed == EMPTY:
                assert word == 0
                continue
            home = ((hashed >> self.skip & LOW_32) * self.capacity >> 32) << 1
            assert word not in (0, EMPTY) and hashed > before and home <= at
            assert all(cells[between] != EMPTY for between in range(home, at, 2)), (
                f"pair {at >> 1} is cut off from its home"
            )
            before = hashed
            count += 1
        assert count == self.count <= self.capacity * LOAD_MAX + 1


def _empty_cells(pairs: int) -> array[int]:
    return array("Q", (EMPTY, 0)) * pairs


def _capacity_for(count: int) -> int:
    """The least capacity that holds so many and takes a few more without growing."""
    return max(CAPACITY_MIN, int(count / LOAD_MAX * 1.02) + 1)
