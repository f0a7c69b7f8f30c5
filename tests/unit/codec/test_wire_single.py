"""The usual messages of one key: the same bytes as codec/wire makes, and never another meaning than it reads."""

from __future__ import annotations

import random

import pytest

from zkv.codec import wire
from zkv.codec.wire_single import KEY_BYTES_SHORT, SingleCodec
from zkv.core import messages as m
from zkv.errors import ProtocolError
from zkv.ids import Actor, NodeId, checksum_of

CLUSTER = 0x1122334455667788
CODEC = SingleCodec(CLUSTER)
MS = 1_000_000
ACTOR = Actor(b"open-id!\0\0\0\1")
KEYS = [b"\0\0\0\1k", b"\0\0\0\2" + b"{tag}" * 9, b"\0\0\0\1" + b"x" * (KEY_BYTES_SHORT - 4)]
VALUES = [b"v", b"v" * 127, b"v" * 128, b"v" * 255, b"v" * 256, b"v" * 70_000]


def _encoded(message: m.Message) -> list[bytes]:
    return wire.encode(message, cluster=CLUSTER, now_ns=0)


def _put(key: bytes, value: bytes, base: tuple[Actor, int] | None = None) -> m.Put:
    bases = None if base is None else [base]
    put = m.Put((7, 9), [key], [value], [checksum_of(value)], None, bases, want_context=True)  # type: ignore[arg-type]
    put.deadline_ns = 5_000 * MS
    return put


@pytest.mark.parametrize("key", KEYS)
def test_get_is_the_general_message(key: bytes) -> None:
    frame = CODEC.get(7, 9, 5_000, key)
    assert [frame] == _encoded(m.Get((7, 9), [key], deadline_ns=5_000 * MS))
    assert CODEC.read_get([frame]) == (7, 9, 5_000, key)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", VALUES)
def test_put_is_the_general_message(key: bytes, value: bytes) -> None:
    checksum = checksum_of(value)
    frames = CODEC.put(7, 9, 5_000, key, value, checksum, None)
    assert frames == _encoded(_put(key, value))
    assert CODEC.read_put(frames) == (7, 9, 5_000, key, checksum, value)


def test_put_that_follows_another_is_the_general_message_and_left_to_its_reader() -> None:
    frames = CODEC.put(7, 9, 5_000, KEYS[0], b"v", checksum_of(b"v"), (ACTOR, 300))
    assert frames == _encoded(_put(KEYS[0], b"v", (ACTOR, 300)))
    assert CODEC.read_put(frames) is None


@pytest.mark.parametrize("value", [b"", *VALUES])
def test_answer_of_a_get_is_the_general_message(value: bytes) -> None:
    frames = CODEC.found(7, 9, value, checksum_of(value))
    reply = m.GetReply((7, 9), None, None, None, None, [checksum_of(value)], None, None, [value])
    assert frames == _encoded(reply)
    assert CODEC.read_found(frames, 7, 9) == (value,)


def test_miss_is_the_general_message() -> None:
    frames = CODEC.absent(7, 9)
    assert frames == _encoded(m.GetReply((7, 9), None, None, None, [0], [], None, None, []))
    assert CODEC.read_found(frames, 7, 9) == (None,)


def test_answer_of_a_put_is_the_general_message() -> None:
    frames = CODEC.stored(7, 9, (ACTOR, 3), [NodeId(10), NodeId(1 << 63)], True, 2)
    receipt = m.Receipt([NodeId(10), NodeId(1 << 63)], True, False, 2)
    assert frames == _encoded(m.PutReply((7, 9), None, None, None, [ACTOR], None, [3], [receipt], None))
    assert CODEC.read_stored(frames, 7, 9) == ((ACTOR, 3), [10, 1 << 63], True, False, 2)


@pytest.mark.parametrize(("session", "sequence"), [(7, 8), (8, 9), (0, 0)])
def test_answer_to_another_request_is_none(session: int, sequence: int) -> None:
    assert CODEC.read_found(CODEC.found(7, 9, b"v", checksum_of(b"v")), session, sequence) is None
    assert CODEC.read_found(CODEC.absent(7, 9), session, sequence) is None
    assert CODEC.read_stored(CODEC.stored(7, 9, (ACTOR, 3), [NodeId(10)], True, 2), session, sequence) is None


def test_value_that_was_changed_on_the_way_is_none() -> None:
    head, _ = CODEC.put(7, 9, 5_000, KEYS[0], b"good", checksum_of(b"good"), None)
    assert CODEC.read_put([head, b"evil"]) is None
    head, _ = CODEC.found(7, 9, b"good", checksum_of(b"good"))
    assert CODEC.read_found([head, b"evil"], 7, 9) is None


def test_frames_of_another_cluster_are_none() -> None:
    other = SingleCodec(CLUSTER + 1)
    assert other.read_get([CODEC.get(7, 9, 5_000, KEYS[0])]) is None
    assert other.read_put(CODEC.put(7, 9, 5_000, KEYS[0], b"v", checksum_of(b"v"), None)) is None
    assert other.read_found(CODEC.absent(7, 9), 7, 9) is None
    assert other.read_stored(CODEC.stored(7, 9, (ACTOR, 3), [NodeId(1)], True, 2), 7, 9) is None


def _meaning(frames: list[bytes]) -> object:
    """What the general readers make of it, in the words of the single ones."""
    read = (
        CODEC.read_get(frames),
        CODEC.read_put(frames),
        CODEC.read_found(frames, 7, 9),
        CODEC.read_stored(frames, 7, 9),
    )
    get, put, found, stored = read
    assert sum(r is not None for r in read) <= 1
    if not any(r is not None for r in read):
        return None
    message = wire.decode(frames, now_ns=0)
    if get is not None:
        session, sequence, remaining_ms, key = get
        assert message == m.Get((session, sequence), [key], deadline_ns=remaining_ms * MS)
    elif put is not None:
        session, sequence, remaining_ms, key, checksum, value = put
        wanted = m.Put((session, sequence), [key], [value], [checksum], want_context=True)
        wanted.deadline_ns = remaining_ms * MS
        assert message == wanted and checksum == checksum_of(value)
    elif found is not None:
        values = [] if found == (None,) else list(found)
        counts = [0] if found == (None,) else None
        sums = [checksum_of(value) for value in values if value is not None]
        assert message == m.GetReply((7, 9), None, None, None, counts, sums, None, None, values)  # type: ignore[arg-type]
    else:
        assert stored is not None
        (actor, counter), nodes, durable, sloppy, epoch = stored
        receipt = m.Receipt([NodeId(n) for n in nodes], durable, sloppy, epoch)
        assert message == m.PutReply((7, 9), None, None, None, [actor], None, [counter], [receipt], None)
    return message


USUAL = {
    "get": [CODEC.get(7, 9, 5_000, KEYS[1])],
    "put": CODEC.put(7, 9, 5_000, KEYS[1], b"value" * 60, checksum_of(b"value" * 60), None),
    "follows": CODEC.put(7, 9, 5_000, KEYS[0], b"v", checksum_of(b"v"), (ACTOR, 300)),
    "found": CODEC.found(7, 9, b"value" * 60, checksum_of(b"value" * 60)),
    "empty": CODEC.found(7, 9, b"", checksum_of(b"")),
    "absent": CODEC.absent(7, 9),
    "stored": CODEC.stored(7, 9, (ACTOR, 300), [NodeId(10), NodeId(1 << 62)], False, 70_000),
}


@pytest.mark.parametrize("name", USUAL)
def test_whatever_is_changed_is_refused_or_means_what_the_general_reader_says(name: str) -> None:
    """Every byte of the first frame to several others, cut, lengthened, with a frame more or less: 20,000 cases over all kinds."""
    head, *rest = USUAL[name]
    dice = random.Random(name)
    taken = 0
    for at in range(len(head)):
        for byte in {0x00, 0x01, 0xC0, 0xC2, 0xC3, 0xFF, head[at] ^ 1, head[at] ^ 0x80, dice.randrange(256)} - {
            head[at]
        }:
            taken += _meaning([head[:at] + bytes((byte,)) + head[at + 1 :], *rest]) is not None
    for size in range(1, len(head)):
        assert _meaning([head[:size], *rest]) is None
    for more in ([b""], [b"v"], [head], [b"", b""]):
        _meaning([head, *rest, *more])
        _meaning([head, *more])
    assert _meaning([head + b"\xc0", *rest]) is None
    # sessions, times left and the like may change; the readers of answers name the request they wait for
    assert (taken > 0) == (name in ("get", "put", "stored", "follows") and name != "follows")


def test_short_frames_are_none() -> None:
    for size in range(60):
        assert _meaning([bytes(size)]) is None
        with pytest.raises(ProtocolError):
            wire.decode([bytes(size)])
