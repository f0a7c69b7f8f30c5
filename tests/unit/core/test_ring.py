"""The ring: positions, rows, groups, fallbacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from zkv.core.ring import Ring, position_of, routing_bytes
from zkv.ids import NodeId, stored_key

A, B, C, D, E = (NodeId(number) for number in (10, 20, 30, 40, 50))


def ring_with(rows: list[tuple[NodeId, ...]], hosts: dict[NodeId, str] | None = None, seed: int = 7) -> Ring:
    nodes = {node for row in rows for node in row}
    return Ring(len(rows), seed, {1: [(1, 0, row) for row in rows]}, hosts or {node: f"host{node}" for node in nodes})


def test_position_is_seeded_xxh3_of_bucket_and_key() -> None:
    assert position_of(b"\x00\x00\x00\x01user:1", 42) == xxh3_64_intdigest(b"\x00\x00\x00\x01user:1", seed=42)
    # frozen: another value would move every key of every cluster
    assert position_of(stored_key(1, b"user:1"), 42) == 0x1DB762FF0D295447


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"plain", b"plain"),
        (b"{user:1}:name", b"user:1"),
        (b"a{user:1}{other}", b"user:1"),
        (b"{}x", b"{}x"),
        (b"{}{tag}", b"{}{tag}"),
        (b"x{never closed", b"x{never closed"),
        (b"}{tag}", b"tag"),
        (b"{{tag}}", b"{tag"),
    ],
)
def test_tag_decides_the_place(key: bytes, hashed: bytes) -> None:
    assert routing_bytes(stored_key(9, key)) == stored_key(9, hashed)


def test_tag_is_looked_for_in_the_key_and_not_in_the_bucket_id() -> None:
    bucket = int.from_bytes(b"{a}b", "big")
    assert routing_bytes(stored_key(bucket, b"key")) == b"{a}bkey"
    assert routing_bytes(stored_key(bucket, b"k{tag}")) == b"{a}btag"


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=20)), max_size=20))
def test_batch_gives_the_rows_of_single_look_ups(pairs: list[tuple[int, bytes]]) -> None:
    ring = ring_with([(A, B), (B, C), (C, A), (A, C)])
    keys = [stored_key(bucket, key) for bucket, key in pairs]
    rows = ring.rows_of(keys, 1)
    assert rows == [ring.row_of(key, 1) for key in keys]
    assert [row.partition for row in rows] == [position_of(key, 7) >> 62 for key in keys]


def test_ring_of_one_partition_holds_every_key() -> None:
    ring = ring_with([(A,)])
    assert ring.row_of(stored_key(1, b"any"), 1).replicas == (A,)


def test_unknown_class_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ring_with([(A,)]).row_of(stored_key(1, b"any"), 2)


def test_rows_with_the_same_replicas_in_any_order_and_class_share_a_group() -> None:
    hosts = {node: str(node) for node in (A, B, C)}
    tables = {1: [(1, 0, (A, B)), (3, 5, (B, A))], 2: [(1, 0, (B, A)), (1, 0, (C, A))]}
    ring = Ring(2, 0, tables, hosts)
    first, second = ring.rows[1]
    assert first.group == second.group == ring.rows[2][0].group != ring.rows[2][1].group
    assert ring.groups == ((A, B), (A, C))
    assert (second.version, second.fence, second.replicas) == (3, 5, (B, A))
    ring.check_invariants()


def test_preference_list_is_as_long_as_the_row_at_most() -> None:
    ring = ring_with([(A, B, C)])
    row = ring.rows[1][0]
    assert ring.preference_list(row, 2) == (A, B)
    assert ring.preference_list(row, 5) == (A, B, C)


def test_fallbacks_follow_the_ring_clockwise_from_the_row() -> None:
    ring = ring_with([(A, B), (B, C), (D, E), (E, A)])
    everyone = {A, B, C, D, E}
    assert ring.fallbacks(ring.rows[1][0], everyone) == (C, D, E)
    assert ring.fallbacks(ring.rows[1][2], everyone) == (A, B, C)


def test_fallbacks_leave_out_who_is_down() -> None:
    ring = ring_with([(A, B), (B, C), (D, E), (E, A)])
    row = ring.rows[1][0]
    assert ring.fallbacks(row, {A, D}) == (D,)
    assert ring.fallbacks(row, {C, E}) == (C, E), "the kept walk must not keep who was up"
    assert ring.fallbacks(row, set()) == ()


def test_fallbacks_never_share_a_host_with_a_replica_or_with_each_other() -> None:
    hosts = {A: "one", B: "two", C: "one", D: "three", E: "three"}
    ring = ring_with([(A, B), (B, C), (D, B), (E, A)], hosts)
    assert ring.fallbacks(ring.rows[1][0], {A, B, C, D, E}) == (D,)
    assert ring.fallbacks(ring.rows[1][0], {B, C, E}) == (E,), "a host whose first node is down still has its second"


def test_invariants_refuse_two_replicas_on_one_host() -> None:
    with pytest.raises(AssertionError, match="two replicas on one host"):
        ring_with([(A, B)], {A: "same", B: "same"}).check_invariants()


@pytest.mark.parametrize("partitions", [0, 3])
def test_ring_refuses_a_number_of_partitions_that_is_no_power_of_two(partitions: int) -> None:
    with pytest.raises(AssertionError, match="power of two"):
        Ring(partitions, 0, {1: [(1, 0, (A,))] * partitions}, {A: "a"})
