"""Frames: every message as a fixed header, a msgpack body and one joined buffer of values.

Owns: the byte form of messages. Must not know: sockets, when a message is sent, what it causes.

Frame 0 is header (48 bytes, little-endian) and body; frame 1, present when there are values, is all values joined, with their lengths as a
column of the body. The header is checked before anything is decoded, so what is too old, too large or not ours costs nothing.
Numbers and layouts are append-only; docs/wire.md shows them with examples that a test decodes and rebuilds.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from zkv.codec import wire_bodies
from zkv.core.messages import Kind, Message, RecordBlock
from zkv.errors import ProtocolError, VersionMismatch

#: 2 stands on frames that hold columns, which a reader of version 1 does not know; all others are as they were and say so
WIRE_VERSION: Final = 2
_VERSIONS: Final = frozenset({1, 2})
#: 2s magic, u8 version, u8 kind, u16 flags, u8 class, u8 reserved, u64 cluster, u64 session, u64 sequence, u32 remaining ms, u32 count,
#: u32 body bytes, u32 values bytes
HEADER: Final = struct.Struct("<2sBBHBBQQQIIII")
HEADER_BYTES: Final = HEADER.size
MAGIC: Final = b"zk"
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
VALUES_BYTES_MAX: Final = 64 * 1024 * 1024
REMAINING_MS_MAX: Final = 60_000

_U32_MAX: Final = 0xFFFFFFFF


class Header:
    """The fixed part, decoded. remaining_ms 0 = no deadline (hellos, heartbeats)."""

    __slots__ = ("body_bytes", "cluster", "count", "kind", "remaining_ms", "sequence", "session", "values_bytes")

    def __init__(
        self,
        kind: Kind,
        cluster: int,
        session: int,
        sequence: int,
        remaining_ms: int,
        count: int,
        body_bytes: int,
        values_bytes: int,
    ) -> None:
        self.kind = kind
        self.cluster = cluster
        self.session = session
        self.sequence = sequence
        self.remaining_ms = remaining_ms
        self.count = count
        self.body_bytes = body_bytes
        self.values_bytes = values_bytes


def encode(message: Message, *, cluster: int = 0, now_ns: int = 0) -> list[bytes]:
    """Frames of a message. `now_ns` turns its deadline into the time that is left.

    cluster  first eight bytes of the cluster id; 0 when the sender does not know it yet.
    """
    session, sequence, count, tree, values = wire_bodies.to_parts(message)
    body = wire_bodies.pack(tree)
    deadline_ns: int = getattr(message, "deadline_ns", 0)
    remaining_ms = 0
    if deadline_ns:
        remaining_ms = max(1, min(REMAINING_MS_MAX, (deadline_ns - now_ns) // 1_000_000))
    if len(body) > BODY_BYTES_MAX or len(values) > VALUES_BYTES_MAX:
        raise ProtocolError(f"a message of {len(body)} + {len(values)} bytes is over the limit")
    block: RecordBlock | None = getattr(message, "block", None)
    header = HEADER.pack(
        MAGIC,
        1 if block is None or block.columns is None else 2,
        message.kind,
        0,
        0,
        0,
        cluster,
        session,
        sequence,
        remaining_ms,
        count,
        len(body),
        len(values),
    )
    return [header + body, values] if values else [header + body]


def decode_header(frames: Sequence[bytes]) -> Header:
    """Checks the header against the frames, without touching the body.

    Raises: ProtocolError; VersionMismatch when only the version is foreign.
    """
    if not 1 <= len(frames) <= 2 or len(frames[0]) < HEADER_BYTES:
        raise ProtocolError(f"{len(frames)} frames, the first too short for a header")
    (
        magic,
        version,
        kind,
        flags,
        _class,
        _,
        cluster,
        session,
        sequence,
        remaining_ms,
        count,
        body_bytes,
        values_bytes,
    ) = HEADER.unpack_from(frames[0])
    if magic != MAGIC:
        raise ProtocolError("not a zkv frame")
    if version not in _VERSIONS:
        raise VersionMismatch(f"wire version {version} here, this build speaks 1 to {WIRE_VERSION}")
    if flags:
        raise VersionMismatch(f"unknown header flags {flags:#x}")
    known = _KINDS.get(kind)
    if known is None:
        raise ProtocolError(f"unknown message kind {kind}")
    if body_bytes != len(frames[0]) - HEADER_BYTES or body_bytes > BODY_BYTES_MAX:
        raise ProtocolError(f"the header speaks of {body_bytes} body bytes, {len(frames[0]) - HEADER_BYTES} came")
    if values_bytes != (len(frames[1]) if len(frames) == 2 else 0):
        raise ProtocolError(f"the header speaks of {values_bytes} bytes of values")
    if remaining_ms > REMAINING_MS_MAX:
        raise ProtocolError(f"{remaining_ms} ms left is over the limit of {REMAINING_MS_MAX}")
    return Header(known, cluster, session, sequence, remaining_ms, count, body_bytes, values_bytes)


def decode(frames: Sequence[bytes], *, now_ns: int = 0, header: Header | None = None) -> Message:
    """The message in these frames; its deadline counts from `now_ns`, the moment of receipt.

    Raises: ProtocolError for anything that is not exactly a message.
    """
    head = decode_header(frames) if header is None else header
    tree: Any = wire_bodies.unpack(frames[0][HEADER_BYTES:])
    values = frames[1] if len(frames) == 2 else b""
    try:
        message = wire_bodies.from_parts(head.kind, head.session, head.sequence, head.count, tree, values)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"not a {head.kind.name} body: {error}") from error
    if head.remaining_ms:
        if not hasattr(message, "deadline_ns"):
            raise ProtocolError(f"{head.kind.name} has no deadline")
        message.deadline_ns = now_ns + head.remaining_ms * 1_000_000
    return message


_KINDS: Final = {int(kind): kind for kind in Kind}
