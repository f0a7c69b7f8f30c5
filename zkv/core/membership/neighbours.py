"""Who repeats rumours to whom: everybody among few members, a small symmetric view among many.

Owns: the view, its repair and its slow mixing. Must not know: rumours.
Source: HyParView (Leitao, Pereira, Rodrigues, DSN 2007). Every member knows all others anyway, so the table stands in for the passive view and there
is nothing to shuffle but the view itself: without mixing, two halves that grew apart in a partition would stay two islands for rumours.

Neighbours that are suspected stay beside those that are up until they are called dead: when the network heals, the way is there.
"""

from __future__ import annotations

from zkv.core.events import Route
from zkv.core.membership.common import Common
from zkv.core.membership.happenings import Subscribe, Unsubscribe
from zkv.core.membership.messages import Disconnect, Neighbour, NeighbourReply
from zkv.core.membership.states import PHASES, State
from zkv.core.membership.table import Record
from zkv.ids import NodeId

#: below so many a request is urgent: the other makes room
URGENT = 2
#: one of so many turns of the slow tick changes a neighbour for another
MIX_EVERY = 3


class Neighbours:
    def __init__(self, common: Common) -> None:
        self._common = common
        self._view: dict[NodeId, str] = {}
        self._asked: NodeId | None = None
        self._turn = 0
        self._ticking = False
        common.listeners.append(self._on_change)

    def start(self) -> None:
        common = self._common
        timing = common.timing
        self._tick()
        common.agenda.at(common.now_ns + int(common.dice.random() * timing.shuffle_interval_ns), self._slow_tick)

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(self._view)

    def holds(self, node: NodeId) -> bool:
        return node in self._view

    @property
    def _mesh(self) -> bool:
        return self._common.table.size <= self._common.timing.mesh_max

    # --- keeping the view ---

    def _on_change(self, record: Record, before: State | None) -> None:
        if record.state >= State.DEAD:
            self._drop(record.node)
        elif record.node in self._view:
            if self._view[record.node] != record.profile.gossip_address:
                self._drop(record.node)
                self._add(record)
        elif self._mesh:
            self._add(record)
        self._count()

    def _add(self, record: Record) -> None:
        if record.node not in self._view:
            self._view[record.node] = record.profile.gossip_address
            self._common.effects.append(Subscribe(record.node, record.profile.gossip_address))
            self._count()

    def _drop(self, node: NodeId) -> None:
        if self._view.pop(node, None) is not None:
            self._common.effects.append(Unsubscribe(node))
            self._count()

    def _count(self) -> None:
        """How many of them are up; when that changes the view is looked after until they are as many as they should be."""
        common = self._common
        get, before = common.table.get, common.neighbours
        common.neighbours = sum(1 for node in self._view if (record := get(node)) is not None and record.is_up)
        if not self._ticking and common.neighbours != before:
            self._ticking = True
            common.agenda.at(common.now_ns + common.timing.view_interval_ns, self._tick)

    def _tick(self) -> None:
        common = self._common
        timing = common.timing
        self._ticking = True
        if self._mesh:
            for record in common.table.in_state(*PHASES, State.SUSPECT):
                self._add(record)
            self._ticking = False
        elif common.neighbours < min(timing.neighbours, common.table.up):
            self._seek()
        elif common.neighbours > timing.neighbours_max:
            self._let_go()
        else:
            self._ticking = False
        if self._ticking:
            common.agenda.at(common.now_ns + timing.view_interval_ns, self._tick)

    def _seek(self) -> None:
        common = self._common
        for record in common.table.some(1, lambda other: other.is_up and other.node not in self._view):
            self._asked = record.node
            urgent = common.neighbours < URGENT
            common.send_to(record, Neighbour(common.me.head, common.me.number(), urgent))

    def _let_go(self) -> None:
        """One of those that are up, at random."""
        common = self._common
        found = [record for node in self._view if (record := common.table.get(node)) is not None and record.is_up]
        if found:
            record = common.dice.choice(found)
            self._drop(record.node)
            common.send_to(record, Disconnect(common.me.head, common.me.number()))

    def _slow_tick(self) -> None:
        """Ask one neighbour whether it still holds us (an answer may have been lost), and mix now and then."""
        common = self._common
        timing = common.timing
        wait_ns = int((0.75 + common.dice.random() / 2) * timing.shuffle_interval_ns)
        common.agenda.at(common.now_ns + wait_ns, self._slow_tick)
        if self._mesh or not self._view:
            return
        self._turn += 1
        node = list(self._view)[self._turn % len(self._view)]
        record = common.table.get(node)
        if self._turn % MIX_EVERY == 0 and common.neighbours >= timing.neighbours:
            self._let_go()
            self._seek()
        elif record is not None and record.is_up:
            common.send_to(record, Neighbour(common.me.head, common.me.number(), False))

    # --- messages ---

    def on_request(self, route: Route, record: Record, request: Neighbour) -> None:
        common = self._common
        held = record.node in self._view
        room = self._mesh or common.neighbours < common.timing.neighbours_max - 1 or request.urgent
        accepted = record.is_up and (held or room)
        if accepted:
            self._add(record)
            if common.neighbours > common.timing.neighbours_max and not self._mesh:
                self._let_go()
        common.answer(route, NeighbourReply(common.me.head, common.me.number(), accepted))

    def on_reply(self, record: Record, reply: NeighbourReply) -> None:
        if not reply.accepted:
            if not self._mesh:
                self._drop(record.node)
        elif record.is_up and (record.node == self._asked or record.node in self._view):
            self._add(record)
        if record.node == self._asked:
            self._asked = None

    def on_disconnect(self, record: Record) -> None:
        if not self._mesh:
            self._drop(record.node)
