"""Virtual time, the network between nodes and clients, and nodes that are the production node without its sockets.

Owns: the heap of events, links and cuts, what of a node survives which end. Must not know: what is asked, what is promised.

Nothing of the product is replaced but clock, sockets and disk: core, driver, codecs, table, log, opening and recovery are the production
ones, put together as zkv/node does it. Everything is a function of the plan: one heap, ties broken by order of arrival.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from heapq import heappop, heappush
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zkv.codec import records, value
from zkv.config import NodeSettings
from zkv.core.bootstrap import ACTIVE, Bootstrap, Identity
from zkv.core.clock import HybridClock
from zkv.core.initial import parse_initial
from zkv.core.messages import Kind
from zkv.core.node_state import NodeState
from zkv.core.request_memory import RequestMemory
from zkv.core.ring import position_of
from zkv.core.topology import TopologyDocument, first_epoch
from zkv.core.view import View
from zkv.driver import Driver
from zkv.errors import DiskFull, StorageError, StorageFailed
from zkv.ids import NodeId
from zkv.node import FORGETFUL_NS, Node
from zkv.ports import Frames, Inbox
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions
from zkv.storage.record_table import RecordTable
from zkv.storage.sealed_opening import open_sealed
from zkv.storage.upkeep import Upkeep
from zkv.storage.worker import InlineWorker, Job
from zkv.testing.sim.disk import SimFiles

if TYPE_CHECKING:
    from zkv.testing.sim.plan import Plan

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
#: a cut is noticed as a broken link after this, as heartbeats of the transport do
NOTICED_NS: Final = 1_500 * MS
RECONNECT_NS: Final = 120 * MS
PARTITIONS: Final = 8
#: small, so that records are read again from their segments
CACHE_BYTES: Final = 2_048
FRAMES_KEPT: Final = 64
RESTART_NS: Final = 300 * MS
#: what arrives within this time is one turn's work
TURN_NS: Final = 100_000


@lru_cache(maxsize=16)
def founded(count: int) -> tuple[str, TopologyDocument, bytes]:
    """(initial list, first epoch, its bytes) of a cluster of `count` nodes; pure, so made once."""
    initial = ",".join(f"n{i}@127.0.0.1:{7400 + 10 * i}" for i in range(count))
    document = first_epoch("sim", parse_initial(initial), partitions=PARTITIONS)
    return initial, document, value.document_bytes(document)


class World:
    """One run's universe. `watch` is told of everything that the judge needs."""

    def __init__(self, plan: Plan, watch: Any) -> None:
        self.plan = plan
        self.watch = watch
        self.now_ns = 1_000 * SECOND
        self.dice = random.Random(f"world {plan.seed}")
        self._random = self.dice.random
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.trace = blake2b(digest_size=16)
        self.fired: Counter[str] = Counter()
        self.events = 0
        #: something ended that the phase may have waited for
        self.look = False
        self.calm = True
        self.loss, self.duplicate, self.replay = plan.loss, plan.duplicate, plan.replay
        self.busy_ns = int(plan.busy_ms * MS)
        self.unreliable = bool(plan.duplicate or plan.replay)
        ends = plan.nodes + plan.clients
        #: mean delay of each link in nanoseconds, drawn when it is first used
        self._delay = [[0.0] * ends for _ in range(ends)]
        self._kept: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.cuts: Counter[tuple[int, int]] = Counter()
        self.initial, self.document, self.document_bytes = founded(plan.nodes)
        self.cluster = int.from_bytes(self.document.cluster_id[:8], "big")
        self.nodes = [SimNode(self, index) for index in range(plan.nodes)]
        self.by_id = {node.node: node for node in self.nodes}
        self.clients: dict[bytes, Any] = {}
        #: called once, when the next call of a client was answered; with `on_read`, only when it showed something
        self.on_answer: Callable[[], None] | None = None
        self.on_read = False
        #: clients that read next what somebody is shown next
        self.followers: list[Any] = []

    # --- time ---

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (when_ns, self._number, call, arguments))

    def after(self, ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (self.now_ns + ns, self._number, call, arguments))

    def run(self, until_ns: int, done: Callable[[], bool]) -> bool:
        """Until `done` or the time; whether it was done. Asked when `look` was set, and now and then."""
        heap, pop = self._heap, heappop
        events = self.events
        while heap and heap[0][0] <= until_ns:
            when_ns, _, call, arguments = pop(heap)
            if when_ns > self.now_ns:
                self.now_ns = when_ns
            events += 1
            call(*arguments)
            if self.look or not events & 15:
                self.look = False
                if done():
                    self.events = events
                    return True
        self.events = events
        self.now_ns = until_ns
        return done()

    def skip(self, ns: int) -> bool:
        """Let time pass at once if nothing happens in it."""
        if self._heap and self._heap[0][0] <= self.now_ns + ns:
            return False
        self.now_ns += ns
        return True

    def note(self, *words: object) -> None:
        """Part of the digest that two runs of one seed must share."""
        self.trace.update(repr((self.now_ns, *words)).encode())

    # --- network; a client is an end with a number above all nodes ---

    def delay_ns(self, source: int, target: int) -> int:
        mean = self._delay[source][target]
        if not mean:
            mean = self._delay[source][target] = self.plan.delay_ms * self.dice.choice((0.3, 1, 1, 8)) * MS
        return int(-log(1.0 - self._random()) * (MS if self.calm else mean)) + 20_000

    def is_lost(self, source: int, target: int) -> bool:
        """Whether one frame between two nodes does not arrive."""
        if self.cuts and self.cuts[source, target]:
            self.fired["frame cut"] += 1
        elif self.loss and not self.calm and self._random() < self.loss:
            self.fired["frame lost"] += 1
        else:
            return False
        return True

    def send(self, source: int, target: int, deliver: Callable[..., None], *arguments: Any) -> None:
        count = len(self.nodes)
        if source < count and target < count:
            if (self.cuts or self.loss) and self.is_lost(source, target):
                return
        elif self.cuts and self.cuts[source, target]:
            return
        # what a client sends may come twice; a connection that lost a part of it is broken
        if self.unreliable and not self.calm and target < count:
            self._repeat(source, target, deliver, arguments)
        self._number += 1
        heappush(self._heap, (self.now_ns + self.delay_ns(source, target), self._number, deliver, arguments))

    def _repeat(self, source: int, target: int, deliver: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """This frame may come twice, now or much later; and an older one may come now."""
        dice = self.dice
        if self.duplicate and dice.random() < self.duplicate:
            self.fired["frame duplicated"] += 1
            self.after(self.delay_ns(source, target), deliver, *arguments)
        if self.replay:
            if dice.random() < self.replay:
                self._kept.append((deliver, arguments))
                if len(self._kept) > FRAMES_KEPT:
                    self._kept.pop(dice.randrange(FRAMES_KEPT))
            if self._kept and dice.random() < self.replay:
                self.fired["frame replayed"] += 1
                old, old_arguments = dice.choice(self._kept)
                self.after(dice.randrange(50 * MS), old, *old_arguments)

    def cut(self, pairs: list[tuple[int, int]], ns: int) -> None:
        if self.calm:
            return
        for pair in pairs:
            self.cuts[pair] += 1
        self.after(min(NOTICED_NS, ns), self._notice, pairs)
        self.after(ns, self._mend, pairs)

    def _notice(self, pairs: list[tuple[int, int]]) -> None:
        for a, b in pairs:
            if self.cuts[a, b]:
                self._drop_link(a, b)
                self._drop_link(b, a)

    def _mend(self, pairs: list[tuple[int, int]]) -> None:
        for a, b in pairs:
            self.cuts[a, b] -= 1
            if self.cuts[a, b] <= 0:
                del self.cuts[a, b]
                self.after(RECONNECT_NS, self.link, a, b)
                self.after(RECONNECT_NS, self.link, b, a)

    def mend_all(self) -> None:
        for a, b in list(self.cuts):
            self.cuts[a, b] = 1
            self._mend([(a, b)])

    def link(self, a: int, b: int) -> None:
        """The connection from a to b stands, if both are there."""
        if max(a, b) >= len(self.nodes):
            return
        one, other = self.nodes[a], self.nodes[b]
        if one.up and other.up and not self.cuts[a, b] and not self.cuts[b, a] and other.node not in one.linked:
            one.linked.add(other.node)
            one.take("links", (other.node, True))

    def _drop_link(self, a: int, b: int) -> None:
        if a >= len(self.nodes) or b >= len(self.nodes):
            return
        one, other = self.nodes[a], self.nodes[b]
        if one.up and other.node in one.linked:
            one.linked.discard(other.node)
            one.take("links", (other.node, False))

    def left(self, index: int, *, silent: bool) -> None:
        """A process is gone. A killed one is noticed by a reset; a machine without power by silence."""
        life = self.nodes[index].life
        ns = NOTICED_NS if silent else 200_000
        for other in self.nodes:
            if other.index != index:
                self.after(ns, self._noticed_gone, other.index, index)
        for client in self.clients.values():
            self.after(ns, client.lost, index, life)

    def _noticed_gone(self, a: int, b: int) -> None:
        self._drop_link(a, b)
        self.after(RECONNECT_NS, self.link, a, b)

    def came(self, index: int) -> None:
        for other in self.nodes:
            if other.index != index:
                self.after(RECONNECT_NS, self.link, index, other.index)
                self.after(RECONNECT_NS + self.dice.randrange(100 * MS), self.link, other.index, index)


def _nobody() -> None:
    """Nobody waits for a wake-up: the node is told in its own way."""


def _nobody_reads(level: str, event: str, text: str) -> None:
    """The operator's log of a simulated node."""


class _Worker(InlineWorker):
    """Slow jobs that end when the disk of the plan has had its time."""

    def __init__(self, on_wake: Callable[[], None], node: SimNode) -> None:
        super().__init__(lambda: None if self._in_time else on_wake())
        self._node = node
        self._in_time = False

    def submit(self, job: Job) -> None:
        super().submit(job)
        world = self._node.world
        mean = 0.3 if world.calm else world.plan.sync_ms
        ns = int(-log(1.0 - world.dice.random()) * mean * MS) + 50_000 + self._node.slow_ns
        world.after(ns, self._ended, self._node.life)

    def _ended(self, life: int) -> None:
        if self._node.life == life and self._node.up and self.pending:
            jobs = list(self.pending)
            self._in_time = True
            self.run_pending()
            self._in_time = False
            # what nobody waits for is no cause of a turn of its own: it is taken in with the next
            if self._node.driver.awaits_sync or any(job.error is not None for job in jobs):
                self._node.turn_soon()


class _Helper(_Worker):
    """Seals and merges: somebody always goes on when one has ended."""

    def _ended(self, life: int) -> None:
        if self._node.life == life and self._node.up and self.pending:
            self.run_pending()
            self._node.turn_soon()


class _NodeClock:
    __slots__ = ("_node", "_world")

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._world = node.world

    def monotonic_ns(self) -> int:
        return self._world.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * SECOND + self._world.now_ns + self._node.skew_ns


class SimNode(Node):
    """One node and its machine. What `zkv.node.Node` decides about a directory is decided by that very code."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.member = next(mb for mb in world.document.members if mb.name == f"n{index}")
        self.node = self.member.node_id
        self.name = self.member.name
        self.files = SimFiles(random.Random(f"disk {world.plan.seed} {index}"))
        self.life = 0
        self.up = False
        self.paused = False
        self.skew_ns = 0
        self.slow_ns = 0
        #: what it tells replicas to take never arrives; everything else does
        self.muted = False
        self.boot = 0
        self.linked: set[NodeId] = set()
        self.wiped = False
        #: it has to pull what the others hold before it is whole, up or down
        self.lacking = False
        self._turn_due = False
        self._wake_ns = 0
        #: it is at work until then
        self._busy_ns = 0
        self.read_block = records.block_from_log
        self.inbox = Inbox()
        self.settings = NodeSettings(
            name=self.name,
            data=Path("/data"),
            listen=self.member.address,
            initial=world.initial,
            cluster_name="sim",
            partitions=PARTITIONS,
            fsync=world.plan.fsync,
        )
        self.driver: Driver
        self.table: RecordTable
        self.view: View

    # --- life ---

    def start(self) -> None:
        if self.up:
            return
        world = self.world
        try:
            self._begin()
        except (DiskFull, StorageError) as error:
            world.note("start failed", self.index, type(error).__name__)
            world.fired["start failed"] += 1
            if self._log is not None:
                self.files.kill()
            world.after(RESTART_NS, self.start)
            return
        self.up = True
        self.paused = False
        world.note("start", self.index, self.life)
        world.watch.on_start(self)
        world.came(self.index)
        self.wake()

    def _begin(self) -> None:
        world = self.world
        self.life += 1
        self._log = None
        self.inbox = Inbox()
        self._turn_due = False
        self._wake_ns = self._busy_ns = 0
        self.linked = set()
        options = LogOptions(
            fsync=world.plan.fsync, file_bytes=world.plan.wal_bytes, reserve_bytes=1024, reserve_check_appends=1
        )
        self._log, recovery = LogStore.open(
            "/data",
            self.files,
            options=options,
            create=True,
            on_wake=self.wake,
            worker=lambda on_wake: _Worker(on_wake, self),
            mint=world.dice.randbytes,
        )
        self.recovery = recovery
        self._document = self._own_cluster(self._log)
        seed, shift = self._document.hash_seed, 64 - (self._document.partitions.bit_length() - 1)
        self._sealed = open_sealed(
            self.files,
            "/data",
            self._log,
            recovery,
            partitions=self._document.partitions,
            hash_seed=seed,
            cache_bytes=CACHE_BYTES,
            note=_nobody_reads,
        )
        self._judge_synced(self._log, recovery)
        extra = self._log.manifest.extra
        memory = RequestMemory()
        self.table = self._table = RecordTable(
            self._log.open_id, memory, lambda key: position_of(key, seed) >> shift, self._sealed
        )
        for batch in recovery.batches():
            self.table.load(self.read_block(batch.body))
        world.watch.on_table(self)
        self.view = view = View(
            node=self.node,
            name=self.name,
            store=self._log.manifest.store_id,
            open_id=self._log.open_id,
            memory=memory,
            clock=HybridClock(max(self.table.stamp_high, self._log.manifest.high_water_stamp)),
            heartbeat_timeout_ns=1_500 * MS,
        )
        view.now_ns = world.now_ns
        boot = str(self.boot)
        if boot != extra.get("boot"):
            self._log.update_manifest(extra=dict(extra) | {"boot": boot})
            if not recovery.created and not recovery.clean_shutdown:
                view.forgetful_until_ns = view.now_ns + FORGETFUL_NS
        if self._log.manifest.wal_floor > 1:
            view.forgetful_until_ns = view.now_ns + FORGETFUL_NS
        phase = extra["phase"]
        if phase == ACTIVE:
            view.adopt(self._document, world.document_bytes)
            view.unsynced = self._log.manifest.unsynced
            self.lacking = self.lacking or view.unsynced
        others = {mb.node_id: mb.name for mb in self._document.members if mb.node_id != self.node}
        stores = {NodeId(int(node, 16)): store for node, store in extra["stores"].items()}
        identity = Identity(
            node=self.node,
            name=self.name,
            store=view.store,
            open_id=self._log.open_id,
            initial=extra["initial"],
            initial_hash=extra["initial_hash"],
        )
        bootstrap = Bootstrap(identity, others, phase=phase, stores=stores)
        self.state = NodeState(view, bootstrap, heartbeat_interval_ns=500 * MS)
        self.driver = Driver(
            self.state,
            self.table,
            self._log,
            _Transport(self),
            _NodeClock(self),
            cluster=world.cluster,
            fsync=world.plan.fsync,
            adopt=self._adopt,
            mark_synced=self._mark_synced,
            note=_nobody_reads,
            upkeep=Upkeep(
                self.files,
                "/data",
                self._log,
                self.table,
                self._sealed,
                _Helper(_nobody, self),
                _Helper(_nobody, self),
                _nobody_reads,
            ),
        )

    def _mark_synced(self) -> None:
        super()._mark_synced()
        self.lacking = False

    def die(self, *, power: bool = False, kept: float | None = None) -> None:
        if not self.up:
            if power:
                self.boot += 1
                self.files.lose_power(kept)
            return
        self.up = False
        self.world.note("die", self.index, power)
        if power:
            self.boot += 1
            self.files.lose_power(kept)
        else:
            self.files.kill()
        self.world.left(self.index, silent=power)

    # --- turns ---

    def take(self, lane: str, entry: Any) -> None:
        if self.up:
            getattr(self.inbox, lane).append(entry)
            self.wake()

    def take_last(self, lane: str, entry: Any) -> None:
        """As `take`, by what ends with it."""
        if self.up:
            getattr(self.inbox, lane).append(entry)
            if not self._turn_due:
                self.turn_soon()

    def wake(self) -> None:
        """A turn soon: what arrives meanwhile is taken with it."""
        if not self._turn_due:
            self._turn_due = True
            self.world.at(max(self.world.now_ns + TURN_NS, self._busy_ns), self._turn, self.life)

    def turn_soon(self) -> None:
        """As `wake`, at the very end of what happens now: with nothing else to come before the turn, it needs no place in the queue."""
        if not self._turn_due:
            if self._busy_ns <= self.world.now_ns and self.world.skip(TURN_NS):
                self._turn(self.life)
            else:
                self.wake()

    def _turn(self, life: int) -> None:
        if life != self.life or not self.up:
            return
        self._turn_due = False
        if self.paused:
            return
        inbox = self.inbox
        if inbox.clients or inbox.peers:
            self.world.watch.on_turn(self)
        try:
            self.driver.turn(inbox)
        except StorageFailed:
            self.world.fired["store failed"] += 1
            self.world.note("store failed", self.index)
            self.die()
            self.world.after(RESTART_NS, self.start)
            return
        inbox.clear()
        world = self.world
        if world.busy_ns and not world.calm:
            self._busy_ns = world.now_ns + world.busy_ns
        self._wake_when_due()

    def _wake_when_due(self) -> None:
        due_ns = self.driver.next_wakeup_ns()
        if due_ns < self._wake_ns or not self._wake_ns:
            self._wake_ns = due_ns
            self.world.at(max(due_ns, self.world.now_ns + 20_000), self._woken, self.life, due_ns)

    def _woken(self, life: int, due_ns: int) -> None:
        if life == self.life and due_ns == self._wake_ns:
            self._wake_ns = 0
            if self.driver.next_wakeup_ns() <= self.world.now_ns:
                self.turn_soon()
            else:  # what it was for has been settled
                self._wake_when_due()

    def resume(self, life: int) -> None:
        if life == self.life and self.up and self.paused:
            self.paused = False
            self.wake()


class _Transport:
    """Links are known to it as to the real one; a frame for a process that is gone is lost with its connection."""

    def __init__(self, owner: SimNode) -> None:
        self._owner = owner
        self._route = bytes([owner.index, owner.life & 0xFF])

    def send_peer(self, node: NodeId, frames: Frames) -> bool:
        owner = self._owner
        if node not in owner.linked:
            return False
        if owner.muted and frames[0][3] == Kind.REPLICA_PUT:
            owner.world.fired["frame muted"] += 1
            return True
        target = owner.world.by_id[node]
        deliver = self._deliver_put if frames[0][3] == Kind.PUT else self._deliver
        owner.world.send(owner.index, target.index, deliver, target, "peers", self._route, list(frames), target.life)
        return True

    def _deliver_put(self, target: SimNode, lane: str, origin: object, frames: list[bytes], life: int) -> None:
        """A put does not outlive the process that it was sent to: what that one refused, the next one would carry out."""
        if target.life == life:
            self._deliver(target, lane, origin, frames)

    def _deliver(self, target: SimNode, lane: str, origin: object, frames: list[bytes], life: int = 0) -> None:
        world = target.world
        world.trace.update(b"%d %d %s" % (world.now_ns, target.index, frames[0]))
        target.take_last(lane, (origin, frames))

    def answer_peer(self, route: bytes, frames: Frames) -> bool:
        owner = self._owner
        target = owner.world.nodes[route[0]]
        if not target.up or target.life & 0xFF != route[1]:
            return False
        owner.world.send(owner.index, target.index, self._deliver, target, "replies", owner.node, list(frames))
        return True

    def send_client(self, route: bytes, frames: Frames) -> bool:
        owner = self._owner
        client = owner.world.clients.get(route[:1])
        if client is None:
            return False
        address = owner.member.address
        owner.world.send(owner.index, client.index, client.receive, address, route, list(frames))
        return True

    def publish(self, frames: Frames) -> None:
        """A heartbeat is no work that anybody waits for: it is taken with the next turn, at the latest that of the other's own heartbeat."""
        owner, world = self._owner, self._owner.world
        for other in world.nodes:
            hears = other is not owner and other.up and owner.node in other.linked
            if hears and not world.is_lost(owner.index, other.index):
                other.inbox.gossip.append((owner.node, list(frames)))


#: what a node would write into its log is no part of a run
logging.getLogger("zkv.node").addHandler(logging.NullHandler())
