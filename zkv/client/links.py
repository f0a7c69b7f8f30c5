"""Links of the client: one socket and one connection to one node, and the moment it is up, lost or will never be.

Owns: the options of the client's sockets, its ZeroMQ context. Must not know: who waits on a link (lanes, aio_links), routing, retries, keys.

A link never reconnects by itself, so what was sent on it can be lost only once, and a monitor tells when.
Source: the options are those whose effect was measured (reference, ZeroMQ mechanics 2.2 to 2.7).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

import zmq

from zkv.codec import wire
from zkv.core import messages as m

#: nobody at the other end after so long: ask another node
CONNECT_NS: Final = 500_000_000
#: joined values of one reply, and room for what surrounds them
MESSAGE_BYTES_MAX: Final = wire.VALUES_BYTES_MAX + 1024

#: first frame of a monitor's message: event, value; the second is the endpoint (zmq.utils.monitor would bring asyncio with it)
_EVENT: Final = struct.Struct("=HI")
_LOST: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

#: as numbers: members of the enums take longer to combine
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)

_OPTIONS: Final[dict[zmq.SocketOption, int]] = {
    zmq.LINGER: 0,  # what is not on its way when we close was never promised
    zmq.IMMEDIATE: 1,  # no connection, no queue: EAGAIN means certainly not sent
    zmq.RECONNECT_IVL: -1,  # one socket, one connection
    zmq.HEARTBEAT_IVL: 500,  # a stopped process or a cut cable is noticed within two seconds
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.SNDHWM: 0,  # calls under way are bounded; a full queue would look like a link that has ended
    zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX,
    zmq.IPV6: 1,
}


class Order(Protocol):
    @property
    def address(self) -> str: ...

    @property
    def message(self) -> m.ClientRequest: ...


_O = TypeVar("_O", bound=Order)


class Exchange(Protocol[_O]):
    """What an engine drives to its end: a call of client_calls, or anything else of that shape."""

    @property
    def deadline_ns(self) -> int: ...

    @property
    def done(self) -> bool: ...

    def turn(self, now_ns: int) -> Sequence[_O]: ...

    def next_wakeup_ns(self) -> int: ...

    def on_sent(self, order: _O, now_ns: int) -> None: ...

    def on_unsent(self, order: _O, now_ns: int) -> None: ...

    def on_lost(self, address: str, now_ns: int) -> None: ...

    def on_reply(self, address: str, reply: m.ClientReply, now_ns: int) -> bool: ...

    def abandon(self) -> None: ...


class Link:
    """One connection to one node. `queue` holds what waits for it to stand."""

    __slots__ = ("address", "give_up_ns", "monitor", "queue", "socket", "up")

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, give_up_ns: int) -> None:
        self.address = address
        self.give_up_ns = give_up_ns
        self.up = False
        self.queue: list[Any] = []
        self.socket = context.socket(zmq.DEALER)
        for option, value in _OPTIONS.items():
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(_LOST)
        try:
            self.socket.connect(f"tcp://{address}")
        except zmq.ZMQError:
            self.close()
            raise

    def hand_over(self, frames: list[bytes]) -> None:
        """Send all frames or none. Raises: zmq.Again when there is no connection."""
        send = self.socket.send
        for frame in frames[:-1]:
            send(frame, _NOBLOCK_MORE)
        send(frames[-1], _NOBLOCK)

    def lost(self) -> bool:
        """Whether the monitor has told of an end."""
        while int(self.monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            (event, _), _ = _EVENT.unpack(self.monitor.recv()), self.monitor.recv()
            if event & _LOST:
                return True
        return False

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close()


_contexts: list[zmq.Context[zmq.Socket[bytes]]] = []


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for the process: its own, so that nobody else's `term` waits for our sockets."""
    if not _contexts:
        _contexts.append(zmq.Context())
    return _contexts[0]


def abandon_context() -> object:
    """In a forked child: the parent's context is replaced by a new one at the next use. The caller keeps the old one referenced."""
    old = list(_contexts)
    _contexts.clear()
    return old
