"""Which requests are so usual that this node answers them at once, without an entry of their own among the open requests.

Owns: that judgement, the count of such requests. Must not know: bytes, tables, the log. Whatever is not judged usual goes the general way
(coordinator, reads, writes), which stays the reference: a test runs the same histories with and without this one.

Usual: this store is the only replica whose word is needed, nothing keeps it from serving, and the request is a first one that nobody has seen.
Then a get is what is held, and a put replaces what is held and is done once its record is logged (and synced, where every ack is).
"""

from __future__ import annotations

from zkv.core import quorum
from zkv.core.coordinator import OPEN_ITEMS_MAX, Coordinator
from zkv.core.ring import Ring, Row
from zkv.core.topology import Bucket
from zkv.core.view import View
from zkv.ids import RequestId, bucket_of, one_bucket_of


class Singles:
    def __init__(self, view: View, coordinator: Coordinator) -> None:
        self._view = view
        self._coordinator = coordinator
        self._ring: Ring | None = None
        #: (bucket, replica set) -> whether this store alone answers a get, and whether it alone carries out a put
        self._alone: dict[tuple[int, int], tuple[bool, bool]] = {}

    def may_get(self, key: bytes) -> bool:
        """Whether what is held here is the answer."""
        bucket, row = self._place(key)
        return bucket is not None and row is not None and not self._view.unsynced and self._alone_for(bucket, row)[0]

    def row_to_put(self, request: RequestId, key: bytes, value_bytes: int) -> Row | None:
        """The key's row if the put may be minted here and now; None: the general way."""
        bucket, row = self._place(key)
        if bucket is None or row is None or value_bytes > bucket.value_bytes_max or not self._alone_for(bucket, row)[1]:
            return None
        memory = self._view.memory
        if memory.recall(request) is not None or memory.is_too_old(request) or self._coordinator.has_met(request):
            return None
        return row

    def bucket_of_all(self, keys: list[bytes]) -> Bucket | None:
        """The bucket of a batch of distinct keys where one answer goes for all of them: one bucket, one set of replicas in the whole ring."""
        bucket_id = one_bucket_of(keys)
        if bucket_id is None or len(set(keys)) < len(keys):
            return None
        bucket, row = self._place(keys[0], len(keys))
        return None if bucket is None or row is None or self._ring is None or len(self._ring.groups) != 1 else bucket

    def may_get_all(self, keys: list[bytes]) -> bool:
        """Whether what is held here is the answer to each."""
        bucket = self.bucket_of_all(keys)
        return bucket is not None and self.may_get(keys[0])

    def rows_to_put(self, request: RequestId, keys: list[bytes], value_bytes_max: int) -> list[Row] | None:
        """As row_to_put, for a batch; value_bytes_max: of the longest value in it."""
        bucket = self.bucket_of_all(keys)
        if bucket is None or self._view.ring is None or self.row_to_put(request, keys[0], value_bytes_max) is None:
            return None
        return self._view.ring.rows_of(keys, bucket.class_id)

    def _place(self, key: bytes, count: int = 1) -> tuple[Bucket | None, Row | None]:
        view = self._view
        ring = view.ring
        if ring is None or view.draining or self._coordinator.open_items + count > OPEN_ITEMS_MAX:
            return None, None
        bucket = view.buckets.get(bucket_of(key))
        if bucket is None:
            return None, None
        if ring is not self._ring:
            self._ring = ring
            self._alone.clear()
        return bucket, ring.row_of(key, bucket.class_id)

    def _alone_for(self, bucket: Bucket, row: Row) -> tuple[bool, bool]:
        place = (bucket.bucket_id, row.group)
        alone = self._alone.get(place)
        if alone is None:
            alone = self._alone[place] = self._judge(bucket, row)
        return alone

    def _judge(self, bucket: Bucket, row: Row) -> tuple[bool, bool]:
        view = self._view
        if view.node not in row.replicas:
            return False, False
        r, w = (quorum.resolve(level, level, row.replicas, view.dc_of, view.dc) for level in (bucket.r, bucket.w))
        own = (view.node,)
        n = len(row.replicas)
        # the strict promise asks for agreement, or for what is synced: more than one copy can say at once
        plain = bucket.sloppy or r.count + w.count <= n
        return plain and r.count == 1 == r.votes(own), n == 1 and w.count == 1 == w.votes(own)
