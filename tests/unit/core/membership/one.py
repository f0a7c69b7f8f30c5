"""One membership core with a hand on everything it hears."""

from __future__ import annotations

import random
from typing import Any, TypeVar

from zkv.core.events import Route
from zkv.core.membership import happenings as h
from zkv.core.membership import messages as m
from zkv.core.membership.membership import Membership
from zkv.core.membership.states import State, incarnation_of
from zkv.core.membership.timing import SECOND
from zkv.ids import NodeId

CLUSTER = 7
ROUTE = Route(b"them", True)
T = TypeVar("T")


def profile(index: int, instance: int = 0) -> m.Profile:
    return m.Profile(
        f"n{index}", f"10.0.0.{index}:7401", f"10.0.0.{index}:7402", instance or 1000 + index, host=f"n{index}"
    )


class One:
    """Node 1 of `count`. Messages of the others are made by `head` and numbered as they would."""

    def __init__(self, count: int, **options: Any) -> None:
        self.now_ns = 1_000 * SECOND
        known = [h.Remembered(NodeId(i), incarnation_of(1), State.ALIVE, profile(i)) for i in range(2, count + 1)]
        given: dict[str, Any] = {"generation": 1, "cluster": CLUSTER, "assumed": known, "profile": profile(1)} | options
        self.core = Membership(node=NodeId(1), now_ns=self.now_ns, dice=random.Random(1), **given)
        self.number = 0
        self.effects: list[h.Effect] = []
        #: what it orders at its start
        self.started = self.core.handle(h.Woke(), self.now_ns)

    def handle(self, event: h.Event) -> list[h.Effect]:
        effects = self.core.handle(event, self.now_ns)
        self.effects += effects
        return effects

    def head(self, sender: int, incarnation: int | None = None, cluster: int = CLUSTER, **options: Any) -> m.Head:
        said = incarnation_of(1) if incarnation is None else incarnation
        return m.Head(cluster, NodeId(sender), said, options.pop("state", State.ALIVE), **options)

    def next(self) -> int:
        self.number += 1
        return self.number

    def arrives(self, message: m.Message, *, answer: bool = False) -> list[h.Effect]:
        return self.handle(h.Arrived(message, None if answer else ROUTE))

    def gossip(self, sender: int, *rumours: m.Rumour, incarnation: int | None = None) -> list[h.Effect]:
        return self.arrives(m.Gossip(self.head(sender, incarnation), self.next(), 0, list(rumours)))

    def run_s(self, seconds: float, *, deaf: set[int] | None = None, helping: bool = True) -> list[h.Effect]:
        """Time passes; every ping is answered at once but those to `deaf`. helping: others answer a PingReq with a Nack in time."""
        end_ns = self.now_ns + int(seconds * SECOND)
        collected: list[h.Effect] = []
        while self.core.next_wakeup_ns() <= end_ns:
            self.now_ns = max(self.now_ns, self.core.next_wakeup_ns())
            effects = self.handle(h.Woke())
            collected += effects
            for effect in effects:
                if isinstance(effect, h.Send) and effect.node is not None:
                    heard = int(effect.node) not in (deaf or set())
                    collected += self._answered(int(effect.node), effect.message, heard, helping)
        self.now_ns = end_ns
        return collected

    def _answered(self, node: int, message: m.Message, heard: bool, helping: bool) -> list[h.Effect]:
        head = self.head(node, self.incarnation(node))
        if isinstance(message, m.Ping) and heard:
            return self.arrives(
                m.Ack(head, self.next(), message.seq, head.sender, head.incarnation, m.Load()), answer=True
            )
        if isinstance(message, m.PingReq) and helping:
            return self.arrives(m.Nack(head, self.next(), message.seq), answer=True)
        return []

    def incarnation(self, node: int) -> int:
        record = self.core.common.table.get(NodeId(node))
        assert record is not None
        return record.incarnation

    def own_state(self) -> State:
        return self.core.common.me.state

    def state(self, node: int) -> State | None:
        return self.core.state_of(NodeId(node))


def suspect(node: int, *accusers: int, incarnation: int | None = None) -> m.Rumour:
    said = incarnation_of(1) if incarnation is None else incarnation
    return m.Rumour(NodeId(node), said, State.SUSPECT, tuple(NodeId(n) for n in accusers))


def dead(node: int, *accusers: int, incarnation: int | None = None) -> m.Rumour:
    said = incarnation_of(1) if incarnation is None else incarnation
    return m.Rumour(NodeId(node), said, State.DEAD, tuple(NodeId(n) for n in accusers))


def alive(node: int, incarnation: int, instance: int = 0) -> m.Rumour:
    return m.Rumour(NodeId(node), incarnation, State.ALIVE, (), profile(node, instance))


def of(effects: list[h.Effect], kind: type[T]) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: list[h.Effect], kind: type[T]) -> list[T]:
    """Messages of this kind, sent or answered."""
    return [e.message for e in effects if isinstance(e, h.Send | h.Answer | h.Publish) and isinstance(e.message, kind)]
