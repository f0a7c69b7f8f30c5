"""What this store remembers of requests it has carried out, so that a repeated one is recognised.

Owns: request id -> the dots it minted here. Must not know: what a request wanted, or who asked.

Filled from the log at start (each record names its request), by every mint since. Bounded: when it is full the oldest go, and their
sessions remember how far they had come, so that an older sequence is refused as too old instead of carried out twice.
Source: 30-replication, requests; counterexample 6.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

from zkv.ids import Actor, RequestId

#: requests remembered; about 0.3 KiB each
REQUESTS_MAX = 200_000
SESSIONS_MAX = 65_536


class Outcome:
    """The dots of one request at this store: item numbers and counters, side by side. Counter 0: a delete, no dot.

    actor is b"" while no record showed it: only deletes so far, or the value was replaced before its record came here.
    """

    __slots__ = ("actor", "counters", "items")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.items = array("H")
        self.counters = array("Q")

    def add(self, item: int, counter: int) -> None:
        items = self.items
        if not items or items[-1] < item or item not in items:
            items.append(item)
            self.counters.append(counter)

    def counter_of(self, item: int) -> int | None:
        try:
            return self.counters[self.items.index(item)]
        except ValueError:
            return None


class RequestMemory:
    __slots__ = ("_floors", "_outcomes", "_requests_max")

    def __init__(self, requests_max: int = REQUESTS_MAX) -> None:
        self._outcomes: OrderedDict[RequestId, Outcome] = OrderedDict()
        #: session -> highest sequence that was forgotten
        self._floors: OrderedDict[int, int] = OrderedDict()
        self._requests_max = requests_max

    def __len__(self) -> int:
        return len(self._outcomes)

    def remember(self, request: RequestId, item: int, actor: Actor, counter: int) -> None:
        self.outcome(request, actor).add(item, counter)

    def outcome(self, request: RequestId, actor: Actor) -> Outcome:
        """The entry of a request, made if it is new; `add` items to it."""
        outcome = self._outcomes.get(request)
        if outcome is None:
            outcome = self._outcomes[request] = Outcome(actor)
            if len(self._outcomes) > self._requests_max:
                self._forget_oldest()
        return outcome

    def forget(self, request: RequestId) -> None:
        """It was not carried out after all: the log refused it."""
        self._outcomes.pop(request, None)

    def recall(self, request: RequestId) -> Outcome | None:
        return self._outcomes.get(request)

    def is_too_old(self, request: RequestId) -> bool:
        """Whether this request may have been carried out and forgotten."""
        session, sequence = request
        return sequence <= self._floors.get(session, -1)

    def _forget_oldest(self) -> None:
        (session, sequence), _ = self._outcomes.popitem(last=False)
        self._floors[session] = max(sequence, self._floors.pop(session, -1))
        if len(self._floors) > SESSIONS_MAX:
            self._floors.popitem(last=False)
