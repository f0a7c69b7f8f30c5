"""The ring: which partition a key falls into and which nodes hold it.

Owns: positions, rows, the clockwise walk for fallbacks. Must not know: how rows are chosen (placement), which epoch is current
(topology), who is up (told by the caller).
Invariants: immutable; every class has one row per partition; replicas of a row are distinct nodes on distinct hosts; rows with
the same set of replicas have the same `group`, over all classes.
Source: Dynamo 4.2 and 4.3 (consistent hashing, preference list), with equal partitions as in its strategy 3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from zkv.ids import BUCKET_BYTES, NodeId

POSITION_BITS: Final = 64
_OPEN: Final = ord("{")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Who holds one partition for one class. Compared by identity: cheap as a dictionary key within one ring."""

    partition: int
    class_id: int
    #: the epoch that last changed this row
    version: int
    fence: int
    #: in order of preference
    replicas: tuple[NodeId, ...]
    #: index into `Ring.groups`
    group: int


class Ring:
    """All rows of one epoch. `tables` maps a class to one (version, fence, replicas) per partition; `hosts` a node to its host label."""

    __slots__ = ("_rows", "_shift", "_versions", "_walks", "groups", "hosts", "partitions", "seed")

    def __init__(
        self,
        partitions: int,
        seed: int,
        tables: Mapping[int, Sequence[tuple[int, int, tuple[NodeId, ...]]]],
        hosts: Mapping[NodeId, str],
    ) -> None:
        assert partitions > 0 and partitions & (partitions - 1) == 0, (
            f"partitions must be a power of two, not {partitions}"
        )
        self.partitions: Final = partitions
        self.seed: Final = seed
        self.hosts: Final = dict(hosts)
        self._shift: Final = POSITION_BITS - (partitions.bit_length() - 1)
        numbers: dict[tuple[NodeId, ...], int] = {}
        rows: dict[int, tuple[Row, ...]] = {}
        for class_id in sorted(tables):
            rows[class_id] = tuple(
                Row(
                    partition,
                    class_id,
                    version,
                    fence,
                    replicas,
                    numbers.setdefault(tuple(sorted(replicas)), len(numbers)),
                )
                for partition, (version, fence, replicas) in enumerate(tables[class_id])
            )
        self._rows: Final = rows
        #: each distinct set of replicas, sorted by node id
        self.groups: Final = tuple(numbers)
        self._versions: Final = {class_id: {row.version for row in table} for class_id, table in rows.items()}
        self._walks: Final[dict[Row, tuple[NodeId, ...]]] = {}

    @property
    def rows(self) -> Mapping[int, tuple[Row, ...]]:
        """class id -> partition -> row."""
        return self._rows

    def row_of(self, stored_key: bytes, class_id: int) -> Row:
        """The row of a key. KeyError for a class that the ring does not have."""
        if _OPEN in stored_key:
            stored_key = routing_bytes(stored_key)
        return self._rows[class_id][xxh3_64_intdigest(stored_key, self.seed) >> self._shift]

    def rows_of(self, stored_keys: Iterable[bytes], class_id: int) -> list[Row]:
        """`row_of` for a batch, in its order."""
        rows, seed, shift, digest, opening = self._rows[class_id], self.seed, self._shift, xxh3_64_intdigest, _OPEN
        return [
            rows[digest(routing_bytes(key) if opening in key else key, seed) >> shift]
            for key in stored_keys
        ]  # fmt: skip

    def version_of_all(self, class_id: int) -> int | None:
        """The version that all rows of a class have; None where they differ, or there is no such class."""
        versions = self._versions.get(class_id, ())
        return next(iter(versions)) if len(versions) == 1 else None

    def preference_list(self, row: Row, n: int) -> tuple[NodeId, ...]:
        """The first n replicas, or all of a row that is shorter (under-replicated)."""
        return row.replicas[:n]

    def fallbacks(self, row: Row, up: Collection[NodeId]) -> tuple[NodeId, ...]:
        """Who may stand in for a replica of `row`, best first: live, no host twice, none on the host of a replica.

        The walk of a row is kept after the first call, so that a long outage does not pay for it at each request.
        """
        walk = self._walks.get(row)
        if walk is None:
            walk = self._walks[row] = self._walk(row)
        hosts = self.hosts
        taken = {hosts[node] for node in row.replicas}
        found: list[NodeId] = []
        for node in walk:
            if node in up and hosts[node] not in taken:
                taken.add(hosts[node])
                found.append(node)
        return tuple(found)

    def _walk(self, row: Row) -> tuple[NodeId, ...]:
        """All other nodes of the row's class in the order in which a clockwise walk from the row meets them."""
        rows = self._rows[row.class_id]
        met = dict.fromkeys(row.replicas)
        for step in range(1, self.partitions):
            met.update(dict.fromkeys(rows[(row.partition + step) & (self.partitions - 1)].replicas))
        return tuple(met)[len(row.replicas) :]

    def check_invariants(self) -> None:
        """For tests and for a document that has just arrived."""
        assert len(set(self.groups)) == len(self.groups)
        for class_id, rows in self._rows.items():
            assert len(rows) == self.partitions, (
                f"class {class_id} has {len(rows)} rows for {self.partitions} partitions"
            )
            for partition, row in enumerate(rows):
                assert (row.partition, row.class_id) == (partition, class_id)
                assert row.replicas, f"row {partition} of class {class_id} has no replica"
                assert len({self.hosts[node] for node in row.replicas}) == len(row.replicas), (
                    f"{row} has two replicas on one host"
                )
                assert self.groups[row.group] == tuple(sorted(row.replicas))


def position_of(stored_key: bytes, seed: int) -> int:
    """Where a stored key (bucket id, then key) lies on the ring: 64 bits."""
    return xxh3_64_intdigest(routing_bytes(stored_key), seed)


def record_hash(stored_key: bytes, seed: int, shift: int) -> int:
    """What indexes of records know a key by: its partition in the bits from `shift` on, below it a hash of the whole key.

    The position of a key where it has no tag. Keys with one tag have one position, and must not have one hash.
    """
    hashed = xxh3_64_intdigest(stored_key, seed)
    if _OPEN not in stored_key:
        return hashed
    return position_of(stored_key, seed) >> shift << shift | hashed & (1 << shift) - 1


def routing_bytes(stored_key: bytes) -> bytes:
    """The bytes that decide the place of a key: bucket id and `{tag}` if the key has one that is not empty, else all of it.

    The tag is what stands between the first `{` and the next `}` after it, so `{user:1}:name` and `{user:1}:mail` are neighbours.
    """
    start = stored_key.find(b"{", BUCKET_BYTES)
    if start < 0:
        return stored_key
    end = stored_key.find(b"}", start + 1)
    if end <= start + 1:
        return stored_key
    return stored_key[:BUCKET_BYTES] + stored_key[start + 1 : end]
