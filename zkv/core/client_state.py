"""What all calls of one client share: session, topology, who failed lately, which node coordinates which keys.

Owns: the session and its sequence, the adopted topology, the choice of a coordinator, the memory of own writes.
Must not know: sockets, clocks, dice (`now_ns` and a random.Random are given), one call's progress (client_calls).

One coordinator serves as many keys of a batch as it is replica for, and the first key of a batch picks among equals; a single key goes to the first
live replica of its row, which is where its newest copy most likely is. A node that could not be reached is asked last for a while; that is
an opinion about whom to ask first and nothing more. Callers serialise access.

Source: 30-replication, requests; Dynamo (2007) 6.4, client-driven coordination.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from zkv.core.client_memory import WriteMemory
from zkv.core.messages import Level
from zkv.core.ring import Ring
from zkv.core.topology import Bucket, TopologyDocument, ring_of
from zkv.errors import InvalidArgument, NoSuchBucket
from zkv.ids import NodeId

if TYPE_CHECKING:
    import random

COOL_FIRST_NS: Final = 250_000_000
COOL_MAX_NS: Final = 5_000_000_000
BACKOFF_FIRST_NS: Final = 20_000_000
BACKOFF_MAX_NS: Final = 500_000_000

#: (node, positions in the batch); positions None = all
Assignment = tuple[NodeId, list[int] | None]


class ClientState:
    """One per client; replaced as a whole in a forked child, so that no two processes share a session."""

    __slots__ = (
        "_buckets",
        "_cooling",
        "_reached",
        "_rng",
        "_sequence",
        "_turn",
        "addresses",
        "cluster",
        "document",
        "memory",
        "names",
        "ring",
        "session",
        "stale",
    )

    def __init__(self, rng: random.Random) -> None:
        self.session = rng.getrandbits(64)
        self._rng = rng
        self._sequence = 0
        self._turn = rng.randrange(1 << 16)
        self.memory = WriteMemory()
        self.document: TopologyDocument | None = None
        self.ring: Ring | None = None
        self.cluster = 0
        self.addresses: dict[NodeId, str] = {}
        self.names: dict[NodeId, str] = {}
        #: a node said that our topology is not its own
        self.stale = False
        self._buckets: dict[str, Bucket] = {}
        self._reached: dict[NodeId, str] = {}
        self._cooling: dict[str, tuple[int, int]] = {}

    # --- identity ---

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def backoff_ns(self, tries: int) -> int:
        """Full jitter: anything from nothing to a bound that doubles."""
        return self._rng.randrange(min(BACKOFF_MAX_NS, BACKOFF_FIRST_NS << min(tries, 10)))

    # --- topology ---

    def adopt(self, document: TopologyDocument, node: NodeId, address: str) -> None:
        """`document` came from `node` at `address`, which is how this client reaches it, whatever it advertises."""
        newest = self.document
        if newest is None or document.epoch > newest.epoch:
            ring = ring_of(document)
            # An interrupt may strike between any two of these: `document` last, for it says that the rest is there.
            self.ring = ring
            self.cluster = int.from_bytes(document.cluster_id[:8], "big")
            self._buckets = {bucket.name: bucket for bucket in document.buckets}
            self.names = {member.node_id: member.name for member in document.members}
            self._reached = {}
            newest = document
        self._reached[node] = address
        self.addresses = {
            member.node_id: self._reached.get(member.node_id, member.address) for member in newest.members
        }
        self.document = newest
        self.stale = False

    def bucket(self, name: str) -> Bucket:
        found = self._buckets.get(name)
        if found is None:
            raise NoSuchBucket(f"no bucket {name!r}; this cluster has {', '.join(sorted(self._buckets)) or 'none'}")
        return found

    def check_level(self, bucket: Bucket, name: str, level: Level) -> None:
        """Raises: InvalidArgument for more replicas than the bucket keeps: that many never answer, however long one waits."""
        if not isinstance(level, int) or self.document is None:
            return
        rule = self.document.classes[bucket.class_id]
        n = rule if isinstance(rule, int) else sum(rule.values())
        if level > n:
            raise InvalidArgument(
                f"{name}={level}: bucket {bucket.name!r} keeps {n} replicas of a key, so {name} is at most {n}"
            )

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(self._buckets.values())

    @property
    def single_copies(self) -> bool:
        """Whether every row has one replica: what this session wrote is where the next write goes, so nothing needs to be said of it."""
        return self.ring is not None and all(len(group) == 1 for group in self.ring.groups)

    # --- liveness, an opinion ---

    def failed(self, address: str, now_ns: int) -> None:
        """No connection, or the connection broke: ask this one last for a while."""
        _, failures = self._cooling.get(address, (0, 0))
        self._cooling[address] = (now_ns + min(COOL_MAX_NS, COOL_FIRST_NS << min(failures, 10)), failures + 1)

    @property
    def untroubled(self) -> bool:
        """The topology is known and nothing is held against it or anybody."""
        return self.document is not None and not self.stale and not self._cooling

    def answered(self, address: str) -> None:
        if self._cooling:
            self._cooling.pop(address, None)

    def is_cooling(self, node: NodeId, now_ns: int) -> bool:
        cooling = self._cooling.get(self.addresses.get(node, ""))
        return cooling is not None and cooling[0] > now_ns

    # --- routing ---

    def assign(
        self,
        keys: Sequence[bytes],
        class_id: int,
        now_ns: int,
        *,
        avoid: Collection[NodeId] = (),
        replicas_only: bool = False,
    ) -> list[Assignment]:
        """Which node coordinates which of `keys`. avoid: nodes that were tried; they are chosen only when nobody else is left."""
        ring = self.ring
        assert ring is not None, "topology first"
        if len(keys) == 1:
            row = ring.row_of(keys[0], class_id)
            return [(self._best(row.replicas, now_ns, avoid, replicas_only)[0], None)]
        # Who coordinates is drawn from the first key: batches spread, and the same batch comes to the same store again, whose own past it
        # then follows. Taking turns instead would give each key the past of every replica in turn.
        turn = ring.row_of(keys[0], class_id).partition
        if len(ring.groups) == 1:
            best = self._best(ring.groups[0], now_ns, avoid, replicas_only)
            return [(best[turn % len(best)], None)]
        by_group: dict[int, list[int]] = {}
        for position, row in enumerate(ring.rows_of(keys, class_id)):
            by_group.setdefault(row.group, []).append(position)
        candidates = {g: self._best(ring.groups[g], now_ns, avoid, replicas_only) for g in by_group}
        return self._cover(by_group, candidates, turn)

    def _cover(
        self, by_group: dict[int, list[int]], candidates: dict[int, Sequence[NodeId]], turn: int
    ) -> list[Assignment]:
        """Few coordinators for many groups: the one that serves most keys first, among nodes that serve about as many the one that `turn` picks."""
        assignments: list[Assignment] = []
        left = dict(by_group)
        while left:
            serves: dict[NodeId, int] = {}
            for group, positions in left.items():
                for node in candidates[group]:
                    serves[node] = serves.get(node, 0) + len(positions)
            most = max(serves.values())
            equals = sorted(node for node, count in serves.items() if count * 10 >= most * 9)
            node = equals[turn % len(equals)]
            taken = [group for group in left if node in candidates[group]]
            positions = sorted(position for group in taken for position in left.pop(group))
            assignments.append((node, positions if left or assignments else None))
        return assignments

    def _best(
        self, replicas: Sequence[NodeId], now_ns: int, avoid: Collection[NodeId], replicas_only: bool
    ) -> Sequence[NodeId]:
        """The best candidates, equals, in order of preference: live replicas, then live others, which forward, then the rest."""
        if not avoid and not self._cooling:
            return replicas
        usable = [n for n in replicas if n not in avoid and not self.is_cooling(n, now_ns)]
        if usable:
            return usable
        if not replicas_only:
            usable = [
                n for n in self.addresses if n not in avoid and not self.is_cooling(n, now_ns) and n not in replicas
            ]
            if usable:
                return usable
        untried = [n for n in replicas if n not in avoid] or list(replicas)
        soonest = min(untried, key=lambda n: self._cooling.get(self.addresses.get(n, ""), (0, 0))[0])
        return [soonest]

    def others_to_try(self, key: bytes, class_id: int, avoid: Collection[NodeId], *, replicas_only: bool) -> bool:
        """Whether anybody could coordinate this key who was not tried."""
        assert self.ring is not None
        nodes = self.ring.row_of(key, class_id).replicas if replicas_only else tuple(self.addresses)
        return any(node not in avoid for node in nodes)

    def any_nodes(self, now_ns: int) -> list[NodeId]:
        """All nodes, those that answered lately first, in turns."""
        nodes = sorted(self.addresses)
        if not nodes:
            return []
        self._turn += 1
        start = self._turn % len(nodes)
        return sorted(nodes[start:] + nodes[:start], key=lambda n: self.is_cooling(n, now_ns))
