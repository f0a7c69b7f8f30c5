"""What happened, for operators: a bounded log of events and plain counters.

Owns: `Journal`. Must not know: who shows it.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, NamedTuple

from zkv.core.membership.states import State
from zkv.counters import NS_PER_S, Family, Histogram, Sample, counter, gauge, histogram
from zkv.ids import NodeId

EVENTS_MAX: Final = 1_000
_ACCUSERS_BOUNDS: Final = (1.0, 2.0, 3.0, 4.0, 8.0)


class Entry(NamedTuple):
    at_ns: int
    node: NodeId
    what: str
    text: str


class Journal:
    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=EVENTS_MAX)
        #: by cause
        self.suspected: Counter[str] = Counter()
        self.refuted: Counter[str] = Counter()
        self.convicted: Counter[str] = Counter()
        #: frames and claims that changed nothing, by reason
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.rtt = Histogram()
        self.accusers = Histogram(_ACCUSERS_BOUNDS)
        self.rumours = 0
        self.duplicates = 0
        self.syncs = 0
        self.records_synced = 0
        self.pauses = 0
        self.hints = 0
        self.hints_over = 0
        self.freezes = 0
        self.rejoins = 0
        self.self_refutations = 0

    def note(self, at_ns: int, node: NodeId, what: str, text: str) -> None:
        self.entries.append(Entry(at_ns, node, what, text))

    def families(self, *, score: int, neighbours: int, states: dict[State, int]) -> list[Family]:
        """Everything that is counted here, under the names of the metrics page."""
        return [
            gauge("zkv_membership_health_score", "0 is well; each point slows probing by one interval.", score),
            gauge("zkv_membership_neighbours", "Members that repeat rumours to us.", neighbours),
            Family(
                "zkv_membership_members",
                "gauge",
                "Members by state, as this node sees them.",
                ("state",),
                [Sample((state.word,), states.get(state, 0)) for state in State],
            ),
            histogram("zkv_membership_probe_rtt_seconds", "Round trips of direct pings.", self.rtt),
            histogram("zkv_membership_accusers", "Accusers that were known at a verdict.", self.accusers),
            _labelled("zkv_membership_suspect_total", "Suspicions begun.", "cause", self.suspected),
            _labelled("zkv_membership_refute_total", "Suspicions and verdicts refuted.", "was", self.refuted),
            _labelled("zkv_membership_dead_total", "Verdicts.", "cause", self.convicted),
            _labelled("zkv_membership_dropped_total", "What came and changed nothing.", "reason", self.dropped),
            _labelled(
                "zkv_membership_refused_total", "Members not taken in, here or elsewhere.", "reason", self.refused
            ),
            _labelled("zkv_membership_sent_total", "Messages sent.", "kind", self.sent),
            counter("zkv_membership_rumours_total", "Rumours heard.", self.rumours),
            counter("zkv_membership_rumour_duplicates_total", "Rumours heard that were known.", self.duplicates),
            counter("zkv_membership_syncs_total", "Digests compared.", self.syncs),
            counter("zkv_membership_sync_records_total", "Records that came by SYNC.", self.records_synced),
            counter(
                "zkv_membership_pause_guard_total", "Times this process was found to have stood still.", self.pauses
            ),
            counter("zkv_membership_hint_total", "Evidence of the transport acted on.", self.hints),
            counter("zkv_membership_hint_over_total", "Evidence beyond what is acted on in a second.", self.hints_over),
            counter(
                "zkv_membership_freeze_total", "Times that too many were suspected at once to believe it.", self.freezes
            ),
            counter("zkv_membership_rejoin_total", "Tries to reach dead members.", self.rejoins),
            counter(
                "zkv_membership_self_refute_total",
                "Times this node refuted what was said of it.",
                self.self_refutations,
            ),
        ]

    def verdict(self, cause: str, accusers: int) -> None:
        self.convicted[cause] += 1
        self.accusers.observe(accusers * NS_PER_S)


def _labelled(name: str, text: str, label: str, counts: Counter[str]) -> Family:
    return Family(name, "counter", text, (label,), [Sample((key,), n) for key, n in sorted(counts.items())])
