"""The members this node knows of, one record each, and their digest.

Owns: `Record`, `Table`: how many are in which state. Must not know: why a record changes (claims, suspicion).
Invariant: a record's incarnation never goes down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final

import xxhash

from zkv.core.membership.messages import BUCKETS, Load, Profile, Rumour
from zkv.core.membership.replay import Window
from zkv.core.membership.states import UP_MAX, State, rank
from zkv.core.membership.suspicion import Suspicion
from zkv.ids import NodeId

if TYPE_CHECKING:
    import random

_DIGEST: Final = Struct("<QQBB")
_NODE: Final = Struct("<Q")
_EMPTY_LOAD: Final = Load()


class Link:
    """What is known of a member from its own mouth; made at the first direct message."""

    __slots__ = ("heard_ns", "load", "rtt_ns", "rtt_var_ns", "told_ns", "topology", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.heard_ns = 0
        #: when it was last told directly what is said of it
        self.told_ns = 0
        self.rtt_ns = 0.0
        self.rtt_var_ns = 0.0
        self.load = _EMPTY_LOAD
        #: epoch and hash that it told last
        self.topology = (0, 0)

    def measured(self, rtt_ns: int) -> None:
        """Source: RFC 6298."""
        if not self.rtt_ns:
            self.rtt_ns, self.rtt_var_ns = float(rtt_ns), rtt_ns / 2
        else:
            self.rtt_var_ns += (abs(self.rtt_ns - rtt_ns) - self.rtt_var_ns) / 4
            self.rtt_ns += (rtt_ns - self.rtt_ns) / 8


class Record:
    """state: its phase, or a verdict. unverified: a verdict that was only remembered or synced; its own word at the same incarnation counts more.

    profile_incarnation: when the member said what is in `profile`. accusers: of a verdict (those of a suspicion are in it).
    """

    __slots__ = (
        "accusers",
        "incarnation",
        "link",
        "node",
        "profile",
        "profile_incarnation",
        "since_ns",
        "state",
        "suspicion",
        "unverified",
    )

    def __init__(self, node: NodeId, incarnation: int, state: State, profile: Profile, since_ns: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.state = state
        self.profile = profile
        self.profile_incarnation = incarnation
        self.since_ns = since_ns
        self.unverified = False
        self.suspicion: Suspicion | None = None
        self.accusers: tuple[NodeId, ...] = ()
        self.link: Link | None = None

    @property
    def is_up(self) -> bool:
        return self.state <= UP_MAX

    def linked(self) -> Link:
        link = self.link
        if link is None:
            link = self.link = Link()
        return link

    def rumour(self, *, whole: bool = False) -> Rumour:
        """What we would tell another. A phase comes with the profile that was said with it; a verdict with the last one known, if `whole`."""
        accusers = self.accusers if self.suspicion is None else self.suspicion.named
        if self.is_up:
            said = self.profile if self.profile_incarnation == self.incarnation else None
            return Rumour(self.node, self.incarnation, self.state, accusers, said)
        return Rumour(self.node, self.incarnation, self.state, accusers, self.profile if whole else None)


class Table:
    """Everybody but this node."""

    def __init__(self, node: NodeId, dice: random.Random) -> None:
        self._me = node
        self._dice = dice
        self.records: dict[NodeId, Record] = {}
        self.counts: dict[State, int] = dict.fromkeys(State, 0)
        #: in the order in which they are probed; holds those that are gone until the next round
        self._round: list[NodeId] = []
        self._position = 0
        self._buckets: tuple[int, ...] | None = None

    def get(self, node: NodeId) -> Record | None:
        return self.records.get(node)

    @property
    def size(self) -> int:
        """Members with this one, without those that left."""
        counts = self.counts
        return 1 + len(self.records) - counts[State.LEFT] - counts[State.REMOVED]

    @property
    def up(self) -> int:
        counts = self.counts
        return counts[State.JOINING] + counts[State.SYNCING] + counts[State.ALIVE] + counts[State.LEAVING]

    def add(self, record: Record) -> None:
        assert record.node not in self.records and record.node != self._me
        self._buckets = None
        self.records[record.node] = record
        self.counts[record.state] += 1
        if self._round:
            self._round.insert(self._dice.randrange(len(self._round) + 1), record.node)  # SWIM 4.3: at a random place

    def set_state(self, record: Record, state: State, now_ns: int) -> None:
        self._buckets = None
        self.counts[record.state] -= 1
        self.counts[state] += 1
        record.state = state
        record.since_ns = now_ns

    def drop(self, node: NodeId) -> None:
        self._buckets = None
        record = self.records.pop(node)
        self.counts[record.state] -= 1

    def next_target(self) -> Record | None:
        """The next one to probe: everybody once a round, in a new order each time. Source: SWIM 4.3."""
        for _ in range(2):
            while self._position < len(self._round):
                record = self.records.get(self._round[self._position])
                self._position += 1
                if record is not None and record.state <= State.SUSPECT:
                    return record
            self._round = list(self.records)
            self._dice.shuffle(self._round)
            self._position = 0
        return None

    def some(self, count: int, fits: Callable[[Record], bool]) -> list[Record]:
        """Up to `count` different members at random. Cheap while most of them fit."""
        order = self._round or list(self.records)
        if len(order) <= 4 * count + 8:
            found = [record for node in order if (record := self.records.get(node)) is not None and fits(record)]
            self._dice.shuffle(found)
            return found[:count]
        chosen: dict[NodeId, Record] = {}
        for _ in range(8 * count):
            record = self.records.get(order[int(self._dice.random() * len(order))])
            if record is not None and record.node not in chosen and fits(record):
                chosen[record.node] = record
                if len(chosen) == count:
                    break
        return list(chosen.values())

    def in_state(self, *states: State) -> Iterator[Record]:
        if any(self.counts[state] for state in states):
            for record in self.records.values():
                if record.state in states:
                    yield record

    # --- digest ---

    def buckets(self, own: Rumour) -> tuple[int, ...]:
        """One hash per bucket over (id, incarnation, rank) of all records and our own; the order of members does not matter.

        Costs a millisecond per thousand members after a change of any record, nothing else.
        """
        if self._buckets is None:
            self._buckets = self._of_records()
        hashes = list(self._buckets)
        hashes[bucket_of(own.node)] ^= _hash(own.node, own.incarnation, own.state, True)
        return tuple(hashes)

    def _of_records(self) -> tuple[int, ...]:
        hashes = [0] * BUCKETS
        for record in self.records.values():
            if record.unverified:
                continue  # we merely have not heard of it yet: that is no claim
            whole = not record.is_up or record.profile_incarnation == record.incarnation
            hashes[bucket_of(record.node)] ^= _hash(record.node, record.incarnation, record.state, whole)
        return tuple(hashes)


def bucket_of(node: NodeId) -> int:
    return xxhash.xxh3_64_intdigest(_NODE.pack(node)) % BUCKETS


def _hash(node: NodeId, incarnation: int, state: State, whole: bool) -> int:
    """whole: what is known of its profile is what it said last."""
    return xxhash.xxh3_64_intdigest(_DIGEST.pack(node, incarnation, rank(state), whole))
