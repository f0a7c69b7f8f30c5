"""Hybrid logical clock: stamps that follow wall time and never go back.

Owns: the stamp arithmetic. Must not know: any real clock; `wall_ms` is an argument.
A stamp is milliseconds << 16 | counter. Source: Kulkarni, Demirbas et al., Logical Physical Clocks (2014).
"""

from __future__ import annotations

COUNTER_BITS = 16


class HybridClock:
    """Stamps of one store. `high` is the highest stamp made or seen; it is persisted so that a restart does not go back."""

    __slots__ = ("high",)

    def __init__(self, high: int = 0) -> None:
        self.high = high

    def stamp(self, wall_ms: int) -> int:
        """A stamp above every earlier one."""
        self.high = max(wall_ms << COUNTER_BITS, self.high + 1)
        return self.high

    def observe(self, stamp: int) -> None:
        """A stamp from elsewhere: later ones of ours will be above it."""
        if stamp > self.high:
            self.high = stamp
