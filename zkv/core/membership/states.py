"""What can be said of a member, and which of two claims wins.

Owns: the states, their order. Must not know: who claims what, when.

Joining, syncing, alive and leaving are *phases*: the member itself announces them, each with a new incarnation, and in all of them it is *up*.
Suspect and dead are verdicts of others about one incarnation, so whoever leaves can still be suspected. Left is the member's own last word,
removed is the operator's and final. A claim is (incarnation, rank): the higher incarnation wins, then the higher rank. Source: SWIM, 4.2.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

GENERATION_BITS: Final = 32
REFUTATION_MAX: Final = (1 << GENERATION_BITS) - 1


class State(IntEnum):
    """Numbers are those on the wire."""

    JOINING = 0
    SYNCING = 1
    ALIVE = 2
    LEAVING = 3
    SUSPECT = 4
    DEAD = 5
    LEFT = 6
    REMOVED = 7

    @property
    def word(self) -> str:
        """As `zkv status` shows it."""
        return self.name.lower()


#: the highest state that is up
UP_MAX: Final = State.LEAVING
PHASES: Final = frozenset({State.JOINING, State.SYNCING, State.ALIVE, State.LEAVING})


def rank(state: State) -> int:
    """0 up, 1 suspect, 2 dead, 3 left, 4 removed."""
    return state - UP_MAX if state > UP_MAX else 0


def incarnation_of(generation: int, refutation: int = 0) -> int:
    """One number that grows over the whole life of a node id: starts are counted on disk, refutations within a start."""
    return generation << GENERATION_BITS | refutation


def generation_of(incarnation: int) -> int:
    return incarnation >> GENERATION_BITS


def wins(incarnation: int, state: State, held_incarnation: int, held_state: State) -> bool:
    """Whether the claim says more than what is held. Removed is final."""
    if held_state is State.REMOVED:
        return False
    if state is State.REMOVED:
        return True
    if incarnation != held_incarnation:
        return incarnation > held_incarnation
    return rank(state) > rank(held_state)
