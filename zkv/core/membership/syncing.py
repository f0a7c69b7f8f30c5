"""Anti-entropy: two members compare digests of all they know and exchange what differs.

Owns: when to compare with whom, how many at once. Must not know: which claim wins (claims).

SYNC carries no verdicts: what one side calls dead is one more suspicion to the other (claims). At most one of ours is open, at most a few of others are
answered in a moment; everybody else hears Busy. Source: Demers et al. (PODC 1987), memberlist's push-pull.
"""

from __future__ import annotations

from collections.abc import Callable

from zkv.core.events import Route
from zkv.core.membership.common import Common
from zkv.core.membership.messages import BUCKETS, RECORDS_MAX, Busy, Rumour, SyncDelta, SyncDigest
from zkv.core.membership.states import State
from zkv.core.membership.table import Record, bucket_of
from zkv.core.membership.timing import SECOND
from zkv.ids import NodeId

#: wishes that wait for their turn
WISHES_MAX = 16


class Syncing:
    def __init__(self, common: Common) -> None:
        self._common = common
        self._seq = 0
        #: the one of ours that is open: (seq, with whom)
        self._open: tuple[int, NodeId] | None = None
        self._wishes: dict[NodeId, None] = {}
        self._answered_second = 0
        self._answered = 0
        #: told when a comparison of ours ended and everything was taken in
        self.on_completed: Callable[[], None] = lambda: None

    def start(self) -> None:
        common = self._common
        common.agenda.at(
            common.now_ns + int(common.dice.random() * common.timing.sync_every_ns(common.table.size)), self._tick
        )

    def _tick(self) -> None:
        common = self._common
        every_ns = common.timing.sync_every_ns(common.table.size)
        common.agenda.at(common.now_ns + int((0.75 + common.dice.random() / 2) * every_ns), self._tick)
        for record in common.table.some(1, lambda other: other.is_up):
            self.wish(record.node)

    def wish(self, node: NodeId) -> None:
        """Compare with this member, when it is its turn."""
        if self._open is not None:
            if len(self._wishes) < WISHES_MAX:
                self._wishes[node] = None
            return
        common = self._common
        record = common.table.get(node)
        if record is None or record.state >= State.LEFT:
            return
        self._seq += 1
        self._open = (self._seq, node)
        buckets = common.table.buckets(common.me.rumour())
        common.send_to(record, SyncDigest(common.me.head, common.me.number(), self._seq, buckets))
        common.agenda.at(common.now_ns + common.timing.sync_timeout_ns, self._end, self._seq)

    def _end(self, seq: int) -> None:
        if self._open is not None and self._open[0] == seq:
            self._open = None
            if self._wishes:
                node = next(iter(self._wishes))
                del self._wishes[node]
                self.wish(node)

    # --- messages ---

    def on_digest(self, route: Route, digest: SyncDigest) -> None:
        common = self._common
        me = common.me
        second = common.now_ns // SECOND
        if second != self._answered_second:
            self._answered_second, self._answered = second, 0
        self._answered += 1
        if self._answered > common.timing.sync_incoming:
            common.answer(route, Busy(me.head, me.number(), digest.seq))
            return
        common.journal.syncs += 1
        ours = common.table.buckets(me.rumour())
        differ = {i for i in range(BUCKETS) if ours[i] != digest.buckets[i]}
        wanted = sum(1 << i for i in differ)
        parts = self._parts(differ)
        for left in range(len(parts) - 1, -1, -1):
            common.answer(route, SyncDelta(me.head, me.number(), digest.seq, wanted, left, parts[left]))

    def on_delta(self, record: Record, delta: SyncDelta) -> list[Rumour]:
        """The answer to our digest, in parts, or what we asked for: what is to be heard. Sends back what the other wants, once."""
        common = self._common
        common.journal.records_synced += len(delta.records)
        if self._open == (delta.seq, record.node) and delta.left == 0:
            if delta.wanted:
                differ = {i for i in range(BUCKETS) if delta.wanted >> i & 1}
                for part in self._parts(differ):
                    common.send_to(record, SyncDelta(common.me.head, common.me.number(), 0, 0, 0, part))
            self._open = (delta.seq, common.me.node)  # answered: another last part changes nothing
            common.agenda.at(common.now_ns, self._completed, delta.seq)
        return delta.records

    def _completed(self, seq: int) -> None:
        """After everything of the last part was heard."""
        self.on_completed()
        self._end(seq)

    def on_busy(self, busy: Busy) -> None:
        """Once more, a little later; others first."""
        if self._open is None or self._open[0] != busy.seq:
            return
        common = self._common
        wait_ns = int((0.2 + common.dice.random()) * SECOND)
        common.agenda.at(common.now_ns + wait_ns, self.wish, self._open[1])
        self._end(busy.seq)

    def _parts(self, buckets: set[int]) -> list[list[Rumour]]:
        """All records in these buckets, in messages of a bounded size; one empty message if there are none."""
        common = self._common
        records: list[Rumour] = []
        if buckets:
            own = common.me.rumour()
            if bucket_of(own.node) in buckets:
                records.append(own)
            records += [
                record.rumour(whole=True)
                for node, record in common.table.records.items()
                if not record.unverified and bucket_of(node) in buckets
            ]
        return [records[i : i + RECORDS_MAX] for i in range(0, len(records), RECORDS_MAX)] or [[]]
