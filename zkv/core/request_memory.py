"""What this store remembers of requests it has carried out, so that a repeated one is recognised.

Owns: request id -> the dots it minted here. Must not know: what a request wanted, or who asked.

Filled from the log at start (each record names its request), by every mint since. Bounded: when it is full the oldest go, and their
sessions remember how far they had come, so that an older sequence is refused as too old instead of carried out twice.
Source: 30-replication, requests; counterexample 6.

`Refusals` remembers the opposite: what was refused on a first try. Its author is told that nothing was written and begins a further try under
a new id, so a second copy of the same frame must be refused as the first was. A try marked as `retry` is let through: its author speaks of
an unknown outcome at worst.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

from zkv.ids import Actor, Dot, RequestId

#: requests remembered; 0.6 KiB each if they are of one item, less per item in batches
REQUESTS_MAX = 100_000
SESSIONS_MAX = 65_536


class Outcome:
    """The dots of one request at this store, item by item. Counter 0: a delete, no dot."""

    __slots__ = ("_actors", "_ascending", "_counters", "_items", "_who")

    def __init__(self) -> None:
        self._actors: list[Actor] = []
        self._ascending = True  # parts of a request come in any order; while they ascend, a later number is a new one
        self._items = array("H")
        self._counters = array("Q")
        self._who = array("H")

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: int, actor: Actor, counter: int) -> bool:
        """False: it is known already."""
        items = self._items
        if items and not (self._ascending and items[-1] < item):
            if item in items:
                return False
            self._ascending = False
        actors = self._actors
        if not actors or actors[-1] != actor:
            actors.append(actor)  # neighbours mostly share one; a second entry for the same costs a few bytes
        items.append(item)
        self._who.append(len(actors) - 1)
        self._counters.append(counter)
        return True

    def add_run(self, items: list[int], actor: Actor, counters: list[int]) -> list[int]:
        """`add` for many, at once where they ascend and come after what is known; those that are new."""
        if items != sorted(items) or (self._items and not (self._ascending and self._items[-1] < items[0])):
            return [item for item, counter in zip(items, counters, strict=True) if self.add(item, actor, counter)]
        if not self._actors or self._actors[-1] != actor:
            self._actors.append(actor)
        self._items.extend(items)
        self._counters.extend(counters)
        self._who.extend([len(self._actors) - 1] * len(items))
        return items

    def dot_of(self, item: int) -> Dot | None:
        try:
            place = self._items.index(item)
        except ValueError:
            return None
        return self._actors[self._who[place]], self._counters[place]

    def forget(self, item: int) -> None:
        place = self._items.index(item)
        del self._items[place], self._counters[place], self._who[place]


#: status, required, got
Refusal = tuple[int, int, int]
#: items of refused requests that are remembered
REFUSALS_MAX = 100_000


class Refusals:
    """Items refused on the first try, by request and number in it. Bounded by number, not by time: a copy may come late. Lives as long as
    the process, as the connections do on which a copy could come."""

    __slots__ = ("_items", "_refusals")

    def __init__(self) -> None:
        self._refusals: OrderedDict[RequestId, dict[int, Refusal]] = OrderedDict()
        self._items = 0

    def __len__(self) -> int:
        return self._items

    def note(self, request: RequestId, items: dict[int, Refusal]) -> None:
        known = self._refusals.setdefault(request, {})
        before = len(known)
        known.update(items)
        self._items += len(known) - before
        while self._items > REFUSALS_MAX and len(self._refusals) > 1:
            self._items -= len(self._refusals.popitem(last=False)[1])

    def of(self, request: RequestId) -> dict[int, Refusal]:
        return self._refusals.get(request, {}) if self._refusals else {}


class RequestMemory:
    __slots__ = ("_floors", "_outcomes", "_requests_max")

    def __init__(self, requests_max: int = REQUESTS_MAX) -> None:
        self._outcomes: OrderedDict[RequestId, Outcome] = OrderedDict()
        #: session -> highest sequence that was forgotten
        self._floors: OrderedDict[int, int] = OrderedDict()
        self._requests_max = requests_max

    def __len__(self) -> int:
        return len(self._outcomes)

    def outcome(self, request: RequestId) -> Outcome:
        """The entry of a request, made if it is new; `add` items to it."""
        outcome = self._outcomes.get(request)
        if outcome is None:
            outcome = self._outcomes[request] = Outcome()
            if len(self._outcomes) > self._requests_max:
                self._forget_oldest()
        return outcome

    def forget(self, request: RequestId, item: int) -> None:
        """This item was not carried out after all: the log refused it."""
        outcome = self._outcomes.get(request)
        if outcome is not None:
            outcome.forget(item)
            if not outcome:
                del self._outcomes[request]

    def recall(self, request: RequestId) -> Outcome | None:
        return self._outcomes.get(request) or None

    def is_too_old(self, request: RequestId) -> bool:
        """Whether this request may have been carried out and forgotten."""
        session, sequence = request
        return sequence <= self._floors.get(session, -1)

    def _forget_oldest(self) -> None:
        (session, sequence), _ = self._outcomes.popitem(last=False)
        self._floors[session] = max(sequence, self._floors.pop(session, -1))
        if len(self._floors) > SESSIONS_MAX:
            self._floors.popitem(last=False)
