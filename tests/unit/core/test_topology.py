"""The topology document: first epoch, plain form, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from zkv.core.topology import (
    Bucket,
    InitialNode,
    TableRow,
    TopologyDocument,
    first_epoch,
    from_tree,
    initial_hash,
    parse_initial,
    ring_of,
    to_tree,
)
from zkv.errors import ConfigError, ProtocolError

LIST = [("c", "127.0.0.1", 7600), ("a", "127.0.0.1", 7400), ("b", "127.0.0.1", 7500)]


def document(count: int = 3) -> TopologyDocument:
    return first_epoch("test", [(f"n{i}", "127.0.0.1", 7400 + 10 * i) for i in range(count)], partitions=16)


def test_first_epoch_does_not_depend_on_the_order_of_the_list() -> None:
    assert first_epoch("test", LIST, 64) == first_epoch("test", sorted(LIST), 64)
    assert first_epoch("test", LIST, 64) == first_epoch(
        "test", parse_initial("a@127.0.0.1:7400,b@127.0.0.1:7500,c@127.0.0.1:7600"), 64
    )


def test_first_epoch_of_another_list_or_name_is_another_cluster() -> None:
    first, other = first_epoch("test", LIST, 64), first_epoch("other", LIST, 64)
    assert first.cluster_id != other.cluster_id
    assert first.hash_seed != other.hash_seed
    assert not {m.node_id for m in first.members} & {m.node_id for m in other.members}
    assert first_epoch("test", LIST[:2], 64).cluster_id != first.cluster_id


def test_first_epoch_holds_what_a_new_cluster_needs() -> None:
    first = first_epoch("test", LIST, 64)
    assert (first.epoch, first.cluster_name, first.partitions) == (1, "test", 64)
    assert first.previous_hash == initial_hash("test", LIST, 64)
    assert len(first.cluster_id) == 16
    assert sorted((m.name, m.host, m.address, m.peer_address, m.gossip_address) for m in first.members) == [
        (name, name, f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port + 2}")
        for name, port in (("a", 7400), ("b", 7500), ("c", 7600))
    ]
    assert first.classes == {1: 3}
    assert first.buckets == (
        Bucket(bucket_id=1, name="default", class_id=1, sloppy=True),
        Bucket(bucket_id=2, name="strict", class_id=1, sloppy=False),
    )
    assert {(row.version, row.fence, len(row.replicas)) for row in first.rows[1]} == {(1, 0, 3)}


def test_members_off_loopback_take_their_host_from_the_address() -> None:
    entries = [
        InitialNode("a", "10.0.0.1", 7400),
        InitialNode("b", "10.0.0.1", 7500),
        InitialNode("c", "::2", 7400, weight=2.0),
    ]
    first = first_epoch("test", entries, 16)
    by_name = {m.name: m for m in first.members}
    assert by_name["a"].host == by_name["b"].host == "10.0.0.1"
    assert (by_name["c"].address, by_name["c"].weight) == ("[::2]:7400", 2.0)
    assert {len(row.replicas) for row in first.rows[1]} == {2}, "two hosts, so two replicas"
    ring_of(first).check_invariants()


def test_a_single_node_is_a_cluster() -> None:
    assert all(row.replicas == (document(1).members[0].node_id,) for row in document(1).rows[1])


@pytest.mark.parametrize(("name", "entries", "message"), [("", LIST, "needs a name"), ("x", [], "at least one node")])
def test_first_epoch_without_name_or_nodes_is_refused(
    name: str, entries: list[tuple[str, str, int]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        first_epoch(name, entries, 16)


def test_ring_of_a_document_has_its_rows() -> None:
    doc = document(5)
    ring = ring_of(doc)
    ring.check_invariants()
    assert [(row.version, row.fence, row.replicas) for row in ring.rows[1]] == list(doc.rows[1])
    assert (ring.seed, ring.partitions) == (doc.hash_seed, 16)


def test_plain_form_is_read_back() -> None:
    doc = document(4)
    assert from_tree(to_tree(doc)) == doc


def test_plain_form_of_a_later_epoch_is_read_back() -> None:
    doc = document(4)
    rows = (TableRow(7, 3, doc.rows[1][0].replicas[:2]), *doc.rows[1][1:])
    bucket = Bucket(
        bucket_id=9, name="carts", class_id=2, sloppy=False, conflict="latest", r=1, w="all", value_bytes_max=1
    )
    later = replace(
        doc, epoch=7, classes={1: 3, 2: {"dc1": 2}}, rows={1: rows, 2: doc.rows[1]}, buckets=(*doc.buckets, bucket)
    )
    assert from_tree(to_tree(later)) == later


def change(*path: str | int) -> Callable[[Any, Any], None]:
    def apply(tree: Any, value: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (change("format"), 2, "format 2, this build reads 1"),
        (change("epoch"), 0, "epoch: not a whole number from 1"),
        (change("epoch"), True, "epoch"),
        (change("previous_hash"), b"short", "previous_hash: not 32 bytes"),
        (change("cluster_id"), "text", "cluster_id: not 16 bytes"),
        (change("cluster_name"), 5, "cluster_name: not text"),
        (change("hash_seed"), 1 << 64, "hash_seed"),
        (change("partitions"), 12, "partitions: not a power of two"),
        (change("partitions"), 32, "16 rows for 32 partitions"),
        (change("partitions"), 1 << 17, "partitions: not a whole number"),
        (change("members"), {}, "members: not a list"),
        (change("members", 0), 1, "member: not a map"),
        (change("members", 0, "odd"), 1, "member: missing or unknown: odd"),
        (change("members", 0, "weight"), 1, "weight: not a finite number"),
        (change("members", 0, "weight"), -1.0, "weight: not a finite number"),
        (change("members", 0, "name"), "", "name and host may not be empty"),
        (change("members", 0, "name"), "n1", "members: "),
        (change("members", 0, "node_id"), (1 << 64) - 1, "members: not in ascending order"),
        (change("classes"), {}, "class 1 does not exist"),
        (change("classes", 2), 3, "classes and tables differ"),
        (change("classes", 1), 0, "rule: not a whole number"),
        (change("classes", 1), {"eu": "x"}, "rule: not a whole number"),
        (change("buckets", 0, "class_id"), 5, "class 5 does not exist"),
        (change("buckets", 0, "sloppy"), 1, "sloppy: not true or false"),
        (change("buckets", 0, "conflict"), "mine", "conflict: neither"),
        (change("buckets", 0, "r"), "most", "r: not a whole number"),
        (change("buckets", 0, "w"), 0, "w: not a whole number"),
        (change("buckets", 1, "bucket_id"), 1, "buckets: not in ascending order"),
        (change("buckets", 1, "name"), "default", "buckets: two have the same name"),
        (change("rows", 1, 0), [1, 0], "row: not version, fence and replicas"),
        (change("rows", 1, 0), [2, 0, [0]], "row version: not a whole number from 1 to 1"),
        (change("rows", 1, 0), [1, -1, [0]], "fence"),
        (change("rows", 1, 0), [1, 0, [3]], "replica: not a whole number from 0 to 2"),
        (change("rows", 1, 0), [1, 0, []], "row: no replica"),
        (change("rows", 1, 0), [1, 0, [1, 1]], "two on one host"),
    ],
)
def test_a_plain_form_that_breaks_a_rule_is_refused(
    where: Callable[[Any, Any], None], value: object, message: str
) -> None:
    tree = copy.deepcopy(to_tree(document()))
    if message == "members: ":
        names = [m.name for m in document().members]
        value = names[1]
    where(tree, value)
    with pytest.raises(ProtocolError, match=message):
        from_tree(tree)


def test_a_plain_form_without_a_field_is_refused() -> None:
    tree = to_tree(document())
    del tree["buckets"]
    with pytest.raises(ProtocolError, match="missing or unknown: buckets"):
        from_tree(tree)


@pytest.mark.parametrize("tree", [None, 5, [], "text", {}])
def test_what_is_no_document_is_refused(tree: object) -> None:
    with pytest.raises(ProtocolError):
        from_tree(tree)
