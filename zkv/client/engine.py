"""The engine of the synchronous client: state under a lock, idle lanes, life and death, fork.

Owns: the lock, the lanes, the session's renewal in a forked child; what every engine of calling threads does. Must not know: values, codecs,
results.

A forked child inherits sockets that belong to its parent. It keeps them referenced and untouched, takes a new session and connects anew.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from typing import Any, Final, TypeVar

from zkv.client.lanes import Lane
from zkv.client.links import Exchange, Order, abandon_context
from zkv.client.session import Learn, Pause, Session, Steps
from zkv.client.single import LaneFlight, NoSingles, Singles
from zkv.client.url import Target
from zkv.core.client_state import ClientState
from zkv.errors import Closed

_O = TypeVar("_O", bound=Order)
_T = TypeVar("_T")


class ThreadEngine(Session):
    """Drives steps in the caller's thread. What an exchange is driven over is the subclass's: sockets here, a store in this process (embedded)."""

    #: asks for one key without a call, where there are sockets
    singles: Singles | NoSingles

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.singles = NoSingles()

    def finish(self, steps: Steps[_T], flight: LaneFlight | None = None) -> _T:
        """Drive each step to its end in this thread; what the steps came to. flight: with it the first call has begun."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Learn):
                    self.finish(self.hello(step.deadline_ns))
                elif isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    self.run(step, flight)
                    flight = None
                step = next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            if flight is not None:
                self.singles.abandon(flight)

    def run(self, call: Exchange[Any], flight: LaneFlight | None = None) -> None:
        """Drive a call to its end in this thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Idempotent; every later call raises Closed."""
        raise NotImplementedError


class Engine(ThreadEngine):
    """Shared by a client and its buckets."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._reset()
        self.singles = Singles(self)
        _ENGINES.add(self)

    def _reset(self) -> None:
        self.lock = threading.Lock()
        self._idle: list[Lane] = []
        self._lanes: set[Lane] = set()

    # --- calls ---

    def run(self, call: Exchange[Any], flight: LaneFlight | None = None) -> None:
        """Drive a call to its end in this thread."""
        if flight is not None:
            lane = flight.lane
        else:
            with self.lock:
                if self.closed:
                    raise Closed("the client was closed")
                if self._idle:
                    lane = self._idle.pop()
                else:
                    lane = Lane(self.lock, self.state.failed)
                    self._lanes.add(lane)
        try:
            lane.run(call, self.state.cluster, None if flight is None else (flight.address, flight.frames))
        except BaseException:
            with self.lock:
                call.abandon()
            self.discard(lane)  # it may have stopped between two frames of a message
            raise
        self.give_back(lane)

    def take_lane(self) -> tuple[Lane, int] | None:
        """An idle lane and the sequence of a request; None: there is none, or the client is closed."""
        with self.lock:
            if self.closed or not self._idle:
                return None
            return self._idle.pop(), self.state.next_sequence()

    def give_back(self, lane: Lane) -> None:
        with self.lock:
            if not self.closed:
                self._idle.append(lane)
                return
        self.discard(lane)

    def discard(self, lane: Lane) -> None:
        with self.lock:
            self._lanes.discard(lane)
        lane.close()

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
        self.state = ClientState(random.Random())
        self._reset()
        self._name = f"zkv-python-{os.getpid()}"


_ENGINES: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()
#: kept so that no finalizer of an inherited socket runs in a child
_ABANDONED: Final[list[object]] = []


def _after_fork_in_child() -> None:
    _ABANDONED.append(abandon_context())
    for engine in list(_ENGINES):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
