"""How long things take: every interval and limit of the membership core, and the agenda of what is due.

Owns: the figures with their reasons, deadlines in order. Must not know: what is done when one is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, log2, log10
from typing import Any, Final

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
HOUR: Final = 3_600 * SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Defaults are for one data center."""

    probe_interval_ns: int = SECOND
    #: before a round trip to a member was measured; then srtt + 4 rttvar between the two bounds
    probe_timeout_ns: int = 300 * MS
    probe_timeout_min_ns: int = 100 * MS
    probe_timeout_max_ns: int = 500 * MS
    #: helpers asked when a direct ping is late
    indirect: int = 3
    #: everybody probes everybody, and is everybody's neighbour, up to this many
    mesh_max: int = 8
    suspicion_min_ns: int = 3 * SECOND
    #: times log10(n) probe intervals, where that is more
    suspicion_log_factor: float = 1.5
    suspicion_max_factor: int = 16
    confirmations: int = 3
    #: below, one accuser is enough and nobody waits for confirmations
    accusers_from: int = 4
    confirmations_from: int = 5
    health_max: int = 7
    coalesce_ns: int = 10 * MS
    gossip_interval_ns: int = 200 * MS
    fan_out: int = 3
    #: transmissions of a rumour on pings and acks: times ceil(log10(n + 1)); `_alone` while fewer than three neighbours repeat it
    retransmit: int = 2
    retransmit_alone: int = 4
    neighbours: int = 6
    neighbours_max: int = 8
    view_interval_ns: int = SECOND
    #: one neighbour is asked whether it still is one, and now and then changed for another
    shuffle_interval_ns: int = 10 * SECOND
    sync_interval_ns: int = 30 * SECOND
    sync_timeout_ns: int = 5 * SECOND
    #: answered in a second: each costs about a millisecond at 1,000 members
    sync_incoming: int = 16
    rejoin_interval_ns: int = 2 * SECOND
    rejoin_floor_ns: int = 10 * SECOND
    seed_interval_ns: int = 10 * SECOND
    hello_min_ns: int = SECOND
    hello_max_ns: int = 30 * SECOND
    #: no verdict so long after a start: what a fresh node has not heard of may still answer
    grace_ns: int = 10 * SECOND
    dead_kept_ns: int = 24 * HOUR
    left_kept_ns: int = 72 * HOUR
    reap_interval_ns: int = 60 * SECOND
    freeze_share: float = 0.2
    freeze_floor: int = 3
    freeze_window_ns: int = 60 * SECOND
    freeze_ns: int = 60 * SECOND
    flap_window_ns: int = 600 * SECOND
    flap_limit: int = 5
    hint_jitter_ns: int = 300 * MS
    hints_s: int = 5
    #: helpers have so long where the transport says that a connection is gone
    hint_wait_ns: int = 300 * MS
    leave_stay_ns: int = SECOND
    leave_acks: int = 3
    leave_max_ns: int = 5 * SECOND
    persist_delay_ns: int = SECOND

    def suspicion_bounds_ns(self, members: int, damping: int) -> tuple[int, int]:
        """Shortest and longest wait before a verdict. damping: 1, 2 or 4 for a member that keeps refuting."""
        grown = int(self.suspicion_log_factor * log10(max(members, 1)) * self.probe_interval_ns)
        shortest = max(self.suspicion_min_ns, grown) * damping
        return shortest, shortest * self.suspicion_max_factor

    def retransmits(self, members: int, neighbours: int) -> int:
        factor = self.retransmit if neighbours >= 3 else self.retransmit_alone
        return factor * ceil(log10(members + 1))

    def sync_every_ns(self, members: int) -> int:
        """Above 32 members rarer, so that the sum over the cluster grows no faster than it does."""
        return self.sync_interval_ns * (1 if members <= 32 else ceil(log2(members) - 5) + 1)


class Agenda:
    """What is due when. Nothing is cancelled: who is called looks whether it still matters."""

    __slots__ = ("_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, due_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (due_ns, self._number, call, arguments))

    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def run(self, now_ns: int) -> None:
        """All that is due, in order; what is added for now or earlier waits for the next time."""
        last = self._number
        heap = self._heap
        while heap and heap[0][0] <= now_ns and heap[0][1] <= last:
            _, _, call, arguments = heappop(heap)
            call(*arguments)

    def shift(self, gap_ns: int) -> None:
        """Everything later by the time that passed without us."""
        self._heap = [(due_ns + gap_ns, number, call, arguments) for due_ns, number, call, arguments in self._heap]
