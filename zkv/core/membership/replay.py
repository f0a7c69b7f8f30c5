"""Which messages of a sender came already.

Owns: `Window`. Must not know: what a message says.

A sender numbers all its messages, to whomever. Frames may overtake each other between two sockets, so the last `WIDTH` numbers are remembered
one by one and everything older is taken for a repetition. Source: RFC 4303, 3.4.3 (anti-replay window).
"""

from __future__ import annotations

from typing import Final

WIDTH: Final = 1_024
_MASK: Final = (1 << WIDTH) - 1


class Window:
    __slots__ = ("_generation", "_highest", "_seen", "sequence")

    def __init__(self) -> None:
        self._generation = 0
        self._highest = 0
        #: bit i: number highest - i came
        self._seen = 0
        #: of what was published last; 0 = nothing yet
        self.sequence = 0

    def takes(self, generation: int, number: int) -> bool:
        """Whether this message is new. Those of an earlier life of the sender are not."""
        if generation != self._generation:
            if generation < self._generation:
                return False
            self._generation = generation
            self._highest = number
            self._seen = 1
            self.sequence = 0
            return True
        ahead = number - self._highest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & _MASK if ahead < WIDTH else 1
            self._highest = number
            return True
        bit = 1 << -ahead
        if -ahead >= WIDTH or self._seen & bit:
            return False
        self._seen |= bit
        return True

    def follows(self, sequence: int) -> bool:
        """Of what the sender publishes, whether nothing is missing before this one."""
        before, self.sequence = self.sequence, max(self.sequence, sequence)
        return not before or sequence <= before + 1
