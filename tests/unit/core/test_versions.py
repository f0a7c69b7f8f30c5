"""Version sets: the laws of sync, what a write drops, what a reader is shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkv.core.versions import EMPTY, SIBLINGS_MAX, Context, DotCollision, Sibling, VersionSet, sync, visible, write
from zkv.errors import TooLarge
from zkv.ids import Actor, actor_of

A, B, C = (actor_of(bytes([n]) * 8, 1) for n in (1, 2, 3))
ABSENT = VersionSet((), {})


def put(
    current: VersionSet | None,
    actor: Actor,
    value: bytes,
    covered: Context = EMPTY,
    *,
    blind: bool = False,
    **more: object,
) -> VersionSet:
    return write(current, covered, actor, replace_held=blind, value=value, checksum=hash_of(value), **more)[0]  # type: ignore[arg-type]


def hash_of(value: bytes) -> int:
    return int.from_bytes(value.ljust(4, b"\0")[:4], "big")


def values(versions: VersionSet) -> list[bytes]:
    return sorted(s.value for s in versions.siblings)


# --- a history of replicas that write, with or without what they saw, and gossip in any order ---


@st.composite
def replicas(draw: st.DrawFn) -> list[VersionSet]:
    """Three replicas' sets after a random history; each value is written once."""
    sets: list[VersionSet] = [ABSENT] * 3
    seen: list[Context] = [EMPTY]
    for step in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, 2))
        match draw(st.sampled_from(["put", "blind", "delete", "sync", "dot"])):
            case "put":
                sets[at] = put(sets[at], (A, B, C)[at], b"v%d" % step, draw(st.sampled_from(seen)))
            case "blind":
                sets[at] = put(sets[at], (A, B, C)[at], b"v%d" % step, blind=True)
            case "delete":
                sets[at] = write(sets[at], draw(st.sampled_from(seen)), (A, B, C)[at], replace_held=False, value=None)[
                    0
                ]
            case "sync":
                other = draw(st.integers(0, 2))
                sets[at] = sync(sets[at], sets[other])
            case "dot":
                if sets[at].siblings:
                    seen.append(EMPTY.with_dot(draw(st.sampled_from(sets[at].siblings)).dot))
        seen.append(sets[at].context)
    return sets


@settings(max_examples=300)
@given(replicas())
def test_sync_is_commutative_associative_and_idempotent(sets: list[VersionSet]) -> None:
    a, b, c = sets
    for s in sets:
        s.check_invariants()
    assert sync(a, b).same_as(sync(b, a))
    assert sync(sync(a, b), c).same_as(sync(a, sync(b, c)))
    assert sync(a, a).same_as(a)
    assert sync(sync(a, b), b).same_as(sync(a, b))
    sync(sync(a, b), c).check_invariants()


@settings(max_examples=300)
@given(replicas())
def test_sync_returns_one_of_its_arguments_when_that_is_the_join(sets: list[VersionSet]) -> None:
    a, b, _ = sets
    joined = sync(a, b)
    assert (joined is a) == joined.same_as(a)
    if joined is not a:
        assert (joined is b) == joined.same_as(b)


@settings(max_examples=300)
@given(replicas())
def test_sync_keeps_a_sibling_unless_the_other_side_knows_it_is_obsolete(sets: list[VersionSet]) -> None:
    """The rule in plain sets, as the judge of the fast paths."""
    a, b, _ = sets
    mine, theirs = {s.dot for s in a.siblings}, {s.dot for s in b.siblings}
    expected = {d for d in mine if d in theirs or not b.context.covers(*d)}
    expected |= {d for d in theirs if d in mine or not a.context.covers(*d)}
    assert {s.dot for s in sync(a, b).siblings} == expected


def test_put_with_context_drops_exactly_what_the_context_covers() -> None:
    one = put(None, A, b"one")
    two = sync(one, put(None, B, b"two"))
    assert values(put(two, A, b"three", one.context)) == [b"three", b"two"]
    assert values(put(two, A, b"three", two.context)) == [b"three"]


def test_put_with_empty_context_supersedes_nothing() -> None:
    assert values(put(put(None, A, b"one"), A, b"two", EMPTY)) == [b"one", b"two"]


def test_context_of_a_put_does_not_cover_a_sibling_that_its_author_was_not_shown() -> None:
    """The dots of one actor are numbered through: covering dot 2 as a line would cover dot 1 too."""
    first = put(None, A, b"first")
    second, counter = write(first, EMPTY, A, replace_held=False, value=b"second", checksum=2)
    own = EMPTY.with_dot((A, counter))
    assert values(put(second, A, b"third", own)) == [b"first", b"third"]


def test_dot_in_a_context_reaches_a_store_that_never_saw_what_came_before_it() -> None:
    """A context with a dot above the line becomes a cloud, and the line again once the gap is filled."""
    late = put(None, B, b"new", Context({}, ((A, 2),)))
    assert late.cloud == ((A, 2),)
    first = put(None, A, b"first")
    joined = sync(late, first)
    assert joined.cloud == () and joined.past[A] == 2
    assert values(joined) == [b"first", b"new"]


def test_delete_leaves_a_tombstone_that_an_old_copy_cannot_undo() -> None:
    held = put(None, A, b"v")
    gone, counter = write(held, held.context, B, replace_held=False, value=None)
    assert counter == 0 and gone.is_tombstone
    assert sync(gone, held) is gone


def test_mint_after_a_cloud_never_reuses_a_counter() -> None:
    versions = put(None, A, b"new", Context({}, ((A, 5),)))
    assert versions.siblings[0].dot == (A, 6)
    versions.check_invariants()


def test_put_that_would_make_a_sibling_too_many_is_refused_and_a_resolving_one_is_not() -> None:
    versions = put(None, A, b"0")
    for n in range(1, SIBLINGS_MAX):
        versions = put(versions, A, b"%d" % n, EMPTY)
    with pytest.raises(TooLarge, match="32 siblings"):
        put(versions, A, b"more", EMPTY)
    other = put(None, B, b"elsewhere")
    both = sync(versions, other)
    assert len(both.siblings) == SIBLINGS_MAX + 1, "sync is never limited"
    assert len(put(both, A, b"fewer", versions.context).siblings) == 2


def test_equal_dots_with_different_values_raise_in_the_fast_and_the_general_path() -> None:
    x = VersionSet((Sibling(A, 1, 0, 0, 1, 0, 0, (), b"x"),), {A: 1})
    y = VersionSet((Sibling(A, 1, 0, 0, 2, 0, 0, (), b"y"),), {A: 1})
    with pytest.raises(DotCollision):
        sync(x, y)
    with pytest.raises(DotCollision):
        sync(VersionSet(x.siblings, {A: 1, B: 1}), VersionSet(y.siblings, {A: 1, C: 1}))


def test_visible_leaves_out_expired_siblings_and_keeps_them_in_the_set() -> None:
    versions = put(put(None, A, b"stays"), A, b"goes", EMPTY, expires_ms=1_000, stamp=1, sequence=1)
    assert [s.value for s in visible(versions, 999)] == [b"stays", b"goes"]
    assert [s.value for s in visible(versions, 1_000)] == [b"stays"]
    assert len(versions.siblings) == 2
    alone = put(None, A, b"goes", expires_ms=1_000)
    assert visible(alone, 999) and not visible(alone, 1_000)


def test_visible_shows_two_runs_of_one_request_as_one() -> None:
    one = put(None, A, b"v", session=5, sequence=9)
    two = put(None, B, b"v", session=5, sequence=9)
    assert [s.value for s in visible(sync(one, two), 0)] == [b"v"]


def test_visible_hides_what_its_author_gave_up_on_and_nobody_elses() -> None:
    given_up = put(None, A, b"lost?", session=5, sequence=9)
    foreign = put(None, C, b"other", session=6, sequence=9)
    after = put(None, B, b"next", session=5, sequence=10, voids=(9,))
    shown = visible(sync(sync(given_up, after), foreign), 0)
    assert sorted(s.value for s in shown) == [b"next", b"other"]


def test_visible_of_nothing_is_nothing() -> None:
    assert visible(None, 0) == ()


def test_contexts_are_compared_and_never_hashed() -> None:
    assert Context({A: 1}) == Context({A: 1}) != Context({A: 2})
    with pytest.raises(TypeError):
        hash(EMPTY)
