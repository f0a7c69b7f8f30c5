"""The core of a node: routes events to the rules and collects effects. No rule of its own.

Owns: the order in which rules hear of an event, the view they share. Must not know: what any rule decides.
Events in, effects out; `now_ns` (monotonic) and `wall_ms` (Unix) are arguments; `next_wakeup_ns` says when to come back unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zkv.core import events as e
from zkv.core import messages as m
from zkv.core.bootstrap import Bootstrap
from zkv.core.coordinator import Coordinator
from zkv.core.effects import Effect, Publish, Reply
from zkv.core.inspect import Inspect
from zkv.core.reads import Reads
from zkv.core.replica import Replica
from zkv.core.resync import Resync
from zkv.core.single import Singles
from zkv.core.view import OWNER_MASK, Owner, View
from zkv.core.writes import Writes
from zkv.ids import NodeId

#: plain numbers: members of an enum take longer to find
_WRITES, _READS, _REPLICA, _RESYNC = int(Owner.WRITES), int(Owner.READS), int(Owner.REPLICA), int(Owner.RESYNC)


class NodeState:
    def __init__(self, view: View, bootstrap: Bootstrap, *, heartbeat_interval_ns: int) -> None:
        self.view = view
        self.bootstrap = bootstrap
        self.writes = Writes(view)
        self.reads = Reads(view)
        self.replica = Replica(view)
        self.resync = Resync(view)
        self.inspect = Inspect(view)
        self.inspect.forming = lambda: (bootstrap.missing, list(bootstrap.refusals.values()))
        self.coordinator = Coordinator(view, self.writes, self.reads)
        self.singles = Singles(view, self.coordinator)
        self._heartbeat_interval_ns = heartbeat_interval_ns
        self._heartbeat_ns = 0
        self._heartbeats = 0
        self._wakeups = (
            bootstrap.next_wakeup_ns,
            self.writes.next_wakeup_ns,
            self.reads.next_wakeup_ns,
            self.coordinator.next_wakeup_ns,
            self.inspect.next_wakeup_ns,
            self.resync.next_wakeup_ns,
        )
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            e.RequestsArrived: self._on_requests,
            e.RepliesArrived: self._on_replies,
            e.Minted: self.writes.on_minted,
            e.Joined: self._on_joined,
            e.Persisted: self._on_persisted,
            e.ReadDone: self._on_read,
            e.Scanned: self.inspect.on_scanned,
            e.Pulled: self.resync.on_pulled,
            e.Synced: self._on_synced,
            e.Adopted: self._on_adopted,
            e.Undeliverable: self._on_undeliverable,
            e.PeerConnected: self._on_connected,
            e.PeerLost: self._on_lost,
            e.HeartbeatsHeard: self._on_heartbeats,
            e.Woke: self._on_woke,
        }

    def handle(self, event: e.Event, now_ns: int, wall_ms: int) -> list[Effect]:
        self.view.now_ns = now_ns
        self.view.wall_ms = wall_ms
        effects = self._handlers[type(event)](event)
        coordinator = self.coordinator
        return effects + coordinator.finished() if coordinator.any_finished else effects

    def next_wakeup_ns(self) -> int:
        """When `Woke` is due next, on the monotonic clock."""
        due_ns = self._heartbeat_ns
        for next_wakeup_ns in self._wakeups:
            rule_ns = next_wakeup_ns()
            if rule_ns is not None and rule_ns < due_ns:
                due_ns = rule_ns
        return due_ns

    @property
    def idle(self) -> bool:
        """Whether no request is open: a drain has finished."""
        return self.coordinator.open_items == 0

    # --- routing ---

    def _on_requests(self, event: e.RequestsArrived) -> list[Effect]:
        effects: list[Effect] = []
        data: list[tuple[e.Route, m.Put | m.Get]] = []
        for route, message in event.requests:
            match message:
                case m.Put() | m.Get():
                    data.append((route, message))
                case m.ReplicaPut():
                    effects.extend(self.replica.on_put(route, message))
                case m.ReplicaGet():
                    effects.extend(self.replica.on_get(route, message))
                case m.Pull():
                    effects.extend(self.resync.on_pull(route, message))
                case m.Scan():
                    effects.extend(self.inspect.on_scan(route, message))
                case m.Admin():
                    effects.extend(self.inspect.on_admin(route, message))
                case m.PeerHello():
                    effects.extend(self.bootstrap.on_hello(route, message))
                case m.Hello():
                    effects.append(Reply(route, self._welcome()))
        return effects + self.coordinator.on_requests(data) if data else effects

    def _welcome(self) -> m.Welcome:
        view = self.view
        up = [node for node in view.members if view.up(node)]
        return m.Welcome(view.node, view.name, view.document_bytes, up, view.open_id)

    def _on_replies(self, event: e.RepliesArrived) -> list[Effect]:
        effects: list[Effect] = []
        for node, message in event.replies:
            match message:
                case m.ReplicaPutAck():
                    rules = self.writes if message.group & OWNER_MASK == Owner.WRITES else self.reads
                    effects.extend(rules.on_ack(node, message))
                case m.ReplicaGetReply():
                    effects.extend(self._on_replica_get_reply(node, message))
                case m.PullReply():
                    effects.extend(self.resync.on_reply(node, message))
                case m.PutReply():
                    self.coordinator.on_part(node, message)
                case m.Refused():
                    self.coordinator.on_part_refused(node, message)
                case m.PeerHelloAck():
                    effects.extend(self.bootstrap.on_ack(node, message))
        return effects

    def _on_replica_get_reply(self, node: NodeId, message: m.ReplicaGetReply) -> list[Effect]:
        match message.group & OWNER_MASK:
            case Owner.WRITES:
                return self.writes.on_pasts(node, message)
            case Owner.READS:
                return self.reads.on_reply(node, message)
            case _:
                return self.inspect.on_reply(node, message)

    def _on_joined(self, event: e.Joined) -> list[Effect]:
        match event.cause & OWNER_MASK:
            case Owner.REPLICA:
                return self.replica.on_joined(event)
            case Owner.RESYNC:
                return self.resync.on_joined(event)
            case _:
                return self.reads.on_joined(event)

    def _on_persisted(self, event: e.Persisted) -> list[Effect]:
        by_owner: dict[int, list[int]] = {}
        for cause in event.causes:
            by_owner.setdefault(cause & OWNER_MASK, []).append(cause)
        effects: list[Effect] = []
        if causes := by_owner.get(_WRITES):
            effects += self.writes.on_persisted(causes, event.durable)
        if causes := by_owner.get(_REPLICA):
            effects += self.replica.on_persisted(causes, event.durable)
        if causes := by_owner.get(_RESYNC):
            effects += self.resync.on_persisted(causes)
        if causes := by_owner.get(_READS):
            effects += self.reads.on_persisted(causes)
        return effects

    def _on_synced(self, event: e.Synced) -> list[Effect]:
        self.view.unsynced = False
        return []

    def _on_read(self, event: e.ReadDone) -> list[Effect]:
        match event.cause & OWNER_MASK:
            case Owner.WRITES:
                return self.writes.on_read(event)
            case Owner.READS:
                return self.reads.on_read(event)
            case Owner.REPLICA:
                return self.replica.on_read(event)
            case _:
                return self.inspect.on_read(event)

    def _on_adopted(self, event: e.Adopted) -> list[Effect]:
        self.view.adopt(event.document, event.document_bytes)
        self.view.unsynced = event.unsynced
        self.bootstrap.on_adopted()
        return []

    def _on_undeliverable(self, event: e.Undeliverable) -> list[Effect]:
        match event.message:
            case m.ReplicaGet() as get if get.group & OWNER_MASK == Owner.READS:
                return self.reads.on_no_answer(event.node, get.group)
            case m.ReplicaPut() as put if put.group & OWNER_MASK == Owner.READS:
                return self.reads.on_no_answer(event.node, put.group)
            case m.Put() as part:
                self.coordinator.on_part_undeliverable(event.node, part)
            case _:
                pass  # writes send again when the node connects; hellos are repeated
        return []

    def _on_connected(self, event: e.PeerConnected) -> list[Effect]:
        self.view.set_linked(event.node, True)
        return self.bootstrap.on_connected(event.node) + self.writes.on_connected(event.node)

    def _on_lost(self, event: e.PeerLost) -> list[Effect]:
        self.view.set_linked(event.node, False)
        self.coordinator.on_lost(event.node)
        self.resync.on_lost(event.node)
        return self.reads.on_lost(event.node)

    def _on_heartbeats(self, event: e.HeartbeatsHeard) -> list[Effect]:
        self.view.heard(event.nodes)
        return []

    def _on_woke(self, event: e.Woke) -> list[Effect]:
        now_ns = self.view.now_ns
        self.writes.on_time()
        self.coordinator.on_time()
        effects = self.reads.on_time() + self.inspect.on_time() + self.resync.on_time() + self.bootstrap.on_woke(now_ns)
        if now_ns >= self._heartbeat_ns:
            self._heartbeat_ns = now_ns + self._heartbeat_interval_ns
            self._heartbeats += 1
            view = self.view
            effects.append(Publish(m.Heartbeat(view.node, view.open_id, self._heartbeats, view.epoch)))
        return effects
