"""What became of requests at this node, and how long they took.

Owns: counts by operation and result, durations. Must not know: how a request is carried out, a clock.

Counted once per request, not per key; durations of the requests that end in one turn are added up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zkv.core.messages import UNKNOWN_STATUSES, Status
from zkv.counters import Family, Histogram, Sample

#: a `part` is what another node forwarded because it holds no replica of these keys
OPERATIONS: Final = ("put", "get", "part")
_OK: Final = {operation: (operation, "ok") for operation in OPERATIONS}
_NO_QUORUM: Final = frozenset({Status.UNAVAILABLE, Status.QUORUM_NOT_MET})


class RequestCounts:
    def __init__(self) -> None:
        self._results: dict[tuple[str, str], int] = {}
        self._shed: dict[str, int] = {}
        self._keys = dict.fromkeys(OPERATIONS, 0)
        self._no_quorum = dict.fromkeys(OPERATIONS, 0)
        self._durations = {operation: Histogram() for operation in OPERATIONS}
        #: (operation, when it arrived) -> how many ended since the last `observe`
        self._ended: dict[tuple[str, int], int] = {}

    def shed(self, reason: str) -> None:
        """Refused on arrival as a whole."""
        self._shed[reason] = self._shed.get(reason, 0) + 1

    def ended(self, operation: str, began_ns: int, keys: int, statuses: Sequence[int] | None) -> None:
        """statuses: None when all is well. Unknown: at least one key may or may not have been written."""
        result = "ok"
        if statuses is not None:
            result = "unknown" if operation != "get" and not UNKNOWN_STATUSES.isdisjoint(statuses) else "failed"
            self._no_quorum[operation] += not _NO_QUORUM.isdisjoint(statuses)
        self._results[operation, result] = self._results.get((operation, result), 0) + 1
        self._keys[operation] += keys
        self._ended[operation, began_ns] = self._ended.get((operation, began_ns), 0) + 1

    def at_once(self, operation: str, keys: int) -> None:
        """A request that was answered with all well, without a turn. Its duration is not among those of requests that took one."""
        key = _OK[operation]
        self._results[key] = self._results.get(key, 0) + 1
        self._keys[operation] += keys

    def answered(self, operation: str, keys: int, duration_ns: int) -> None:
        """One that is ok and was answered in the same turn."""
        self.at_once(operation, keys)
        self._durations[operation].observe(duration_ns)

    def observe(self, now_ns: int) -> None:
        """The answers of all that ended were handed to the transport by now."""
        for (operation, began_ns), count in self._ended.items():
            self._durations[operation].observe(now_ns - began_ns, count)
        self._ended.clear()

    def families(self) -> list[Family]:
        operation = ("op",)
        return [
            Family(
                "zkv_requests_total",
                "counter",
                "Requests answered by this node as coordinator; unknown: some key may or may not have been written",
                ("op", "result"),
                [Sample(labels, count) for labels, count in sorted(self._results.items())],
            ),
            Family("zkv_request_keys_total", "counter", "Keys in these requests", operation, _by(self._keys)),
            Family(
                "zkv_quorum_failures_total",
                "counter",
                "Requests of which some key found too few replicas",
                operation,
                _by(self._no_quorum),
            ),
            Family("zkv_shed_total", "counter", "Requests refused on arrival", ("reason",), _by(self._shed)),
            Family(
                "zkv_request_duration_seconds",
                "histogram",
                "From a request read to its answer handed over, of all keys together",
                operation,
                [Sample((name,), durations.snapshot()) for name, durations in self._durations.items()],
            ),
        ]


def _by(counts: dict[str, int]) -> list[Sample]:
    return [Sample((label,), count) for label, count in sorted(counts.items())]
