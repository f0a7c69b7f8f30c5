"""The membership core: routes what happens to its rules and collects what they order. No rule of its own but who may speak.

Owns: the checks that every message passes. Must not know: what any rule decides.
Events in, effects out; `now_ns` (monotonic) is an argument, dice a `random.Random` given at the start; `next_wakeup_ns` says when to come back
unasked. Whoever drives it hands over all that has arrived before `Woke`: messages before timers, always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from zkv.core.events import Route
from zkv.core.membership import happenings as h
from zkv.core.membership import messages as m
from zkv.core.membership.claims import Claims
from zkv.core.membership.common import Common, Myself
from zkv.core.membership.identity import Identity
from zkv.core.membership.joining import Joining
from zkv.core.membership.keeping import Keeping
from zkv.core.membership.neighbours import Neighbours
from zkv.core.membership.probing import Probing
from zkv.core.membership.states import UP_MAX, State, generation_of
from zkv.core.membership.syncing import Syncing
from zkv.core.membership.table import Record
from zkv.core.membership.timing import SECOND, Timing
from zkv.core.membership.verdicts import Verdicts
from zkv.counters import Family
from zkv.ids import NodeId

if TYPE_CHECKING:
    import random

#: answers to those who do not belong, in a second
REJECTS_S: Final = 10


class Membership:
    def __init__(
        self,
        *,
        node: NodeId,
        generation: int,
        cluster: int,
        profile: m.Profile,
        now_ns: int,
        dice: random.Random,
        timing: Timing | None = None,
        seeds: Sequence[str] = (),
        members: Iterable[h.Remembered] = (),
        assumed: Iterable[h.Remembered] = (),
    ) -> None:
        """cluster: first eight bytes of the cluster id, 0 = joins one by way of `seeds`. members: remembered from an earlier life.

        assumed: taken for up until they are found silent; those that a cluster is born with.
        """
        state = State.ALIVE if cluster else State.JOINING
        common = Common(Myself(node, generation, cluster, state, profile), timing or Timing(), dice, now_ns)
        self.common = common
        self.verdicts = Verdicts(common)
        self.claims = Claims(common, self.verdicts)
        self.keeping = Keeping(common, self.claims)
        self.identity = Identity(common)
        self.probing = Probing(common, self.verdicts)
        self.neighbours = Neighbours(common)
        self.syncing = Syncing(common)
        self.joining = Joining(common, self.claims, seeds)
        self.verdicts.look = self.probing.look
        self.claims.contact = self.joining.contact = self.probing.contact
        self.claims.greet = self.joining.greet
        self.claims.wish_sync = self.joining.wish_sync = self.syncing.wish
        self.syncing.on_completed = self.joining.synced
        self.joining.on_joined = self._on_joined
        self._reject_second = 0
        self._rejects = 0
        self.keeping.take_over(assumed, up=True)
        self.keeping.take_over(members, up=False)
        for rule in (self.probing, self.neighbours, self.syncing, self.joining, self.keeping):
            rule.start()
        self._events: dict[type, Callable[[Any], None]] = {
            h.Arrived: self._on_arrived,
            h.Overheard: self._on_overheard,
            h.Woke: lambda event: common.agenda.run(common.now_ns),
            h.LinkLost: lambda event: self._on_evidence(event.node, "reset"),
            h.HeartbeatsMissed: lambda event: self._on_evidence(event.node, "heartbeats"),
            h.Suspended: lambda event: self._paused(event.gap_ns),
            h.PhaseChanged: lambda event: self.identity.announce(event.state),
            h.ProfileChanged: lambda event: self.identity.describe(event.profile),
            h.TopologyChanged: self._on_topology,
            h.LoadMeasured: self._on_load,
            h.LeaveOrdered: lambda event: self.identity.leave(),
            h.Drained: lambda event: self.identity.drained(),
            h.MemberRemoved: lambda event: self.keeping.remove(event.node),
            h.GenerationRaised: lambda event: self.identity.on_raised(event.generation),
        }
        #: of a sender that is known
        self._requests: dict[type, Callable[[Route, Record, Any], None]] = {
            m.Hello: lambda route, record, message: self.joining.on_hello(route, message),
            m.Ping: lambda route, record, message: self.probing.on_ping(
                route, message, self.claims.about(record, message.head)
            ),
            m.PingReq: lambda route, record, message: self.probing.on_ping_req(route, message),
            m.SyncDigest: lambda route, record, message: self.syncing.on_digest(route, message),
            m.Neighbour: self.neighbours.on_request,
        }
        self._others: dict[type, Callable[[Record, Any], None]] = {
            m.Welcome: lambda record, message: self.joining.on_welcome(message),
            m.Reject: self._on_reject,
            m.Ack: self._on_ack,
            m.Nack: lambda record, message: self.probing.on_nack(message),
            m.Gossip: lambda record, message: None,  # its rumours were heard
            m.SyncDelta: self._on_delta,
            m.Busy: lambda record, message: self.syncing.on_busy(message),
            m.NeighbourReply: self.neighbours.on_reply,
            m.Disconnect: lambda record, message: self.neighbours.on_disconnect(record),
        }

    def handle(self, event: h.Event, now_ns: int) -> list[h.Effect]:
        common = self.common
        common.now_ns = now_ns
        gap_ns = common.health.gap_ns(now_ns)
        if gap_ns:
            self._paused(gap_ns)
        self._events[type(event)](event)
        effects, common.effects = common.effects, []
        return effects

    def next_wakeup_ns(self) -> int:
        """When `Woke` is due next."""
        due_ns = self.common.agenda.next_ns()
        assert due_ns is not None  # the tick of the probes is always there
        return due_ns

    # --- what others of this node ask ---

    def state_of(self, node: NodeId) -> State | None:
        if node == self.common.me.node:
            return self.common.me.state
        record = self.common.table.get(node)
        return None if record is None else record.state

    def is_up(self, node: NodeId) -> bool:
        """Whether work may be given to it now. Suspects are routed around at once."""
        state = self.state_of(node)
        return state is not None and state <= UP_MAX

    def accusers_of(self, node: NodeId) -> tuple[NodeId, ...]:
        record = self.common.table.get(node)
        if record is None:
            return ()
        return record.accusers if record.suspicion is None else record.suspicion.named

    def families(self) -> list[Family]:
        common = self.common
        score, neighbours = common.health.score, common.neighbours
        return common.journal.families(score=score, neighbours=neighbours, states=common.table.counts)

    # --- messages ---

    def _on_arrived(self, event: h.Arrived) -> None:
        message, route = event.message, event.route
        head = message.head
        if not self._belongs(message, route):
            return
        common = self.common
        if head.sender == common.me.node:
            self.identity.on_twin(route, message)
            return
        record = common.table.get(head.sender)
        if record is None:
            self._on_stranger(message, route)
            return
        if not self._admit(record, message, route):
            return
        handler = self._requests.get(type(message))
        if handler is None:
            self._others[type(message)](record, message)
        elif route is not None:
            handler(route, record, message)
        if record.state in (State.SUSPECT, State.DEAD) and not isinstance(message, m.Ping):
            self.claims.ask(record)

    def _on_overheard(self, event: h.Overheard) -> None:
        message = event.message
        if message.head.sender != event.neighbour:
            self.common.journal.dropped["sender is not the socket's"] += 1
            return
        record = self.common.table.get(event.neighbour)
        if record is None or not self._belongs(message, None) or not self._admit(record, message, None):
            return
        if not record.linked().window.follows(message.sequence):
            self.syncing.wish(record.node)

    def _belongs(self, message: m.Message, route: Route | None) -> bool:
        """Same cluster; or one of the two does not belong to any yet, and the message is of those that end this."""
        ours, theirs = self.common.me.cluster, message.head.cluster
        if ours == theirs != 0:
            return True
        if ours == 0 or theirs == 0:
            if isinstance(message, m.Hello | m.Welcome | m.Reject):
                return True
            self.common.journal.dropped["no cluster"] += 1
            return False
        self.common.journal.dropped["foreign cluster"] += 1
        if isinstance(message, m.Reject):
            self.identity.on_reject(message)
        if route is not None:
            name = self.common.me.profile.name
            self._reject(route, m.Reason.CLUSTER, f"node {name!r} belongs to another cluster")
        return False

    def _admit(self, record: Record, message: m.Message, route: Route | None) -> bool:
        """New, and of a member that may speak: then the head and all rumours are heard."""
        head = message.head
        dropped = self.common.journal.dropped
        if record.state is State.REMOVED:
            dropped["removed"] += 1
            if route is not None:
                self._reject(route, m.Reason.REMOVED, f"node {record.profile.name!r} was removed from the cluster")
            return False
        if not record.linked().window.takes(generation_of(head.incarnation), message.number):
            dropped["repeated"] += 1
            if isinstance(message, m.Ping) and route is not None and head.incarnation < record.incarnation:
                self.probing.outdated(route, message, record)
            return False
        self.claims.direct(record, head)
        match message:
            case m.Ping() | m.Ack() | m.PingReq() | m.Gossip():
                self._hear(message.rumours, record.node)
            case _:
                pass
        return True

    def _hear(self, rumours: list[m.Rumour], teller: NodeId, *, synced: bool = False) -> None:
        me = self.common.me.node
        for rumour in rumours:
            if rumour.node == me:
                self.identity.accused(rumour)
            else:
                self.claims.hear(rumour, teller, synced=synced)

    def _on_stranger(self, message: m.Message, route: Route | None) -> None:
        common = self.common
        match message:
            case m.Hello() if route is not None:
                self.joining.on_hello(route, message)
            case m.Welcome():
                self.joining.on_welcome(message)
            case m.Reject():
                self.identity.on_reject(message)
            case _:
                common.journal.dropped["stranger"] += 1
                if route is not None:
                    if isinstance(message, m.Ping):
                        self.probing.on_ping(route, message, ())
                    self._reject(route, m.Reason.UNKNOWN, f"node {common.me.profile.name!r} does not know you")

    def _reject(self, route: Route, reason: m.Reason, text: str) -> None:
        common = self.common
        second = common.now_ns // SECOND
        if second != self._reject_second:
            self._reject_second, self._rejects = second, 0
        self._rejects += 1
        common.journal.refused[reason.word] += 1
        if self._rejects <= REJECTS_S:
            common.answer(route, m.Reject(common.me.head, common.me.number(), reason, text, common.me.profile.instance))

    def _on_reject(self, record: Record, reject: m.Reject) -> None:
        if reject.reason is m.Reason.UNKNOWN:
            self.joining.hello(record)
        else:
            self.identity.on_reject(reject)

    def _on_ack(self, record: Record, ack: m.Ack) -> None:
        self.identity.heard_by_another()
        self.probing.on_ack(ack)

    def _on_delta(self, record: Record, delta: m.SyncDelta) -> None:
        self._hear(self.syncing.on_delta(record, delta), record.node, synced=True)

    # --- everything else ---

    def _on_evidence(self, node: NodeId, cause: str) -> None:
        record = self.common.table.get(node)
        if record is not None:
            self.probing.on_evidence(record, cause, near=self.neighbours.holds(node))

    def _paused(self, gap_ns: int) -> None:
        common = self.common
        common.journal.pauses += 1
        common.journal.note(
            common.now_ns, common.me.node, "paused", f"this process stood still for {gap_ns / SECOND:.1f} s"
        )
        common.health.paused(gap_ns)
        common.agenda.shift(gap_ns)
        self.probing.void()
        self.verdicts.shift(gap_ns)

    def _on_joined(self) -> None:
        if self.common.me.state is State.JOINING:
            self.identity.announce(State.ALIVE)

    def _on_topology(self, event: h.TopologyChanged) -> None:
        me = self.common.me
        me.epoch, me.topology_hash = event.epoch, event.topology_hash
        me.changed()
        self.keeping.owners = event.owners

    def _on_load(self, event: h.LoadMeasured) -> None:
        self.common.me.load = event.load
