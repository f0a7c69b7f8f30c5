"""Frames of gossip: a fixed header with a checksum, and a msgpack body.

Owns: the byte form of membership messages and of the members that outlive a restart. Must not know: sockets, what a message causes.

One frame per message. The checksum covers everything else, so no flipped bit gets as far as the rules; numbers and layouts are append-only and stand in
docs/wire.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final
from zlib import crc32

from zkv.codec.packed import pack, unpack
from zkv.core.membership import messages as m
from zkv.core.membership.happenings import Remembered
from zkv.core.membership.states import PHASES, State
from zkv.errors import ProtocolError, VersionMismatch
from zkv.ids import NodeId

GOSSIP_VERSION: Final = 1
#: 2s magic, u8 version, u8 kind, u32 crc32 of all the rest, u64 cluster, u64 sender, u64 incarnation, u64 number
HEADER: Final = struct.Struct("<2sBBIQQQQ")
HEADER_BYTES: Final = HEADER.size
MAGIC: Final = b"zg"
#: 512 records with names and addresses of the usual length are 100 KiB
FRAME_BYTES_MAX: Final = 512 * 1024
TEXT_MAX: Final = 255
MEMBERS_MAX: Final = 16_384

_CRC_AT: Final = 4
_CRC_END: Final = 8
_U32_MAX: Final = 0xFFFFFFFF
_U64_MAX: Final = 0xFFFFFFFFFFFFFFFF
_NO_CRC: Final = bytes(4)


def encode(message: m.Message) -> bytes:
    """Raises: ProtocolError when it is too large, which nothing that the rules send is."""
    head = message.head
    kind, fields = _ENCODERS[type(message)](message)
    body = pack([head.state, head.epoch, head.topology_hash, *fields])
    frame = bytearray(
        HEADER.pack(MAGIC, GOSSIP_VERSION, kind, 0, head.cluster, head.sender, head.incarnation, message.number) + body
    )
    if len(frame) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a gossip frame of {len(frame):,} bytes is over the limit of {FRAME_BYTES_MAX:,}")
    frame[_CRC_AT:_CRC_END] = crc32(frame).to_bytes(4, "little")
    return bytes(frame)


def decode(frame: bytes) -> m.Message:
    """Raises: ProtocolError for anything that is not exactly a message; VersionMismatch when only the version is foreign."""
    if not HEADER_BYTES < len(frame) <= FRAME_BYTES_MAX:
        raise ProtocolError(f"a gossip frame of {len(frame):,} bytes")
    magic, version, number_of_kind, crc, cluster, sender, incarnation, number = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError("not a gossip frame")
    if crc != crc32(frame[_CRC_END:], crc32(frame[:_CRC_AT] + _NO_CRC)):
        raise ProtocolError("a gossip frame whose checksum does not fit")
    if version != GOSSIP_VERSION:
        raise VersionMismatch(f"gossip version {version} here, this build speaks {GOSSIP_VERSION}")
    decoder = _DECODERS.get(number_of_kind)
    if decoder is None:
        raise ProtocolError(f"unknown gossip kind {number_of_kind}")
    tree = unpack(frame[HEADER_BYTES:])
    if type(tree) is not list or len(tree) < 3:
        raise ProtocolError("a gossip body is an array that begins with state, epoch and hash")
    state = _state(tree[0])
    if state not in PHASES and state is not State.LEFT:
        raise ProtocolError(f"nobody says of itself that it is {state.word}")
    head = m.Head(cluster, NodeId(sender), incarnation, state, _u64(tree[1]), _u64(tree[2]))
    try:
        return decoder(head, number, tree[3:])
    except ValueError as error:  # too few or too many fields
        raise ProtocolError(f"not a {m.Kind(number_of_kind).name} body: {error}") from error


def encode_members(members: Iterable[Remembered]) -> bytes:
    """What is kept over a restart: checksum, then the list."""
    body = pack([[r.node, r.incarnation, r.state, _profile_out(r.profile)] for r in members])
    return crc32(body).to_bytes(4, "little") + body


def decode_members(data: bytes) -> list[Remembered]:
    """Raises: ProtocolError. A file that is lost or damaged costs nothing but the first addresses to try."""
    if crc32(data[4:]).to_bytes(4, "little") != data[:4]:
        raise ProtocolError("the list of members is damaged")
    members: list[Remembered] = []
    for entry in _list(unpack(data[4:]), MEMBERS_MAX):
        node, incarnation, state, profile = _fields(entry, 4)
        members.append(Remembered(NodeId(_u64(node)), _u64(incarnation), _state(state), _profile(profile)))
    return members


# --- checks ------------------------------------------------------------------------------------------------------------------


def _u64(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _U64_MAX:
        raise ProtocolError("expected a number of 64 bits")
    return value


def _u32(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _U32_MAX:
        raise ProtocolError("expected a number of 32 bits")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ProtocolError("expected a flag")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > TEXT_MAX:
        raise ProtocolError(f"expected a text of at most {TEXT_MAX} characters")
    return value


def _list(value: Any, longest: int) -> list[Any]:
    if type(value) is not list or len(value) > longest:
        raise ProtocolError(f"expected an array of at most {longest}")
    return value


def _fields(value: Any, count: int) -> list[Any]:
    if type(value) is not list or len(value) != count:
        raise ProtocolError(f"expected an array of {count}")
    return value


def _state(value: Any) -> State:
    if type(value) is not int or not 0 <= value <= State.REMOVED:
        raise ProtocolError("unknown state")
    return State(value)


def _reason(value: Any) -> m.Reason:
    if type(value) is not int or not m.Reason.CLUSTER <= value <= m.Reason.UNKNOWN:
        raise ProtocolError("unknown reason")
    return m.Reason(value)


# --- parts -------------------------------------------------------------------------------------------------------------------


def _profile_out(profile: m.Profile) -> list[Any]:
    weight = profile.weight
    return [
        profile.name,
        profile.peer_address,
        profile.gossip_address,
        profile.instance,
        profile.address,
        profile.host,
        profile.rack,
        profile.dc,
        int(weight) if weight == int(weight) else weight,
        profile.protocol_min,
        profile.protocol_max,
    ]


def _profile(tree: Any) -> m.Profile:
    name, peer, gossip, instance, address, host, rack, dc, weight, lowest, highest = _fields(tree, 11)
    if type(weight) not in (int, float) or not 0 <= weight <= _U32_MAX:
        raise ProtocolError("a weight is a number from 0 on")
    return m.Profile(
        _text(name),
        _text(peer),
        _text(gossip),
        _u64(instance),
        _text(address),
        _text(host),
        _text(rack),
        _text(dc),
        float(weight),
        _u32(lowest),
        _u32(highest),
    )


def _rumours_out(rumours: list[m.Rumour]) -> list[Any]:
    return [
        [r.node, r.incarnation, r.state, list(r.accusers), None if r.profile is None else _profile_out(r.profile)]
        for r in rumours
    ]


def _rumours(tree: Any, longest: int = m.RUMOURS_MAX) -> list[m.Rumour]:
    rumours: list[m.Rumour] = []
    for entry in _list(tree, longest):
        node, incarnation, state, accusers, profile = _fields(entry, 5)
        named = tuple(NodeId(_u64(accuser)) for accuser in _list(accusers, m.ACCUSERS_MAX))
        said = None if profile is None else _profile(profile)
        rumours.append(m.Rumour(NodeId(_u64(node)), _u64(incarnation), _state(state), named, said))
    return rumours


def _load(tree: Any) -> m.Load:
    operations, used, largest, lag = _fields(tree, 4)
    return m.Load(_u64(operations), _u64(used), _u64(largest), _u64(lag))


# --- kinds -------------------------------------------------------------------------------------------------------------------

_Out = tuple[int, list[Any]]


def _hello_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (profile,) = fields
    return m.Hello(head, number, _profile(profile))


def _welcome_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (profile,) = fields
    return m.Welcome(head, number, _profile(profile))


def _reject_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    reason, text, instance = fields
    return m.Reject(head, number, _reason(reason), _text(text), _u64(instance))


def _ping_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    seq, target, rumours = fields
    return m.Ping(head, number, _u64(seq), NodeId(_u64(target)), _rumours(rumours))


def _ack_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    seq, subject, incarnation, load, rumours = fields
    return m.Ack(head, number, _u64(seq), NodeId(_u64(subject)), _u64(incarnation), _load(load), _rumours(rumours))


def _ping_req_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    seq, target, wait_ms, rumours = fields
    return m.PingReq(head, number, _u64(seq), NodeId(_u64(target)), _u32(wait_ms), _rumours(rumours))


def _nack_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (seq,) = fields
    return m.Nack(head, number, _u64(seq))


def _gossip_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    sequence, rumours = fields
    return m.Gossip(head, number, _u64(sequence), _rumours(rumours))


def _digest_out(x: m.SyncDigest) -> _Out:
    return m.Kind.SYNC_DIGEST, [x.seq, b"".join(bucket.to_bytes(8, "little") for bucket in x.buckets)]


def _digest_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    seq, buckets = fields
    if type(buckets) is not bytes or len(buckets) != 8 * m.BUCKETS:
        raise ProtocolError(f"a digest is {m.BUCKETS} numbers of 8 bytes")
    return m.SyncDigest(head, number, _u64(seq), struct.unpack(f"<{m.BUCKETS}Q", buckets))


def _delta_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    seq, wanted, left, records = fields
    return m.SyncDelta(head, number, _u64(seq), _u64(wanted), _u32(left), _rumours(records, m.RECORDS_MAX))


def _busy_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (seq,) = fields
    return m.Busy(head, number, _u64(seq))


def _neighbour_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (urgent,) = fields
    return m.Neighbour(head, number, _flag(urgent))


def _neighbour_reply_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    (accepted,) = fields
    return m.NeighbourReply(head, number, _flag(accepted))


def _disconnect_in(head: m.Head, number: int, fields: list[Any]) -> m.Message:
    () = fields
    return m.Disconnect(head, number)


def _ack_out(x: m.Ack) -> _Out:
    load = x.load
    carried = [load.operations_s, load.bytes_used, load.bytes_max, load.lag_ms]
    return m.Kind.ACK, [x.seq, x.subject, x.incarnation, carried, _rumours_out(x.rumours)]


_ENCODERS: Final[dict[type, Callable[[Any], _Out]]] = {
    m.Hello: lambda x: (m.Kind.HELLO, [_profile_out(x.profile)]),
    m.Welcome: lambda x: (m.Kind.WELCOME, [_profile_out(x.profile)]),
    m.Reject: lambda x: (m.Kind.REJECT, [x.reason, x.text[:TEXT_MAX], x.instance]),
    m.Ping: lambda x: (m.Kind.PING, [x.seq, x.target, _rumours_out(x.rumours)]),
    m.Ack: _ack_out,
    m.PingReq: lambda x: (m.Kind.PING_REQ, [x.seq, x.target, x.wait_ms, _rumours_out(x.rumours)]),
    m.Nack: lambda x: (m.Kind.NACK, [x.seq]),
    m.Gossip: lambda x: (m.Kind.GOSSIP, [x.sequence, _rumours_out(x.rumours)]),
    m.SyncDigest: _digest_out,
    m.SyncDelta: lambda x: (m.Kind.SYNC_DELTA, [x.seq, x.wanted, x.left, _rumours_out(x.records)]),
    m.Busy: lambda x: (m.Kind.BUSY, [x.seq]),
    m.Neighbour: lambda x: (m.Kind.NEIGHBOUR, [x.urgent]),
    m.NeighbourReply: lambda x: (m.Kind.NEIGHBOUR_REPLY, [x.accepted]),
    m.Disconnect: lambda x: (m.Kind.DISCONNECT, []),
}

_DECODERS: Final[dict[int, Callable[[m.Head, int, list[Any]], m.Message]]] = {
    m.Kind.HELLO: _hello_in,
    m.Kind.WELCOME: _welcome_in,
    m.Kind.REJECT: _reject_in,
    m.Kind.PING: _ping_in,
    m.Kind.ACK: _ack_in,
    m.Kind.PING_REQ: _ping_req_in,
    m.Kind.NACK: _nack_in,
    m.Kind.GOSSIP: _gossip_in,
    m.Kind.SYNC_DIGEST: _digest_in,
    m.Kind.SYNC_DELTA: _delta_in,
    m.Kind.BUSY: _busy_in,
    m.Kind.NEIGHBOUR: _neighbour_in,
    m.Kind.NEIGHBOUR_REPLY: _neighbour_reply_in,
    m.Kind.DISCONNECT: _disconnect_in,
}
