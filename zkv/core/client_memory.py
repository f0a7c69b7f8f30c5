"""What one client session remembers of its own writes, so that the next write of a key can say what it follows.

Owns: the context of the last acknowledged write of each key, and the sequences whose outcome this session never learnt.
Must not know: where a key lives, how requests travel.

Bounded by two generations: when the young one is full it becomes the old one and the old one goes. So at least the newest half of the bound
is held, at the price of one dictionary write per key.

Invariants: a base covers only writes of this session that were acknowledged. Unknown sequences are never taken back except by the bound.
Source: 30-replication, versions (blind puts) and requests; counterexamples 6 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final, Generic, TypeVar

from zkv.core.messages import PutReply
from zkv.core.versions import Base
from zkv.ids import Actor, Dot

#: keys per generation; the bound is twice this
KEYS_MAX: Final = 65_536
VOIDS_MAX: Final = 8

_V = TypeVar("_V")


class WriteMemory:
    """Bases and voids of one session."""

    __slots__ = ("_bases", "_doubled", "_unknown")

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._bases: _Generations[Base] = _Generations(keys_max)
        self._unknown: _Generations[tuple[int, ...]] = _Generations(keys_max)
        #: acknowledged after a try elsewhere: its value may lie under two dots
        self._doubled: _Generations[tuple[int, ...]] = _Generations(keys_max)

    def bases(self, keys: Sequence[bytes]) -> list[Base | None] | None:
        """What a blind write of each key may replace; None when nothing is known of any."""
        return self._bases.find(keys)

    def voids(self, keys: Sequence[bytes], *, blind: bool) -> list[tuple[int, ...] | None] | None:
        """Sequences whose values a write of each key replaces, should they turn up; None when there are none."""
        unknown = self._unknown.find(keys)
        doubled = self._doubled.find(keys) if blind else None
        if unknown is None or doubled is None:
            return unknown or doubled
        return [(a or ()) + (b or ()) or None for a, b in zip(unknown, doubled, strict=True)]

    def follows(self, key: bytes, *, remembers: bool) -> tuple[Dot | None, bool]:
        """(the dot that a blind write of one key follows, whether that is all there is to say). remembers: whether bases are kept."""
        if self.voids([key], blind=True) is not None:
            return None, False
        bases = self.bases([key]) if remembers else None
        base = None if bases is None else bases[0]
        return (base, True) if base is None or isinstance(base, tuple) else (None, False)

    def note_dot(self, key: bytes, dot: Dot) -> None:
        """This write of ours was acknowledged."""
        self._bases.update([(key, dot)], 1)

    def note_acked(self, keys: Sequence[bytes], reply: PutReply, places: Sequence[int] | None = None) -> None:
        """These keys were acknowledged; `places` are their columns in the reply, None = all in order."""
        counters = reply.counters
        if places is None and reply.contexts is None and len(reply.actors) == 1 and min(counters) > 0:
            self._bases.update(
                zip(keys, zip(repeat(Actor(reply.actors[0])), counters, strict=False), strict=False), len(keys)
            )
            return
        news: list[tuple[bytes, Base]] = []
        for key, place in zip(keys, range(len(counters)) if places is None else places, strict=True):
            context = reply.contexts[place] if reply.contexts else None
            if context is not None and (context.past or context.cloud):
                news.append((key, context))
            elif counters[place] and reply.actors:
                who = reply.actor_of_item[place] if reply.actor_of_item else 0
                if who >= 0:
                    news.append((key, (Actor(reply.actors[who]), counters[place])))
        self._bases.update(news, len(news))

    def note_unknown(self, keys: Sequence[bytes], sequence: int) -> None:
        """The caller was not told what became of this request for these keys."""
        _append(self._unknown, keys, sequence)

    def note_doubled(self, keys: Sequence[bytes], sequence: int) -> None:
        """Acknowledged, but tried at two stores."""
        _append(self._doubled, keys, sequence)


class _Generations(Generic[_V]):
    __slots__ = ("_keys_max", "_old", "_young")

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._young: dict[bytes, _V] = {}
        self._old: dict[bytes, _V] = {}

    def find(self, keys: Sequence[bytes]) -> list[_V | None] | None:
        young, old = self._young, self._old
        if not young and not old:
            return None
        get, get_old = young.get, old.get
        found = [get(key) or get_old(key) for key in keys] if old else [get(key) for key in keys]
        return found if any(found) else None

    def update(self, news: object, count: int) -> None:
        if len(self._young) + count > self._keys_max and self._young:
            self._old, self._young = self._young, {}
        self._young.update(news)  # type: ignore[call-overload]


def _append(generations: _Generations[tuple[int, ...]], keys: Sequence[bytes], sequence: int) -> None:
    for key, known in zip(keys, generations.find(keys) or repeat(None), strict=False):
        if known is None or sequence not in known:
            generations.update([(key, (*(known or ()), sequence)[-VOIDS_MAX:])], 1)
