"""Columns say exactly what sets of their own would: every shortcut is compared with the general rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zkv.core.columns import Columns, Held, overwriting, replaces_all, versions_of
from zkv.core.versions import Base, Context, VersionSet, context_of_base, sync, write
from zkv.ids import Actor, actor_of, checksum_of

ACTORS = [actor_of(b"open-id%d" % n, 1) for n in range(3)]
pasts = st.dictionaries(st.sampled_from(ACTORS), st.integers(1, 4), max_size=3)


def columns_of(pasts_of: list[dict[Actor, int]], actor: Actor) -> Columns:
    """One place per past; each past knows at least one event of `actor`, which is the place's dot."""
    n = len(pasts_of)
    values = [b"%d" % i for i in range(n)]
    counters = [past.setdefault(actor, 1) for past in pasts_of]
    columns = Columns(
        [b"key %d" % i for i in range(n)],
        actor,
        counters,
        77,
        values,
        [checksum_of(v) for v in values],
        [(1, 1, list(range(n - n // 2))), (1, 2, list(range(n // 2)))],
        [1] * n,
        [0] * n,
        pasts={i: past for i, past in enumerate(pasts_of) if len(past) > 1},
    )
    columns.check_invariants()
    return columns


@st.composite
def held_sets(draw: st.DrawFn) -> Held | None:
    """Nothing, a place, or a set of its own: a tombstone, one sibling, or a cloud."""
    kind = draw(st.sampled_from(["nothing", "place", "tombstone", "sibling", "cloud"]))
    past = draw(pasts)
    if kind == "nothing":
        return None
    if kind in ("place", "sibling"):
        place = (columns_of([{ACTORS[2]: 1}, past], draw(st.sampled_from(ACTORS))), 1)
        return place if kind == "place" else versions_of(place)
    past = past or {ACTORS[0]: 1}
    cloud = ((ACTORS[0], past.get(ACTORS[0], 0) + 2),) if kind == "cloud" else ()
    return VersionSet((), past, cloud)


bases: st.SearchStrategy[Base] = st.one_of(
    st.tuples(st.sampled_from(ACTORS), st.integers(1, 4)), pasts.map(lambda past: Context(past))
)


@given(st.lists(held_sets(), min_size=1, max_size=5), st.sampled_from(ACTORS), st.data())
def test_overwriting_is_a_write_that_replaces_what_is_held(
    held: list[Held | None], actor: Actor, data: st.DataObject
) -> None:
    n = len(held)
    covered = data.draw(st.none() | st.lists(bases, min_size=n, max_size=n))
    following = overwriting(held, actor, covered)
    sets = [versions_of(h) for h in held]
    if following is None:
        assert covered is not None or any(s is not None and s.cloud for s in sets), "a needless detour"
        return
    for i, before in enumerate(sets):
        base = context_of_base(covered[i] if covered else None, before)
        expected, counter = write(before, base, actor, replace_held=True, value=b"new")
        assert following[0][i] == counter
        assert following[1].get(i, {actor: counter}) == expected.past
        assert not expected.cloud and len(expected.siblings) == 1


@given(st.lists(st.tuples(pasts, held_sets()), min_size=1, max_size=5), st.sampled_from(ACTORS))
def test_columns_that_replace_all_are_what_a_join_would_give(
    items: list[tuple[dict[Actor, int], Held | None]], actor: Actor
) -> None:
    columns = columns_of([past for past, _ in items], actor)
    held = [h for _, h in items]
    if replaces_all(columns, held):
        for i, before in enumerate(map(versions_of, held)):
            if before is not None:
                theirs = columns.versions(i)
                assert sync(before, theirs).same_as(theirs)


def test_columns_replace_what_they_follow_and_nothing_else() -> None:
    a, b, _ = ACTORS
    older, newer, other = columns_of([{a: 1}], a), columns_of([{a: 2}], a), columns_of([{b: 1}], b)
    assert replaces_all(newer, [(older, 0)]) and replaces_all(newer, [None])
    assert not replaces_all(older, [(newer, 0)]) and not replaces_all(older, [(older, 0)])
    assert not replaces_all(other, [(older, 0)]), "concurrent"
    assert replaces_all(columns_of([{a: 1, b: 1}], b), [(older, 0)])
    assert not replaces_all(newer, [VersionSet((), {a: 1}, ((b, 2),))]), "a cloud takes the general path"


@given(st.lists(pasts, min_size=1, max_size=6), st.sampled_from(ACTORS), st.data())
def test_picked_places_mean_what_they_meant(
    pasts_of: list[dict[Actor, int]], actor: Actor, data: st.DataObject
) -> None:
    columns = columns_of(pasts_of, actor)
    columns.log_seq = 9
    places = data.draw(st.lists(st.integers(0, len(columns) - 1), min_size=1, unique=True).map(sorted))
    picked = columns.pick(places)
    picked.check_invariants()
    for new, i in enumerate(places):
        assert picked.keys[new] == columns.keys[i]
        assert picked.request(new) == columns.request(i)
        mine, theirs = picked.versions(new), columns.versions(i)
        assert mine.same_as(theirs) and mine.log_seq == 9
        assert mine.siblings[0].value == theirs.siblings[0].value
