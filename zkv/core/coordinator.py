"""Requests from arrival to reply: admission, grouping by replicas, forwarding, collecting outcomes.

Owns: open requests, which group each item joins, forwarded parts. Must not know: how a put or get is counted (writes, reads).

All requests of one turn are grouped together, so a thousand single puts cost what one batch of a thousand costs. Only a replica of a key
mints for it: items of other nodes' keys are forwarded, once. Any node coordinates a get.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Final, TypeVar

from zkv.core import messages as m
from zkv.core import quorum
from zkv.core.effects import Effect, Reply, Send
from zkv.core.events import Route
from zkv.core.messages import Status
from zkv.core.quorum import Requirement
from zkv.core.reads import ReadGroup, Reads
from zkv.core.request_counts import RequestCounts
from zkv.core.request_memory import Outcome, Refusals
from zkv.core.requests import OpenGet, OpenPut
from zkv.core.ring import Ring, Row
from zkv.core.topology import Bucket
from zkv.core.view import View
from zkv.core.writes import Manner, WriteGroup, Writes
from zkv.ids import NodeId, RequestId, bucket_of, checksums_of, one_bucket_of

_T = TypeVar("_T")
#: a request and the numbers of its items, () = all
_PartKey = tuple[RequestId, tuple[int, ...]]

#: a group travels as one message: what would make it larger begins another
GROUP_ITEMS_MAX: Final = 4_000
GROUP_BYTES_MAX: Final = 8 * 1024 * 1024
GROUP_META_BYTES_MAX: Final = 3 * 1024 * 1024
#: about what a record takes as a row besides its key and value
ROW_BYTES: Final = 160
READ_ITEMS_MAX: Final = 1_000
#: items in open requests above which new requests are refused
OPEN_ITEMS_MAX: Final = 200_000
OVERLOADED_RETRY_AFTER_MS: Final = 50
#: deadlines within one such step (2**24 ns, 17 ms) share a group; the group keeps the earliest
_DEADLINE_STEP_BITS: Final = 24
_DEADLINE_DEFAULT_NS: Final = 60_000_000_000
_REQUIREMENTS_MAX: Final = 1_000
_group_of: Final = attrgetter("group")


class Coordinator:
    def __init__(self, view: View, writes: Writes, reads: Reads) -> None:
        self._view = view
        self._writes = writes
        self._reads = reads
        #: by request and the numbers of its items: parts of one request may be here by different ways at once
        self._puts: dict[_PartKey, OpenPut] = {}
        self._done_puts: list[OpenPut] = []
        self._refusals = Refusals()
        self._done_gets: list[OpenGet] = []
        #: (node, part) -> who waits for it, oldest first: request, positions of the part in it, deadline. Two tries of one request may have a part
        #: in common
        self._forwards: dict[tuple[NodeId, _PartKey], list[tuple[OpenPut, list[int], int]]] = {}
        #: levels as they were resolved for replicas of this ring
        self._requirements: dict[tuple[m.Level, m.Level, tuple[NodeId, ...]], Requirement] = {}
        self._ring: Ring | None = None
        self.open_items = 0
        self.counts = RequestCounts()

    # --- arrival ---

    def on_requests(self, requests: Iterable[tuple[Route, m.Put | m.Get]]) -> list[Effect]:
        write_groups: dict[tuple[object, ...], WriteGroup] = {}
        read_groups: dict[tuple[object, ...], ReadGroup] = {}
        effects: list[Effect] = []
        for route, message in requests:
            if not message.deadline_ns:
                message.deadline_ns = self._view.now_ns + _DEADLINE_DEFAULT_NS
            if not message.keys or len(set(message.keys)) < len(message.keys):
                text = "a request without keys" if not message.keys else "a key stands twice in one request"
                effects.append(Reply(route, m.Refused(message.request, "InvalidKey", text)))
                self.counts.shed("invalid")
            elif self._view.ring is None or (self._is_too_much(message) and not self._is_begun(message)):
                effects.append(Reply(route, self._refusal(message)))
                if isinstance(message, m.Put) and not message.retry:
                    refusal = (int(Status.OVERLOADED), 0, 0)
                    numbers = message.items or range(len(message.keys))
                    self._refusals.note(message.request, dict.fromkeys(numbers, refusal))
            elif isinstance(message, m.Put):
                effects.extend(self._on_put(route, message, write_groups))
            else:
                self._on_get(route, message, read_groups)
        for write_group in write_groups.values():
            effects.extend(self._writes.begin(write_group))
        for read_group in read_groups.values():
            effects.extend(self._reads.begin(read_group))
        return effects

    def _is_too_much(self, message: m.Put | m.Get) -> bool:
        return self._view.draining or self.open_items + len(message.keys) > OPEN_ITEMS_MAX

    def _is_begun(self, message: m.Put | m.Get) -> bool:
        """Whether this put is being worked on or was carried out: then a copy of it must not hear that nothing was done."""
        return isinstance(message, m.Put) and (
            _part_key(message) in self._puts or self._view.memory.recall(message.request) is not None
        )

    def has_met(self, request: RequestId) -> bool:
        """Whether a put of one key is being worked on or was refused here before."""
        return (request, ()) in self._puts or (request, (0,)) in self._puts or bool(self._refusals.of(request))

    def _refusal(self, message: m.Put | m.Get) -> m.Refused:
        if self._view.ring is None:
            self.counts.shed("forming")
            return m.Refused(
                message.request, "Unavailable", "the cluster has not formed yet: not all nodes of --initial answered"
            )
        if self._view.draining:
            self.counts.shed("draining")
            return m.Refused(message.request, "Unavailable", f"node {self._view.name} is stopping")
        self.counts.shed("overloaded")
        text = f"{self.open_items} items are being worked on, the limit is {OPEN_ITEMS_MAX}"
        return m.Refused(message.request, "Overloaded", text, {"retry_after_ms": OVERLOADED_RETRY_AFTER_MS})

    def _on_put(self, route: Route, message: m.Put, groups: dict[tuple[object, ...], WriteGroup]) -> list[Effect]:
        key = _part_key(message)
        already = self._puts.get(key)
        if already is not None:
            if route not in already.routes:
                already.routes.append(route)  # the same request on another connection: it is being worked on
            return []
        open_put = OpenPut(route, message, self._done_puts)
        open_put.began_ns = self._view.now_ns
        self._puts[key] = open_put
        self.open_items += len(message.keys)
        everything = list(range(len(message.keys)))
        if message.deadline_ns <= self._view.now_ns:
            open_put.settle_failed(everything, Status.EXPIRED)
            return []
        if not message.hop and not self._intact(open_put):
            return []
        outcome = self._view.memory.recall(message.request)
        if outcome is None and self._view.memory.is_too_old(message.request):
            open_put.settle_failed(everything, Status.TOO_OLD)
            return []
        settled = frozenset() if message.retry else self._refused_before(open_put)
        if message.retry and self._view.now_ns < self._view.forgetful_until_ns:
            settled = self._only_stated(open_put, outcome)
        rows = self._view.rows_of(message.keys)
        elsewhere: dict[NodeId, list[int]] = {}
        for (bucket, row_group, manner), items in self._sorted_out(open_put, rows, settled, outcome).items():
            if bucket is None:
                open_put.settle_failed(items, Status.NO_SUCH_BUCKET)
                continue
            row = rows[items[0]]
            assert row is not None
            if self._view.node not in row.replicas:
                self._elsewhere(open_put, row, items, elsewhere)
                continue
            group = self._write_group(groups, message, bucket, row, row_group, manner, len(items))
            group.segments.append((open_put, items))
            group.rows += rows if len(items) == len(rows) else [rows[i] for i in items]  # type: ignore[arg-type, misc]
            if outcome is not None and manner is Manner.REPEATED:
                group.outcomes.append(outcome)
        return [effect for node, items in elsewhere.items() for effect in self._forward(open_put, items, node)]

    def _refused_before(self, open_put: OpenPut) -> frozenset[int]:
        """Places of items in a second copy of a first try that were refused when the first copy came; they are refused as then."""
        message = open_put.message
        before = self._refusals.of(message.request)
        if not before:
            return frozenset()
        places = [i for i, n in enumerate(message.items or range(len(message.keys))) if n in before]
        for i in places:
            open_put.settle_failed([i], *before[message.items[i] if message.items else i])
        return frozenset(places)

    def _intact(self, open_put: OpenPut) -> bool:
        """Whether the values are what their author sent; else the whole request is refused, for something is wrong on the way."""
        message = open_put.message
        values, checksums = message.values, message.checksums
        if None in values:
            checksums = [c for c, v in zip(checksums, values, strict=True) if v is not None]
        if checksums_of([v for v in values if v is not None] if None in values else values) == checksums:  # type: ignore[arg-type]
            return True
        open_put.settle_failed(list(range(len(message.keys))), Status.CORRUPT)
        return False

    def _write_group(
        self,
        groups: dict[tuple[object, ...], WriteGroup],
        message: m.Put,
        bucket: Bucket,
        row: Row,
        row_group: int,
        manner: Manner,
        count: int,
    ) -> WriteGroup:
        """The group that these items join; a full one is left as it is and another begun."""
        key: tuple[object, ...] = (
            row_group,
            bucket.bucket_id,
            str(message.w),
            manner,
            message.durable,
            message.deadline_ns >> _DEADLINE_STEP_BITS,
            message.values.count(None) < len(message.values),  # deletes alone may use the last of the space
        )
        size = sum(_lengths(message.values))
        meta = sum(map(len, message.keys)) + ROW_BYTES * count
        group = groups.get(key)
        if group is not None and (
            len(group.rows) + count > GROUP_ITEMS_MAX
            or group.bytes + size > GROUP_BYTES_MAX
            or group.meta_bytes + meta > GROUP_META_BYTES_MAX
        ):
            groups[(*key, len(groups))] = groups.pop(key)
            group = None
        if group is None:
            requirement = self._requirement(message.w, bucket.w, row)
            group = self._writes.new_group(row.replicas, requirement, manner, message.durable, message.deadline_ns)
            group.pasts_needed = self._requirement(None, bucket.r, row).count
            groups[key] = group
        group.deadline_ns = min(group.deadline_ns, message.deadline_ns)
        group.bytes += size
        group.meta_bytes += meta
        return group

    def _only_stated(self, open_put: OpenPut, outcome: Outcome | None) -> frozenset[int]:
        """A retry of what this store may have carried out and forgotten: it may replace what was stated and no more. Items with nothing stated
        on a strict bucket are settled as unknown, and returned. Items whose outcome is remembered are not meant: a part of a request may be forgotten."""
        message = open_put.message
        message.again = True
        refused = []
        for i, key in enumerate(message.keys):
            if outcome is not None and outcome.dot_of(message.items[i] if message.items else i) is not None:
                continue
            bucket = self._view.buckets.get(bucket_of(key))
            strict = bucket is not None and not (bucket.sloppy if message.sloppy is None else message.sloppy)
            stated = (message.contexts is not None and message.contexts[i] is not None) or (
                message.bases is not None and message.bases[i] is not None
            )
            if strict and not stated:
                refused.append(i)
        open_put.settle_failed(refused, Status.TOO_OLD)
        return frozenset(refused)

    def _sorted_out(
        self, open_put: OpenPut, rows: list[Row | None], settled: frozenset[int], outcome: Outcome | None
    ) -> dict[tuple[Bucket | None, int, Manner], list[int]]:
        """Items that are not settled yet by bucket, replica set and manner; too large values are settled here."""
        message = open_put.message
        uniform = None if settled or outcome is not None else self._uniform(message, rows)
        if uniform is not None:
            return {uniform: list(range(len(rows)))}
        sorted_out: dict[tuple[Bucket | None, int, Manner], list[int]] = {}
        contexts = message.contexts
        manners: dict[int, Manner] = {}
        buckets = self._view.buckets
        for i, row in enumerate(rows):
            if i in settled:
                continue
            bucket_id = bucket_of(message.keys[i])
            bucket = buckets.get(bucket_id)
            if row is None or bucket is None:
                sorted_out.setdefault((None, -1, Manner.STATED), []).append(i)
                continue
            value = message.values[i]
            if value is not None and len(value) > bucket.value_bytes_max:
                open_put.settle_failed([i], Status.TOO_LARGE, bucket.value_bytes_max, len(value))
                continue
            if outcome is not None and outcome.dot_of(message.items[i] if message.items else i) is not None:
                manner = Manner.REPEATED
            elif message.again or (contexts is not None and contexts[i] is not None):
                manner = Manner.STATED
            else:
                blind = manners.get(bucket_id)
                if blind is None:
                    blind = manners[bucket_id] = self._blind_manner(message, bucket, row)
                manner = blind
            sorted_out.setdefault((bucket, row.group, manner), []).append(i)
        return sorted_out

    def _uniform(self, message: m.Put, rows: list[Row | None]) -> tuple[Bucket | None, int, Manner] | None:
        """Where all items of a blind batch go, if they go one way: the usual case, judged by the batch and not by the item."""
        first = rows[0]
        bucket_id = one_bucket_of(message.keys)
        if message.contexts is not None or first is None or bucket_id is None or None in rows:
            return None
        group = first.group
        bucket = self._view.buckets[bucket_id]
        if set(map(_group_of, rows)) != {group}:
            return None
        if max(_lengths(message.values), default=0) > bucket.value_bytes_max:
            return None
        return bucket, group, Manner.STATED if message.again else self._blind_manner(message, bucket, first)

    def _blind_manner(self, message: m.Put, bucket: Bucket, row: Row) -> Manner:
        sloppy = bucket.sloppy if message.sloppy is None else message.sloppy
        n = len(row.replicas)
        w, r = self._requirement(message.w, bucket.w, row).count, self._requirement(None, bucket.r, row).count
        # Strict means W+R>N; a caller who asks for less has chosen speed over the overlap and gets what is held.
        return Manner.HELD if sloppy or w + r <= n or n == 1 else Manner.READ_FIRST

    def _requirement(self, level: m.Level, default: m.Level, row: Row) -> Requirement:
        if self._view.ring is not self._ring:
            self._ring = self._view.ring
            self._requirements.clear()
        key = (level, default, row.replicas)
        found = self._requirements.get(key)
        if found is None:
            if len(self._requirements) >= _REQUIREMENTS_MAX:  # whoever asks for many numbers does not make this grow
                self._requirements.clear()
            found = quorum.resolve(level, default, row.replicas, self._view.dc_of, self._view.dc)
            self._requirements[key] = found
        return found

    # --- forwarding ---

    def _elsewhere(self, open_put: OpenPut, row: Row, items: list[int], elsewhere: dict[NodeId, list[int]]) -> None:
        order = self._view.ask_order(row.replicas)
        if open_put.message.hop:
            open_put.settle_failed(items, Status.NOT_REPLICA)
        elif not order:
            open_put.settle_failed(items, Status.UNAVAILABLE, 1, 0)
        else:
            elsewhere.setdefault(order[0], []).extend(items)

    def _forward(self, open_put: OpenPut, items: list[int], node: NodeId) -> list[Effect]:
        whole = open_put.message

        part = m.Put(
            whole.request,
            [whole.keys[i] for i in items],
            [whole.values[i] for i in items],
            [whole.checksums[i] for i in items],
            _cut(whole.contexts, items),
            _cut(whole.bases, items),
            _cut(whole.expires_ms, items),
            _cut(whole.voids, items),
            [whole.items[i] for i in items] if whole.items else items,
            whole.w,
            whole.sloppy,
            whole.durable,
            whole.again,
            whole.want_context,
            hop=True,
            retry=whole.retry,
            deadline_ns=whole.deadline_ns,
        )
        self._forwards.setdefault((node, _part_key(part)), []).append((open_put, items, whole.deadline_ns))
        return [Send(node, part)]

    def on_part(self, node: NodeId, reply: m.PutReply) -> None:
        key = (node, (reply.request, tuple(reply.items or ())))
        waiting = self._forwards.pop(key, [])
        if reply.statuses is not None and len(waiting) > 1:  # what failed for one try may go well for the next
            self._forwards[key] = waiting[1:]
            del waiting[1:]
        for open_put, items, _ in waiting:
            if len(reply.counters) == len(items):
                open_put.take_part(items, reply)
            else:
                open_put.settle_failed(items, Status.QUORUM_NOT_MET, 1, 0)

    def on_part_refused(self, node: NodeId, refused: m.Refused) -> None:
        """A part was refused as a whole: nothing of it was done. With two parts of one request there nobody knows which."""
        keys = [key for key in self._forwards if key[0] == node and key[1][0] == refused.request]
        status = Status.OVERLOADED if refused.code == "Overloaded" else Status.UNAVAILABLE
        waiting = [forward for key in keys for forward in self._forwards.pop(key)]
        for open_put, items, _ in waiting:
            open_put.settle_failed(items, status if len(waiting) == 1 else Status.QUORUM_NOT_MET, 1, 0)

    def on_part_undeliverable(self, node: NodeId, part: m.Put) -> None:
        key = (node, _part_key(part))
        waiting = self._forwards.get(key)
        if waiting:
            open_put, items, _ = waiting.pop()  # the latest: the others were handed over
            if not waiting:
                del self._forwards[key]
            open_put.settle_failed(items, Status.UNAVAILABLE, 1, 0)

    def on_lost(self, node: NodeId) -> None:
        """Parts on their way to a node whose connection broke may or may not have been carried out."""
        for key in [key for key in self._forwards if key[0] == node]:
            for open_put, items, _ in self._forwards.pop(key):
                open_put.settle_failed(items, Status.QUORUM_NOT_MET, 1, 0)

    # --- gets ---

    def _on_get(self, route: Route, message: m.Get, groups: dict[tuple[object, ...], ReadGroup]) -> None:
        open_get = OpenGet(route, message, self._done_gets)
        open_get.began_ns = self._view.now_ns
        self.open_items += len(message.keys)
        if message.deadline_ns <= self._view.now_ns:
            open_get.settle_failed(list(range(len(message.keys))), Status.EXPIRED)
            return
        rows = self._view.rows_of(message.keys)
        for (row_group, bucket_id), items in _by_replicas(message.keys, rows).items():
            row = rows[items[0]]
            if row is None:
                open_get.settle_failed(items, Status.NO_SUCH_BUCKET)
                continue
            bucket = self._view.buckets[bucket_id]
            key: tuple[object, ...] = (
                row_group,
                bucket_id,
                str(message.r),
                message.sloppy,
                message.deadline_ns >> _DEADLINE_STEP_BITS,
            )
            group = groups.get(key)
            if group is not None and len(group.rows) + len(items) > READ_ITEMS_MAX:
                groups[(*key, len(groups))] = groups.pop(key)
                group = None
            if group is None:
                requirement = self._requirement(message.r, bucket.r, row)
                agree = self._agreement(message, bucket, row, requirement)
                group = groups[key] = self._reads.new_group(row.replicas, requirement, agree, message.deadline_ns)
            group.deadline_ns = min(group.deadline_ns, message.deadline_ns)
            group.segments.append((open_get, items))
            group.rows += rows if len(items) == len(rows) else [rows[i] for i in items]  # type: ignore[arg-type, misc]

    def _agreement(self, message: m.Get, bucket: Bucket, row: Row, requirement: Requirement) -> int:
        """How many primaries must report exactly the same; 0 where the strict promise was not asked for."""
        sloppy = bucket.sloppy if message.sloppy is None else message.sloppy
        n = len(row.replicas)
        w = self._requirement(None, bucket.w, row).count
        if sloppy or requirement.count + w <= n:
            return 0
        return min(n, max(quorum.overlap(n, min(requirement.count, n)), quorum.majority(n)))

    # --- replies ---

    @property
    def any_finished(self) -> bool:
        return bool(self._done_puts or self._done_gets)

    def finished(self) -> list[Effect]:
        """Replies of all requests whose last item was settled since the last call."""
        effects: list[Effect] = []
        for open_put in self._done_puts:
            del self._puts[_part_key(open_put.message)]
            self.open_items -= len(open_put.message.keys)
            if not open_put.message.retry and (refused := open_put.refused()):
                self._refusals.note(open_put.message.request, refused)
            reply = open_put.reply()
            operation = "part" if open_put.message.hop else "put"
            self.counts.ended(operation, open_put.began_ns, len(open_put.message.keys), reply.statuses)
            effects.extend(Reply(route, reply) for route in open_put.routes)
        for open_get in self._done_gets:
            self.open_items -= len(open_get.message.keys)
            found = open_get.reply(self._view.wall_ms)
            self.counts.ended("get", open_get.began_ns, len(open_get.message.keys), found.statuses)
            effects.append(Reply(open_get.route, found))
        self._done_puts.clear()
        self._done_gets.clear()
        return effects

    def on_time(self) -> None:
        """Forwarded parts that never came back."""
        now_ns = self._view.now_ns
        for key, waiting in list(self._forwards.items()):
            late = [forward for forward in waiting if forward[2] <= now_ns]
            if not late:
                continue
            self._forwards[key] = [forward for forward in waiting if forward[2] > now_ns]
            if not self._forwards[key]:
                del self._forwards[key]
            for open_put, items, _ in late:
                open_put.settle_failed(items, Status.DEADLINE, 1, 0)

    def next_wakeup_ns(self) -> int | None:
        if not self._forwards:
            return None
        return min(deadline_ns for waiting in self._forwards.values() for _, _, deadline_ns in waiting)


def _by_replicas(keys: list[bytes], rows: list[Row | None]) -> dict[tuple[int, int], list[int]]:
    """Items by replica set (-1: no such row) and bucket."""
    bucket_id = one_bucket_of(keys)
    if bucket_id is not None:
        groups = {-1} if None in rows else set(map(_group_of, rows))
        if len(groups) == 1:
            return {(groups.pop(), bucket_id): list(range(len(keys)))}
    sorted_out: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        sorted_out.setdefault((-1 if row is None else row.group, bucket_of(keys[i])), []).append(i)
    return sorted_out


def _lengths(values: list[bytes | None]) -> Iterable[int]:
    return [len(v) for v in values if v is not None] if None in values else map(len, values)  # type: ignore[arg-type]


def _part_key(message: m.Put) -> _PartKey:
    return message.request, tuple(message.items or ())


def _cut(column: list[_T] | None, items: list[int]) -> list[_T] | None:
    return None if column is None else [column[i] for i in items]
