"""Lanes: the links of one call under way, for callers that wait in threads.

Owns: the wait of a calling thread. Must not know: routing, retries, keys, socket options (links).

A lane belongs to one thread at a time: the client hands idle lanes to callers under its lock, which is the fence that lets a ZeroMQ socket
change threads. Late replies to calls that are over are read and dropped.

Invariants: every wait ends by the deadline of the call. A lane that was left in the middle of a call is closed, not reused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import zmq

from zkv.client.links import CONNECT_NS, Exchange, Link, Order, context
from zkv.codec import wire
from zkv.errors import ProtocolError

_O = TypeVar("_O", bound=Order)

#: most answers come within this: a blocking read costs one system call less than a poll, and hears of a lost link only when it ends
BLOCK_MS: Final = 5


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

    def ask(self, address: str, frames: list[bytes]) -> list[bytes] | None:
        """Send on a link that stands, and what comes first in a moment. None: certainly not sent; empty: nothing came yet."""
        link = self._links.get(address)
        if link is None or not link.up:
            return None
        try:
            link.hand_over(frames)
        except zmq.Again:
            return None
        try:
            return link.socket.recv_multipart()
        except zmq.Again:
            return []

    def run(self, call: Exchange[_O], cluster: int = 0, came: tuple[str, list[bytes]] | None = None) -> None:
        """Drive a call to its end. `cluster` goes into each header. came: the call's request is with this address, and what `ask` gave."""
        self._active.clear()
        if came is not None:
            address, frames = came
            self._active[address] = self._links[address]
            if frames:
                self._take(call, self._links[address], frames)
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
                link = Link(context(), order.address, now_ns + CONNECT_NS)
            except zmq.ZMQError:  # an address that cannot be: no such name, too many sockets
                self._unsent(call, order)
                return
            link.socket.setsockopt(zmq.RCVTIMEO, BLOCK_MS)
            self._links[order.address] = link
        self._active[order.address] = link
        link.queue.append(order)

    def _send(self, call: Exchange[_O], link: Link, order: _O, cluster: int) -> bool:
        """False: certainly not sent."""
        now_ns = time.monotonic_ns()
        frames = wire.encode(order.message, cluster=cluster, now_ns=now_ns)
        try:
            link.hand_over(frames)
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
        for link in active.values():
            if not link.up and link.give_up_ns < wake_ns:
                wake_ns = link.give_up_ns
        left_ms = max(0, -(-(wake_ns - time.monotonic_ns()) // 1_000_000))
        if len(active) == 1 and left_ms > BLOCK_MS:
            (link,) = active.values()
            if link.up and self._receive(call, link, patient=True):
                return
        ready = dict(self._poller_of(active).poll(left_ms))
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

    def _receive(self, call: Exchange[_O], link: Link, *, patient: bool = False) -> bool:
        """Read what is there. patient: wait a little for the first. False: nothing came."""
        flags = 0 if patient else zmq.NOBLOCK
        came = False
        while not call.done:
            try:
                frames = link.socket.recv_multipart(flags)
            except zmq.Again:
                return came
            came, flags = True, zmq.NOBLOCK
            if not self._take(call, link, frames):
                return True
        return came

    def _take(self, call: Exchange[_O], link: Link, frames: list[bytes]) -> bool:
        """False: the link is of no use."""
        try:
            message = wire.decode(frames)
        except ProtocolError:
            self._drop(call, link, drain=False)  # not a node of ours, or one that speaks another version
            return False
        now_ns = time.monotonic_ns()
        with self._guard:
            if not call.on_reply(link.address, message, now_ns):  # type: ignore[arg-type]
                self.dropped += 1
        return True

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
