"""Version sets: what a replica knows about one key, and how two replicas' knowledge joins.

Owns: siblings, causal pasts, contexts, tombstones, minting, sync, and what of a set a reader is shown.
Must not know: keys, nodes, liveness, bytes on the wire, storage.

A set is (siblings, past, cloud). `past` maps actor -> n and means "events 1..n of this actor are known"; `cloud` holds known dots above
that line, normally none. Each sibling's dot is known. A dot that is known and not a sibling is obsolete for ever. A tombstone is a past
with no sibling. Sets never change after they are built (`log_seq` and nothing else belongs to the table that holds them).

Invariants: `sync` is commutative, associative and idempotent; no dot ever stands for two values; `write` drops exactly what it is told to
cover and nothing else.
Source: Almeida et al., dotted version vector sets (2014), in the form of a causal context and dots (Almeida, Shoker, Baquero 2016); rules in
30-replication of the design.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zkv.errors import CorruptData, TooLarge
from zkv.ids import Actor, Dot, RequestId

#: a put that would leave more siblings than this is refused, unless it lowers their number
SIBLINGS_MAX: Final = 32


class Sibling:
    """One value, its dot and what came with it.

    stamp       hybrid time, milliseconds << 16 | counter
    expires_ms  Unix milliseconds, 0 = never
    checksum    low 32 bits of xxh3_64(value), set by the client, checked by the client
    session, sequence   the request that wrote it
    voids       sequences of the same session whose outcome its author never learnt and which this write replaces
    """

    __slots__ = ("actor", "checksum", "counter", "expires_ms", "sequence", "session", "stamp", "value", "voids")

    def __init__(
        self,
        actor: Actor,
        counter: int,
        stamp: int,
        expires_ms: int,
        checksum: int,
        session: int,
        sequence: int,
        voids: tuple[int, ...],
        value: bytes,
    ) -> None:
        self.actor = actor
        self.counter = counter
        self.stamp = stamp
        self.expires_ms = expires_ms
        self.checksum = checksum
        self.session = session
        self.sequence = sequence
        self.voids = voids
        self.value = value

    @property
    def dot(self) -> Dot:
        return (self.actor, self.counter)

    @property
    def request(self) -> RequestId:
        return (self.session, self.sequence)

    def __repr__(self) -> str:
        return f"Sibling({self.actor.hex()}:{self.counter}, {len(self.value)} bytes)"


class Context:
    """What a client has seen of one key: covers dot (a, n) if n <= past[a] or the dot is in the cloud."""

    __slots__ = ("cloud", "past")

    def __init__(self, past: Mapping[Actor, int], cloud: tuple[Dot, ...] = ()) -> None:
        self.past = past
        self.cloud = cloud

    def covers(self, actor: Actor, counter: int) -> bool:
        return self.past.get(actor, 0) >= counter or (actor, counter) in self.cloud

    def with_dot(self, dot: Dot) -> Context:
        """This context and one more dot."""
        past, cloud = _normal(dict(self.past), (*self.cloud, dot))
        return Context(past, cloud)

    def joined(self, other: Context) -> Context:
        past, cloud = _normal(_join_pasts(self.past, other.past), self.cloud + other.cloud)
        return Context(past, cloud)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self.past == other.past and set(self.cloud) == set(other.cloud)

    def __hash__(self) -> int:
        raise TypeError("contexts are compared, never hashed")

    def __repr__(self) -> str:
        return f"Context({ {a.hex(): n for a, n in self.past.items()} }, {len(self.cloud)} in the cloud)"


#: "I saw nothing": supersedes nothing
EMPTY: Final = Context({})

#: what a client says its blind write follows: mostly one dot of its own
Base = Dot | Context


def context_of_base(base: Base | None, held: VersionSet | None = None) -> Context:
    """The context of a base; EMPTY for a dot that `held` knows already, so that the usual overwrite stays the usual case."""
    if base is None:
        return EMPTY
    if isinstance(base, Context):
        return base
    if held is not None and held.past.get(base[0], 0) >= base[1]:
        return EMPTY
    return EMPTY.with_dot(base)


#: `log_seq` of a set that a table holds and has not logged yet: later than any position
UNLOGGED: Final = 1 << 63


class VersionSet:
    """Siblings and causal past of one key. Treat as immutable; `log_seq` is the table's note of where it was logged."""

    __slots__ = ("cloud", "log_seq", "past", "siblings")

    def __init__(self, siblings: tuple[Sibling, ...], past: Mapping[Actor, int], cloud: tuple[Dot, ...] = ()) -> None:
        self.siblings = siblings
        self.past = past
        self.cloud = cloud
        self.log_seq = 0

    @property
    def context(self) -> Context:
        """Covers every sibling of this set and all that they replaced."""
        return Context(self.past, self.cloud)

    @property
    def is_tombstone(self) -> bool:
        return not self.siblings

    def same_as(self, other: VersionSet | None) -> bool:
        """Whether both know exactly the same: same dots alive, same past."""
        if other is self:
            return True
        if other is None or len(self.siblings) != len(other.siblings) or self.past != other.past:
            return False
        if (self.cloud or other.cloud) and set(self.cloud) != set(other.cloud):
            return False
        return all(
            a.counter == b.counter and a.actor == b.actor and a.checksum == b.checksum
            for a, b in zip(self.siblings, other.siblings, strict=True)
        )

    def check_invariants(self) -> None:
        dots = [s.dot for s in self.siblings]
        assert dots == sorted(set(dots)), "siblings are sorted by dot and distinct"
        context = self.context
        assert all(context.covers(*dot) for dot in dots), "a set knows its own dots"
        assert all(self.past.get(a, 0) + 1 < n for a, n in self.cloud), "the cloud starts above the past"
        assert list(self.cloud) == sorted(set(self.cloud))
        assert all(n > 0 for n in self.past.values())

    def __repr__(self) -> str:
        return f"VersionSet({list(self.siblings)}, {self.context})"


class DotCollision(CorruptData):
    """Two values claim one dot: a store was cloned by hand or bytes rotted. Neither side may be trusted."""


def sync(a: VersionSet, b: VersionSet) -> VersionSet:
    """The join of two sets. Returns `a` or `b` itself, `a` first, when one already is the join (so callers can test by identity).

    Raises: DotCollision when one dot has two checksums.
    """
    if a is b:
        return a
    if not a.cloud and not b.cloud:
        winner = _dominating(a, b)
        if winner is not None:
            return winner
    past, cloud = _normal(_join_pasts(a.past, b.past), a.cloud + b.cloud)
    mine = {s.dot: s for s in a.siblings}
    theirs = {s.dot: s for s in b.siblings}
    a_context, b_context = a.context, b.context
    kept = []
    for dot, s in mine.items():
        other = theirs.get(dot)
        if other is not None:
            _check_equal(s, other)
            kept.append(s)
        elif not b_context.covers(*dot):
            kept.append(s)
    kept.extend(s for dot, s in theirs.items() if dot not in mine and not a_context.covers(*dot))
    kept.sort(key=_dot_of)
    joined = VersionSet(tuple(kept), past, cloud)
    if joined.same_as(a):
        return a
    return b if joined.same_as(b) else joined


def write(
    current: VersionSet | None,
    covered: Context,
    actor: Actor,
    *,
    replace_held: bool,
    value: bytes | None,
    stamp: int = 0,
    expires_ms: int = 0,
    checksum: int = 0,
    session: int = 0,
    sequence: int = 0,
    voids: tuple[int, ...] = (),
) -> tuple[VersionSet, int]:
    """A put (or, with value None, a delete) at the store that coordinates it: the new set and the counter of its dot.

    Drops exactly the siblings that `covered` covers, or with `replace_held` all that are held. A delete mints no dot: counter 0.

    Raises: TooLarge when siblings would pass SIBLINGS_MAX and their number would grow.
    """
    if current is None:
        past = dict(covered.past)
        cloud: tuple[Dot, ...] = covered.cloud
        kept: tuple[Sibling, ...] = ()
        before = 0
    else:
        before = len(current.siblings)
        past = _join_pasts(current.past, covered.past) if covered.past else dict(current.past)
        cloud = current.cloud + covered.cloud
        kept = () if replace_held else tuple(s for s in current.siblings if not covered.covers(s.actor, s.counter))
    if cloud:
        past, cloud = _normal(past, cloud)
    if value is None:
        return VersionSet(kept, past, cloud), 0
    if len(kept) >= SIBLINGS_MAX and len(kept) >= before:
        raise TooLarge(
            f"the key has {len(kept)} siblings, the limit is {SIBLINGS_MAX}: get it, then put with that context"
        )
    counter = past.get(actor, 0) + 1
    if cloud:
        counter = max([counter, *(n + 1 for a, n in cloud if a == actor)])
        past, cloud = _normal(past, (*cloud, (actor, counter)))
    else:
        past[actor] = counter
    new = Sibling(actor, counter, stamp, expires_ms, checksum, session, sequence, voids, value)
    siblings = tuple(sorted((*kept, new), key=_dot_of)) if kept else (new,)
    return VersionSet(siblings, past, cloud), counter


def overwrite(
    current: VersionSet | None,
    actor: Actor,
    value: bytes,
    stamp: int,
    expires_ms: int,
    checksum: int,
    session: int,
    sequence: int,
    voids: tuple[int, ...],
) -> tuple[VersionSet, int]:
    """`write` with replace_held and nothing further covered, for sets without a cloud: the usual put, without the general case's cost."""
    if current is None:
        counter = 1
        past = {actor: 1}
    else:
        past = dict(current.past)
        counter = past.get(actor, 0) + 1
        past[actor] = counter
    return (
        VersionSet((Sibling(actor, counter, stamp, expires_ms, checksum, session, sequence, voids, value),), past),
        counter,
    )


def visible(versions: VersionSet | None, now_ms: int) -> tuple[Sibling, ...]:
    """The siblings a reader is shown, oldest stamp first.

    Left out: expired ones; all but one of those that one request wrote (a retry that ran twice); those that a later request of the same
    session knowingly replaced after it had given up on their outcome.
    """
    if versions is None:
        return ()
    siblings = versions.siblings
    if len(siblings) == 1:
        only = siblings[0]
        return siblings if not only.expires_ms or only.expires_ms > now_ms else ()
    voided = {(s.session, n) for s in siblings for n in s.voids}
    shown: dict[RequestId, Sibling] = {}
    for s in siblings:
        if s.request in voided or (s.expires_ms and s.expires_ms <= now_ms):
            continue
        shown.setdefault(s.request, s)
    return tuple(sorted(shown.values(), key=lambda s: (s.stamp, s.actor, s.counter)))


def _dominating(a: VersionSet, b: VersionSet) -> VersionSet | None:
    """`a` or `b` when it knows all that the other knows and nothing it holds is obsolete to the other; else None. No clouds."""
    a_past, b_past = a.past, b.past
    a_knows = b_knows = True
    for actor, n in b_past.items():
        mine = a_past.get(actor, 0)
        if mine < n:
            a_knows = False
        elif mine > n:
            b_knows = False
    if b_knows:
        for actor in a_past:
            if actor not in b_past:
                b_knows = False
                break
    if a_knows and _nothing_obsolete(a, b):
        return a
    return b if b_knows and _nothing_obsolete(b, a) else None


def _nothing_obsolete(winner: VersionSet, loser: VersionSet) -> bool:
    """Whether no sibling of `winner` is one that `loser` knows and does not hold."""
    known = loser.past
    for s in winner.siblings:
        if known.get(s.actor, 0) >= s.counter:
            for other in loser.siblings:
                if other.counter == s.counter and other.actor == s.actor:
                    _check_equal(s, other)
                    break
            else:
                return False
    return True


def _check_equal(a: Sibling, b: Sibling) -> None:
    if a.checksum != b.checksum or len(a.value) != len(b.value):
        raise DotCollision(f"dot {a.actor.hex()}:{a.counter} stands for two values")


def _dot_of(s: Sibling) -> Dot:
    return (s.actor, s.counter)


def _join_pasts(a: Mapping[Actor, int], b: Mapping[Actor, int]) -> dict[Actor, int]:
    joined = dict(a)
    for actor, n in b.items():
        if joined.get(actor, 0) < n:
            joined[actor] = n
    return joined


def _normal(past: dict[Actor, int], cloud: tuple[Dot, ...]) -> tuple[dict[Actor, int], tuple[Dot, ...]]:
    """Moves dots that continue a past into it and drops those already below it."""
    left: list[Dot] = []
    for actor, n in sorted(set(cloud)):
        have = past.get(actor, 0)
        if n == have + 1:
            past[actor] = n
        elif n > have:
            left.append((actor, n))
    return past, tuple(left)
