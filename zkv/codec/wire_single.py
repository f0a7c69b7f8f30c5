"""The usual request of one key and its answer, as exactly the frames that codec/wire makes of them, without its messages.

Owns: which bytes are the usual ones. Must not know: sockets, what becomes of a request. Reads nothing that codec/wire would read in another
way: whatever is not byte for byte the usual message is None here, and the general reader's to judge. A test holds the two to be equal.

Usual: one key; a get with the bucket's R that wants values alone; a blind put without expiry whose author wants the context. The checksum of
a value is computed by its reader here, so that bytes that compare equal are also intact.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from zkv.codec.packed import pack, unpack
from zkv.codec.wire import HEADER, HEADER_BYTES, MAGIC, REMAINING_MS_MAX
from zkv.core.messages import Kind
from zkv.errors import ProtocolError
from zkv.ids import ACTOR_BYTES, BUCKET_BYTES, Actor, Dot, checksum_of

#: longest stored key whose length is one byte
KEY_BYTES_SHORT: Final = 255

#: of the header: all before the session, and all from there on
_FRONT: Final = struct.Struct("<2sBBHBBQ")
_REST: Final = struct.Struct("<QQIIII")
_FRONT_BYTES: Final = _FRONT.size
_GET_HEAD: Final = b"\x95\x91\xc4"
_GET_TAIL: Final = b"\xc0\xc0\xc2\xc2"
_PUT_HEAD: Final = b"\x9f\x91\xc4"
_PUT_TAIL: Final = b"\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc2\xc2\xc3\xc2\xc2"
_FOUND_HEAD: Final = b"\x9a\x01\xc0\xc0\xc0\xc0"
_FOUND_TAIL: Final = b"\xc0"
_ABSENT: Final = b"\x9a\x00\xc0\xc0\xc0\x91\x00\x90\xc0\xc0\x90\xc0"
_BODY_AT: Final = HEADER_BYTES
_KEY_AT: Final = HEADER_BYTES + len(_GET_HEAD) + 1

#: session, sequence, remaining ms, key
Get = tuple[int, int, int, bytes]
#: the same, checksum, value
Put = tuple[int, int, int, bytes, int, bytes]


def front(kind: Kind, cluster: int) -> bytes:
    """How the header of such a message begins."""
    return _FRONT.pack(MAGIC, 1, kind, 0, 0, 0, cluster)


class SingleCodec:
    """The usual messages of one cluster."""

    __slots__ = ("_cluster", "_get", "_get_reply", "_put", "_put_reply")

    def __init__(self, cluster: int) -> None:
        self._cluster = cluster
        self._get = front(Kind.GET, cluster)
        self._put = front(Kind.PUT, cluster)
        self._get_reply = front(Kind.GET_REPLY, cluster)
        self._put_reply = front(Kind.PUT_REPLY, cluster)

    # --- requests: made by clients, read by nodes ---

    def get(self, session: int, sequence: int, remaining_ms: int, key: bytes) -> bytes:
        """key: a stored key of at most KEY_BYTES_SHORT bytes."""
        body = _GET_HEAD + bytes((len(key),)) + key + _GET_TAIL
        return self._get + _REST.pack(session, sequence, remaining_ms, 1, len(body), 0) + body

    def put(
        self, session: int, sequence: int, remaining_ms: int, key: bytes, value: bytes, checksum: int, base: Dot | None
    ) -> list[bytes]:
        """base: what the put follows, if that is known; one with a base is not read by `read_put`."""
        if base is None:
            size = len(value)
            body = b"".join((_PUT_HEAD, bytes((len(key),)), key, pack([size]), pack([checksum]), _PUT_TAIL))
        else:
            tree = [[key], [len(value)], [checksum], None, [base], None, None, None, None, None, False, False, True]
            body = pack([*tree, False, False])
        head = self._put + _REST.pack(session, sequence, remaining_ms, 1, len(body), len(value)) + body
        return [head, value] if value else [head]

    def read_get(self, frames: Sequence[bytes]) -> Get | None:
        frame = frames[0]
        size = len(frame)
        if len(frames) != 1 or size <= _KEY_AT or not frame.startswith(self._get):
            return None
        session, sequence, remaining_ms, count, body_bytes, values_bytes = _REST.unpack_from(frame, _FRONT_BYTES)
        key_bytes = frame[_KEY_AT - 1]
        if (
            count != 1
            or values_bytes
            or body_bytes != size - HEADER_BYTES
            or not 0 < remaining_ms <= REMAINING_MS_MAX
            or size != _KEY_AT + key_bytes + len(_GET_TAIL)
            or key_bytes <= BUCKET_BYTES
            or not frame.startswith(_GET_HEAD, _BODY_AT)
            or not frame.endswith(_GET_TAIL)
        ):
            return None
        return session, sequence, remaining_ms, frame[_KEY_AT : _KEY_AT + key_bytes]

    def read_put(self, frames: Sequence[bytes]) -> Put | None:
        """None also for a value that is not what its checksum says."""
        if len(frames) != 2:
            return None
        frame, value = frames
        size, value_bytes = len(frame), len(value)
        if size <= _KEY_AT or not value_bytes or not frame.startswith(self._put):
            return None
        session, sequence, remaining_ms, count, body_bytes, values_bytes = _REST.unpack_from(frame, _FRONT_BYTES)
        key_end = _KEY_AT + frame[_KEY_AT - 1]
        checksum = checksum_of(value)
        tail = pack([value_bytes]) + pack([checksum]) + _PUT_TAIL
        if (
            count != 1
            or values_bytes != value_bytes
            or body_bytes != size - HEADER_BYTES
            or not 0 < remaining_ms <= REMAINING_MS_MAX
            or key_end <= _KEY_AT + BUCKET_BYTES
            or size != key_end + len(tail)
            or not frame.startswith(_PUT_HEAD, _BODY_AT)
            or not frame.endswith(tail)
        ):
            return None
        return session, sequence, remaining_ms, frame[_KEY_AT:key_end], checksum, value

    # --- answers: made by nodes, read by clients ---

    def found(self, session: int, sequence: int, value: bytes, checksum: int) -> list[bytes]:
        body = b"".join((_FOUND_HEAD, pack([checksum]), b"\xc0\xc0", pack([len(value)]), _FOUND_TAIL))
        head = self._get_reply + _REST.pack(session, sequence, 0, 1, len(body), len(value)) + body
        return [head, value] if value else [head]

    def absent(self, session: int, sequence: int) -> list[bytes]:
        return [self._get_reply + _REST.pack(session, sequence, 0, 1, len(_ABSENT), 0) + _ABSENT]

    def stored(self, session: int, sequence: int, dot: Dot, nodes: list[int], durable: bool, epoch: int) -> list[bytes]:
        """dot: all that a put needs to cover to replace this value."""
        actor, counter = dot
        receipts = [[nodes, durable, False, epoch]]
        body = pack([None, None, None, [actor], None, [counter], receipts, None, None, None])
        return [self._put_reply + _REST.pack(session, sequence, 0, 1, len(body), 0) + body]

    def read_found(self, frames: Sequence[bytes], session: int, sequence: int) -> tuple[bytes | None] | None:
        """(value or None for a miss,); None for anything but an intact answer to this request."""
        frame = frames[0]
        value = frames[1] if len(frames) == 2 else b""
        body = frame[HEADER_BYTES:]
        if len(frames) > 2 or len(frame) < HEADER_BYTES or not frame.startswith(self._get_reply):
            return None
        head = _REST.pack(session, sequence, 0, 1, len(body), len(value))
        if not frame.startswith(head, _FRONT_BYTES):
            return None
        if body == _ABSENT and not value and len(frames) == 1:
            return (None,)
        if body != b"".join((_FOUND_HEAD, pack([checksum_of(value)]), b"\xc0\xc0", pack([len(value)]), _FOUND_TAIL)):
            return None
        return (value,)

    def read_stored(
        self, frames: Sequence[bytes], session: int, sequence: int
    ) -> tuple[Dot, list[int], bool, bool, int] | None:
        """(dot, nodes, durable, sloppy, epoch); None for anything but the usual answer to this request."""
        frame = frames[0]
        if len(frames) != 1 or len(frame) < HEADER_BYTES or not frame.startswith(self._put_reply):
            return None
        if not frame.startswith(_REST.pack(session, sequence, 0, 1, len(frame) - HEADER_BYTES, 0), _FRONT_BYTES):
            return None
        try:
            statuses, required, got, (actor,), whose, (counter,), (receipt,), which, contexts, items = unpack(
                frame[HEADER_BYTES:]
            )
            nodes, durable, sloppy, epoch = receipt
        except (ProtocolError, TypeError, ValueError):
            return None  # the general reader says what is wrong with it
        if not (statuses is required is got is whose is which is contexts is items is None):
            return None
        if (
            type(actor) is not bytes
            or len(actor) != ACTOR_BYTES
            or type(counter) is not int
            or counter <= 0
            or type(durable) is not bool
            or type(sloppy) is not bool
            or type(epoch) is not int
            or type(nodes) is not list
            or not all(type(node) is int for node in nodes)
        ):
            return None
        return (Actor(actor), counter), nodes, durable, sloppy, epoch


assert HEADER.size == _FRONT.size + _REST.size
