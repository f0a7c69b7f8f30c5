"""The initial list: syntax, what is refused, what is derived from it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.core.initial import (
    InitialNode,
    derive_cluster_id,
    derive_node_ids,
    derive_seed,
    initial_hash,
    initial_text,
    parse_initial,
)
from zkv.errors import ConfigError

THREE = "a@10.0.0.1:7400,b@10.0.0.2:7400,c@[2001:db8::3]:7500"


def test_list_is_read_and_sorted_by_name() -> None:
    assert parse_initial(" b@H2:7400 , a@[::1]:7500,c@localhost:7600") == [
        InitialNode("a", "::1", 7500),
        InitialNode("b", "h2", 7400),
        InitialNode("c", "127.0.0.1", 7600),
    ]


def test_labels_of_an_entry_are_read() -> None:
    (node,) = parse_initial("a@h:7400/dc=eu/rack=r1/host=m1/weight=2.5")
    assert node == InitialNode("a", "h", 7400, "eu", "r1", "m1", 2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a@h:7400,", "expected NAME@HOST:PORT"),
        ("h:7400", "expected NAME@HOST:PORT"),
        ("a@h", "expected NAME@HOST:PORT"),
        ("@h:7400", "expected NAME@HOST:PORT"),
        ("a@:7400", "expected NAME@HOST:PORT"),
        ("a@h:port", "'port' is not a number"),
        ("a@h:0", "port 0 must be from 1 to 65533"),
        ("a@h:65534", "port 65534 must be from 1 to 65533"),
        ("a@h:-1", "'-1' is not a number"),
        ("a@::1:7400", "IPv6 address in brackets"),
        ("a@[h]:7400", "'h' in brackets is not an IPv6 address"),
        ("a b@h:7400", "the name 'a b'"),
        ("a@h/x:7400", "expected NAME@HOST:PORT"),
        ("a@h x:7400", "not a host name"),
        ("a@h:7400/colour=red", "'colour=red' is not a label"),
        ("a@h:7400/dc=x/dc=y", "'dc=y' is not a label"),
        ("a@h:7400/dc=", "dc ''"),
        ("a@h:7400/weight=much", "weight 'much' is not a number"),
        ("a@h:7400/weight=0", "weight 0.0 must be above 0"),
        ("a@h:7400/weight=nan", "weight nan must be above 0"),
        ("a@h:7400,a@i:7400", "names 'a' twice, at h:7400 and i:7400"),
        ("a@h:7400,b@h:7400", "gives h:7400 to both 'a' and 'b'"),
        ("a@[::1]:7400,b@[0:0::1]:7400", r"gives \[::1\]:7400 to both"),
        ("a@localhost:7400,b@127.0.0.1:7400", "gives 127.0.0.1:7400 to both"),
        ("a@h:7400,b@h:7402", "'a' at h:7400 uses ports 7400 to 7402.*leave at least 3"),
    ],
)
def test_a_list_that_cannot_work_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_initial(text)


def test_normal_form_is_read_back() -> None:
    text = "c@h:7400/weight=2,a@[::1]:7500,b@h:7500/dc=eu/host=m"
    assert initial_text(parse_initial(text)) == "a@[::1]:7500,b@h:7500/dc=eu/host=m,c@h:7400/weight=2.0"
    assert parse_initial(initial_text(parse_initial(text))) == parse_initial(text)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 2.0000001, 1000.0])
def test_normal_form_keeps_a_weight_exactly(weight: float) -> None:
    node = InitialNode("a", "h", 7400, weight=weight)
    assert parse_initial(initial_text([node])) == [node]


@pytest.mark.parametrize(
    ("node", "label"),
    [
        (InitialNode("a", "127.0.0.1", 1), "a"),
        (InitialNode("a", "127.8.8.8", 1), "a"),
        (InitialNode("a", "::1", 1), "a"),
        (InitialNode("a", "localhost", 1), "a"),
        (InitialNode("a", "10.0.0.1", 1), "10.0.0.1"),
        (InitialNode("a", "example.net", 1), "example.net"),
        (InitialNode("a", "127.0.0.1", 1, label="machine"), "machine"),
    ],
)
def test_host_label_is_the_address_but_on_loopback_the_name(node: InitialNode, label: str) -> None:
    assert node.host_label == label


@given(st.permutations(THREE.split(",")))
def test_order_of_typing_does_not_matter(entries: list[str]) -> None:
    assert initial_hash("c", parse_initial(",".join(entries))) == initial_hash("c", parse_initial(THREE))


def test_any_other_list_name_or_number_of_partitions_has_another_hash() -> None:
    nodes = parse_initial(THREE)
    hashes = [
        initial_hash("c", nodes),
        initial_hash("d", nodes),
        initial_hash("c", nodes, 512),
        initial_hash("c", nodes[:2]),
        *(
            initial_hash("c", [changed, *nodes[1:]])
            for changed in (
                nodes[0]._replace(name="z"),
                nodes[0]._replace(host="10.0.0.9"),
                nodes[0]._replace(port=7410),
                nodes[0]._replace(dc="eu"),
                nodes[0]._replace(rack="r9"),
                nodes[0]._replace(label="m"),
                nodes[0]._replace(weight=2.0),
            )
        ),
    ]
    assert len(set(hashes)) == len(hashes)


def test_fields_that_run_into_each_other_still_differ() -> None:
    one = initial_hash("c", [InitialNode("a", "bc", 7400)])
    assert one != initial_hash("c", [InitialNode("ab", "c", 7400)])
    assert one != initial_hash("ca", [InitialNode("b", "c", 7400)])


def test_what_is_derived_is_frozen() -> None:
    """These name clusters that exist: a change here makes them strangers."""
    digest = initial_hash("c", parse_initial(THREE))
    assert digest.hex() == "ff844be8b62994456fbd398dc989e51ac9fc10122b7ef1c4648e731f0fbc1a25"
    assert derive_cluster_id(digest).hex() == "36c08ac26b8b4f2f46607431f5b6d6df"
    assert derive_seed(digest) == 9078045685860241862
    assert derive_node_ids(digest, ["a", "b", "c"]) == [2648568108689993078, 16318283081706133788, 7618030993293661895]


def test_node_ids_differ_between_clusters() -> None:
    dice = random.Random(1)
    ids = {derive_node_ids(dice.randbytes(32), ["a"])[0] for _ in range(100)}
    assert len(ids) == 100


def test_colliding_node_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="same node id"):
        derive_node_ids(b"d" * 32, ["a", "a"])
