"""How far this node may trust its own judgement.

Owns: the local health score, the guard against pauses of our own process, the freeze when too many fall silent at once.
Must not know: members, messages. Source: Lifeguard (arXiv 1707.00788), LHA-Probe; Cassandra's max_local_pause.
"""

from __future__ import annotations

from zkv.core.membership.timing import SECOND, Timing
from zkv.ids import NodeId


class Health:
    def __init__(self, timing: Timing, now_ns: int) -> None:
        self._timing = timing
        #: 0 = well; each point stretches interval and time-outs by one
        self.score = 0
        self._turn_ns = now_ns
        self._no_verdict_until_ns = now_ns + timing.grace_ns
        #: after a pause, until a member that was probed since has answered
        self._unproven = False
        #: members that fell silent lately and have not come back
        self._suspected_ns: dict[NodeId, int] = {}

    @property
    def stretch(self) -> int:
        return self.score + 1

    def add(self, points: int) -> None:
        self.score = min(self._timing.health_max, max(0, self.score + points))

    # --- pauses ---

    def gap_ns(self, now_ns: int) -> int:
        """How long this process stood still before this turn; 0 = it did not. Call once a turn."""
        gap_ns, self._turn_ns = now_ns - self._turn_ns, now_ns
        interval_ns = self._timing.probe_interval_ns  # a turn comes at least so often
        return gap_ns if gap_ns > 3 * interval_ns // 2 + min(SECOND, interval_ns) else 0

    def paused(self, gap_ns: int) -> None:
        self.add(2)
        self._unproven = True
        self._no_verdict_until_ns += gap_ns
        self._suspected_ns = {node: at_ns + gap_ns for node, at_ns in self._suspected_ns.items()}

    def proven(self) -> None:
        """A probe that was begun after the last pause was answered."""
        self._unproven = False

    # --- verdicts ---

    def suspected(self, node: NodeId, now_ns: int, members: int) -> bool:
        """Another member fell silent. Whether that makes too many to believe it: the network or we ourselves are the likelier cause."""
        times, timing = self._suspected_ns, self._timing
        times.pop(node, None)
        times[node] = now_ns
        while times[first := next(iter(times))] < now_ns - timing.freeze_window_ns:
            del times[first]
        if len(times) <= max(timing.freeze_floor, timing.freeze_share * members):
            return False
        times.clear()  # after this freeze it takes as many new ones
        self._no_verdict_until_ns = max(self._no_verdict_until_ns, now_ns + timing.freeze_ns)
        return True

    def revived(self, node: NodeId) -> None:
        self._suspected_ns.pop(node, None)

    def may_convict(self, now_ns: int) -> bool:
        return now_ns >= self._no_verdict_until_ns and not self._unproven

    def convict_at_ns(self, now_ns: int) -> int:
        """When to ask again."""
        return max(self._no_verdict_until_ns, now_ns + self._timing.probe_interval_ns)
