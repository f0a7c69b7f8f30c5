"""What the threads of one client share: state under a lock, idle lanes, topology, life and death, fork.

Owns: the lock, the lanes, the session's renewal in a forked child. Must not know: values, codecs, results.

A forked child inherits sockets that belong to its parent. It keeps them referenced and untouched, takes a new session and connects anew.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Final, TypeVar

from zkv.client.lanes import Exchange, Lane, Order, abandon_context
from zkv.client.url import Target, check_timeout
from zkv.codec.value import document_from
from zkv.core import messages as m
from zkv.core.client_asks import AskEach, HelloCall
from zkv.core.client_state import ClientState
from zkv.core.topology import Bucket
from zkv.errors import Closed

_O = TypeVar("_O", bound=Order)


class Engine:
    """Shared by a client and its buckets."""

    def __init__(self, target: Target) -> None:
        self.target: Final = target
        self.closed = False
        self._name = f"zkv-python-{os.getpid()}"
        self._reset()
        _ENGINES.add(self)

    def _reset(self) -> None:
        self.state = ClientState(random.Random())
        self.lock = threading.Lock()
        self._idle: list[Lane] = []
        self._lanes: set[Lane] = set()

    # --- calls ---

    def deadline_ns(self, timeout: float | None, now_ns: int) -> int:
        """Raises: Closed; ConfigError for a timeout that is none."""
        if self.closed:
            raise Closed("the client was closed")
        seconds = self.target.timeout if timeout is None else check_timeout(timeout)
        return now_ns + int(seconds * 1e9)

    def bucket(self, name: str, deadline_ns: int) -> Bucket:
        """The bucket as the topology has it; asks for the topology first if need be. Raises: NoSuchBucket and what `hello` raises."""
        state = self.state
        if state.document is None or state.stale:
            self.hello(deadline_ns)
        return state.bucket(name)

    def run(self, call: Exchange[_O]) -> None:
        """Drive a call to its end in this thread."""
        with self.lock:
            if self.closed:
                raise Closed("the client was closed")
            if self._idle:
                lane = self._idle.pop()
            else:
                lane = Lane(self.lock, self.state.failed)
                self._lanes.add(lane)
        try:
            lane.run(call, self.state.cluster)
        except BaseException:
            with self.lock:
                call.abandon()
            self._discard(lane)  # it may have stopped between two frames of a message
            raise
        with self.lock:
            if not self.closed:
                self._idle.append(lane)
                return
        self._discard(lane)

    def _discard(self, lane: Lane) -> None:
        with self.lock:
            self._lanes.discard(lane)
        lane.close()

    def hello(self, deadline_ns: int) -> None:
        """Learn the topology from whoever answers first."""
        address, welcome = self.greet(deadline_ns)
        document = document_from(welcome.document)
        with self.lock:
            self.state.adopt(document, welcome.node, address)

    def greet(self, deadline_ns: int) -> tuple[str, m.Welcome]:
        """The first address that answers and what it says, unread."""
        with self.lock:
            known = self.state.addresses.values()
            addresses = tuple(dict.fromkeys((*self.target.addresses, *known)))
        call = HelloCall(addresses, self._name, time.monotonic_ns(), deadline_ns, self.state.backoff_ns)
        self.run(call)
        return call.check()

    def ask(
        self, asks: Sequence[tuple[str, m.Scan | m.Admin]], deadline_ns: int
    ) -> list[m.ScanReply | m.AdminReply | m.Refused | None]:
        call = AskEach(self.state, asks, deadline_ns)
        self.run(call)
        return call.replies

    def new_requests(self, count: int) -> list[tuple[int, int]]:
        with self.lock:
            return [(self.state.session, self.state.next_sequence()) for _ in range(count)]

    def note_unreached(self) -> None:
        """Nobody could be reached where the topology says they are: ask the seeds again before the next call."""
        self.state.stale = True

    @property
    def dropped(self) -> int:
        """Replies that answered nothing open: late ones, mostly."""
        with self.lock:
            return sum(lane.dropped for lane in self._lanes)

    # --- life ---

    @property
    def has_sockets(self) -> bool:
        return bool(self._lanes)

    def close(self) -> None:
        """Idempotent. Calls under way in other threads end by their deadline and take their sockets with them."""
        with self.lock:
            self.closed = True
            idle, self._idle = self._idle, []
            self._lanes.difference_update(idle)
        for lane in idle:
            lane.close()

    def after_fork(self) -> None:
        """In the child: other threads and the parent's sockets are not ours."""
        _ABANDONED.append((self._lanes, self._idle, self.state))
        closed = self.closed
        self._reset()
        self.closed = closed
        self._name = f"zkv-python-{os.getpid()}"


_ENGINES: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()
#: kept so that no finalizer of an inherited socket runs in a child
_ABANDONED: Final[list[object]] = []


def _after_fork_in_child() -> None:
    _ABANDONED.append(abandon_context())
    for engine in list(_ENGINES):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
