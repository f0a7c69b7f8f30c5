"""Canonical CBOR: one tree, one encoding, and nothing else is read."""

from __future__ import annotations

import math

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zkv.codec.value import DEPTH_MAX, document_bytes, document_from, document_hash, dumps, loads
from zkv.core.topology import first_epoch
from zkv.errors import ProtocolError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=40)
)
keys = st.text(max_size=5) | st.integers(-1000, 1 << 40) | st.binary(max_size=5)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5), max_leaves=20
)


def same(left: object, right: object) -> bool:
    """Equal with types and the sign of zero: 1, 1.0 and True are three trees."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@given(trees)
def test_a_tree_is_read_back(tree: object) -> None:
    assert same(loads(dumps(tree)), tree)


@given(st.dictionaries(keys, st.integers(), max_size=8), st.randoms())
def test_order_of_a_map_does_not_show(tree: dict[object, int], dice: object) -> None:
    items = list(tree.items())
    dice.shuffle(items)  # type: ignore[attr-defined]
    bounded = {key: value % 100 for key, value in items}
    assert dumps(bounded) == dumps({key: value % 100 for key, value in tree.items()})


@given(st.binary(max_size=60))
@example(b"\x9f\xff")
@example(b"\xbf\xff")
def test_bytes_are_refused_or_are_the_one_encoding(data: bytes) -> None:
    try:
        tree = loads(data)
    except ProtocolError:
        return
    assert dumps(tree) == data


@given(trees, st.data())
def test_a_changed_byte_is_refused_or_another_tree(tree: object, data: st.DataObject) -> None:
    encoded = bytearray(dumps(tree))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = loads(bytes(encoded))
    except ProtocolError:
        return
    assert not same(other, tree)


@given(trees)
def test_any_cut_and_any_tail_is_refused(tree: object) -> None:
    encoded = dumps(tree)
    for end in range(len(encoded)):
        with pytest.raises(ProtocolError):
            loads(encoded[:end])
    with pytest.raises(ProtocolError, match="1 bytes after the end"):
        loads(encoded + b"\x00")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "ends in the middle"),
        ("c11a514b67b0", "tags are not used"),
        ("c243010000", "tags are not used"),
        ("9fff", "indefinite length"),
        ("5f4101ff", "indefinite length"),
        ("7f6161ff", "indefinite length"),
        ("bf6161 01ff", "indefinite length"),
        ("1c", "indefinite length, or a reserved one"),
        ("ff", "indefinite length, or a reserved one"),
        ("1801", "not the canonical encoding"),
        ("190001", "not the canonical encoding"),
        ("fb3ff0000000000000", "not the canonical encoding"),
        ("5800", "not the canonical encoding"),
        ("a2616201616102", "not the canonical encoding"),
        ("a2616101616102", "not the canonical encoding"),
        ("a262616101616202", "not the canonical encoding"),
        ("a1f501", "a map key is"),
        ("a1f601", "a map key is"),
        ("a1800 1".replace(" ", ""), "a map key is"),
        ("f97e00", "not finite"),
        ("f97c00", "not finite"),
        ("fb7ff8000000000001", "not finite"),
        ("f7", "simple value"),
        ("f0", "simple value"),
        ("f8ff", "simple value"),
        ("61ff", "CBOR: "),
        ("9bffffffffffffffff", "items announced"),
        ("bb7fffffffffffffff", "items announced"),
        ("5bffffffffffffffff", "text or bytes of"),
        ("81" * (DEPTH_MAX + 1) + "80", "deeper than 16"),
        ("81" * 100_000, "deeper than 16"),
    ],
)
def test_other_bytes_are_refused(data: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        loads(bytes.fromhex(data))


def test_the_deepest_tree_is_read_and_a_deeper_one_is_not_written() -> None:
    tree: object = 1
    for _ in range(DEPTH_MAX):
        tree = [tree]
    assert loads(dumps(tree)) == tree
    with pytest.raises(ValueError, match="deeper than 16"):
        dumps([tree])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1 << 64, -(1 << 64) - 1])
def test_numbers_without_one_form_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match=r"does not fit|no canonical form"):
        dumps([value])


@pytest.mark.parametrize("value", [{1, 2}, (1, 2), object(), bytearray(b"x"), {None: 1}, {True: 1}, {1.5: 1}])
def test_what_is_no_tree_is_not_written(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_encoding_is_frozen() -> None:
    assert dumps({"b": [1, -1, 1.5], "a": b"\x00", "aa": None}).hex() == "a3616141006162830120f93e00626161f6"


def test_a_document_is_read_back_and_has_one_hash() -> None:
    document = first_epoch("test", [("a", "127.0.0.1", 7400), ("b", "127.0.0.1", 7410)], 64)
    data = document_bytes(document)
    assert document_from(data) == document
    assert document_bytes(document_from(data)) == data
    # frozen: epoch 2 names epoch 1 by this hash
    assert document_hash(data).hex() == "e5b9c1a151544dcf07e8ed561782e803f4b5212d3ff35f53a42f69a1ba80c5dc"


def test_a_document_that_breaks_a_rule_is_refused() -> None:
    document = first_epoch("test", [("a", "127.0.0.1", 7400)], 2)
    tree = cbor2.loads(document_bytes(document))
    tree["epoch"] = 0
    with pytest.raises(ProtocolError, match="epoch"):
        document_from(dumps(tree))
