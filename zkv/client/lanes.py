"""Sockets of the client: one lane per call under way, one DEALER per node in a lane.

Owns: zmq on the client's side, the moment a link is up, lost or will never be. Must not know: routing, retries, keys.

A lane belongs to one thread at a time: the client hands idle lanes to callers under its lock, which is the fence that lets a ZeroMQ socket
change threads. A link is one socket and one connection; it never reconnects by itself, so what was sent on it can be lost only once, and
a monitor tells when. Late replies to calls that are over are read and dropped.

Invariants: every wait ends by the deadline of the call. A lane that was left in the middle of a call is closed, not reused.
Source: the options are those whose effect was measured (reference, ZeroMQ mechanics 2.2 to 2.7).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

import zmq

from zkv.codec import wire
from zkv.core import messages as m
from zkv.errors import ProtocolError

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

_OPTIONS: Final[dict[zmq.SocketOption, int]] = {
    zmq.LINGER: 0,  # what is not on its way when we close was never promised
    zmq.IMMEDIATE: 1,  # no connection, no queue: EAGAIN means certainly not sent
    zmq.RECONNECT_IVL: -1,  # one socket, one connection
    zmq.HEARTBEAT_IVL: 500,  # a stopped process or a cut cable is noticed within two seconds
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.HANDSHAKE_IVL: 3000,
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
    """What a lane drives: a call of client_calls, or anything else of that shape."""

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

    __slots__ = ("address", "give_up_ns", "monitor", "poller", "queue", "socket", "up")

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
        #: for when this link alone is waited for, which is most of the time
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)

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


class Lane:
    """Links of one caller at a time. `guard` serialises what calls do with state that threads share."""

    __slots__ = ("_active", "_failed", "_guard", "_links", "dropped")

    def __init__(self, guard: AbstractContextManager[object], failed: Callable[[str, int], None]) -> None:
        self._guard = guard
        self._failed = failed
        self._links: dict[str, Link] = {}
        self._active: dict[str, Link] = {}
        #: replies that answered nothing open
        self.dropped = 0

    def run(self, call: Exchange[_O], cluster: int = 0) -> None:
        """Drive a call to its end. `cluster` goes into each header."""
        self._active.clear()
        while True:
            now_ns = time.monotonic_ns()
            with self._guard:
                orders = call.turn(now_ns)
            for order in orders:
                self._post(call, order, cluster, now_ns)
            if call.done:
                break
            self._wait(call, cluster)
        for link in self._active.values():
            link.queue.clear()

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._active.clear()

    # --- sending ---

    def _post(self, call: Exchange[_O], order: _O, cluster: int, now_ns: int) -> None:
        link = self._links.get(order.address)
        if link is not None and link.up:
            self._active[order.address] = link
            if self._send(call, link, order, cluster):
                return
            self._drop(call, link)  # it ended while nobody looked; what is at the other end now may be fine
            link = None
        if link is None:
            try:
                link = Link(_context(), order.address, now_ns + CONNECT_NS)
            except zmq.ZMQError:  # an address that cannot be: no such name, too many sockets
                self._unsent(call, order)
                return
            self._links[order.address] = link
        self._active[order.address] = link
        link.queue.append(order)

    def _send(self, call: Exchange[_O], link: Link, order: _O, cluster: int) -> bool:
        """False: certainly not sent."""
        now_ns = time.monotonic_ns()
        frames = wire.encode(order.message, cluster=cluster, now_ns=now_ns)
        try:
            link.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        call.on_sent(order, now_ns)
        return True

    def _unsent(self, call: Exchange[_O], order: _O) -> None:
        now_ns = time.monotonic_ns()
        with self._guard:
            self._failed(order.address, now_ns)
            call.on_unsent(order, now_ns)

    # --- waiting ---

    def _wait(self, call: Exchange[_O], cluster: int) -> None:
        wake_ns = call.next_wakeup_ns()
        active = self._active
        if len(active) == 1:
            (link,) = active.values()
            poller = link.poller if link.up else self._poller_of(active)
        else:
            poller = self._poller_of(active)
        for link in active.values():
            if not link.up and link.give_up_ns < wake_ns:
                wake_ns = link.give_up_ns
        left_ms = max(0, -(-(wake_ns - time.monotonic_ns()) // 1_000_000))
        ready = dict(poller.poll(left_ms))
        now_ns = time.monotonic_ns()
        for link in list(active.values()):
            if link.socket in ready:
                if link.up:
                    self._receive(call, link)
                else:
                    self._came_up(call, link, cluster)
            ended = link.monitor in ready and link.lost()
            if ended or (not link.up and now_ns >= link.give_up_ns):
                self._drop(call, link)

    def _poller_of(self, links: dict[str, Link]) -> zmq.Poller:
        poller = zmq.Poller()
        for link in links.values():
            poller.register(link.socket, zmq.POLLIN if link.up else zmq.POLLOUT)
            poller.register(link.monitor, zmq.POLLIN)
        return poller

    def _came_up(self, call: Exchange[_O], link: Link, cluster: int) -> None:
        link.up = True
        queue, link.queue = link.queue, []
        for order in queue:
            if not self._send(call, link, order, cluster):
                self._unsent(call, order)

    def _receive(self, call: Exchange[_O], link: Link) -> None:
        while not call.done:
            try:
                frames = link.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = wire.decode(frames)
            except ProtocolError:
                self._drop(call, link, drain=False)  # not a node of ours, or one that speaks another version
                return
            now_ns = time.monotonic_ns()
            with self._guard:
                if not call.on_reply(link.address, message, now_ns):  # type: ignore[arg-type]
                    self.dropped += 1

    def _drop(self, call: Exchange[_O], link: Link, *, drain: bool = True) -> None:
        """The link is at its end: read what had arrived, then tell the call."""
        if self._links.get(link.address) is not link:
            return
        if link.up and drain:
            self._receive(call, link)
        del self._links[link.address]
        self._active.pop(link.address, None)
        link.close()
        now_ns = time.monotonic_ns()
        with self._guard:
            self._failed(link.address, now_ns)
            call.on_lost(link.address, now_ns)
            for order in link.queue:
                call.on_unsent(order, now_ns)
        link.queue = []


_contexts: list[zmq.Context[zmq.Socket[bytes]]] = []


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for the process: its own, so that nobody else's `term` waits for our sockets."""
    if not _contexts:
        _contexts.append(zmq.Context())
    return _contexts[0]


def abandon_context() -> object:
    """In a forked child: the parent's context is replaced by a new one at the next use. The caller keeps the old one referenced."""
    old = list(_contexts)
    _contexts.clear()
    return old
