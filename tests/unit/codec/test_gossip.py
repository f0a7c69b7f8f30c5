"""A gossip frame that is not exactly what was sent is not a frame."""

from __future__ import annotations

from zlib import crc32

import pytest

from tests.formats import gossip_examples as examples
from tests.unit.core.membership.one import One
from zkv.codec import gossip
from zkv.core.membership import messages as m
from zkv.core.membership.states import State
from zkv.errors import ProtocolError, VersionMismatch
from zkv.ids import NodeId

FRAMES = {name: gossip.encode(message) for name, message in examples.messages().items()}


def refitted(frame: bytes) -> bytes:
    """With the checksum that belongs to it."""
    blank = frame[:4] + bytes(4) + frame[8:]
    return frame[:4] + crc32(blank).to_bytes(4, "little") + frame[8:]


@pytest.mark.parametrize("name", FRAMES)
def test_frame_with_any_single_bit_flipped_is_refused(name: str) -> None:
    frame = FRAMES[name]
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            gossip.decode(bytes(damaged))


@pytest.mark.parametrize("name", FRAMES)
def test_frame_cut_at_any_byte_or_with_one_more_is_refused(name: str) -> None:
    frame = FRAMES[name]
    for end in range(len(frame)):
        with pytest.raises(ProtocolError):
            gossip.decode(frame[:end])
    with pytest.raises(ProtocolError):
        gossip.decode(frame + b"\0")


def test_list_of_members_with_any_single_bit_flipped_is_refused() -> None:
    data = gossip.encode_members(examples.MEMBERS)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            gossip.decode_members(bytes(damaged))


def test_frame_over_the_limit_is_refused_before_it_is_looked_at_and_never_sent() -> None:
    with pytest.raises(ProtocolError, match="524,289 bytes"):
        gossip.decode(b"zg" + bytes(gossip.FRAME_BYTES_MAX - 1))
    text = "x" * gossip.TEXT_MAX
    long = m.Profile(text, text, text, 1, text, text, text, text)
    full = m.SyncDelta(examples.HEAD, 1, 1, 0, 0, [m.Rumour(NodeId(n), 1, State.ALIVE, (), long) for n in range(512)])
    with pytest.raises(ProtocolError, match="over the limit"):
        gossip.encode(full)


def test_largest_answer_to_a_sync_of_usual_members_fits() -> None:
    usual = [m.Rumour(NodeId(n), 1 << 32, State.ALIVE, (), examples.PROFILE) for n in range(m.RECORDS_MAX)]
    assert len(gossip.encode(m.SyncDelta(examples.HEAD, 1, 1, 0, 0, usual))) < gossip.FRAME_BYTES_MAX / 4


def test_foreign_version_and_kind_are_told_apart_from_damage() -> None:
    frame = FRAMES["nack"]
    with pytest.raises(VersionMismatch, match="gossip version 9"):
        gossip.decode(refitted(frame[:2] + b"\x09" + frame[3:]))
    with pytest.raises(ProtocolError, match="unknown gossip kind 99"):
        gossip.decode(refitted(frame[:3] + b"\x63" + frame[4:]))


def test_more_rumours_than_a_message_may_hold_are_refused() -> None:
    many = m.Gossip(examples.HEAD, 1, 1, [examples.SUSPECT] * (m.RUMOURS_MAX + 1))
    with pytest.raises(ProtocolError, match="at most 64"):
        gossip.decode(gossip.encode(many))


def test_nobody_calls_itself_dead() -> None:
    head = m.Head(7, NodeId(2), 1 << 32, State.DEAD)
    with pytest.raises(ProtocolError, match="dead"):
        gossip.decode(gossip.encode(m.Nack(head, 1, 1)))


def test_what_the_rules_send_crosses_the_codec_unchanged() -> None:
    one = One(20)
    one.run_s(20, deaf={3, 4})
    messages = [effect.message for effect in one.effects if hasattr(effect, "message")]
    assert {type(message).__name__ for message in messages} >= {"Ping", "PingReq", "Gossip", "Neighbour", "SyncDigest"}
    for message in messages:
        assert gossip.decode(gossip.encode(message)) == message
