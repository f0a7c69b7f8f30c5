"""Virtual time and the network between members: the real membership core, up to thousands of them in one process.

Owns: the heap of events, links, losses, cuts, pauses, who runs. Must not know: what is measured (trials).

Everything is a function of the seed: one heap, ties broken by order. Links are TCP as gossip sees it: a lost packet is a delay of 0.2, 0.4, 0.8 s ...; what is
sent over a cut is gone. Members have infinite processors.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, ClassVar, Final

import xxhash

from zkv.codec import gossip
from zkv.core.effects import Note
from zkv.core.events import Route
from zkv.core.membership import happenings as h
from zkv.core.membership.membership import Membership
from zkv.core.membership.messages import Gossip, Message, Profile
from zkv.core.membership.states import State
from zkv.core.membership.timing import MS, SECOND, Timing
from zkv.ids import NodeId

START_NS: Final = 1_000 * SECOND
CLUSTER: Final = 7
_DELAY_NS: Final = (300_000, 1_500_000)
#: an interval of 500 ms and a time-out of 1,500
_MISSED_NS: Final = (1_500 * MS, 2_000 * MS)
#: what is sent to a process that stands still waits in its pipes for so long; then the others have closed their connections
_PIPE_NS: Final = 2_000 * MS
_RESEND_NS: Final = 200 * MS
_RESENDS_MAX: Final = 6


class SimMember:
    """One process. core None: it is not running."""

    __slots__ = (
        "address",
        "backlog",
        "core",
        "departed",
        "generation",
        "halted",
        "index",
        "kept",
        "name",
        "node",
        "paused",
        "paused_ns",
        "subscribed",
        "wake_ns",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.node = NodeId(xxhash.xxh3_64_intdigest(index.to_bytes(4, "big")))  # as wide as real ones
        self.name = f"n{index}"
        self.address = f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}:7401"
        self.generation = 1
        self.core: Membership | None = None
        self.paused = False
        self.paused_ns = 0
        self.backlog: list[h.Event] = []
        self.wake_ns = 0
        #: whose rumours it gets, and the address where
        self.subscribed: dict[NodeId, str] = {}
        self.kept: tuple[h.Remembered, ...] = ()
        self.halted = ""
        self.departed = False

    def profile(self) -> Profile:
        gossip = self.address.rpartition(":")[0] + ":7402"
        instance = self.generation << 20 | self.index
        return Profile(self.name, self.address, gossip, instance, host=self.name, rack="r1", dc="eu")


class World:
    def __init__(
        self,
        count: int,
        seed: int,
        *,
        timing: Timing | None = None,
        loss: float = 0.0,
        resets: bool = False,
        heartbeats: bool = True,
        pubsub: bool = True,
        coded: bool = False,
        make: Callable[..., Membership] = Membership,
    ) -> None:
        """resets: a connection that breaks or is refused is told to those at its other end. heartbeats: neighbours notice silence. coded: messages cross the codec, and bytes are counted."""
        self.dice = random.Random(f"members {seed}")
        self.now_ns = START_NS
        self.timing = timing or Timing()
        self.loss = loss
        self.resets = resets
        self._heartbeats = heartbeats
        self.pubsub = pubsub
        self._coded = coded
        self._make = make
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.events = 0
        self.members = [SimMember(index) for index in range(count)]
        self._index_of = {member.node: member.index for member in self.members}
        self._at_address: dict[str, SimMember] = {}
        #: gossip address -> who subscribed to it
        self._subscribers: dict[str, dict[int, None]] = {}
        #: member -> who sent to it, when last
        self._linked: list[dict[int, int]] = [{} for _ in range(count)]
        self._side = [0] * count
        self.one_way: set[tuple[int, int]] = set()
        self.messages = 0
        self.bytes = 0
        self.kinds: Counter[str] = Counter()
        self.watch: list[Callable[[SimMember, h.StateChanged], None]] = []

    # --- time ---

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (when_ns, self._number, call, arguments))

    def after_s(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now_ns + int(seconds * SECOND), call, *arguments)

    def run_s(self, seconds: float, done: Callable[[], bool] | None = None, *, ask_every_ms: int = 50) -> bool:
        """So long, or until `done`; whether it was done."""
        end_ns = self.now_ns + int(seconds * SECOND)
        ask_ns = self.now_ns
        heap = self._heap
        while heap and heap[0][0] <= end_ns:
            if done is not None and self.now_ns >= ask_ns:
                if done():
                    return True
                ask_ns = self.now_ns + ask_every_ms * MS
            when_ns, _, call, arguments = heappop(heap)
            self.now_ns = when_ns
            self.events += 1
            call(*arguments)
        self.now_ns = end_ns
        return done is not None and done()

    # --- processes ---

    def found(self) -> None:
        """All members begin together and know of each other, as those that a cluster is born with."""
        known = [h.Remembered(m.node, 1 << 32, State.ALIVE, m.profile()) for m in self.members]
        for member in self.members:
            self.start(member, assumed=known)

    def start(self, member: SimMember, *, cluster: int = CLUSTER, **options: Any) -> None:
        member.core = self._make(
            node=member.node,
            generation=member.generation,
            cluster=cluster,
            profile=member.profile(),
            now_ns=self.now_ns,
            dice=random.Random(self.dice.getrandbits(64)),
            timing=self.timing,
            **options,
        )
        member.paused, member.backlog, member.departed, member.halted = False, [], False, ""
        self._at_address[member.address] = member
        self._wake_at(member)

    def crash(self, member: SimMember) -> None:
        """The process is gone; those connected with it see a reset, if the world has them."""
        member.core = None
        self._at_address.pop(member.address, None)
        self._silence(member)
        for address in member.subscribed.values():
            self._subscribers[address].pop(member.index, None)
        member.subscribed.clear()
        linked = self._linked[member.index] | dict.fromkeys(
            self._subscribers.get(self._gossip(member), ()), self.now_ns
        )
        self._linked[member.index] = {}
        if self.resets:
            for index, last_ns in linked.items():
                if last_ns > self.now_ns - 600 * SECOND and not self.blocked(member.index, index):
                    self._later(index, h.LinkLost(member.node))

    def restart(self, member: SimMember, *, moved: bool = False, wiped: bool = False, **options: Any) -> None:
        """A new life of the same node. moved: at another address. wiped: it remembers nobody."""
        assert member.core is None
        member.generation += 1
        if moved:
            host, _, port = member.address.rpartition(":")
            member.address = f"{host}:{int(port) + 10}"
        self.start(member, **(options if wiped else {"members": member.kept, **options}))

    def pause(self, member: SimMember) -> None:
        member.paused = True
        member.paused_ns = self.now_ns
        self._silence(member)

    def resume(self, member: SimMember) -> None:
        """What arrived in the meantime is there; the process handles it first, then its timers."""
        if not member.paused:
            return
        member.paused = False
        backlog, member.backlog = member.backlog, []
        for event in backlog:
            self._handle(member, event)
        self._handle(member, h.Woke())

    # --- network ---

    def isolate(self, member: SimMember, side: int) -> None:
        """Members on different sides do not reach each other."""
        self._side[member.index] = side
        self._silence(member)

    def _silence(self, member: SimMember) -> None:
        """Its neighbours, and it, miss each other's heartbeats after their time-out, where there still is silence then."""
        if not self._heartbeats:
            return
        low, high = _MISSED_NS
        near = dict.fromkeys(self._subscribers.get(self._gossip(member), ()))
        near |= {i: None for m in member.subscribed if (i := self._index_of.get(m)) is not None}
        for index in near:
            for viewer, silent in ((self.members[index], member), (member, self.members[index])):
                at_ns = self.now_ns + low + int(self.dice.random() * (high - low))
                self.at(at_ns, self._missed, viewer, silent, silent.generation)

    def _missed(self, viewer: SimMember, silent: SimMember, generation: int) -> None:
        running = silent.core is not None and silent.generation == generation and not silent.paused
        if not running or self.blocked(silent.index, viewer.index):
            self._deliver(viewer, h.HeartbeatsMissed(silent.node))

    def heal(self) -> None:
        self._side = [0] * len(self.members)
        self.one_way.clear()

    def blocked(self, source: int, target: int) -> bool:
        return self._side[source] != self._side[target] or (bool(self.one_way) and (source, target) in self.one_way)

    def _delay_ns(self) -> int:
        low, high = _DELAY_NS
        delay_ns = low + int(self.dice.random() * (high - low))
        if self.loss:
            resend_ns, tries = _RESEND_NS, 0
            while tries < _RESENDS_MAX and self.dice.random() < self.loss:
                delay_ns += resend_ns
                resend_ns *= 2
                tries += 1
        return delay_ns

    def _later(self, index: int, event: h.Event) -> None:
        self.at(self.now_ns + self._delay_ns(), self._deliver, self.members[index], event)

    def _carry(self, message: Message, copies: int) -> Message:
        self.messages += copies
        self.kinds[type(message).__name__] += copies
        if not self._coded:
            return message
        data = gossip.encode(message)
        self.bytes += copies * len(data)
        return gossip.decode(data)

    def _deliver(self, member: SimMember, event: h.Event) -> None:
        if member.core is None:
            return
        if member.paused:
            if self.now_ns - member.paused_ns < _PIPE_NS:
                member.backlog.append(event)
        else:
            self._handle(member, event)

    def _wake(self, member: SimMember, due_ns: int) -> None:
        if member.wake_ns == due_ns and member.core is not None and not member.paused:
            self._handle(member, h.Woke())

    def _wake_at(self, member: SimMember) -> None:
        assert member.core is not None
        due_ns = member.core.next_wakeup_ns()
        if due_ns != member.wake_ns or due_ns <= self.now_ns:
            member.wake_ns = due_ns
            self.at(max(due_ns, self.now_ns + 1), self._wake, member, due_ns)

    def handle(self, member: SimMember, event: h.Event) -> None:
        """As if it had just happened to this member."""
        self._handle(member, event)

    def _handle(self, member: SimMember, event: h.Event) -> None:
        core = member.core
        if core is None:
            return
        for effect in core.handle(event, self.now_ns):
            self._carriers[type(effect)](self, member, effect)
        if member.core is core:
            self._wake_at(member)

    # --- effects ---

    def _on_send(self, member: SimMember, effect: h.Send) -> None:
        message = self._carry(effect.message, 1)
        target = self._at_address.get(effect.address)
        if target is None:
            if self.resets and effect.node is not None:
                self._later(member.index, h.LinkLost(effect.node))
            return
        if not self.blocked(member.index, target.index):
            self._linked[target.index][member.index] = self.now_ns
            route = Route(member.index.to_bytes(4, "big") + member.generation.to_bytes(4, "big"), True)
            self._later(target.index, h.Arrived(message, route))

    def _on_answer(self, member: SimMember, effect: h.Answer) -> None:
        message = self._carry(effect.message, 1)
        index, generation = int.from_bytes(effect.route.id[:4], "big"), int.from_bytes(effect.route.id[4:], "big")
        target = self.members[index]
        if target.generation == generation and not self.blocked(member.index, index):
            self._later(index, h.Arrived(message, None))

    def _on_publish(self, member: SimMember, effect: h.Publish) -> None:
        subscribers = self._subscribers.get(self._gossip(member), {})
        if not subscribers or not self.pubsub:
            return
        message = self._carry(effect.message, len(subscribers))
        assert isinstance(message, Gossip)
        for index in subscribers:
            if not self.blocked(member.index, index):
                self._later(index, h.Overheard(member.node, message))

    def _on_subscribe(self, member: SimMember, effect: h.Subscribe) -> None:
        member.subscribed[effect.node] = effect.address
        self._subscribers.setdefault(effect.address, {})[member.index] = None

    def _on_unsubscribe(self, member: SimMember, effect: h.Unsubscribe) -> None:
        self._subscribers[member.subscribed.pop(effect.node)].pop(member.index, None)

    def _on_changed(self, member: SimMember, effect: h.StateChanged) -> None:
        for watch in self.watch:
            watch(member, effect)

    def _on_persist(self, member: SimMember, effect: h.Persist) -> None:
        member.kept = effect.members

    def _on_raise(self, member: SimMember, effect: h.RaiseGeneration) -> None:
        member.generation = effect.generation
        self.at(self.now_ns + MS, self._deliver, member, h.GenerationRaised(effect.generation))

    def _on_halt(self, member: SimMember, effect: h.Halt) -> None:
        member.halted = effect.reason
        self.crash(member)

    def _on_departed(self, member: SimMember, effect: h.Departed) -> None:
        member.departed = True
        self.crash(member)

    def _ignored(self, member: SimMember, effect: h.Effect) -> None:
        """For the node around the core."""

    def _gossip(self, member: SimMember) -> str:
        core = member.core
        return member.profile().gossip_address if core is None else core.common.me.profile.gossip_address

    _carriers: ClassVar[dict[type, Callable[..., None]]] = {
        h.Send: _on_send,
        h.Answer: _on_answer,
        h.Publish: _on_publish,
        h.Subscribe: _on_subscribe,
        h.Unsubscribe: _on_unsubscribe,
        h.StateChanged: _on_changed,
        h.Persist: _on_persist,
        h.RaiseGeneration: _on_raise,
        h.Halt: _on_halt,
        h.Departed: _on_departed,
        h.Forget: _ignored,
        h.EpochSeen: _ignored,
        Note: _ignored,
    }

    # --- looking ---

    @property
    def running(self) -> list[SimMember]:
        return [member for member in self.members if member.core is not None]

    def state(self, viewer: SimMember, subject: SimMember) -> State | None:
        return None if viewer.core is None else viewer.core.state_of(subject.node)

    def lost(self) -> int:
        """Pairs of running members one of whom holds another address of the other than it has."""
        where = {member.node: member.address for member in self.running}
        return sum(
            record.profile.peer_address != where.get(record.node, record.profile.peer_address)
            for member in self.running
            if member.core is not None
            for record in member.core.common.table.records.values()
        )

    def disagreements(self) -> int:
        """Pairs of running members that do not see each other up."""
        running = self.running
        wanted = {member.node for member in running}
        wrong = 0
        for member in running:
            core = member.core
            assert core is not None
            up = {record.node for record in core.common.table.records.values() if record.is_up}
            wrong += len(wanted) - 1 - len(up & wanted)
        return wrong
