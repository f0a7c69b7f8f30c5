"""What this node holds true right now: who it is, the ring, who can be reached.

Owns: identity, ring, buckets by id, link and heartbeat state of each peer, numbers for causes. Must not know: requests, sockets.

Liveness here is an opinion that decides whom to ask first; it never decides who owns data. A peer is *linked* when a connection stands and
*up* when it is linked and was heard within the heartbeat time-out. Suspects (linked, silent) are asked last, but they are asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from zkv.core.clock import HybridClock
from zkv.core.members import Member
from zkv.core.request_memory import RequestMemory
from zkv.core.ring import Ring, Row
from zkv.core.topology import Bucket, TopologyDocument, ring_of
from zkv.ids import NodeId, bucket_of, one_bucket_of


class Owner(IntEnum):
    """Which set of rules a cause or group number belongs to: its three lowest bits."""

    WRITES = 0
    READS = 1
    REPLICA = 2
    ADMIN = 3
    RESYNC = 4


OWNER_MASK: Final = 7


class View:
    """Shared by all rules of one node; `node_state` is the only one that changes it."""

    def __init__(
        self,
        *,
        node: NodeId,
        name: str,
        store: bytes,
        open_id: bytes,
        memory: RequestMemory,
        clock: HybridClock,
        heartbeat_timeout_ns: int,
    ) -> None:
        self.node = node
        self.name = name
        self.store = store
        self.open_id = open_id
        self.memory = memory
        self.clock = clock
        self.unsynced = False
        self.draining = False
        #: until then this store may lack requests that it carried out: power was lost before their records were synced
        self.forgetful_until_ns = 0
        self.ring: Ring | None = None
        self.document: TopologyDocument | None = None
        self.document_bytes = b""
        self.buckets: dict[int, Bucket] = {}
        self.members: dict[NodeId, Member] = {}
        self.dc_of: dict[NodeId, str] = {}
        self.wall_ms = 0
        self.now_ns = 0
        self._heartbeat_timeout_ns = heartbeat_timeout_ns
        self._linked: dict[NodeId, bool] = {}
        self._heard_ns: dict[NodeId, int] = {}
        # Numbers begin at a point that no earlier life of this node used, so a late answer to it finds nobody.
        self._next = (int.from_bytes(open_id[:4], "big") >> 1) << 32

    def number(self, owner: Owner) -> int:
        """A number for a cause or a group, never used before."""
        self._next += 8
        return self._next | owner

    def adopt(self, document: TopologyDocument, document_bytes: bytes) -> None:
        self.document = document
        self.document_bytes = document_bytes
        self.ring = ring_of(document)
        self.buckets = {bucket.bucket_id: bucket for bucket in document.buckets}
        self.members = {member.node_id: member for member in document.members}
        self.dc_of = {member.node_id: member.dc for member in document.members}

    @property
    def epoch(self) -> int:
        return self.document.epoch if self.document else 0

    @property
    def dc(self) -> str:
        return self.dc_of.get(self.node, "")

    def rows_of(self, keys: list[bytes]) -> list[Row | None]:
        """The row of each key; None where the bucket does not exist."""
        assert self.ring is not None
        common = one_bucket_of(keys)
        if common is not None:
            bucket = self.buckets.get(common)
            return [None] * len(keys) if bucket is None else list(self.ring.rows_of(keys, bucket.class_id))
        rows: list[Row | None] = []
        for key in keys:
            bucket = self.buckets.get(bucket_of(key))
            rows.append(None if bucket is None else self.ring.row_of(key, bucket.class_id))
        return rows

    # --- liveness ---

    def linked(self, node: NodeId) -> bool:
        return node == self.node or self._linked.get(node, False)

    def up(self, node: NodeId) -> bool:
        if node == self.node:
            return True
        if not self._linked.get(node, False):
            return False
        return self.now_ns - self._heard_ns.get(node, 0) <= self._heartbeat_timeout_ns

    def set_linked(self, node: NodeId, linked: bool) -> None:
        self._linked[node] = linked
        if linked:
            self._heard_ns[node] = (
                self.now_ns
            )  # a fresh connection is a sign of life; the heartbeat has its time-out to come

    def heard(self, nodes: Iterable[NodeId]) -> None:
        for node in nodes:
            self._heard_ns[node] = self.now_ns

    def state_of(self, node: NodeId) -> str:
        """`alive`, `suspect` (linked, silent) or `dead` (no connection), as this node sees it."""
        if self.up(node):
            return "alive"
        return "suspect" if self.linked(node) else "dead"

    def ask_order(self, replicas: tuple[NodeId, ...]) -> list[NodeId]:
        """Replicas that can be asked at all: this node, those that are up, suspects last."""
        first = [n for n in replicas if n == self.node]
        others = [n for n in replicas if n != self.node and self.linked(n)]
        others.sort(key=lambda n: not self.up(n))  # stable: preference order within each half
        return first + others

    def unreachable(self, replicas: tuple[NodeId, ...]) -> list[NodeId]:
        return [n for n in replicas if not self.linked(n)]
