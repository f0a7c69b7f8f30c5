"""Answers peers from our own copy: takes version sets, reads sets and pasts.

Owns: the checks before a peer's request touches the store, and the ack after it. Must not know: quorums, who asked and why.

A request executes only when each item's row version equals ours and this node is a replica of it. Nothing is started once the time it came
with has run out. An unsynced store takes sets and refuses reads. Source: 30-replication; counterexamples 3, 16, 20.
"""

from __future__ import annotations

from typing import Final

from zkv.core.effects import Effect, Join, Read, Reply
from zkv.core.events import Joined, ReadDone, Route
from zkv.core.messages import (
    Record,
    RecordBlock,
    ReplicaGet,
    ReplicaGetReply,
    ReplicaPut,
    ReplicaPutAck,
    Status,
)
from zkv.core.versions import VersionSet
from zkv.core.view import Owner, View
from zkv.ids import one_bucket_of

#: most bytes of values in one answer; the asker then asks for less at a time
REPLY_BYTES_MAX: Final = 32 * 1024 * 1024


class Replica:
    def __init__(self, view: View) -> None:
        self._view = view
        self._puts: dict[int, tuple[Route, ReplicaPut, Joined | None, list[int] | None]] = {}
        self._gets: dict[int, tuple[Route, ReplicaGet]] = {}
        self.refused = 0

    # --- take ---

    def on_put(self, route: Route, put: ReplicaPut) -> list[Effect]:
        block = put.block
        status = self._refusal(put.deadline_ns)
        if status is not None:
            return [self._ack(route, put, durable=False, statuses=[status] * len(block))]
        bad = self._foreign_items(block.keys, block.row_versions)
        cause = self._view.number(Owner.REPLICA)
        if not bad:
            self._puts[cause] = (route, put, None, None)
            return [Join(cause, block, put.durable)]
        self.refused += len(bad)
        refused = dict(bad)
        good = [r for i, r in enumerate(block.records) if i not in refused]
        statuses = [refused.get(i, int(Status.OK)) for i in range(len(block))]
        if not good:
            return [self._ack(route, put, durable=False, statuses=statuses)]
        self._puts[cause] = (route, put, None, statuses)
        return [Join(cause, RecordBlock(good), put.durable)]

    def on_joined(self, event: Joined) -> list[Effect]:
        entry = self._puts.get(event.cause)
        if entry is None:
            return []
        route, put, _, statuses = entry
        if event.statuses is not None and not any(s == Status.OK for s in event.statuses):
            del self._puts[event.cause]
            merged = _spread(statuses, event.statuses)
            return [self._ack(route, put, durable=False, statuses=merged)]
        self._puts[event.cause] = (route, put, event, statuses)
        return []

    def on_persisted(self, causes: list[int], durable: bool) -> list[Effect]:
        effects: list[Effect] = []
        for cause in causes:
            entry = self._puts.pop(cause, None)
            if entry is None:
                continue
            route, put, joined, statuses = entry
            assert joined is not None, "persisted before it was joined"
            merged = _spread(statuses, joined.statuses)
            inexact = joined.inexact
            if statuses is not None:
                kept = [i for i, s in enumerate(statuses) if s == Status.OK]
                inexact = [kept[i] for i in inexact]
            effects.append(self._ack(route, put, durable=durable, statuses=merged, inexact=inexact))
        return effects

    def _ack(
        self,
        route: Route,
        put: ReplicaPut,
        *,
        durable: bool,
        statuses: list[int] | None = None,
        inexact: list[int] | None = None,
    ) -> Reply:
        return Reply(route, ReplicaPutAck(put.group, self._view.store, durable, statuses, inexact or []))

    # --- read ---

    def on_get(self, route: Route, get: ReplicaGet) -> list[Effect]:
        status = self._refusal(get.deadline_ns)
        if status is None and self._view.unsynced:
            status = Status.UNSYNCED
        statuses: list[int] | None = None
        if status is not None:
            statuses = [status] * len(get.keys)
        else:
            bad = self._foreign_items(get.keys, get.row_versions) + self._carried_out(get)
            if bad:
                refused = dict(bad)
                statuses = [refused.get(i, int(Status.OK)) for i in range(len(get.keys))]
        if statuses is not None:
            self.refused += 1
            return [Reply(route, ReplicaGetReply(get.group, self._view.store, RecordBlock([]), [], statuses))]
        cause = self._view.number(Owner.REPLICA)
        self._gets[cause] = (route, get)
        return [Read(cause, get.keys, get.durable)]

    def on_read(self, event: ReadDone) -> list[Effect]:
        entry = self._gets.pop(event.cause, None)
        if entry is None:
            return []
        route, get = entry
        if event.statuses is not None:
            empty = RecordBlock([])
            return [Reply(route, ReplicaGetReply(get.group, self._view.store, empty, [], event.statuses))]
        records = []
        absent = []
        size = sum([len(s.value) for held in event.sets if held is not None for s in held.siblings])
        if size > REPLY_BYTES_MAX and len(event.sets) > 1 and not get.pasts_only:
            too_much = [int(Status.OVERLOADED)] * len(event.sets)
            return [Reply(route, ReplicaGetReply(get.group, self._view.store, RecordBlock([]), [], too_much))]
        for i, versions in enumerate(event.sets):
            if versions is None:
                absent.append(i)
                continue
            if get.pasts_only:
                versions = VersionSet((), versions.past, versions.cloud)
            records.append(Record(get.keys[i], get.row_versions[i], 0, None, versions))
        return [Reply(route, ReplicaGetReply(get.group, self._view.store, RecordBlock(records), absent))]

    # --- checks ---

    def _refusal(self, deadline_ns: int) -> int | None:
        if self._view.ring is None:
            return Status.ROW_VERSION
        if deadline_ns and deadline_ns <= self._view.now_ns:
            return Status.EXPIRED
        return None

    def _carried_out(self, get: ReplicaGet) -> list[tuple[int, int]]:
        """(item, status) of those that are read for a request which another try has carried out: what was written since may follow from
        that, and whoever reads now would replace it."""
        known: list[tuple[int, int]] = []
        place = 0
        for session, sequence, items in get.runs or ():
            outcome = self._view.memory.recall((session, sequence))
            if outcome is not None:
                known += [
                    (i, int(Status.TOO_OLD)) for i, item in enumerate(items, place) if outcome.dot_of(item) is not None
                ]
            place += len(items)
        return known

    def _foreign_items(self, keys: list[bytes], row_versions: list[int]) -> list[tuple[int, int]]:
        """(item, status) of those that are not ours or come from another version of their row."""
        ring = self._view.ring
        assert ring is not None
        node = self._view.node
        common = one_bucket_of(keys)
        bucket = None if common is None else self._view.buckets.get(common)
        if bucket is not None and len(ring.groups) == 1 and node in ring.groups[0]:
            version = ring.version_of_all(bucket.class_id)
            if row_versions.count(version) == len(keys):  # type: ignore[arg-type]
                return []
        bad: list[tuple[int, int]] = []
        for i, (row, version) in enumerate(zip(self._view.rows_of(keys), row_versions, strict=True)):
            if row is None or row.version != version:
                bad.append((i, Status.ROW_VERSION))
            elif node not in row.replicas:
                bad.append((i, Status.NOT_REPLICA))
        return bad


def _spread(first: list[int] | None, second: list[int] | None) -> list[int] | None:
    """Statuses of all items: `second` speaks of those that `first` let through."""
    if first is None or second is None:
        return second if first is None else first
    rest = iter(second)
    return [next(rest) if status == Status.OK else status for status in first]
