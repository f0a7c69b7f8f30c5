"""What the rules of one membership core share: who we are, the table, the time of this turn, and the orders collected in it.

Owns: our own head and numbers, the one way in which a record changes its state, what goes out to neighbours together. Must not know: why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zkv.core.effects import Note
from zkv.core.events import Route
from zkv.core.membership.happenings import Answer, Effect, Publish, Send, StateChanged
from zkv.core.membership.health import Health
from zkv.core.membership.journal import Journal
from zkv.core.membership.messages import RUMOURS_MAX, Gossip, Head, Load, Message, Profile, Rumour
from zkv.core.membership.rumours import Rumours
from zkv.core.membership.states import State, generation_of, incarnation_of
from zkv.core.membership.table import Record, Table
from zkv.core.membership.timing import Agenda, Timing
from zkv.ids import NodeId

if TYPE_CHECKING:
    import random


class Myself:
    """This node as it tells others of itself. generation: of this start, durable before anything is said."""

    __slots__ = (
        "_head",
        "_number",
        "cluster",
        "epoch",
        "incarnation",
        "load",
        "node",
        "profile",
        "state",
        "topology_hash",
    )

    def __init__(self, node: NodeId, generation: int, cluster: int, state: State, profile: Profile) -> None:
        self.node = node
        self.incarnation = incarnation_of(generation)
        self.cluster = cluster
        self.state = state
        self.profile = profile
        self.load = Load()
        self.epoch = 0
        self.topology_hash = 0
        self._number = 0
        self._head: Head | None = None

    @property
    def generation(self) -> int:
        return generation_of(self.incarnation)

    @property
    def head(self) -> Head:
        head = self._head
        if head is None:
            head = self._head = Head(
                self.cluster, self.node, self.incarnation, self.state, self.epoch, self.topology_hash
            )
        return head

    def changed(self) -> None:
        """After any of the fields above was set."""
        self._head = None

    def number(self) -> int:
        self._number += 1
        return self._number

    def rumour(self) -> Rumour:
        return Rumour(self.node, self.incarnation, self.state, (), self.profile)


class Common:
    def __init__(self, me: Myself, timing: Timing, dice: random.Random, now_ns: int) -> None:
        self.me = me
        self.timing = timing
        self.dice = dice
        self.now_ns = now_ns
        self.agenda = Agenda()
        self.journal = Journal()
        self.health = Health(timing, now_ns)
        self.table = Table(me.node, dice)
        self.rumours = Rumours()
        self.effects: list[Effect] = []
        #: a higher generation is on its way to the disk: until it is there, nothing is said
        self.muted = False
        #: members that repeat what we publish, and are up
        self.neighbours = 0
        #: told of each change of a record, with the state before (None: it is new)
        self.listeners: list[Callable[[Record, State | None], None]] = []
        #: who is there, or where, is not as it was when it was last remembered
        self.remember: Callable[[], None] = lambda: None
        self._outgoing: dict[NodeId, Rumour] = {}
        self._sequence = 0
        self._gossip_due = False

    # --- sending ---

    def send(self, node: NodeId | None, address: str, message: Message) -> None:
        if not self.muted:
            self.journal.sent[type(message).__name__] += 1
            self.effects.append(Send(node, address, message))

    def send_to(self, record: Record, message: Message) -> None:
        self.send(record.node, record.profile.peer_address, message)

    def answer(self, route: Route, message: Message) -> None:
        if not self.muted:
            self.journal.sent[type(message).__name__] += 1
            self.effects.append(Answer(route, message))

    def note(self, level: str, event: str, text: str) -> None:
        self.effects.append(Note(level, event, text))

    # --- telling ---

    @property
    def retransmits(self) -> int:
        return self.timing.retransmits(self.table.size, self.neighbours)

    def piggyback(self, *first: Rumour) -> list[Rumour]:
        """What rides on a message: `first`, then the least told."""
        taken = self.rumours.take(self.retransmits)
        if not first:
            return taken
        named = {rumour.node for rumour in first}
        return [*first, *(rumour for rumour in taken if rumour.node not in named)]

    def tell(self, rumour: Rumour) -> None:
        """To the neighbours within a few milliseconds, and on what is sent anyway."""
        self.rumours.add(rumour)
        if not self._outgoing:
            due_ns = self.now_ns + int(self.dice.random() * self.timing.coalesce_ns)
            self.agenda.at(due_ns, self._publish)
        self._outgoing[rumour.node] = rumour
        if not self._gossip_due and self.neighbours < 3:
            self._gossip_due = True
            self.agenda.at(self.now_ns + self.timing.gossip_interval_ns, self._gossip)

    def _publish(self) -> None:
        rumours = list(self._outgoing.values())
        self._outgoing.clear()
        if self.muted or not self.neighbours:
            return
        for start in range(0, len(rumours), RUMOURS_MAX):
            self._sequence += 1
            part = rumours[start : start + RUMOURS_MAX]
            self.journal.sent["Gossip"] += 1
            self.effects.append(Publish(Gossip(self.me.head, self.me.number(), self._sequence, part)))

    def _gossip(self) -> None:
        """Where too few neighbours repeat what we say: to some at random, until each rumour was told often enough."""
        self._gossip_due = False
        if self.neighbours >= 3 or not self.rumours:
            return
        for record in self.table.some(self.timing.fan_out, _up):
            rumours = self.rumours.take(self.retransmits, RUMOURS_MAX)
            if rumours:
                self.send_to(record, Gossip(self.me.head, self.me.number(), 0, rumours))
        if self.rumours and self.table.up:
            self._gossip_due = True
            self.agenda.at(self.now_ns + self.timing.gossip_interval_ns, self._gossip)

    # --- changing ---

    def introduce(self, record: Record, cause: str) -> None:
        """A record for a member that was not known."""
        self.table.add(record)
        self._changed(record, None, cause)
        self.remember()

    def change(self, record: Record, state: State, cause: str) -> None:
        """The one place where a record's state changes. A claim that is news is told on by whoever calls."""
        before = record.state
        self.table.set_state(record, state, self.now_ns)
        self._changed(record, before, cause)

    def _changed(self, record: Record, before: State | None, cause: str) -> None:
        if record.state is not before:
            self.effects.append(StateChanged(record.node, before, record.state, cause))
            text = f"{record.profile.name} is {record.state.word} ({cause})"
            self.journal.note(self.now_ns, record.node, record.state.word, text)
        for listener in self.listeners:
            listener(record, before)


def _up(record: Record) -> bool:
    return record.is_up
