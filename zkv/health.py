"""Whether this node lives and whether it serves, as its threads tell it; asked by HTTP and by the service manager.

Owns: the pulse of the loop, the state of the store as last seen, the two verdicts. Must not know: who asks, what a loop or a store does.

*Alive*: the loop turned a moment ago and the store's thread is not stuck in one call. *Ready*: alive and nothing keeps it from serving.
The loop writes, other threads read; every field is replaced whole, so no lock is needed, and a loop that hangs cannot hold up who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

NS_PER_S: Final = 1_000_000_000
#: a loop that did not turn for so long hangs: its longest poll is a fraction of that
LOOP_SILENT_NS_MAX: Final = 5 * NS_PER_S
#: one file call: slow disks take seconds now and then, and a store that takes longer is no use to anybody who waits
STORE_BUSY_NS_MAX: Final = 10 * NS_PER_S
#: reading the log at the start beats nowhere inside; after so long it hangs
OPENING_NS_MAX: Final = 600 * NS_PER_S
OPENING: Final = "opening: reading the log"


class Health:
    def __init__(self, clock: Callable[[], int]) -> None:
        """clock: monotonic nanoseconds."""
        self._clock = clock
        self._began_ns = clock()
        self._beat_ns = 0
        self._store_busy_since_ns: Callable[[], int] = lambda: 0
        self.not_ready: list[str] = [OPENING]
        #: set whenever `not_ready` changed
        self.changed = threading.Event()

    # --- told by the node ---

    def watch_store(self, busy_since_ns: Callable[[], int]) -> None:
        """busy_since_ns: when the call began that the store's thread is in, 0 for none."""
        self._store_busy_since_ns = busy_since_ns

    def beat(self, now_ns: int) -> None:
        """The loop turns."""
        self._beat_ns = now_ns

    def set_not_ready(self, reasons: list[str]) -> None:
        if reasons != self.not_ready:
            self.not_ready = reasons
            self.changed.set()

    # --- asked by others ---

    def dead(self, within_ns: int | None = None) -> list[str]:
        """Why this node does not live, as sentences; empty if it does. within_ns: stricter than the usual limits."""
        now_ns = self._clock()
        loop_max = min(LOOP_SILENT_NS_MAX, within_ns or LOOP_SILENT_NS_MAX)
        store_max = min(STORE_BUSY_NS_MAX, within_ns or STORE_BUSY_NS_MAX)
        reasons = []
        if not self._beat_ns:
            if now_ns - self._began_ns > OPENING_NS_MAX:
                reasons.append(f"opening has taken {_seconds(now_ns - self._began_ns)}")
        elif now_ns - self._beat_ns > loop_max:
            reasons.append(f"the loop has not turned for {_seconds(now_ns - self._beat_ns)}")
        busy_since_ns = self._store_busy_since_ns()
        if busy_since_ns and now_ns - busy_since_ns > store_max:
            reasons.append(f"the store has been in one call for {_seconds(now_ns - busy_since_ns)}")
        return reasons

    def unready(self) -> list[str]:
        """Why this node does not serve; empty if it does."""
        return self.dead() + self.not_ready


def _seconds(ns: int) -> str:
    return f"{ns / NS_PER_S:.1f} s"
