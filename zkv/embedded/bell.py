"""How threads that wait hear that something may have changed.

Owns: one condition and its lock, which nobody holds while he works. Must not know: what changed, for whom.
"""

from __future__ import annotations

import threading


class Bell:
    """`count` tells how often it rang: who read it before he looked at things misses nothing that happens after."""

    __slots__ = ("_condition", "count")

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self.count = 0

    def ring(self) -> None:
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_ns: int) -> None:
        """Until `count` is not `seen` any more, or the time is over."""
        with self._condition:
            if self.count == seen and timeout_ns > 0:
                self._condition.wait(timeout_ns / 1e9)
