"""One suspicion: who accuses, and how long the accused has to refute.

Owns: the time-out by number of independent accusers. Must not know: the rest of the cluster.
Source: Lifeguard, LHA-Suspicion: timeout = max(min, max - (max - min) log(C + 1) / log(K + 1)).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log

from zkv.core.membership.messages import ACCUSERS_MAX
from zkv.ids import NodeId


class Suspicion:
    __slots__ = ("_accusers", "_confirmations", "_longest_ns", "_shortest_ns", "cause", "deadline_ns", "started_ns")

    def __init__(
        self, cause: str, now_ns: int, shortest_ns: int, longest_ns: int, confirmations: int, accusers: Iterable[NodeId]
    ) -> None:
        """confirmations: how many further accusers bring the wait down to the shortest; 0 = it is the shortest at once."""
        self.cause = cause
        self.started_ns = now_ns
        self._shortest_ns = shortest_ns
        self._longest_ns = longest_ns
        self._confirmations = confirmations
        self._accusers: dict[NodeId, None] = {}
        self.deadline_ns = now_ns + longest_ns
        self.accuse(accusers)

    @property
    def accusers(self) -> int:
        return len(self._accusers)

    @property
    def named(self) -> tuple[NodeId, ...]:
        return tuple(self._accusers)

    def names(self, node: NodeId) -> bool:
        return node in self._accusers

    def accuse(self, nodes: Iterable[NodeId]) -> bool:
        """Whether one of them is new. More than a few are not counted: they change nothing."""
        before = len(self._accusers)
        for node in nodes:
            if len(self._accusers) < ACCUSERS_MAX:
                self._accusers[node] = None
        if len(self._accusers) == before:
            return False
        self.deadline_ns = self.started_ns + self._timeout_ns()
        return True

    @property
    def settled(self) -> bool:
        """Whether further accusers would shorten nothing."""
        return len(self._accusers) > max(1, self._confirmations)

    def shift(self, gap_ns: int) -> None:
        """Time that passed without us does not count against the accused."""
        self.started_ns += gap_ns
        self.deadline_ns += gap_ns

    def _timeout_ns(self) -> int:
        further = len(self._accusers) - 1
        if not self._confirmations:
            return self._shortest_ns
        share = log(max(further, 0) + 1) / log(self._confirmations + 1)
        return max(self._shortest_ns, int(self._longest_ns - (self._longest_ns - self._shortest_ns) * share))
