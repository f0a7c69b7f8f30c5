"""One turn of a node: frames to events, effects to calls. The same class in production and in simulation.

Owns: the order of a turn, the step that is logged in it, who waits for which sync. Must not know: zmq, files, which rule asked for what.

A turn: decode all that came -> hand it to the core as one batch -> reads at once -> all mints and joins as one step with one log write
-> what follows from it -> one flush of frames. Nothing leaves before the step it speaks of is in the log; an ack that promises durability
leaves when the sync that covers it has returned. A step that the log refuses is undone and answered as failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zkv.codec import records, wire
from zkv.core import effects as fx
from zkv.core import events as ev
from zkv.core import messages as m
from zkv.core.events import Event, Route
from zkv.core.messages import Kind, RecordBlock, Status
from zkv.core.node_state import NodeState
from zkv.core.versions import UNLOGGED
from zkv.driver_single import SingleTurns
from zkv.errors import CorruptData, DiskFull, ProtocolError, VersionMismatch
from zkv.ids import NodeId
from zkv.ports import Clock, Frames, Inbox, Log, Transport, Upkeep
from zkv.storage.record_table import RecordTable

#: stamps from elsewhere move our clock at most this far ahead of wall time
CLOCK_AHEAD_MS_MAX: Final = 500
_FROM_CLIENTS: Final = frozenset({Kind.HELLO, Kind.PUT, Kind.GET, Kind.SCAN, Kind.ADMIN})
_FROM_PEERS: Final = frozenset({Kind.PEER_HELLO, Kind.REPLICA_PUT, Kind.REPLICA_GET, Kind.PUT, Kind.PULL})
_FROM_REPLIERS: Final = frozenset(
    {
        Kind.PEER_HELLO_ACK,
        Kind.REPLICA_PUT_ACK,
        Kind.REPLICA_GET_REPLY,
        Kind.PUT_REPLY,
        Kind.PULL_REPLY,
        Kind.REFUSED,
    }
)
_FROM_PUBLISHERS: Final = frozenset({Kind.HEARTBEAT})
#: why frames are refused: no header of ours, another version, a kind that does not belong there, another cluster, a body that does not fit,
#: a heartbeat in another node's name
REFUSAL_REASONS: Final = ("frame", "version", "port", "cluster", "body", "identity")
_HELLOS: Final = frozenset({Kind.PEER_HELLO, Kind.PEER_HELLO_ACK})
_WITHOUT_CLUSTER: Final = frozenset({Kind.HELLO, Kind.ADMIN, Kind.PEER_HELLO, Kind.PEER_HELLO_ACK})


class Driver:
    def __init__(
        self,
        state: NodeState,
        table: RecordTable,
        log: Log,
        transport: Transport,
        clock: Clock,
        *,
        cluster: int,
        fsync: str,
        adopt: Callable[[fx.Adopt], ev.Adopted],
        mark_synced: Callable[[], None],
        note: Callable[[str, str, str], None],
        upkeep: Upkeep | None = None,
    ) -> None:
        """cluster: first eight bytes of the cluster id. fsync: `group`, `interval` or `never`.

        adopt: makes an epoch ours on disk. mark_synced: notes on disk that this store may answer reads. note: writes a line to the operator's log: level,
        name of the event, text. upkeep: None = the log is never sealed.
        """
        self._state = state
        self._table = table
        self._log = log
        self._transport = transport
        self._clock = clock
        self._cluster = cluster
        self._every_ack_durable = fsync == "group"
        self._adopt = adopt
        self._mark_synced = mark_synced
        self._note = note
        self._upkeep = upkeep
        self._events: deque[Event] = deque()
        self._steps: list[fx.Mint | fx.Join] = []
        self._out: list[fx.Send | fx.Reply | fx.Publish] = []
        #: (log position, cause): votes that wait for a sync, in log order
        self._awaiting_sync: deque[tuple[int, int]] = deque()
        self._reads_awaiting_sync: list[tuple[int, ev.ReadDone]] = []
        self._singles = SingleTurns(
            state,
            table,
            log,
            clock,
            cluster=cluster,
            every_ack_durable=self._every_ack_durable,
            append=lambda blocks: self._append(blocks, allow_reserve=False),
            end_step=self._end_step,
            send=self._send_client,
        )
        #: when the rules want to be woken, as of the end of the last turn; nothing but a turn changes it
        self._due_ns = 0
        #: where the log file ended that was full last
        self._closed_seq = log.closed_seq
        self.counters: dict[str, int] = dict.fromkeys(
            (
                "frames_in",
                "frames_refused",
                "frames_foreign",
                *(f"refused_{reason}" for reason in REFUSAL_REASONS),
                "puts_logged",
                "steps_refused",
                "turns",
                "unsent",
                "dot_collisions",
                "steps_stalled",
            ),
            0,
        )
        self._carry: dict[type, Callable[[Any], None]] = {
            fx.Mint: self._steps.append,
            fx.Join: self._steps.append,
            fx.Read: self._read,
            fx.Scan: self._scan,
            fx.ReadPage: self._read_page,
            fx.MarkSynced: self._carry_out_mark_synced,
            fx.Send: self._out.append,
            fx.Reply: self._out.append,
            fx.Publish: self._out.append,
            fx.Adopt: self._carry_out_adopt,
            fx.Note: lambda note: self._note(note.level, note.event, note.text),
        }

    @property
    def state(self) -> NodeState:
        return self._state

    # --- a turn ---

    def turn(self, inbox: Inbox) -> None:
        """Everything that the inbox and the passing of time cause, up to the last frame sent.

        Raises: StorageFailed when the log is no longer to be trusted; the node must stop.
        """
        self.counters["turns"] += 1
        now_ns = self._clock.monotonic_ns()
        clients = inbox.clients
        alone = len(clients) == 1 and not (inbox.peers or inbox.replies or inbox.gossip or inbox.links)
        alone = alone and not self._stalled  # then the general way says so
        if alone and self._singles.answer(*clients[0]):
            self.counters["frames_in"] += 1
        else:
            self._decode(inbox, now_ns)
            if alone and self._events:
                self._answer_batch()
        self._collect_synced()
        if self._singles.waiting:
            now_ns = self._clock.monotonic_ns()
            self._out.extend(self._singles.expired(now_ns))
        if now_ns >= self._due_ns:
            self._events.append(ev.Woke())
        if self._events or self._out:
            self._run()
            while self._out:
                self._flush()
                if self._events:
                    self._run()
            self._due_ns = self._state.next_wakeup_ns()
            now_ns = self._clock.monotonic_ns()
            self._state.coordinator.counts.observe(now_ns)
        self._log.turn_done(now_ns, self.awaits_sync)
        if self._upkeep is not None:
            self._upkeep.turn(now_ns)

    def next_wakeup_ns(self) -> int:
        """When a turn is wanted although nothing arrived."""
        now_ns = self._clock.monotonic_ns()
        due_ns = self._due_ns
        if self._singles.waiting:
            due_ns = min(due_ns, self._singles.due_ns)
        sync = self._log.next_sync_due_ns(now_ns)
        due_ns = due_ns if sync is None else min(due_ns, sync)
        upkeep = None if self._upkeep is None else self._upkeep.next_due_ns(now_ns)
        return due_ns if upkeep is None else min(due_ns, upkeep)

    @property
    def idle(self) -> bool:
        """Whether no request is open and nothing waits for a sync: a drain has finished."""
        return self._state.idle and not self.awaits_sync

    @property
    def awaits_sync(self) -> bool:
        """Whether somebody waits for what is written to be on disk."""
        return bool(self._awaiting_sync or self._reads_awaiting_sync or self._singles.waiting)

    @property
    def _stalled(self) -> bool:
        """Whether so much waits to be sealed that nothing more is taken in."""
        return self._upkeep is not None and self._upkeep.behind

    def _run(self) -> None:
        """Events and what they order, until nothing is left but frames to send."""
        state, events = self._state, self._events
        now_ns, wall_ms = self._clock.monotonic_ns(), self._clock.wall_ns() // 1_000_000
        carry = self._carry
        while events or self._steps:
            while events:
                for effect in state.handle(events.popleft(), now_ns, wall_ms):
                    carry[type(effect)](effect)
            if self._steps:
                steps, self._steps[:] = self._steps[:], []
                self._carry_out(steps)

    def _answer_batch(self) -> None:
        """What came is one request: if it is a usual one, it is done with."""
        event = self._events[-1]
        if type(event) is ev.RequestsArrived:
            ((route, message),) = event.requests
            if isinstance(message, m.Put | m.Get) and self._singles.answer_batch(route.id, message):
                self._events.pop()

    # --- in ---

    def _decode(self, inbox: Inbox, now_ns: int) -> None:
        for node, up in inbox.links:
            self._events.append(ev.PeerConnected(node) if up else ev.PeerLost(node))
        if inbox.gossip:
            heard: dict[NodeId, None] = {}
            for node, frames in inbox.gossip:
                message = self._message(frames, _FROM_PUBLISHERS, now_ns, None)
                if message is None:
                    continue
                if message.node == node:  # type: ignore[union-attr]
                    heard[node] = None
                else:
                    self._count_refused("identity")
            if heard:
                self._events.append(ev.HeartbeatsHeard(list(heard)))
        if inbox.replies:
            replies: list[tuple[NodeId, Any]] = []
            for node, frames in inbox.replies:
                message = self._message(frames, _FROM_REPLIERS, now_ns, None)
                if message is not None:
                    replies.append((node, message))
            if replies:
                self._events.append(ev.RepliesArrived(replies))
        if not (inbox.peers or inbox.clients):
            return
        requests: list[tuple[Route, Any]] = []
        for peer, arrived, allowed in ((True, inbox.peers, _FROM_PEERS), (False, inbox.clients, _FROM_CLIENTS)):
            for route_id, frames in arrived:
                route = Route(route_id, peer)
                message = self._message(frames, allowed, now_ns, route)
                if message is not None:
                    requests.append((route, message))
        if requests:
            self._events.append(ev.RequestsArrived(requests))

    def _message(self, frames: Frames, allowed: frozenset[Kind], now_ns: int, route: Route | None) -> m.Message | None:
        """The message, or None after counting, and where there is somebody to tell, saying why not."""
        self.counters["frames_in"] += 1
        request = (0, 0)
        reason = "frame"
        try:
            header = wire.decode_header(frames)
            request = (header.session, header.sequence)
            reason = "port"
            if header.kind not in allowed:
                raise ProtocolError(f"{header.kind.name} does not belong on this port")
            if (
                header.cluster != self._cluster
                and (header.cluster or header.kind not in _WITHOUT_CLUSTER)
                and (
                    header.kind not in _HELLOS  # these compare the lists, and say what differs
                )
            ):
                self.counters["frames_foreign"] += 1
                reason = "cluster"
                raise ProtocolError("this node belongs to another cluster")
            reason = "body"
            return wire.decode(frames, now_ns=now_ns, header=header)
        except ProtocolError as error:
            self._count_refused("version" if isinstance(error, VersionMismatch) else reason)
            if route is not None:
                code = "VersionMismatch" if isinstance(error, VersionMismatch) else "ProtocolError"
                self._out.append(fx.Reply(route, m.Refused(request, code, str(error))))
            return None

    def _count_refused(self, reason: str) -> None:
        self.counters["frames_refused"] += 1
        self.counters[f"refused_{reason}"] += 1

    def _collect_synced(self) -> None:
        """What the last finished sync covers."""
        self._log.drain_completions()
        if self._awaiting_sync:
            durable_seq = self._log.durable_seq
            causes = []
            while self._awaiting_sync and self._awaiting_sync[0][0] <= durable_seq:
                causes.append(self._awaiting_sync.popleft()[1])
            if causes:
                self._events.append(ev.Persisted(causes, durable=True))
        if self._singles.waiting:
            self._singles.on_synced(self._log.durable_seq)
        if self._reads_awaiting_sync:
            durable_seq = self._log.durable_seq
            ready = [read for seq, read in self._reads_awaiting_sync if seq <= durable_seq]
            self._reads_awaiting_sync = [entry for entry in self._reads_awaiting_sync if entry[0] > durable_seq]
            self._events.extend(ready)

    # --- effects ---

    def _read(self, read: fx.Read) -> None:
        held, unreadable = self._table.find(read.keys)
        if unreadable:
            statuses = [int(Status.CORRUPT if key in unreadable else Status.OK) for key in read.keys]
            self._events.append(ev.ReadDone(read.cause, held, statuses))
            return
        if not (read.durable or read.synced):
            self._events.append(ev.ReadDone(read.cause, held))  # nobody asks how durable it is
            return
        seq = self._table.logged_at(held)
        synced = seq <= self._log.durable_seq
        must_wait = read.synced or self._every_ack_durable
        done = ev.ReadDone(read.cause, held, durable=synced or must_wait)
        if must_wait and not synced:
            self._reads_awaiting_sync.append((seq, done))
        else:
            self._events.append(done)

    def _scan(self, scan: fx.Scan) -> None:
        try:
            keys, more = self._table.scan(scan.bucket_id, scan.partition, scan.after, scan.limit)
        except CorruptData as error:
            self._note("error", "scan_unreadable", str(error))
            self._events.append(ev.Scanned(scan.cause, [], False, corrupt=True))
        else:
            self._events.append(ev.Scanned(scan.cause, keys, more))

    def _read_page(self, read: fx.ReadPage) -> None:
        try:
            page = self._table.page(read.partitions, read.after, read.bytes_max)
        except CorruptData as error:
            self._note("error", "page_unreadable", str(error))
            self._events.append(ev.Pulled(read.cause, [], [], 0, b"", False, corrupt=True))
        else:
            self._events.append(ev.Pulled(read.cause, *page))

    def _carry_out_mark_synced(self, mark: fx.MarkSynced) -> None:
        self._mark_synced()
        self._events.append(ev.Synced())

    def _carry_out_adopt(self, adopt: fx.Adopt) -> None:
        self._events.append(self._adopt(adopt))

    def _carry_out(self, steps: list[fx.Mint | fx.Join]) -> None:
        """All mints and joins as one log write; if that is refused, one by one, so that each gets its own answer."""
        if self._stalled:
            self.counters["steps_stalled"] += len(steps)
            for step in steps:
                self._refuse(step, Status.OVERLOADED)
            return
        try:
            self._step(steps, allow_reserve=False)
        except DiskFull:
            self._table.roll_back()
            for step in steps:
                self._step_alone(step)

    def _step_alone(self, step: fx.Mint | fx.Join) -> None:
        if isinstance(step, fx.Mint):
            frees_space = not any(v is not None for v in step.values)
        else:
            frees_space = step.block.columns is None and not any(r.versions.siblings for r in step.block.records)
        try:
            self._step([step], allow_reserve=frees_space)
        except DiskFull:
            self._table.roll_back()
            self.counters["steps_refused"] += 1
            self._refuse(step, Status.DISK_FULL)

    def _refuse(self, step: fx.Mint | fx.Join, status: Status) -> None:
        if isinstance(step, fx.Mint):
            statuses = [int(status)] * len(step.keys)
            self._events.append(ev.Minted(step.cause, RecordBlock([]), self._table.actor, [], statuses))
        else:
            statuses = [int(status)] * len(step.block)
            self._events.append(ev.Joined(step.cause, statuses, []))

    def _step(self, steps: list[fx.Mint | fx.Join], *, allow_reserve: bool) -> None:
        blocks: list[RecordBlock] = []
        events: list[Event] = []
        held: list[tuple[fx.Mint | fx.Join, int, bool]] = []
        for step in steps:
            if isinstance(step, fx.Mint):
                block, counters, statuses = self._table.mint(step)
                events.append(ev.Minted(step.cause, block, self._table.actor, counters, statuses))
                to_log: RecordBlock | None = block if len(block) else None
                held.append((step, 0, to_log is not None))
            else:
                to_log, held_seq, statuses, inexact = self._table.join(step)
                events.append(ev.Joined(step.cause, statuses, inexact))
                held.append((step, held_seq, to_log is not None))
            if to_log is not None:
                blocks.append(to_log)
        seq = self._write_down(blocks, allow_reserve=allow_reserve)
        self._events.extend(events)
        self._await(held, seq)

    def _write_down(self, blocks: list[RecordBlock], *, allow_reserve: bool) -> int:
        """Log what the table did in this step, and where that ends. Raises: DiskFull; then the table must be rolled back."""
        seq = self._append(blocks, allow_reserve=allow_reserve)
        self._end_step(seq)
        return seq

    def _append(self, blocks: list[RecordBlock], *, allow_reserve: bool) -> int:
        if not blocks:
            return self._log.written_seq
        to_log = [(len(block), *records.block_to_log(block)) for block in blocks]
        seq = self._log.append(to_log, allow_reserve=allow_reserve)
        self.counters["puts_logged"] += sum(map(len, blocks))
        return seq

    def _end_step(self, seq: int) -> None:
        """The step is logged up to `seq`."""
        self._table.commit(seq)
        if self._log.closed_seq > self._closed_seq:
            self._closed_seq = self._log.closed_seq
            if self._upkeep is not None:
                self._table.freeze(self._closed_seq)
        self.counters["dot_collisions"] = self._table.collisions
        ahead = ((self._clock.wall_ns() // 1_000_000) + CLOCK_AHEAD_MS_MAX) << 16
        self._state.view.clock.observe(min(self._table.stamp_high, ahead))

    def _await(self, held: list[tuple[fx.Mint | fx.Join, int, bool]], seq: int) -> None:
        """When each step counts as persisted: at once, or with the sync that covers it."""
        durable_seq = self._log.durable_seq
        written: list[int] = []
        durable: list[int] = []
        for step, held_seq, logged in held:
            needed = seq if logged or held_seq == UNLOGGED else held_seq
            if needed <= durable_seq:
                durable.append(step.cause)
            elif self._every_ack_durable or step.durable:
                # what an earlier step logged is waited for in log order with the rest
                self._awaiting_sync.append(
                    (max(needed, self._awaiting_sync[-1][0] if self._awaiting_sync else 0), step.cause)
                )
            else:
                written.append(step.cause)
        if written:
            self._events.append(ev.Persisted(written, durable=False))
        if durable:
            self._events.append(ev.Persisted(durable, durable=True))

    # --- out ---

    def _too_large(self, effect: fx.Send | fx.Reply | fx.Publish, error: ProtocolError) -> None:
        """What does not fit into a message is answered as that; it must not stop the turn that everybody else waits for."""
        self.counters["unsent"] += 1
        self._note("error", "message_too_large", f"{effect.message.kind.name}: {error}")
        if isinstance(effect, fx.Send):
            self._events.append(ev.Undeliverable(effect.node, effect.message))
        elif isinstance(effect, fx.Reply):
            request = getattr(effect.message, "request", (0, 0))
            self._out.append(
                fx.Reply(effect.route, m.Refused(request, "TooLarge", f"{error}; ask for fewer keys at once"))
            )

    def _flush(self) -> None:
        out, self._out[:] = self._out[:], []
        now_ns = self._clock.monotonic_ns()
        encoded: dict[int, list[bytes]] = {}  # one message to several peers is encoded once; `out` keeps the ids alive
        for effect in out:
            message = effect.message
            frames = encoded.get(id(message))
            if frames is None:
                try:
                    frames = encoded[id(message)] = wire.encode(message, cluster=self._cluster, now_ns=now_ns)
                except ProtocolError as error:
                    self._too_large(effect, error)
                    continue
            if isinstance(effect, fx.Send):
                if not self._transport.send_peer(effect.node, frames):
                    self.counters["unsent"] += 1
                    self._events.append(ev.Undeliverable(effect.node, effect.message))
            elif isinstance(effect, fx.Publish):
                self._transport.publish(frames)
            elif effect.route.peer:
                if not self._transport.answer_peer(effect.route.id, frames):
                    self.counters["unsent"] += 1
            else:
                self._send_client(effect.route.id, frames)

    def _send_client(self, route: bytes, frames: Frames) -> None:
        if not self._transport.send_client(route, frames):
            self.counters["unsent"] += 1
