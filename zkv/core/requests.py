"""Requests of clients (and forwarded ones) that are open at this node, item by item, until their reply leaves.

Owns: which items are settled and with what, and the reply made of that. Must not know: quorums, replicas, time.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Final, cast

from zkv.core import messages as m
from zkv.core.columns import Held, Place, versions_of
from zkv.core.events import Route
from zkv.core.messages import UNKNOWN_STATUSES, Status
from zkv.core.versions import Context, Sibling, visible
from zkv.ids import Actor, RequestId

_columns_of: Final = itemgetter(0)
_place_of: Final = itemgetter(1)
#: not settled yet; never leaves this module
_OPEN: Final = -1


class _Open:
    """What puts and gets share: which items are open, failures, and who hears of the end."""

    __slots__ = ("_got", "_left", "_required", "_statuses", "began_ns")

    def __init__(self, count: int) -> None:
        self.began_ns = 0
        self._left = count
        self._statuses: list[int] = [_OPEN] * count
        self._required: list[int] | None = None
        self._got: list[int] | None = None

    def settle_failed(self, items: list[int], status: int, required: int = 0, got: int = 0) -> None:
        for item in items:
            if self._statuses[item] != _OPEN:
                continue
            if self._required is None or self._got is None:
                self._required = [0] * len(self._statuses)
                self._got = [0] * len(self._statuses)
            self._statuses[item] = status
            self._required[item] = required
            self._got[item] = got
            self._left -= 1
        self._finish()

    def _finish(self) -> None:
        if self._left == 0:
            self._left = -1  # said once
            self._tell()

    def _tell(self) -> None:
        """The last item was settled."""
        raise NotImplementedError


class OpenPut(_Open):
    """One Put and what became of each item."""

    __slots__ = (
        "_actor_of_item",
        "_actors",
        "_contexts",
        "_counters",
        "_done",
        "_receipt_of_item",
        "_receipts",
        "message",
        "routes",
    )

    def __init__(self, route: Route, message: m.Put, done: list[OpenPut]) -> None:
        n = len(message.keys)
        #: who waits for the answer: more than one when the same request came again meanwhile
        self.routes = [route]
        self.message = message
        super().__init__(n)
        self._done = done
        self._counters = [0] * n
        self._actors: list[Actor] = []
        self._actor_of_item = [-1] * n
        self._receipts: list[m.Receipt] = []
        self._receipt_of_item = [-1] * n
        self._contexts: list[Context | None] | None = [None] * n if message.want_context else None

    def settle_ok(
        self,
        items: list[int],
        counters: list[int],
        actor: Actor,
        receipt: m.Receipt,
        contexts: list[Context | None] | None = None,
    ) -> None:
        """These items, in ascending order, are held by the stores of `receipt`."""
        if actor not in self._actors:
            self._actors.append(actor)
        if receipt not in self._receipts:
            self._receipts.append(receipt)
        who, what = self._actors.index(actor), self._receipts.index(receipt)
        n = len(self._statuses)
        if self._left == n == len(items):  # the whole request at once: the usual case
            self._statuses = [Status.OK] * n
            self._counters = counters
            self._actor_of_item = [who] * n
            self._receipt_of_item = [what] * n
            if contexts is not None:
                self._contexts = contexts
            self._left = 0
            self._finish()
            return
        for position, item in enumerate(items):
            if self._statuses[item] != _OPEN:
                continue
            self._statuses[item] = Status.OK
            self._counters[item] = counters[position]
            self._actor_of_item[item] = who
            self._receipt_of_item[item] = what
            if self._contexts is not None and contexts is not None:
                self._contexts[item] = contexts[position]
            self._left -= 1
        self._finish()

    def _tell(self) -> None:
        self._done.append(self)

    def take_part(self, items: list[int], part: m.PutReply) -> None:
        """A forwarded part came back: its columns are for `items`."""
        for position, item in enumerate(items):
            status = part.statuses[position] if part.statuses else Status.OK
            if status != Status.OK:
                self.settle_failed(
                    [item],
                    status,
                    part.required[position] if part.required else 0,
                    part.got[position] if part.got else 0,
                )
                continue
            actor = Actor(part.actors[part.actor_of_item[position] if part.actor_of_item else 0])
            receipt = part.receipts[part.receipt_of_item[position] if part.receipt_of_item else 0]
            contexts = [part.contexts[position]] if part.contexts else None
            self.settle_ok([item], [part.counters[position]], actor, receipt, contexts)

    def reply(self) -> m.PutReply:
        assert self._left == -1, "every item is settled"
        clean = self._required is None
        return m.PutReply(
            self.message.request,
            None if clean else self._statuses,
            self._required,
            self._got,
            list(self._actors),
            self._actor_of_item if len(self._actors) > 1 or not clean else None,
            self._counters,
            self._receipts,
            self._receipt_of_item if len(self._receipts) > 1 or not clean else None,
            self._contexts if self._contexts is not None and any(self._contexts) else None,
            self.message.items,
        )

    def refused(self) -> dict[int, tuple[int, int, int]]:
        """Number of each item that was certainly not carried out -> status, required, got."""
        if self._required is None or self._got is None:
            return {}
        numbers = self.message.items or range(len(self._statuses))
        columns = zip(numbers, self._statuses, self._required, self._got, strict=True)
        return {
            number: (status, required, got)
            for number, status, required, got in columns
            if status != Status.OK and status not in UNKNOWN_STATUSES
        }


class OpenGet(_Open):
    """One Get and the set found for each item."""

    __slots__ = ("_done", "_sets", "message", "route")

    def __init__(self, route: Route, message: m.Get, done: list[OpenGet]) -> None:
        n = len(message.keys)
        self.route = route
        self.message = message
        super().__init__(n)
        self._done = done
        self._sets: Sequence[Held | None] = [None] * n

    def settle_ok(self, items: list[int], sets: Sequence[Held | None]) -> None:
        if self._left == len(self._sets) == len(items):
            self._sets = sets
            self._statuses = [Status.OK] * len(sets)
            self._left = 0
            self._finish()
            return
        found = list(self._sets)
        for item, held in zip(items, sets, strict=True):
            if self._statuses[item] == _OPEN:
                self._statuses[item] = Status.OK
                found[item] = held
                self._left -= 1
        self._sets = found
        self._finish()

    def _tell(self) -> None:
        self._done.append(self)

    def reply(self, wall_ms: int) -> m.GetReply:
        assert self._left == -1, "every item is settled"
        contexts: list[Context | None] | None = None
        if self.message.want_context:
            contexts = [None if versions is None else versions.context for versions in map(versions_of, self._sets)]
        elif self._required is None:
            reply = reply_of_held(self.message.request, self._sets, heads=self.message.heads)
            if reply is not None:
                return reply
        counts: list[int] = []
        shown: list[Sibling] = []
        for held in self._sets:
            siblings = visible(versions_of(held), wall_ms)
            counts.append(len(siblings))
            shown += siblings
        expires = [s.expires_ms for s in shown]
        return m.GetReply(
            self.message.request,
            None if self._required is None else self._statuses,
            self._required,
            self._got,
            None if counts.count(1) == len(counts) else counts,
            [s.checksum for s in shown],
            expires if any(expires) else None,
            [s.stamp for s in shown] if self.message.want_context else None,
            [b"" if self.message.heads else s.value for s in shown],
            contexts,
        )


def reply_of_held(request: RequestId, held: Sequence[Held | None], *, heads: bool = False) -> m.GetReply | None:
    """The usual answer, without an object per key: every key has one value that does not expire. None: some have not."""
    if set(map(type, held)) != {tuple}:
        return None
    places = cast("Sequence[Place]", held)
    held_in = set(map(_columns_of, places))
    if any(columns.expires_ms for columns in held_in):
        return None
    n = len(places)
    columns, first = places[0]
    if len(held_in) == 1 and list(map(_place_of, places)) == list(range(first, first + n)):
        # what was put together is asked for together
        checksums, values = columns.checksums[first : first + n], columns.values[first : first + n]
    else:
        checksums = [columns.checksums[i] for columns, i in places]
        values = [columns.values[i] for columns, i in places]
    if heads:
        values = [b""] * n
    return m.GetReply(request, None, None, None, None, checksums, None, None, values, None)
