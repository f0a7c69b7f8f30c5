"""Links of the asyncio client: sockets that the loop watches, one per node, for all calls at once.

Owns: the reading of a socket as the loop reports it, when a link is given up. Must not know: which call a reply belongs to (aio_engine).

The descriptor of a ZeroMQ socket tells of a change only once, whatever it was, and any call on the socket may use that up. So its
events are looked at after everything that is done with the socket, and reading goes on until there is nothing more or a later turn is booked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

from zkv.client.links import CONNECT_NS, Link, context

#: messages read at a time, so that other tasks get their turn
READ_MAX: Final = 64


class AioLink(Link):
    """Tells `came_up` once, `arrived` for each message, `ended` once, at the end; never from within a call of a method."""

    __slots__ = ("_arrived", "_booked", "_came_up", "_closed", "_ended", "_fd", "_loop", "_monitor_fd", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        now_ns: int,
        came_up: Callable[[AioLink], None],
        arrived: Callable[[AioLink, list[bytes]], None],
        ended: Callable[[AioLink], None],
    ) -> None:
        """Raises: zmq.ZMQError for an address that cannot be."""
        super().__init__(context(), address, now_ns + CONNECT_NS)
        self._loop = loop
        self._came_up = came_up
        self._arrived = arrived
        self._ended = ended
        self._closed = False
        self._fd = int(self.socket.get(zmq.FD))
        self._monitor_fd = int(self.monitor.get(zmq.FD))
        loop.add_reader(self._fd, self._look)
        loop.add_reader(self._monitor_fd, self._look_at_monitor)
        self._timer = loop.call_later(CONNECT_NS / 1e9, self._give_up)
        self._booked: asyncio.Handle | None = loop.call_soon(self._look_at_both)

    def send(self, frames: list[bytes]) -> bool:
        """False: certainly not sent; the link has ended, or is about to."""
        try:
            self.hand_over(frames)
        except zmq.Again:
            return False
        if self._booked is None and int(self.socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._booked = self._loop.call_soon(self._look)
        return True

    def drain(self) -> None:
        """Read what has arrived on a link that is about to be closed."""
        while self.up and self._read():
            pass

    def close(self) -> None:
        """Idempotent. Nothing is told from here on."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        if self._booked is not None:
            self._booked.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            self._loop.remove_reader(self._monitor_fd)
        super().close()

    # --- called by the loop ---

    def _look_at_both(self) -> None:
        self._look()
        self._look_at_monitor()

    def _look(self) -> None:
        if self._booked is not None:
            self._booked.cancel()
            self._booked = None
        if self._closed:
            return
        if not self.up:
            if not int(self.socket.get(zmq.EVENTS)) & zmq.POLLOUT:
                return
            self.up = True
            self._timer.cancel()
            self._came_up(self)
        for _ in range(READ_MAX):
            if not self._read():
                return
        self._booked = self._loop.call_soon(self._look)

    def _read(self) -> bool:
        if self._closed:
            return False
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._arrived(self, frames)
        return True

    def _look_at_monitor(self) -> None:
        if not self._closed and self.lost():
            self._ended(self)

    def _give_up(self) -> None:
        if not self._closed and not self.up:
            self._ended(self)
