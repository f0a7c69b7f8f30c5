"""Simulated clients: the production client core, driven as the synchronous client drives it, one call at a time.

Owns: the connections of a client, the turning of a planned operation into a call, and what became of it. Must not know: what is promised.
A value is unique per (client, operation, position), so one that nobody wrote is an invention.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.client_calls import Call
from zkv.core.client_parts import Order
from zkv.core.client_puts import GetCall, PutCall
from zkv.core.client_state import ClientState
from zkv.core.versions import EMPTY, Context
from zkv.errors import ZkvError
from zkv.ids import checksum_of, stored_key
from zkv.testing.sim.world import MS, SECOND, World

if TYPE_CHECKING:
    from zkv.testing.sim.plan import Operation

#: nobody at the other end after so long, as the real client
CONNECT_NS: Final = 500 * MS
REFUSED_NS: Final = 20 * MS
TIMEOUT_NS: Final = 2 * SECOND
#: how long a client waits for another one's read to follow
FOLLOW_NS: Final = 100 * MS
DEFAULT, STRICT = 1, 2


@dataclass(slots=True, eq=False)
class Done:
    """One operation, while it runs and after."""

    client: int
    number: int
    kind: str
    bucket: int
    keys: list[bytes]
    values: list[bytes | None]
    contexts: list[Context | None] | None
    #: values that each item's context replaces: those shown with it
    replaces: list[set[bytes]]
    level: m.Level
    session: int
    invoked_ns: int
    done_ns: int = 0
    #: a put that asked for the disk, whatever the policy
    durable: bool = False
    #: some try was not the first
    retried: bool = False
    #: per key: "ok", "failed" (definite), "unknown"
    outcomes: list[str] = field(default_factory=list)
    errors: dict[int, ZkvError] = field(default_factory=dict)
    nodes: list[list[int]] = field(default_factory=list)
    shown: dict[int, list[bytes]] = field(default_factory=dict)
    read: dict[int, Context] = field(default_factory=dict)
    floors: dict[bytes, Context] = field(default_factory=dict)

    @property
    def is_get(self) -> bool:
        return self.kind == "get"


class _Link:
    __slots__ = ("address", "generation", "life", "node", "queue", "up")

    def __init__(self, address: str, node: int, generation: int) -> None:
        self.address = address
        self.node = node
        self.generation = generation
        self.life = 0
        self.up = False
        self.queue: list[Order] = []


class SimClient:
    def __init__(self, world: World, number: int, operations: list[Operation], watch: Any) -> None:
        self.world = world
        self.number = number
        self.index = len(world.nodes) + number
        self.state = ClientState(random.Random(f"client {world.plan.seed} {number}"))
        self._adopt()
        self._operations = operations
        self._watch = watch
        self._links: dict[str, _Link] = {}
        self._generation = 0
        self._call: Call | None = None
        self._done: Done | None = None
        #: read the keys of this one next
        self._look: Done | None = None
        #: write the keys of this one next, whatever was planned
        self._again: Operation | None = None
        #: what was planned and is under way
        self._planned: Operation | None = None
        #: the keys of our last write of unknown fate, until we have looked
        self._doubted: list[bytes] | None = None
        self._read: dict[bytes, tuple[Context, set[bytes]]] = {}
        self._place = {node.member.address: node.index for node in world.nodes}
        self._wake_ns = 0
        self.finished = not operations
        world.clients[bytes([number])] = self

    def _adopt(self) -> None:
        node = self.world.nodes[0]
        self.state.adopt(self.world.document, node.node, node.member.address)

    def next(self) -> None:
        if self._call is not None or self in self.world.followers:
            return
        if not self._operations:
            self.finished = self.world.look = True
            return
        operation = self._operations.pop(0)
        if self.world.on_answer is not None and self.world.on_read:
            writing = [c._done for c in self.world.clients.values() if c._done is not None and not c._done.is_get]
            self._look = self.world.dice.choice(writing) if writing else self._look
        if self._look is not None:  # instead of what was planned
            self._read_what(self._look)
        elif self._again is not None:
            again, self._again = self._again, None
            self._begin([operation[0], "put", again[2], operation[3], *again[4:]])
        elif operation[1] == "follow" and len(self.world.clients) > 1:
            self.world.followers.append(self)
            self.world.after(FOLLOW_NS, self._follow, [*operation[:1], "get", *operation[2:]], None)
        else:
            self._begin(operation)

    def _follow(self, operation: Operation | None, read: Done | None) -> None:
        """Read what another client was just shown, before it can have spread; or, when nobody read anything for a while, go on alone."""
        if operation is not None:
            if self in self.world.followers and self._call is None:
                self.world.followers.remove(self)
                self._begin(operation)
        elif read is not None and self._call is None:
            self._read_what(read)

    def _read_what(self, other: Done) -> Done:
        self._look = None
        nothing: list[bytes | None] = [None] * len(other.keys)
        empty: list[set[bytes]] = [set() for _ in other.keys]
        return self.submit("get", other.bucket, other.keys, nothing, None, empty, other.number, None)

    def _begin(self, operation: Operation) -> None:
        self._planned = operation
        _, kind, places, number, solo, strict, level, durable = operation
        names = [b"s%d-%d" % (self.number, p) if solo and strict else b"k%d" % p for p in places]
        if solo and strict and kind in ("context", "empty"):
            kind = "put"
        if kind in ("context", "empty"):
            names = names[:1]
        bucket_id = STRICT if strict else DEFAULT
        keys: list[bytes] = [stored_key(bucket_id, name) for name in names]
        values: list[bytes | None] = [
            None if kind == "delete" else b"c%d-%d-%d" % (self.number, number, i) for i in range(len(keys))
        ]
        contexts: list[Context | None] | None = None
        replaces: list[set[bytes]] = [set() for _ in keys]
        if kind == "context":
            contexts, replaces = [], []
            for key in keys:
                context, shown = self._read.get(key, (EMPTY, set()))
                contexts.append(context)
                replaces.append(set(shown))
        elif kind == "empty":
            contexts = [EMPTY] * len(keys)
        self.submit(kind, bucket_id, keys, values, contexts, replaces, number, level, durable)

    def submit(
        self,
        kind: str,
        bucket_id: int,
        keys: list[bytes],
        values: list[bytes | None],
        contexts: list[Context | None] | None,
        replaces: list[set[bytes]],
        number: int,
        level: m.Level,
        durable: bool = False,
    ) -> Done:
        now_ns = self.world.now_ns
        if self.state.stale or self.state.document is None:
            self._adopt()
        bucket = self.state.bucket("strict" if bucket_id == STRICT else "default")
        done = self._done = Done(
            self.number,
            number,
            kind,
            bucket_id,
            keys,
            values,
            contexts,
            replaces,
            level,
            self.state.session,
            now_ns,
            durable=durable,
        )
        self._watch.on_begin(done)
        deadline_ns = now_ns + TIMEOUT_NS
        if kind == "get":
            self._call = GetCall(self.state, bucket, keys, now_ns, deadline_ns, r=level, want_context=True)
        else:
            self._call = PutCall(
                self.state,
                bucket,
                keys,
                values,
                [0 if v is None else checksum_of(v) for v in values],
                now_ns,
                deadline_ns,
                contexts=contexts,
                w=level,
                durable=durable,
                want_context=len(keys) == 1,
            )
        self._pump()
        return done

    # --- as a lane does it ---

    def _pump(self) -> None:
        call = self._call
        if call is None:
            return
        now_ns = self.world.now_ns
        for order in call.turn(now_ns):
            self._post(call, order)
        if call.done:
            self._finish(call)
            return
        wake_ns = max(now_ns + 1_000, call.next_wakeup_ns())
        if not self._wake_ns or wake_ns < self._wake_ns:
            self._wake_ns = wake_ns
            self.world.at(wake_ns, self._woken, wake_ns)

    def _woken(self, wake_ns: int) -> None:
        if self._wake_ns == wake_ns:
            self._wake_ns = 0
            self._pump()

    def _post(self, call: Call, order: Order) -> None:
        link = self._links.get(order.address)
        if link is not None and link.up:
            self._send(call, link, order)
            return
        if link is None:
            self._generation += 1
            link = self._links[order.address] = _Link(order.address, self._place[order.address], self._generation)
            there = self.world.delay_ns(self.index, link.node)
            refused = [self.number, link.node] in self.world.plan.unreached and not self.world.calm
            if refused:
                self.world.after(2 * there + REFUSED_NS, self._gave_up, link)
            else:
                self.world.after(2 * there, self._connected, link)
                self.world.after(CONNECT_NS, self._gave_up, link)
        link.queue.append(order)

    def _connected(self, link: _Link) -> None:
        if self._links.get(link.address) is not link or link.up:
            return
        node = self.world.nodes[link.node]
        cuts = self.world.cuts
        if cuts[self.index, link.node] or cuts[link.node, self.index] or node.paused:
            return  # silence; given up later
        if not node.up:
            self._drop(link)
            return
        link.up, link.life = True, node.life
        queue, link.queue = link.queue, []
        call = self._call
        for order in queue:
            if call is not None and self._is_open(order):
                self._send(call, link, order)
        self._pump()

    def _is_open(self, order: Order) -> bool:
        return self._call is not None and order.part in self._call._inflight.values()

    def _gave_up(self, link: _Link) -> None:
        if self._links.get(link.address) is link and not link.up:
            self._drop(link)

    def _send(self, call: Call, link: _Link, order: Order) -> None:
        frames = wire.encode(order.message, cluster=self.world.cluster, now_ns=self.world.now_ns)
        node = self.world.nodes[link.node]
        route = bytes([self.number, link.generation & 0xFF])
        self.world.send(self.index, link.node, self._deliver, node, route, frames, link.life)
        call.on_sent(order, self.world.now_ns)
        if self._done is not None and isinstance(order.message, m.Put):
            first = not (order.message.retry or order.message.again)
            self._watch.on_try(node, order.message.request, self._done, first=first)
            self._done.retried = self._done.retried or order.message.retry or order.message.again

    def _deliver(self, node: Any, route: bytes, frames: list[bytes], life: int) -> None:
        if node.life == life:
            node.take_last("clients", (route, frames))

    def receive(self, address: str, route: bytes, frames: list[bytes]) -> None:
        link = self._links.get(address)
        if link is None or link.generation & 0xFF != route[1] or self._call is None:
            return
        self.world.trace.update(b"%d c%d %s" % (self.world.now_ns, self.number, frames[0]))
        self._call.on_reply(address, wire.decode(frames), self.world.now_ns)  # type: ignore[arg-type]
        self._pump()

    def lost(self, node: int, life: int) -> None:
        for link in list(self._links.values()):
            if link.node == node and link.up and link.life == life:
                self._drop(link)

    def _drop(self, link: _Link) -> None:
        del self._links[link.address]
        now_ns = self.world.now_ns
        self.state.failed(link.address, now_ns)
        if self._call is not None:
            self._call.on_lost(link.address, now_ns)
            for order in link.queue:
                self._call.on_unsent(order, now_ns)
            link.queue = []
            self._pump()

    # --- the end of a call ---

    def _finish(self, call: Call) -> None:
        done = self._done
        assert done is not None
        self._call = self._done = None
        self.world.look = True
        for link in self._links.values():
            link.queue.clear()
        done.done_ns = self.world.now_ns
        done.errors = call.errors()
        done.outcomes = ["ok"] * len(done.keys)
        done.nodes = [[] for _ in done.keys]
        for place, error in done.errors.items():
            done.outcomes[place] = "failed" if error.definite else "unknown"
        if isinstance(call, GetCall):
            self._take_read(call, done)
        elif isinstance(call, PutCall):
            self._take_receipts(call, done)
        self.world.note("done", done.client, done.number, done.outcomes, sorted(done.shown.items()))
        self._watch.on_done(done)
        answered = any(done.shown.values()) if self.world.on_read else "ok" in done.outcomes
        if self.world.on_answer is not None and answered:
            strike, self.world.on_answer = self.world.on_answer, None
            self.world.after(1, strike)
        self._spread(done)
        think_ns = int(self.state._rng.expovariate(1.0) * self.world.plan.think_ms * MS)
        self.world.after(think_ns, self.next)

    def _spread(self, done: Done) -> None:
        """Who does not know what became of a write looks next, or writes the same keys once more without a look, or goes on. Who has looked
        makes all others look; followers look at once."""
        if not done.is_get and "unknown" in done.outcomes:
            way = self.world.dice.randrange(4)
            if way < 2:
                self._look, self._doubted = done, done.keys
            elif way == 2:
                self._again = self._planned
        elif done.is_get and done.keys is self._doubted:
            self._doubted = None
            for other in self.world.clients.values():
                if other is not self:
                    other._look = done
        if any(done.shown.values()):
            followers, self.world.followers = self.world.followers, []
            for follower in followers:
                self.world.after(1, follower._follow, None, done)

    def _take_read(self, call: GetCall, done: Done) -> None:
        for positions, columns, reply in call.answers:
            counts = reply.counts if reply.counts is not None else [1] * len(reply.checksums)
            starts = [0]
            for count in counts:
                starts.append(starts[-1] + count)
            for position, column in zip(positions, range(len(counts)) if columns is None else columns, strict=True):
                if position in done.shown or done.outcomes[position] != "ok":
                    continue
                shown = list(reply.values[starts[column] : starts[column + 1]])
                context = (reply.contexts[column] if reply.contexts else None) or EMPTY
                done.shown[position], done.read[position] = shown, context
                self._read[done.keys[position]] = (context, set(shown))

    def _take_receipts(self, call: PutCall, done: Done) -> None:
        for positions, columns, reply in call.answers:
            for place, position in enumerate(positions):
                column = place if columns is None else columns[place]
                which = reply.receipt_of_item[column] if reply.receipt_of_item else 0
                if 0 <= which < len(reply.receipts):
                    done.nodes[position] = list(reply.receipts[which].nodes)
