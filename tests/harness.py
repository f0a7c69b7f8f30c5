"""A whole cluster in one thread: the production core, driver, codecs and table over a log in memory and a network that obeys the test.

Nothing happens by itself. `settle()` delivers everything until nobody has anything to say; tests hold back links, syncs and nodes in between.
Time stands still unless `advance` is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from zkv.codec import records, value, wire
from zkv.core import effects as fx
from zkv.core import events as ev
from zkv.core import messages as m
from zkv.core.bootstrap import ACTIVE, Bootstrap, Identity
from zkv.core.clock import HybridClock
from zkv.core.node_state import NodeState
from zkv.core.request_memory import RequestMemory
from zkv.core.ring import position_of
from zkv.core.topology import first_epoch
from zkv.core.versions import Context
from zkv.core.view import View
from zkv.driver import Driver
from zkv.errors import DiskFull
from zkv.ids import NodeId, checksum_of, stored_key
from zkv.ports import Frames, Inbox
from zkv.storage.record_table import RecordTable

MS = 1_000_000
SECOND = 1_000_000_000
DEFAULT, STRICT = 1, 2


class Time:
    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * SECOND + self.now_ns


class MemoryLog:
    """Keeps bodies; `durable_seq` follows only when the test (or `auto_sync`) says so. A crash drops what was not synced."""

    def __init__(self) -> None:
        self.bodies: list[tuple[int, bytes]] = []  # (last seq, body)
        self.written_seq = 0
        self.durable_seq = 0
        self.closed_seq = 0  # there is no other file
        self.auto_sync = True
        self.full = False
        self.syncs = 0

    def append(self, blocks: Sequence[tuple[int, int, Sequence[bytes]]], *, allow_reserve: bool = False) -> int:
        if self.full and not allow_reserve:
            raise DiskFull("no space")
        for count, codec, parts in blocks:
            assert codec in records.BLOCK_CODECS
            self.written_seq += count
            self.bodies.append((self.written_seq, b"".join(parts)))
        return self.written_seq

    def drain_completions(self) -> int | None:
        return None

    def turn_done(self, now_ns: int, durable_wanted: bool) -> None:
        if durable_wanted and self.auto_sync:
            self.sync()

    def next_sync_due_ns(self, now_ns: int) -> int | None:
        return None

    def sync(self) -> None:
        self.syncs += 1
        self.durable_seq = self.written_seq

    def lose_power(self) -> None:
        self.bodies = [(seq, body) for seq, body in self.bodies if seq <= self.durable_seq]
        self.written_seq = self.durable_seq


class SimNode:
    """One node: its log survives `crash`, everything else is built anew by `start`."""

    def __init__(self, cluster: SimCluster, index: int) -> None:
        self.cluster = cluster
        self.index = index
        self.member = cluster.document.members[index]
        self.node = self.member.node_id
        self.name = self.member.name
        self.store = bytes([index]) * 16
        self.log = MemoryLog()
        self.active = False
        self.unsynced = False
        self.stores: dict[NodeId, bytes] = {}
        self.lives = 0
        self.up = False
        self.inbox = Inbox()
        self.notes: list[str] = []
        self.lost_power = False

    def start(self, *, active: bool = True) -> None:
        cluster = self.cluster
        self.lives += 1
        self.up = True
        self.inbox = Inbox()
        open_id = bytes([self.index + 1, self.lives & 0xFF, *self.store[:6]])
        memory = RequestMemory()
        seed, shift = cluster.document.hash_seed, 64 - (cluster.partitions.bit_length() - 1)
        self.table = RecordTable(open_id, memory, lambda key: position_of(key, seed) >> shift)
        for _, body in self.log.bodies:
            self.table.load(records.block_from_log(body))
        self.view = View(
            node=self.node,
            name=self.name,
            store=self.store,
            open_id=open_id,
            memory=memory,
            clock=HybridClock(self.table.stamp_high),
            heartbeat_timeout_ns=1_500 * MS,
        )
        self.view.now_ns = cluster.time.now_ns
        if self.lost_power:
            self.view.forgetful_until_ns = cluster.time.now_ns + 120 * SECOND
        if active or self.active:
            self.active = True
            self.view.adopt(cluster.document, cluster.document_bytes)
            self.view.unsynced = self.unsynced
        identity = Identity(
            node=self.node, name=self.name, store=self.store, open_id=open_id, initial="list", initial_hash=b"h" * 32
        )
        peers = {mb.node_id: mb.name for mb in cluster.document.members if mb.node_id != self.node}
        bootstrap = Bootstrap(identity, peers, phase=ACTIVE if self.active else "new", stores=self.stores)
        self.state = NodeState(self.view, bootstrap, heartbeat_interval_ns=500 * MS)
        self.driver = Driver(
            self.state,
            self.table,
            self.log,
            _SimTransport(self),
            cluster.time,
            cluster=cluster.cluster,
            fsync=cluster.fsync,
            adopt=self._adopt,
            mark_synced=self._mark_synced,
            note=lambda level, event, text: self.notes.append(text),
        )
        for other in cluster.nodes:
            if other.up and other is not self:
                self.inbox.links.append((other.node, True))
                other.inbox.links.append((self.node, True))

    def _adopt(self, adopt: fx.Adopt) -> ev.Adopted:
        self.active = True
        self.unsynced = adopt.unsynced
        self.stores = adopt.stores
        return ev.Adopted(self.cluster.document, self.cluster.document_bytes, adopt.unsynced)

    def _mark_synced(self) -> None:
        self.unsynced = False

    def kill(self, *, power_loss: bool = False) -> None:
        self.up = False
        self.lost_power = power_loss
        if power_loss:
            self.log.lose_power()
        self.inbox = Inbox()
        self.cluster.drop_frames(self.index)
        for other in self.cluster.nodes:
            if other.up:
                other.inbox.links.append((self.node, False))

    def wipe(self) -> None:
        assert not self.up
        self.log = MemoryLog()
        self.active = False
        self.unsynced = False
        self.stores = {}
        self.store = bytes([self.index + 100 + self.lives]) * 16

    def turn(self) -> bool:
        """One turn; whether there was anything to do."""
        box, self.inbox = self.inbox, Inbox()
        busy = bool(box.clients or box.peers or box.replies or box.gossip or box.links)
        before = self.log.durable_seq, len(self.cluster.wires)
        self.driver.turn(box)
        return busy or (self.log.durable_seq, len(self.cluster.wires)) != before


class _SimTransport:
    def __init__(self, owner: SimNode) -> None:
        self._owner = owner

    def send_peer(self, node: NodeId, frames: Frames) -> bool:
        target = self._owner.cluster.by_id[node]
        if not target.up:
            return False
        self._owner.cluster.post(self._owner.index, target.index, "peers", bytes([self._owner.index]), frames)
        return True

    def answer_peer(self, route: bytes, frames: Frames) -> bool:
        target = self._owner.cluster.nodes[route[0]]
        if not target.up:
            return False
        self._owner.cluster.post(self._owner.index, target.index, "replies", self._owner.node, frames)
        return True

    def send_client(self, route: bytes, frames: Frames) -> bool:
        self._owner.cluster.replies.setdefault(route, []).append(list(frames))
        return True

    def publish(self, frames: Frames) -> None:
        for other in self._owner.cluster.nodes:
            if other.up and other is not self._owner:
                self._owner.cluster.post(self._owner.index, other.index, "gossip", self._owner.node, frames)


class SimCluster:
    def __init__(
        self,
        count: int = 3,
        *,
        fsync: str = "group",
        partitions: int = 64,
        active: bool = True,
        start: int | None = None,
    ) -> None:
        """start: how many of the nodes to start at first, all by default."""
        self.time = Time()
        self.fsync = fsync
        self.partitions = partitions
        self.document = first_epoch(
            "test", [(f"n{i}", "127.0.0.1", 7400 + 10 * i) for i in range(count)], partitions=partitions
        )
        self.document_bytes = value.document_bytes(self.document)
        self.cluster = int.from_bytes(self.document.cluster_id[:8], "big")
        self.wires: deque[tuple[int, int, str, object, list[bytes]]] = deque()
        self.held: list[tuple[int, int, str, object, list[bytes]]] = []
        self.replies: dict[bytes, list[list[bytes]]] = {}
        #: returns True for a frame that must wait in `held`
        self.hold: Callable[[int, int, m.Message], bool] = lambda source, target, message: False
        self.nodes: list[SimNode] = []
        self.nodes.extend(SimNode(self, index) for index in range(count))
        self.by_id = {node.node: node for node in self.nodes}
        for node in self.nodes:
            node.stores = {other.node: other.store for other in self.nodes} if active else {}
        for node in self.nodes[:start]:
            node.start(active=active)
        self.sequence = 0
        self.settle()

    def node_of(self, key: bytes, place: int, bucket: int = DEFAULT) -> SimNode:
        """The replica at `place` in the preference order of a key."""
        ring = self.nodes[0].view.ring
        assert ring is not None
        row = ring.row_of(stored_key(bucket, key), self.nodes[0].view.buckets[bucket].class_id)
        return self.by_id[row.replicas[place]]

    # --- network ---

    def post(self, source: int, target: int, lane: str, origin: object, frames: Frames) -> None:
        entry = (source, target, lane, origin, list(frames))
        if self.hold(source, target, wire.decode(frames, now_ns=self.time.now_ns)):
            self.held.append(entry)
        else:
            self.wires.append(entry)

    def release(self) -> None:
        """Let everything pass that was held back, and hold nothing more."""
        self.hold = lambda source, target, message: False
        self.wires.extend(self.held)
        self.held.clear()

    def drop_held(self) -> None:
        self.held.clear()
        self.hold = lambda source, target, message: False

    def drop_frames(self, index: int) -> None:
        """A dead process takes along what it had not read, and what had not left it."""
        self.wires = deque(w for w in self.wires if index not in (w[0], w[1]))

    def deliver(self) -> bool:
        moved = bool(self.wires)
        while self.wires:
            _, target, lane, origin, frames = self.wires.popleft()
            node = self.nodes[target]
            if node.up:
                getattr(node.inbox, lane).append((origin, frames))
        return moved

    def settle(self, turns: int = 10_000) -> None:
        for _ in range(turns):
            moved = self.deliver()
            busy = [node.turn() for node in self.nodes if node.up]
            if not moved and not any(busy) and not self.wires:
                return
        raise AssertionError("the cluster does not come to rest")

    def advance(self, ns: int, step_ns: int = 100 * MS) -> None:
        end = self.time.now_ns + ns
        while self.time.now_ns < end:
            self.time.now_ns = min(end, self.time.now_ns + step_ns)
            self.settle()

    # --- requests ---

    def send(self, node: SimNode, message: m.Message, route: bytes = b"client") -> None:
        frames = wire.encode(message, cluster=self.cluster, now_ns=self.time.now_ns)
        node.inbox.clients.append((route, frames))

    def answers(self, route: bytes = b"client") -> list[m.Message]:
        return [wire.decode(frames, now_ns=self.time.now_ns) for frames in self.replies.pop(route, [])]

    def ask(self, node: SimNode, message: m.Message) -> m.Message:
        """Send, let everything settle (running time forward if it must), and return the one answer."""
        self.send(node, message)
        self.settle()
        for _ in range(100):
            answers = self.answers()
            if answers:
                assert len(answers) == 1, answers
                return answers[0]
            self.advance(100 * MS)
        raise AssertionError("no answer within 10 s")

    def put_message(
        self,
        key: bytes,
        data: bytes | None,
        *,
        bucket: int = DEFAULT,
        context: Context | None = None,
        base: Context | None = None,
        request: tuple[int, int] | None = None,
        timeout_ns: int = 5 * SECOND,
        w: m.Level = None,
        sloppy: bool | None = None,
        durable: bool = False,
        again: bool = False,
        retry: bool = False,
        voids: tuple[int, ...] = (),
        session: int = 7,
        expires_ms: int = 0,
    ) -> m.Put:
        self.sequence += 1
        return m.Put(
            request or (session, self.sequence),
            [stored_key(bucket, key)],
            [data],
            [checksum_of(data or b"")],
            [context],
            [base],
            [expires_ms],
            [voids] if voids else None,
            None,
            w,
            sloppy,
            durable,
            again,
            True,
            retry=retry,
            deadline_ns=self.time.now_ns + timeout_ns,
        )

    def get_message(
        self,
        key: bytes,
        *,
        bucket: int = DEFAULT,
        r: m.Level = None,
        sloppy: bool | None = None,
        timeout_ns: int = 5 * SECOND,
    ) -> m.Get:
        self.sequence += 1
        return m.Get(
            (7, self.sequence), [stored_key(bucket, key)], r, sloppy, True, deadline_ns=self.time.now_ns + timeout_ns
        )

    def put(self, node: SimNode, key: bytes, data: bytes | None, **options: object) -> m.PutReply:
        reply = self.ask(node, self.put_message(key, data, **options))  # type: ignore[arg-type]
        assert isinstance(reply, m.PutReply), reply
        return reply

    def get(self, node: SimNode, key: bytes, **options: object) -> m.GetReply:
        reply = self.ask(node, self.get_message(key, **options))  # type: ignore[arg-type]
        assert isinstance(reply, m.GetReply), reply
        return reply

    def values(self, node: SimNode, key: bytes, **options: object) -> list[bytes]:
        """What a get shows, in an order that does not depend on stamps."""
        reply = self.get(node, key, **options)
        assert reply.statuses is None, (reply.statuses, reply.required, reply.got)
        return sorted(reply.values)

    def held_by(self, node: SimNode, key: bytes, bucket: int = DEFAULT) -> list[bytes]:
        sets, _ = node.table.read([stored_key(bucket, key)])
        return [] if sets[0] is None else sorted(s.value for s in sets[0].siblings)

    def check_invariants(self) -> None:
        for node in self.nodes:
            node.table.check_invariants()


def status_of(reply: m.PutReply | m.GetReply) -> m.Status:
    return m.Status.OK if reply.statuses is None else m.Status(reply.statuses[0])


def context_of(reply: m.PutReply | m.GetReply) -> Context | None:
    return None if reply.contexts is None else reply.contexts[0]
