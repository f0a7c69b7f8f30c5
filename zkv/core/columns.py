"""Sets that were minted together, as columns: what a batch of plain puts leaves behind, without an object per key.

Owns: the columns of such a batch, what one of its places means as a version set, when a place follows or replaces what is held.
Must not know: tables, bytes on the wire, who sends a batch.

Every place is a set of exactly one sibling without a cloud, and all siblings share actor and stamp. Whatever else a key may be (siblings,
tombstones, clouds) is a VersionSet of its own; whoever meets one takes the general path (`versions`). Columns never change after they
are built, but for `log_seq` and what is live, which belong to the table that holds them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from operator import itemgetter, le, lt
from typing import Final, cast

from zkv.core.versions import Base, Context, Sibling, VersionSet
from zkv.ids import Actor, Dot

#: session, sequence, and the numbers of the items in that request: the puts that made consecutive places
Run = tuple[int, int, list[int]]


class Columns:
    """One index per key in every column.

    runs         which requests the places come from, in order
    expires_ms   None = no value expires
    voids        place -> what its sibling voids; mostly empty
    pasts        place -> its past, where that is more than the place's own dot; mostly empty
    live         places that the table still holds, and of all value_bytes how many are theirs
    """

    __slots__ = (
        "_ends",
        "actor",
        "checksums",
        "counters",
        "expires_ms",
        "fences",
        "keys",
        "live",
        "live_bytes",
        "log_seq",
        "pasts",
        "row_versions",
        "runs",
        "stamp",
        "value_bytes",
        "values",
        "voids",
    )

    def __init__(
        self,
        keys: list[bytes],
        actor: Actor,
        counters: list[int],
        stamp: int,
        values: list[bytes],
        checksums: list[int],
        runs: list[Run],
        row_versions: list[int],
        fences: list[int],
        expires_ms: list[int] | None = None,
        voids: Mapping[int, tuple[int, ...]] | None = None,
        pasts: Mapping[int, Mapping[Actor, int]] | None = None,
    ) -> None:
        self.keys = keys
        self.actor = actor
        self.counters = counters
        self.stamp = stamp
        self.values = values
        self.checksums = checksums
        self.runs = runs
        self.row_versions = row_versions
        self.fences = fences
        self.expires_ms = expires_ms
        self.voids: Mapping[int, tuple[int, ...]] = voids or {}
        self.pasts: Mapping[int, Mapping[Actor, int]] = pasts or {}
        self.live = len(keys)
        self.value_bytes = self.live_bytes = sum(map(len, values))
        self.log_seq = 0
        self._ends: list[int] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Columns({len(self.keys)} keys by {self.actor.hex()}, {self.live} live)"

    def places(self) -> Iterator[Place]:
        """One entry per key, as a table holds it."""
        return zip(repeat(self), range(len(self.keys)))

    def past(self, i: int) -> Mapping[Actor, int]:
        past = self.pasts.get(i)
        return {self.actor: self.counters[i]} if past is None else past

    def request(self, i: int) -> tuple[int, int, int]:
        """Session, sequence and item of the put that made place i."""
        if len(self.runs) == 1:
            session, sequence, items = self.runs[0]
            return session, sequence, items[i]
        if self._ends is None:
            self._ends = list(accumulate(len(items) for _, _, items in self.runs))
        run = bisect_right(self._ends, i)
        session, sequence, items = self.runs[run]
        return session, sequence, items[i - self._ends[run]]

    def versions(self, i: int) -> VersionSet:
        """Place i as a set of its own."""
        session, sequence, _ = self.request(i)
        sibling = Sibling(
            self.actor,
            self.counters[i],
            self.stamp,
            self.expires_ms[i] if self.expires_ms else 0,
            self.checksums[i],
            session,
            sequence,
            self.voids.get(i, ()),
            self.values[i],
        )
        versions = VersionSet((sibling,), self.past(i))
        versions.log_seq = self.log_seq
        return versions

    def pick(self, places: list[int]) -> Columns:
        """These places, ascending, as columns of their own."""
        runs: list[Run] = []
        for i in places:
            session, sequence, item = self.request(i)
            if runs and runs[-1][:2] == (session, sequence):
                runs[-1][2].append(item)
            else:
                runs.append((session, sequence, [item]))
        picked = Columns(
            [self.keys[i] for i in places],
            self.actor,
            [self.counters[i] for i in places],
            self.stamp,
            [self.values[i] for i in places],
            [self.checksums[i] for i in places],
            runs,
            [self.row_versions[i] for i in places],
            [self.fences[i] for i in places],
            [self.expires_ms[i] for i in places] if self.expires_ms else None,
            {new: self.voids[i] for new, i in enumerate(places) if i in self.voids},
            {new: self.pasts[i] for new, i in enumerate(places) if i in self.pasts},
        )
        picked.log_seq = self.log_seq
        return picked

    def check_invariants(self) -> None:
        n = len(self.keys)
        columns: tuple[Sequence[object], ...] = (
            self.counters,
            self.values,
            self.checksums,
            self.row_versions,
            self.fences,
            self.expires_ms or self.keys,
        )
        assert all(len(column) == n for column in columns)
        assert sum(len(items) for _, _, items in self.runs) == n
        assert len(set(self.keys)) == n, "a key stands twice"
        assert all(past.get(self.actor, 0) >= self.counters[i] for i, past in self.pasts.items())
        assert 0 <= self.live <= n


#: where a table finds the set of a key: in columns, or as an object
Place = tuple[Columns, int]
Held = VersionSet | Place
_columns_of: Final = itemgetter(0)
_actor_of: Final = itemgetter(0)
_counter_of: Final = itemgetter(1)


def versions_of(held: Held | None) -> VersionSet | None:
    """What is held as a set of its own."""
    return held[0].versions(held[1]) if type(held) is tuple else held  # type: ignore[return-value]


def common_columns(held: Sequence[Held | None]) -> Columns | None:
    """The columns that all of these are places of; None if they are not, or only one."""
    if len(held) < 2 or set(map(type, held)) != {tuple}:
        return None
    found = set(map(_columns_of, cast("Sequence[Place]", held)))
    return found.pop() if len(found) == 1 else None


def past_of(held: Held) -> Mapping[Actor, int]:
    return held[0].past(held[1]) if type(held) is tuple else held.past  # type: ignore[union-attr]


def logged_at(held: Held) -> int:
    """The log position of what is held."""
    return held[0].log_seq if type(held) is tuple else held.log_seq  # type: ignore[union-attr]


def overwriting(
    held: Sequence[Held | None], actor: Actor, bases: Sequence[Base] | None
) -> tuple[list[int], dict[int, Mapping[Actor, int]]] | None:
    """Counters and pasts of puts by `actor` that replace all that is held, and what their bases cover, place by place.

    None when a place needs more than columns can say: a cloud, or a base that is not known here.
    """
    if bases is not None and not _all_known(held, bases):
        return None
    if not any(held):
        return [1] * len(held), {}
    one = common_columns(held)
    if one is not None and one.actor == actor and not one.pasts:
        return [one.counters[i] + 1 for _, i in held], {}  # type: ignore[misc]
    counters: list[int] = []
    pasts: dict[int, Mapping[Actor, int]] = {}
    for i, before in enumerate(held):
        if before is None:
            counters.append(1)
        elif type(before) is tuple and before[0].actor == actor and before[1] not in before[0].pasts:
            counters.append(before[0].counters[before[1]] + 1)
        else:
            if type(before) is VersionSet and before.cloud:
                return None
            past = dict(past_of(before))
            past[actor] = counter = past.get(actor, 0) + 1
            counters.append(counter)
            if len(past) > 1:
                pasts[i] = past
    return counters, pasts


def _all_known(held: Sequence[Held | None], bases: Sequence[Base]) -> bool:
    """Whether what is held knows every base already, so that replacing what is held is all there is to do."""
    one = common_columns(held)
    if one is not None and not one.pasts and set(map(type, bases)) == {tuple}:
        dots = cast("Sequence[Dot]", bases)
        if set(map(_actor_of, dots)) == {one.actor}:
            return all(map(le, map(_counter_of, dots), [one.counters[i] for _, i in cast("Sequence[Place]", held)]))
    for before, base in zip(held, bases, strict=True):
        if isinstance(base, Context):
            if base.past or base.cloud:
                return False
        elif before is None or past_of(before).get(base[0], 0) < base[1]:
            return False
    return True


def replaces_all(columns: Columns, held: Sequence[Held | None]) -> bool:
    """Whether each place knows all that is held of its key, and brings what is not known there: joining is then taking what came."""
    actor, counters, pasts = columns.actor, columns.counters, columns.pasts
    one = None if pasts else common_columns(held)
    if one is not None and one.actor == actor and not one.pasts:
        return all(map(lt, [one.counters[i] for _, i in cast("Sequence[Place]", held)], counters))
    for i, before in enumerate(held):
        if before is None:
            continue
        if type(before) is tuple and not pasts:
            mine, place = before
            if mine.actor == actor and place not in mine.pasts:
                if mine.counters[place] >= counters[i]:
                    return False
                continue
        if type(before) is VersionSet and before.cloud:
            return False
        past = past_of(before)
        if past.get(actor, 0) >= counters[i]:
            return False
        known = columns.past(i)
        if any(known.get(a, 0) < n for a, n in past.items()):
            return False
    return True
