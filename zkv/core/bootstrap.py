"""How a list of new directories becomes a cluster, once, and how a peer is checked at every connection.

Owns: the phase of this node, the stores seen in the others, the decision to adopt epoch 1. Must not know: sockets, files, how the epoch is
made of the list (topology).

Epoch 1 becomes active here when every listed node has answered "new directory, same list" (each fsynced its directory before it
answered). Who finds an active cluster that knew another store under its name is a wiped member: it takes part, unsynced. A node that was
there and only missed the moment adopts. Source: 30-replication, bootstrap; counterexample 17.
"""

from __future__ import annotations

from typing import Final

from zkv.core.effects import Adopt, Effect, Note, Reply, Send
from zkv.core.events import Route
from zkv.core.messages import PeerHello, PeerHelloAck
from zkv.ids import NodeId

HELLO_INTERVAL_NS: Final = 250_000_000
#: who is missing is said after so long, then at such intervals
MISSING_FIRST_NS: Final = 3_000_000_000
MISSING_NOTE_NS: Final = 60_000_000_000
#: notes about refused peers; a peer that sends a different text each time must not fill the log
REFUSAL_NOTES_MAX: Final = 32
NEW: Final = "new"
ACTIVE: Final = "active"


class Identity:
    """Who this node is: fixed for the life of the process."""

    __slots__ = ("initial", "initial_hash", "name", "node", "open_id", "store")

    def __init__(
        self, *, node: NodeId, name: str, store: bytes, open_id: bytes, initial: str, initial_hash: bytes
    ) -> None:
        self.node = node
        self.name = name
        self.store = store
        self.open_id = open_id
        self.initial = initial
        self.initial_hash = initial_hash


class Bootstrap:
    def __init__(self, me: Identity, peers: dict[NodeId, str], *, phase: str, stores: dict[NodeId, bytes]) -> None:
        """peers: node -> name of everyone else on the list. stores: what an earlier life saw, when active."""
        self._me = me
        self._peers = dict(sorted(peers.items()))
        self.phase = phase
        self.epoch = 1 if phase == ACTIVE else 0
        self._stores: dict[NodeId, bytes] = dict(stores)
        self._next_hello_ns = 0
        self._missing_note_ns = 0
        self._notes_left = REFUSAL_NOTES_MAX
        self._refusals: dict[NodeId, str] = {}
        self._adopting = False

    @property
    def refusals(self) -> dict[NodeId, str]:
        """node -> why it or we refused the other, for status and logs."""
        return dict(self._refusals)

    @property
    def missing(self) -> list[str]:
        """Names of those whose answer epoch 1 still waits for."""
        return [] if self.phase == ACTIVE else [name for node, name in self._peers.items() if node not in self._stores]

    def on_woke(self, now_ns: int) -> list[Effect]:
        if self.phase == ACTIVE or now_ns < self._next_hello_ns:
            return []
        self._next_hello_ns = now_ns + HELLO_INTERVAL_NS
        if not self._peers:
            return self._adopt(unsynced=False)
        effects: list[Effect] = [Send(node, self.hello()) for node in self._peers]
        if not self._missing_note_ns:
            self._missing_note_ns = now_ns + MISSING_FIRST_NS
        elif now_ns >= self._missing_note_ns:
            self._missing_note_ns = now_ns + MISSING_NOTE_NS
            names = ", ".join(self.missing) or "nobody"
            effects.append(
                Note(
                    "warning", "forming", f"the cluster forms when all of --initial have answered; waiting for {names}"
                )
            )
        return effects

    def next_wakeup_ns(self) -> int | None:
        return None if self.phase == ACTIVE else self._next_hello_ns

    def on_connected(self, node: NodeId) -> list[Effect]:
        return [Send(node, self.hello())] if node in self._peers else []

    def hello(self) -> PeerHello:
        me = self._me
        return PeerHello(me.node, me.name, me.store, me.open_id, me.initial_hash, self.phase, me.initial, self.epoch)

    def on_hello(self, route: Route, hello: PeerHello) -> list[Effect]:
        me = self._me
        refusal = self._refusal(hello)
        ack = PeerHelloAck(
            me.node,
            me.name,
            me.store,
            me.open_id,
            me.initial_hash,
            self.phase,
            me.initial,
            self.epoch,
            refusal,
            sorted(self._stores.items()) if self.phase == ACTIVE else [],
        )
        return [Reply(route, ack), *(self._refuse(hello.node, refusal) if refusal else [])]

    def _refuse(self, node: NodeId, why: str) -> list[Effect]:
        """Remember and say it, once, and not without end."""
        if self._refusals.get(node) == why or not self._notes_left:
            return []
        self._notes_left -= 1
        self._refusals[node] = why
        return [Note("error", "peer_refused", why)]

    def _refusal(self, hello: PeerHello) -> str:
        me = self._me
        if hello.initial_hash != me.initial_hash:
            return (
                f"node {hello.name!r} and node {me.name!r} were given different lists, so they are not one cluster: "
                f"{hello.name!r} has {hello.initial!r}; {me.name!r} has {me.initial!r}"
            )
        if hello.node == me.node and hello.open_id != me.open_id:
            return f"two processes run as node {me.name!r}"
        if hello.node not in self._peers and hello.node != me.node:
            return f"node {hello.name!r} is not a member of this cluster"
        return ""

    def on_ack(self, node: NodeId, ack: PeerHelloAck) -> list[Effect]:
        """An answer from the address where `node` should be."""
        problem = ack.refusal
        if not problem and ack.node != node:
            problem = f"the address of node {self._peers.get(node, node)!r} answers as node {ack.name!r}"
        if not problem and ack.initial_hash != self._me.initial_hash:
            problem = f"node {ack.name!r} was given another list: {ack.initial!r}; node {self._me.name!r} has {self._me.initial!r}"
        if problem:
            return self._refuse(node, problem)
        self._refusals.pop(node, None)
        if self.phase == ACTIVE or self._adopting:
            return []
        if ack.phase == ACTIVE:
            # It knows who was there when the cluster began. What new directories told us since may be those of wiped members.
            self._stores = dict(ack.stores)
            return self._adopt(unsynced=self._stores.get(self._me.node) != self._me.store)
        self._stores[node] = ack.store
        if all(peer in self._stores for peer in self._peers):
            return self._adopt(unsynced=False)
        return []

    def _adopt(self, *, unsynced: bool) -> list[Effect]:
        self._adopting = True
        return [Adopt(unsynced, {self._me.node: self._me.store} | self._stores)]

    def on_adopted(self) -> None:
        self._stores.setdefault(self._me.node, self._me.store)
        self.phase = ACTIVE
        self.epoch = 1
        self._adopting = False
