"""What consecutive log records left behind, by key: one layer of the records of a store.

Owns: the sets of one layer, the order of its keys within a partition. Must not know: other layers, log files, what a step is.

The layer that takes what is written is active; when its log file is full it is frozen, and sealed into a segment. Source: 50-storage, shape.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from zkv.core.columns import Columns, Held


class MemoryTable:
    """sets: the last record of each key. through_seq: the last log record it may hold; 0 while it is the active one.

    recovered: some of its keys came from the log of an earlier life, and nobody has looked for them in older layers.
    passed_on: keys that it held and that the first step of the next layer took over; its log file has them.

    new_keys: how many of its keys no older layer holds, as far as is known.
    """

    __slots__ = (
        "_partition_of",
        "_partitions",
        "_placed",
        "_unplaced",
        "new_keys",
        "passed_on",
        "recovered",
        "sets",
        "through_seq",
    )

    def __init__(self, partition_of: Callable[[bytes], int]) -> None:
        self.sets: dict[bytes, Held] = {}
        self.through_seq = 0
        self.new_keys = 0
        self.recovered = False
        self.passed_on: frozenset[bytes] = frozenset()
        #: partition -> its keys, without those that nobody has asked for yet: these are in `_unplaced`, with some that went on to the next layer
        self._partitions: dict[int, dict[bytes, None]] = {}
        self._unplaced: list[bytes] = []
        self._placed = 0  # how many were in `_unplaced` before
        self._partition_of = partition_of

    def __len__(self) -> int:
        return len(self.sets)

    def added(self, keys: Iterable[bytes]) -> None:
        """These keys of `sets` are new in this layer."""
        self._unplaced += keys

    @property
    def mark(self) -> tuple[int, int]:
        """Where `rewind` goes back to."""
        return self._placed + len(self._unplaced), self.new_keys

    def rewind(self, mark: tuple[int, int]) -> None:
        """Forget the keys that were added since; nobody has asked for an order meanwhile."""
        del self._unplaced[mark[0] - self._placed :]
        self.new_keys = mark[1]

    def keys_of(self, partition: int, after: bytes = b"") -> list[bytes]:
        """Its keys in a partition, in order, above `after`."""
        self._place()
        keys = sorted(self._partitions.get(partition, ()))
        return keys[bisect_right(keys, after) :] if after else keys

    def _place(self) -> None:
        for key in self._unplaced:
            if key in self.sets:
                self._partitions.setdefault(self._partition_of(key), {})[key] = None
        self._placed += len(self._unplaced)
        self._unplaced.clear()

    def split(self, keys: Iterable[bytes], replaced: Iterable[bytes], new_keys: int, through_seq: int) -> MemoryTable:
        """Freeze this layer at `through_seq`; what it holds of `keys`, which came later, goes into the layer that follows it.

        replaced: those of which this layer had an older record. new_keys: how many of them no older record of the log speaks of.
        """
        self.through_seq = through_seq
        following = MemoryTable(self._partition_of)
        following.new_keys = new_keys
        self.new_keys -= new_keys
        self.passed_on = frozenset(replaced)
        for key in keys:
            held = self.sets.pop(key, None)
            if held is not None:
                following.sets[key] = held
                if self._partitions and (placed := self._partitions.get(self._partition_of(key))):
                    placed.pop(key, None)
        following.added(list(following.sets))
        return following

    def check_invariants(self) -> None:
        live: dict[int, tuple[Columns, int]] = {}
        for key, held in self.sets.items():
            if type(held) is tuple:
                columns, i = held
                assert columns.keys[i] == key
                live[id(columns)] = (columns, live.get(id(columns), (columns, 0))[1] + 1)
            else:
                held.check_invariants()  # type: ignore[union-attr]
        for columns, count in live.values():
            columns.check_invariants()
            assert columns.live == count, f"{columns} is held at {count} places"
            for i in range(len(columns)):
                columns.versions(i).check_invariants()
        self._place()
        placed = [key for keys in self._partitions.values() for key in keys]
        assert len(placed) == len(self.sets) and set(placed) == set(self.sets)
