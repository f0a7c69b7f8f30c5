"""Whatever bytes come, the decoder answers with a message or a ProtocolError, and what it lets through can be encoded again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats import examples
from zkv.codec import columns, packed, records, wire
from zkv.core import messages as m
from zkv.core.versions import Context, VersionSet
from zkv.errors import ProtocolError, VersionMismatch
from zkv.ids import Actor

FRAMES = {name: wire.encode(message, cluster=examples.CLUSTER) for name, message in examples.messages().items()}


@st.composite
def damaged(draw: st.DrawFn) -> list[bytes]:
    """Frames of a real message with bytes changed, cut off, added, or a frame taken away or doubled."""
    frames = [bytearray(frame) for frame in FRAMES[draw(st.sampled_from(sorted(FRAMES)))]]
    for _ in range(draw(st.integers(1, 4))):
        frame = draw(st.sampled_from(frames))
        if not frame:
            continue
        at = draw(st.integers(0, len(frame) - 1))
        match draw(st.sampled_from(["change", "cut", "add", "drop", "double"])):
            case "change":
                frame[at] = draw(st.integers(0, 255))
            case "cut":
                del frame[at:]
            case "add":
                frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "drop" if len(frames) > 1:
                frames.remove(frame)
            case "double":
                frames.append(frame)
    return [bytes(frame) for frame in frames]


@settings(max_examples=1_500)
@given(damaged())
def test_damaged_frames_decode_to_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    try:
        message = wire.decode(frames, now_ns=1)
    except ProtocolError:
        return
    wire.encode(message, cluster=1)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(frames)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.binary(max_size=64))
def test_random_bytes_are_no_block(meta: bytes, values: bytes) -> None:
    try:
        block = records.decode_block(meta, values)
    except ProtocolError:
        return
    assert records.decode_block(*records.encode_block(m.RecordBlock(block.records))).records is not None


def columns_tree() -> list[Any]:
    meta, _ = records.encode_block(examples.columns())
    tree: list[Any] = packed.unpack(meta)
    return tree


def test_columns_come_back_as_they_went() -> None:
    block = examples.columns()
    received = records.decode_block(*records.encode_block(block))
    assert received.columns is not None and block.columns is not None
    received.columns.check_invariants()
    for name in (
        "keys",
        "actor",
        "counters",
        "stamp",
        "values",
        "checksums",
        "runs",
        "row_versions",
        "fences",
        "expires_ms",
        "voids",
        "pasts",
    ):
        assert getattr(received.columns, name) == getattr(block.columns, name), name
    rows = [(r.key, r.request, r.row_version) for r in received.records]
    assert rows[2] == (examples.columns().keys[2], (8, 5, 2, 1), 2)
    codec, parts = records.block_to_log(block)
    assert codec == records.COLUMNS_CODEC
    again = records.block_from_log(b"".join(parts))
    assert all(a.versions.same_as(b.versions) for a, b in zip(again.records, block.records, strict=True))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (0, 3, "unknown form"),
        (1, [], "distinct keys"),
        (1, [examples.ADA, examples.ADA, examples.BOB], "distinct keys"),
        (1, [examples.ADA, examples.BOB, b"\0\0\0\1"], "stored key"),
        (2, b"short", "12 bytes"),
        (3, [1, 1], "counters"),
        (3, [1, 0, 1], "out of its range"),
        (3, [1, True, 1], "numbers"),
        (4, -1, "stamp"),
        (5, [1, 2, 1 << 32], "checksums"),
        (6, [3, 3, 3], "bytes of values"),
        (6, [3, 6, -1], "lengths"),
        (7, [[7, 1, 2]], "add up"),
        (7, [[7, 1, 0]], "length"),
        (7, [[7, 1, [2, 1, 0]]], "ascend"),
        (7, [[-1, 1, 3]], "session"),
        (7, [[7, 1]], "not columns"),
        (7, None, "array"),
        (8, [1, 1], "row versions"),
        (9, -1, "fences"),
        (10, [0, 0, 1 << 63], "expires_ms"),
        (11, [[3, [1]]], "place"),
        (11, [[0, [-1]]], "voided"),
        (12, [[0, [examples.ACTOR, 2]]], "own dots"),
        (12, [[0, [b"x", 3]]], "12-byte actors"),
    ],
)
def test_columns_that_are_none_are_refused_with_what_is_wrong(place: int, value: object, says: str) -> None:
    tree = columns_tree()
    tree[place] = value
    with pytest.raises(ProtocolError, match=says):
        records.decode_block(packed.pack(tree), b"AdaBobCy")


@settings(max_examples=300)
@given(st.data())
def test_columns_with_one_changed_byte_are_refused_or_stay_whole(data: st.DataObject) -> None:
    meta, values = records.encode_block(examples.columns())
    at = data.draw(st.integers(0, len(meta) - 1))
    changed = meta[:at] + bytes([data.draw(st.integers(0, 255))]) + meta[at + 1 :]
    try:
        block = records.decode_block(changed, values)
    except ProtocolError:
        return
    if block.columns is not None:
        block.columns.check_invariants()
    for record in block.records:
        record.versions.check_invariants()


def header(**changes: int | bytes) -> list[bytes]:
    """A HELLO whose header says something else."""
    names = ("magic", "version", "kind", "flags", "cls", "zero", "cluster", "session", "sequence", "remaining", "count")
    fields = dict(zip((*names, "body", "values"), wire.HEADER.unpack_from(FRAMES["hello"][0]), strict=True))
    fields.update(changes)
    return [wire.HEADER.pack(*fields.values()) + FRAMES["hello"][0][wire.HEADER_BYTES :]]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"magic": b"xx"}, ProtocolError, "not a zkv frame"),
        ({"version": 3}, VersionMismatch, "version 3"),
        ({"flags": 1}, VersionMismatch, "flags"),
        ({"kind": 250}, ProtocolError, "unknown message kind"),
        ({"body": 1}, ProtocolError, "body bytes"),
        ({"values": 1}, ProtocolError, "bytes of values"),
        ({"remaining": 60_001}, ProtocolError, "over the limit"),
        ({"remaining": 5}, ProtocolError, "no deadline"),
        ({"count": 20_000}, ProtocolError, "20000 items"),
    ],
)
def test_header_that_lies_is_refused_with_what_is_wrong(
    change: dict[str, int | bytes], error: type[ProtocolError], says: str
) -> None:
    with pytest.raises(error, match=says):
        wire.decode(header(**change))


def test_deadline_counts_from_receipt_and_never_leaves_as_zero() -> None:
    get = m.Get((1, 1), [examples.ADA], deadline_ns=5)
    frames = wire.encode(get, now_ns=10)
    received = wire.decode(frames, now_ns=100)
    assert isinstance(received, m.Get)
    assert received.deadline_ns == 100 + 1_000_000


def test_message_over_the_limit_is_not_encoded() -> None:
    keys = [b"\0\0\0\1" + b"%05d" % i + b"k" * 1_000 for i in range(4_200)]
    with pytest.raises(ProtocolError, match="over the limit"):
        wire.encode(m.Get((1, 1), keys))


@given(
    st.dictionaries(st.binary(min_size=12, max_size=12), st.integers(1, columns.COUNTER_MAX), max_size=5),
    st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.integers(2, 100)), max_size=3),
)
def test_contexts_come_back_as_they_went(past: dict[bytes, int], cloud: list[tuple[bytes, int]]) -> None:
    dots = sorted({(Actor(a), n) for a, n in cloud})
    context = Context({Actor(a): n for a, n in past.items()}, tuple(dots))
    assert records.context_from_bytes(records.context_to_bytes(context)) == context


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        b"\x92\x90",
        b"\x92\x91\x01\xc0",
        b"\xc0",
        b"\x92\x90\x91\x01",
        b"\x92\x92\x90\x01\xc0",  # an actor that is a list, in the past and in the cloud
        b"\x92\x90\x92\x90\x01",
    ],
)
def test_bytes_that_are_no_context_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        records.context_from_bytes(data)


def test_block_is_encoded_once_and_logged_as_it_came() -> None:
    block = examples.block()
    first = records.encode_block(block)
    assert records.encode_block(block) is first
    received = records.decode_block(*first)
    assert records.encode_block(received) == first
    body = b"".join(records.block_to_log(received)[1])
    again = records.block_from_log(body)
    assert [r.key for r in again.records] == [r.key for r in block.records]
    assert all(a.versions.same_as(b.versions) for a, b in zip(again.records, block.records, strict=True))


@pytest.mark.parametrize("body", [b"", b"\1\0", b"\xff\0\0\0abc"])
def test_log_body_shorter_than_it_says_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="shorter"):
        records.block_from_log(body)


def test_tombstone_travels_as_a_past_without_siblings() -> None:
    gone = VersionSet((), {examples.ACTOR: 4})
    block = m.RecordBlock([m.Record(examples.ADA, 1, 0, (7, 1, 0, 0), gone)])
    received = records.decode_block(*records.encode_block(block))
    assert received.records[0].versions.same_as(gone)
    assert received.records[0].request == (7, 1, 0, 0)
