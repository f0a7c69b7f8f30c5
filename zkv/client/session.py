"""What both engines share: the target, the state of the client, and the steps that a call of a user is made of.

Owns: deadlines, greeting, asking. Must not know: sockets, threads, loops, values.

What a user's call does is written once, as a generator of steps: it yields what must be driven to its end, and goes on when that has ended.
The engine of the synchronous client drives steps in the caller's thread, that of the asyncio client while other tasks run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from zkv.client.links import Exchange
from zkv.client.url import Target, check_timeout
from zkv.codec.value import document_from
from zkv.core import messages as m
from zkv.core.client_asks import AskEach, HelloCall
from zkv.core.client_state import ClientState
from zkv.core.topology import Bucket
from zkv.errors import Closed, ConnectFailed, ZkvError
from zkv.ids import Dot, NodeId

_T = TypeVar("_T")


class Pause:
    """Let time pass: for nodes that are down or not allowed to answer yet; nothing tells when that ends."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Learn:
    """Have the topology, from whoever answers first."""

    __slots__ = ("deadline_ns",)

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns


class Flight:
    """A request of one key that was sent before there was a call for it. base: what a put said that it follows."""

    __slots__ = ("address", "base", "began_ns", "entry", "node", "sequence")

    def __init__(
        self, entry: Bucket, began_ns: int, node: NodeId, address: str, sequence: int, base: Dot | None
    ) -> None:
        self.entry = entry
        self.began_ns = began_ns
        self.node = node
        self.address = address
        self.sequence = sequence
        self.base = base


Steps = Generator[Exchange[Any] | Pause | Learn, None, _T]


class Session:
    """lock: held around whatever callers of several threads share."""

    lock: AbstractContextManager[object]

    def __init__(self, target: Target) -> None:
        self.target: Final = target
        self.closed = False
        self._name = f"zkv-python-{os.getpid()}"
        self.state = ClientState(random.Random())

    def deadline_ns(self, timeout: float | None, now_ns: int) -> int:
        """Raises: Closed; ConfigError for a timeout that is none."""
        if self.closed:
            raise Closed("the client was closed")
        seconds = self.target.timeout if timeout is None else check_timeout(timeout)
        return now_ns + int(seconds * 1e9)

    def bucket(self, name: str, deadline_ns: int) -> Steps[Bucket]:
        """The bucket as the topology has it; asks for the topology first if need be. Raises: NoSuchBucket and what greeting raises."""
        state = self.state
        if state.document is None or state.stale:
            yield Learn(deadline_ns)
        return state.bucket(name)

    def greet(self, deadline_ns: int) -> Steps[tuple[str, m.Welcome]]:
        """The first address that answers and what it says, unread."""
        with self.lock:
            known = self.state.addresses.values()
            addresses = tuple(dict.fromkeys((*self.target.addresses, *known)))
        call = HelloCall(addresses, self._name, time.monotonic_ns(), deadline_ns, self.state.backoff_ns)
        yield call
        return call.check()

    def hello(self, deadline_ns: int) -> Steps[None]:
        """Greet and adopt what was said."""
        address, welcome = yield from self.greet(deadline_ns)
        document = document_from(welcome.document)
        with self.lock:
            self.state.adopt(document, welcome.node, address)

    def ping(self, timeout: float | None) -> Steps[float]:
        started_ns = time.monotonic_ns()
        yield from self.greet(self.deadline_ns(timeout, started_ns))
        return (time.monotonic_ns() - started_ns) / 1e9

    def ask(
        self, asks: Sequence[tuple[str, m.Scan | m.Admin]], deadline_ns: int
    ) -> Steps[list[m.ScanReply | m.AdminReply | m.Refused | None]]:
        call = AskEach(self.state, asks, deadline_ns)
        yield call
        return call.replies

    def new_requests(self, count: int) -> list[tuple[int, int]]:
        with self.lock:
            return [(self.state.session, self.state.next_sequence()) for _ in range(count)]

    def name_of(self, node: NodeId) -> str:
        return self.state.names.get(node) or f"{node:016x}"

    def note_error(self, error: ZkvError) -> None:
        """Nobody could be reached where the topology says they are: ask the seeds again before the next call."""
        if isinstance(error, ConnectFailed):
            self.state.stale = True
