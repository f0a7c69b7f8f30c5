"""A turn in which nothing came but one usual request: answered at once, without events and effects.

Owns: the steps from its frames to its answer, the puts among them whose answers wait for a sync. Must not know: sockets, files, which requests
are usual (core/single), any other turn (driver). Nothing has happened when it says that the request is not its own.
Source: docs/decisions/007.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from zkv.codec import wire
from zkv.codec.wire_single import SingleCodec
from zkv.core import effects as fx
from zkv.core import messages as m
from zkv.core.events import Route
from zkv.core.messages import Kind, RecordBlock, Status
from zkv.core.node_state import NodeState
from zkv.core.requests import reply_of_held
from zkv.core.versions import Context, VersionSet
from zkv.core.writes import answer_by
from zkv.errors import CorruptData, DiskFull
from zkv.ids import RequestId, checksums_of
from zkv.ports import Clock, Frames, Log
from zkv.storage.record_table import RecordTable

#: where the header has it
_KIND_AT: Final = 3


class _Waiting:
    """A put that was minted and logged, and waits for the sync that its answer promises."""

    __slots__ = ("answer", "answer_by_ns", "began_ns", "count", "request", "route", "seq")

    def __init__(
        self, seq: int, began_ns: int, answer_by_ns: int, route: bytes, request: RequestId, count: int, answer: Frames
    ) -> None:
        self.count = count
        self.seq = seq
        self.began_ns = began_ns
        self.answer_by_ns = answer_by_ns
        self.route = route
        self.request = request
        self.answer = answer


class SingleTurns:
    def __init__(
        self,
        state: NodeState,
        table: RecordTable,
        log: Log,
        clock: Clock,
        *,
        cluster: int,
        every_ack_durable: bool,
        append: Callable[[list[RecordBlock]], int],
        end_step: Callable[[int], None],
        send: Callable[[bytes, Frames], None],
    ) -> None:
        """append: logs blocks of the table's step; raises DiskFull. end_step: it is logged up to there. send: hands an answer to the transport."""
        self._state = state
        self._judge = state.singles
        self._coordinator = state.coordinator
        self._table = table
        self._log = log
        self._clock = clock
        self._cluster = cluster
        self._codec = SingleCodec(cluster)
        self._every_ack_durable = every_ack_durable
        self._append = append
        self._end_step = end_step
        self._send = send
        #: in log order
        self.waiting: deque[_Waiting] = deque()

    def answer(self, route: bytes, frames: Frames) -> bool:
        """Answer it at once, or as soon as it is synced. False: it is anything else, and nothing was done."""
        head = frames[0] if frames else b""
        if len(head) < wire.HEADER_BYTES:
            return False
        kind = head[_KIND_AT]
        if kind == Kind.GET:
            began_ns = self._clock.monotonic_ns()
            answer = self._get(frames)
            if answer is None:
                return False
            self._tell("get", 1, route, answer, began_ns)
            return True
        return kind == Kind.PUT and self._put(route, frames)

    def answer_batch(self, route: bytes, message: m.Put | m.Get) -> bool:
        """The same for a request of several keys, decoded."""
        return self._get_all(route, message) if isinstance(message, m.Get) else self._put_all(route, message)

    def on_synced(self, durable_seq: int) -> None:
        waiting = self.waiting
        while waiting and waiting[0].seq <= durable_seq:
            put = waiting.popleft()
            self._coordinator.open_items -= put.count
            self._tell("put", put.count, put.route, put.answer, put.began_ns)

    def expired(self, now_ns: int) -> list[fx.Reply]:
        """The sync did not return in time: what becomes of these puts is not known."""
        replies = []
        for put in [put for put in self.waiting if put.answer_by_ns <= now_ns]:
            self.waiting.remove(put)
            n = put.count
            self._coordinator.open_items -= n
            statuses = [int(Status.QUORUM_NOT_MET)] * n
            self._coordinator.counts.ended("put", put.began_ns, n, statuses)
            reply = m.PutReply(put.request, statuses, [1] * n, [0] * n, [], [-1] * n, [0] * n, [], [-1] * n)
            replies.append(fx.Reply(Route(put.route, False), reply))
        return replies

    @property
    def due_ns(self) -> int:
        """When the first of those that wait expires; ask only while some do."""
        return min([put.answer_by_ns for put in self.waiting])

    def _tell(self, operation: str, count: int, route: bytes, answer: Frames, began_ns: int) -> None:
        self._send(route, answer)
        self._coordinator.counts.answered(operation, count, self._clock.monotonic_ns() - began_ns)

    def _get(self, frames: Frames) -> Frames | None:
        asked = self._codec.read_get(frames)
        if asked is None:
            return None
        session, sequence, _, key = asked
        if not self._judge.may_get(key):
            return None
        try:
            held = self._table.held_of(key)
        except CorruptData:
            return None
        if held is None:
            return self._codec.absent(session, sequence)
        if isinstance(held, tuple):
            columns, i = held
            if columns.expires_ms:
                return None
            return self._codec.found(session, sequence, columns.values[i], columns.checksums[i])
        siblings = held.siblings
        if not siblings:
            return self._codec.absent(session, sequence)
        only = siblings[0]
        if len(siblings) > 1 or only.expires_ms:
            return None
        return self._codec.found(session, sequence, only.value, only.checksum)

    def _put(self, route: bytes, frames: Frames) -> bool:
        asked = self._codec.read_put(frames)
        if asked is None:
            return False
        session, sequence, remaining_ms, key, checksum, value = asked
        request = (session, sequence)
        state, log = self._state, self._log
        row = self._judge.row_to_put(request, key, len(value))
        if row is None:
            return False
        began_ns = self._clock.monotonic_ns()
        stamp = state.view.clock.stamp(self._clock.wall_ns() // 1_000_000)
        items: list[tuple[RequestId, list[int]]] = [(request, [0])]
        versions, fences = [row.version], [row.fence]
        mint = fx.Mint(0, False, [key], [value], [checksum], items, True, None, None, None, versions, fences, stamp)
        block, counters, statuses = self._table.mint(mint)
        try:
            if statuses is not None:
                raise DiskFull("the table refuses it")
            seq = self._append([block])
        except DiskFull:
            self._table.roll_back()
            return False  # tried again the general way, which knows how to say no
        durable = self._every_ack_durable or seq <= log.durable_seq
        answer = self._stored(request, block.records[0].versions, counters[0], durable=durable)
        self._acknowledge(seq, began_ns, began_ns + remaining_ms * 1_000_000, route, request, 1, answer)
        self._end_step(seq)  # what is logged may be answered: the author waits, the table does not
        return True

    def _acknowledge(
        self, seq: int, began_ns: int, deadline_ns: int, route: bytes, request: RequestId, count: int, answer: Frames
    ) -> None:
        """Now, or when what is logged up to `seq` is synced, if every ack promises that."""
        if self._every_ack_durable and seq > self._log.durable_seq:
            self._coordinator.open_items += count
            answer_by_ns = answer_by(deadline_ns, began_ns)
            self.waiting.append(_Waiting(seq, began_ns, answer_by_ns, route, request, count, answer))
        else:
            self._tell("put", count, route, answer, began_ns)

    def _get_all(self, route: bytes, message: m.Get) -> bool:
        usual = message.r is None and message.sloppy is None and not message.want_context and not message.heads
        if not usual or not self._judge.may_get_all(message.keys):
            return False
        began_ns = self._clock.monotonic_ns()
        held, unreadable = self._table.find(message.keys)
        reply = None if unreadable else reply_of_held(message.request, held)
        if reply is None:
            return False
        self._tell("get", len(message.keys), route, wire.encode(reply, cluster=self._cluster), began_ns)
        return True

    def _put_all(self, route: bytes, message: m.Put) -> bool:
        values = message.values
        if not _is_usual(message) or checksums_of(values) != message.checksums:  # type: ignore[arg-type]
            return False
        rows = self._judge.rows_to_put(message.request, message.keys, max(map(len, values)))  # type: ignore[arg-type]
        if rows is None:
            return False
        state, clock, n = self._state, self._clock, len(rows)
        began_ns = clock.monotonic_ns()
        mint = fx.Mint(
            0,
            False,
            message.keys,
            values,
            message.checksums,
            [(message.request, list(range(n)))],
            replace_held=True,
            covered=None,
            expires_ms=None,
            voids=None,
            row_versions=[row.version for row in rows],
            fences=[row.fence for row in rows],
            stamp=state.view.clock.stamp(clock.wall_ns() // 1_000_000),
        )
        block, counters, statuses = self._table.mint(mint)
        try:
            if statuses is not None:
                raise DiskFull("the table refuses some of it")
            seq = self._append([block])
        except DiskFull:
            self._table.roll_back()
            return False
        durable = self._every_ack_durable or seq <= self._log.durable_seq
        receipt = m.Receipt([state.view.node], durable, False, state.view.epoch)
        reply = m.PutReply(
            message.request, None, None, None, [self._table.actor], None, counters, [receipt], None, None, None
        )
        answer = wire.encode(reply, cluster=self._cluster)
        self._acknowledge(seq, began_ns, message.deadline_ns, route, message.request, n, answer)
        self._end_step(seq)
        return True

    def _stored(self, request: RequestId, versions: VersionSet, counter: int, *, durable: bool) -> Frames:
        view = self._state.view
        actor = self._table.actor
        if len(versions.past) == 1 and not versions.cloud:
            return self._codec.stored(*request, (actor, counter), [view.node], durable, view.epoch)
        contexts: list[Context | None] = [versions.context]
        receipt = m.Receipt([view.node], durable, False, view.epoch)
        reply = m.PutReply(request, None, None, None, [actor], None, [counter], [receipt], None, contexts)
        return wire.encode(reply, cluster=self._cluster)


def _is_usual(message: m.Put) -> bool:
    """Whether this is a blind batch of one value at least that says nothing else."""
    if not message.values or None in message.values:
        return False
    options = (
        message.contexts,
        message.bases,
        message.expires_ms,
        message.voids,
        message.items,
        message.w,
        message.sloppy,
    )
    flags = message.durable or message.again or message.want_context or message.hop or message.retry
    return options.count(None) == len(options) and not flags and message.deadline_ns > 0
