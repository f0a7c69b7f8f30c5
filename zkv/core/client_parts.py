"""Parts of a call: the items that travel in one message, and the cutting of columns into them.

Owns: a part's history, what a piece of it inherits. Must not know: when a part is sent or tried again (client_calls).
Invariant: a part whose outcome may be unknown keeps the name of its request and its items' numbers in it, however it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import TypeVar

from zkv.core import messages as m
from zkv.core.client_outcomes import Failure
from zkv.ids import NodeId

_T = TypeVar("_T")
Positions = Sequence[int]


class State(Enum):
    """READY -> QUEUED -> FLYING -> answered, or back to READY or RESTING by the rules of the call. A GHOST was given up but may yet answer."""

    READY = auto()
    QUEUED = auto()
    FLYING = auto()
    RESTING = auto()
    GHOST = auto()


class Part:
    """Items that travel together. `items` are their numbers in the request that is named by `sequence`, None = in order."""

    __slots__ = (
        "again",
        "avoid",
        "due_ns",
        "failure",
        "items",
        "node",
        "pinned",
        "positions",
        "sequence",
        "state",
        "tainted",
        "tries",
        "unsent_ns",
        "width",
    )

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.items: list[int] | None = None
        self.width = len(positions)
        self.sequence = 0
        self.state = State.READY
        self.node = NodeId(0)
        self.pinned = False
        self.avoid: set[NodeId] = set()
        #: some node may have carried it out
        self.tainted = False
        self.again = False
        self.tries = 0
        self.due_ns = 0
        self.unsent_ns = 0
        self.failure: Failure | None = None

    def piece(self, places: Sequence[int] | None = None) -> Part:
        """The items at these places of this part, with its history. An untainted one starts as a new request."""
        piece = Part(self.positions if places is None else [self.positions[i] for i in places])
        piece.avoid = set(self.avoid)
        piece.tries = self.tries
        piece.unsent_ns = self.unsent_ns
        piece.failure = self.failure
        piece.node = self.node
        if self.tainted:
            piece.tainted, piece.again, piece.pinned = True, self.again, self.pinned
            piece.sequence, piece.width = self.sequence, self.width
            numbers = self.items if self.items is not None else range(self.width)
            piece.items = self.items if places is None else [numbers[i] for i in places]
        return piece


class Order:
    """Send `message` to `address`; then say on_sent or on_unsent."""

    __slots__ = ("address", "message", "part")

    def __init__(self, address: str, message: m.ClientRequest, part: Part) -> None:
        self.address = address
        self.message = message
        self.part = part


def take(column: Sequence[_T], positions: Positions) -> list[_T]:
    """The items at these positions; slices where they are a run."""
    if isinstance(positions, range):
        if isinstance(column, list) and len(positions) == len(column):
            return column
        return list(column[positions.start : positions.stop])
    return [column[p] for p in positions]


def take_optional(column: Sequence[_T] | None, positions: Positions) -> list[_T] | None:
    return None if column is None else take(column, positions)


def runs(count: int, items_max: int, sizes: Iterable[int] | None, bytes_max: int) -> list[range]:
    """Consecutive runs of at most so many items and bytes."""
    if sizes is None:
        return [range(start, min(count, start + items_max)) for start in range(0, count, items_max)]
    cut: list[range] = []
    start = total = 0
    for position, size in enumerate(sizes):
        if position - start >= items_max or (total + size > bytes_max and position > start):
            cut.append(range(start, position))
            start, total = position, 0
        total += size
    cut.append(range(start, count))
    return cut
