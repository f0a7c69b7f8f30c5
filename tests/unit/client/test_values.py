"""Codecs, keys, results, resolvers: what needs no node."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zkv
from zkv import resolve
from zkv.client.codecs import codec_of
from zkv.client.keys import key_text, stored_keys
from zkv.client.results import BatchResult, Item
from zkv.errors import CodecError, ConfigError, Conflict, DeadlineExceeded, InvalidKey, TooLarge

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("name", ["json", "msgpack", "cbor"])
@given(value=JSON_VALUES)
def test_codec_gives_back_what_it_was_given(name: str, value: object) -> None:
    codec = codec_of(name)
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("name", ["msgpack", "cbor"])
def test_binary_codecs_take_bytes_and_large_maps(name: str) -> None:
    codec = codec_of(name)
    value = {"b": b"\x00\xff", "n": list(range(5_000)), 7: {str(i): i for i in range(5_000)}}
    assert codec.decode(codec.encode(value)) == value


def test_bytes_and_str_codecs_take_their_own_type_only() -> None:
    assert codec_of("bytes").encode(bytearray(b"x")) == b"x"
    assert codec_of("str").decode(codec_of("str").encode("ä")) == "ä"
    with pytest.raises(CodecError, match="codec="):
        codec_of("bytes").encode("text")
    with pytest.raises(CodecError, match="expected text"):
        codec_of("str").encode(b"bytes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json", {1, 2}),
        ("json", float("nan")),
        ("msgpack", object()),
        ("msgpack", 2**70),
        ("cbor", object()),
        ("str", "\ud800"),
    ],
)
def test_codec_refuses_what_it_cannot_say(name: str, value: object) -> None:
    with pytest.raises(CodecError, match=f"codec {name}"):
        codec_of(name).encode(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("json", b"{"), ("msgpack", b"\xc1"), ("msgpack", b"\x01\x01"), ("cbor", b"\xff"), ("str", b"\xff")],
)
def test_codec_refuses_bytes_that_are_not_its_own(name: str, data: bytes) -> None:
    with pytest.raises(CodecError, match=f"codec {name}"):
        codec_of(name).decode(data)


def test_pickle_is_no_codec() -> None:
    with pytest.raises(ConfigError, match="there are bytes, cbor, json, msgpack, str"):
        codec_of("pickle")


@given(st.binary(min_size=1, max_size=40))
def test_any_key_comes_back_as_text_that_goes_in_again(key: bytes) -> None:
    assert stored_keys(3, [key]) == stored_keys(3, [key_text(key)]) == [b"\0\0\0\3" + key]


@pytest.mark.parametrize("key", ["", b"", "x" * 1025, "ä" * 513, "\ud800", 7, None])
def test_key_that_is_none_is_refused(key: object) -> None:
    with pytest.raises(InvalidKey):
        stored_keys(1, ["fine", key])  # type: ignore[list-item]
    assert len(stored_keys(1, ["x" * 1024, b"y"])) == 2


def test_item_with_unresolved_siblings_gives_them_all_and_no_value() -> None:
    item = Item(True, (b"a", b"b"), b"ctx")
    with pytest.raises(Conflict) as caught:
        _ = item.value
    assert (caught.value.values, caught.value.context) == ((b"a", b"b"), b"ctx")
    assert Item(False, (), b"").value is None


def test_batch_result_tells_the_outcome_of_each_key() -> None:
    errors = {"b": TooLarge("big"), "c": DeadlineExceeded("late")}
    result = BatchResult(["a", "b", "c"], errors, sloppy=False, durable=True)
    assert [result.outcome(key) for key in "abc"] == ["ok", "failed", "unknown"]
    assert (result.ok, len(result)) == (1, 3)
    with pytest.raises(KeyError):
        result.outcome("d")


def test_resolvers() -> None:
    assert resolve.newest([1, 3, 2]) == 2
    assert resolve.oldest([1, 3, 2]) == 1
    assert resolve.maximum([1, 3, 2]) == 3
    assert resolve.minimum([2, 1, 3]) == 1
    assert resolve.union([["a", "b"], ["b", "c"]]) == ["a", "b", "c"]
    assert resolve.union([{"x": 1, "y": 1}, {"x": 2}]) == {"x": 2, "y": 1}
    assert resolve.union([{1}, {2}]) == {1, 2}
    with pytest.raises(TypeError, match="int, list"):
        resolve.union([[1], 2])


def test_names_for_later_say_what_to_use_today() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = zkv.nothing


def test_import_is_light() -> None:
    """import zkv brings neither sockets nor codecs; the client brings neither blosc2 nor numpy nor rich."""
    script = (
        "import sys, zkv\n"
        "assert not {'zmq', 'msgpack', 'cbor2', 'zkv.client'} & set(sys.modules), sorted(sys.modules)\n"
        "zkv.connect\n"
        "assert not {'blosc2', 'numpy', 'rich', 'asyncio'} & set(sys.modules), sorted(sys.modules)\n"
        "assert zkv.resolve.newest([1, 2]) == 2 and zkv.__version__ == '0.1.0'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
