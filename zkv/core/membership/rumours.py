"""What to tell next, and how often.

Owns: the queue of rumours that ride on pings and acks, a bounded number of times each, the least told first. Must not know: what a rumour means.
Source: SWIM 4.1; a new rumour about a member replaces the older one.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Final

from zkv.core.membership.messages import Rumour
from zkv.ids import NodeId

QUEUE_MAX: Final = 4_096
#: rumours on one ping or ack
PIGGYBACK_MAX: Final = 8


class _Told:
    __slots__ = ("number", "rumour", "times")

    def __init__(self, number: int, rumour: Rumour) -> None:
        self.times = 0
        self.number = number
        self.rumour = rumour

    def order(self) -> tuple[int, int]:
        """The least told, among them the newest."""
        return self.times, -self.number


class Rumours:
    __slots__ = ("_number", "_queue")

    def __init__(self) -> None:
        self._queue: dict[NodeId, _Told] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, rumour: Rumour) -> None:
        queue = self._queue
        if rumour.node not in queue and len(queue) >= QUEUE_MAX:
            del queue[max(queue.values(), key=_Told.order).rumour.node]
        self._number += 1
        queue[rumour.node] = _Told(self._number, rumour)

    def drop(self, node: NodeId) -> None:
        self._queue.pop(node, None)

    def take(self, limit: int, count: int = PIGGYBACK_MAX) -> list[Rumour]:
        """The least told, counted as told once more; out of the queue after `limit` times."""
        queue = self._queue
        if not queue:
            return []
        chosen = nsmallest(count, queue.values(), key=_Told.order) if len(queue) > count else list(queue.values())
        for told in chosen:
            told.times += 1
            if told.times >= limit:
                del queue[told.rumour.node]
        return [told.rumour for told in chosen]
