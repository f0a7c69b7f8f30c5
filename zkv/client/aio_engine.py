"""The engine of the asyncio client: calls under way, the links they share, one timer for all deadlines.

Owns: which call a reply goes to, life and death. Must not know: values, codecs, how single requests become a batch (gather).

Everything happens on one loop, that of the first call. A call that is cancelled is taken out at once; what still comes for it finds nobody
and is dropped, for each reply names its request and no two requests of a session share a name.

Invariants: each run ends once, by its call's end, an error, cancellation or close. Runs under way are bounded; the rest waits in line, within
its deadline.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final, TypeVar

import zmq

from zkv.client.aio_links import AioLink
from zkv.client.links import Exchange, Order
from zkv.client.session import Learn, Pause, Session, Steps
from zkv.client.url import Target
from zkv.codec import wire
from zkv.core import messages as m
from zkv.errors import Closed, ConfigError, DeadlineExceeded, ProtocolError

_T = TypeVar("_T")

#: calls under way at a time; each may have a few messages out, and a node keeps 2,000 replies for one client
RUNS_MAX: Final = 256
#: what one task asked for may answer another whose time ends with it, give or take this
LEARN_GRACE_NS: Final = 20_000_000


class Run:
    """One call under way. progress: told after each reply; over: told once, with the error that ended it early or None."""

    __slots__ = ("busy", "call", "names", "over", "progress")

    def __init__(
        self,
        call: Exchange[Any],
        over: Callable[[BaseException | None], None],
        progress: Callable[[], None] | None = None,
    ) -> None:
        self.call = call
        self.over = over
        self.progress = progress
        #: sequences of the requests it has sent
        self.names: list[int] = []
        #: its orders are being sent; what happens meanwhile is looked at after that
        self.busy = False


class AioEngine(Session):
    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.lock = nullcontext()
        self.dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[str, AioLink] = {}
        self._runs: dict[Run, None] = {}
        self._line: deque[Run] = deque()
        self._by_name: dict[int, Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._learning: asyncio.Task[None] | None = None
        self._learning_until_ns = 0
        #: told when the client is closed: those who hold what has not become a run yet
        self.closers: list[Callable[[], None]] = []
        _ENGINES.add(self)

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs now. Raises: ConfigError where the client belongs to another one; Closed."""
        if self.closed:
            raise Closed("the client was closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise ConfigError("a client belongs to the event loop of its first call; open one for each loop")
            self._loop = loop
        return loop

    # --- steps ---

    async def finish(self, steps: Steps[_T]) -> _T:
        """Drive each step to its end while other tasks run; what the steps came to."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Learn):
                    await self._learn(step.deadline_ns)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    await self._run(step)
                step = next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result

    async def _run(self, call: Exchange[Any]) -> None:
        waiter: asyncio.Future[None] = self.loop().create_future()

        def over(error: BaseException | None) -> None:
            if waiter.done():
                return
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

        run = Run(call, over)
        self.start(run)
        try:
            await waiter
        except asyncio.CancelledError:
            call.abandon()
            self._end(run, None)
            raise

    async def _learn(self, deadline_ns: int) -> None:
        """All who want the topology at a time ask for it once. Who leaves does not take the question along."""
        while self.state.document is None or self.state.stale:
            if self._learning is None:
                self._learning = self.loop().create_task(self.finish(self.hello(deadline_ns)))
                self._learning.add_done_callback(self._learnt)
                self._learning_until_ns = deadline_ns
            asked, until_ns = self._learning, self._learning_until_ns
            left_ns = deadline_ns - time.monotonic_ns() + LEARN_GRACE_NS
            await asyncio.wait((asked,), timeout=max(0.0, left_ns / 1e9))
            if not asked.done():
                raise DeadlineExceeded(f"no answer in time from {', '.join(self.target.addresses)}")
            error = asked.exception()
            if error is not None and deadline_ns <= until_ns + LEARN_GRACE_NS:
                raise copy.copy(error)  # each task adds its own traceback

    def _learnt(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # those who wait for it raise it; if all have left, nobody is to be told

    # --- runs ---

    def start(self, run: Run) -> None:
        """Raises: Closed."""
        if self.closed:
            raise Closed("the client was closed")
        if len(self._runs) >= RUNS_MAX:
            self._line.append(run)
            self._arm(run.call.deadline_ns)
            return
        self._runs[run] = None
        self._advance(run, time.monotonic_ns())

    def _advance(self, run: Run, now_ns: int) -> None:
        """Send what the call orders; arrange to be woken."""
        if run.busy:
            return
        call = run.call
        run.busy = True
        try:
            while not call.done and run in self._runs:
                for order in call.turn(now_ns):
                    self._post(run, order, now_ns)
                if call.done:
                    break
                wake_ns = call.next_wakeup_ns()
                if wake_ns > now_ns:
                    self._arm(wake_ns)
                    return
        except Exception as error:  # a bug, or what cannot be encoded: theirs to hear who wait for it
            self._end(run, error)
            call.abandon()
        else:
            self._end(run, None)
        finally:
            run.busy = False

    def _end(self, run: Run, error: BaseException | None) -> None:
        if run not in self._runs:
            if run in self._line:
                self._line.remove(run)
                run.over(error)
            return
        del self._runs[run]
        for name in run.names:
            if self._by_name.get(name) is run:
                del self._by_name[name]
        run.over(error)
        if self._line and len(self._runs) < RUNS_MAX:
            waiting = self._line.popleft()
            self._runs[waiting] = None
            self._advance(waiting, time.monotonic_ns())

    def _arm(self, wake_ns: int) -> None:
        """One timer for all: the earliest. One that turns out too early costs less than one per call."""
        if self._timer is not None:
            if self._timer_ns <= wake_ns:
                return
            self._timer.cancel()
        assert self._loop is not None
        self._timer_ns = wake_ns
        self._timer = self._loop.call_later(max(0.0, (wake_ns - time.monotonic_ns()) / 1e9), self._woken)

    def _woken(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        for run in list(self._line):
            if run.call.deadline_ns <= now_ns:  # it never got its turn, and says so itself
                self._line.remove(run)
                self._runs[run] = None
                self._advance(run, now_ns)
            else:
                self._arm(run.call.deadline_ns)
        for run in list(self._runs):
            if run in self._runs:
                wake_ns = run.call.next_wakeup_ns()
                if wake_ns <= now_ns:
                    self._advance(run, now_ns)
                else:
                    self._arm(wake_ns)

    # --- links ---

    def _post(self, run: Run, order: Order, now_ns: int) -> None:
        link = self._links.get(order.address)
        if link is not None and link.up:
            if self._send(link, run, order):
                return
            self._drop(link)
            link = None
        if link is None:
            assert self._loop is not None
            try:
                link = AioLink(self._loop, order.address, now_ns, self._came_up, self._arrived, self._drop)
            except zmq.ZMQError:  # an address that cannot be: no such name, too many sockets
                self.state.failed(order.address, now_ns)
                run.call.on_unsent(order, now_ns)
                return
            self._links[order.address] = link
        link.queue.append((run, order))

    def _send(self, link: AioLink, run: Run, order: Order) -> bool:
        now_ns = time.monotonic_ns()
        frames = wire.encode(order.message, cluster=self.state.cluster, now_ns=now_ns)
        if not link.send(frames):
            return False
        request = getattr(order.message, "request", None)
        if request is not None:
            name = request[1]
            run.names.append(name)
            self._by_name[name] = run
        run.call.on_sent(order, now_ns)
        return True

    def _came_up(self, link: AioLink) -> None:
        queue, link.queue = link.queue, []
        for run, order in queue:
            if run not in self._runs:
                continue
            now_ns = time.monotonic_ns()
            try:
                if not self._send(link, run, order):
                    self.state.failed(order.address, now_ns)
                    run.call.on_unsent(order, now_ns)
            except Exception as error:
                self._end(run, error)
                run.call.abandon()
                continue
            self._advance(run, now_ns)

    def _arrived(self, link: AioLink, frames: list[bytes]) -> None:
        try:
            message = wire.decode(frames)
        except ProtocolError:
            link.up = False  # not a node of ours, or one that speaks another version: nothing more is read from it
            self._drop(link)
            return
        name = getattr(message, "request", (0, 0))[1]
        now_ns = time.monotonic_ns()
        run = self._by_name.get(name)
        if run is not None:
            self._tell(run, link, message, now_ns)
            return
        taken = False
        if not name:  # a greeting, which has no name: whoever asked this address
            for run in list(self._runs):
                if not run.names and run in self._runs:
                    taken = self._tell(run, link, message, now_ns, drop=False) or taken
        if not taken:
            self.dropped += 1

    def _tell(self, run: Run, link: AioLink, message: m.Message, now_ns: int, *, drop: bool = True) -> bool:
        try:
            taken = run.call.on_reply(link.address, message, now_ns)  # type: ignore[arg-type]
            if taken and run.progress is not None:
                run.progress()
        except Exception as error:
            self._end(run, error)
            run.call.abandon()
            return True
        if taken:
            self._advance(run, now_ns)
        elif drop:
            self.dropped += 1
        return taken

    def _drop(self, link: AioLink) -> None:
        """The link is at its end: read what had arrived, then tell whoever may have waited for it."""
        if self._links.get(link.address) is not link:
            return
        del self._links[link.address]
        link.drain()
        link.close()
        now_ns = time.monotonic_ns()
        self.state.failed(link.address, now_ns)
        queue, link.queue = link.queue, []
        touched = list(self._runs)
        for run in touched:
            run.call.on_lost(link.address, now_ns)
        for run, order in queue:
            if run in self._runs:
                run.call.on_unsent(order, now_ns)
        for run in touched:
            if run in self._runs:
                self._arm(now_ns)  # not from here: this may be in the middle of another run's turn

    # --- life ---

    @property
    def has_sockets(self) -> bool:
        return bool(self._links)

    async def close(self) -> None:
        """Idempotent. What was begun and is not answered fails with Closed."""
        self.shut()
        if self._learning is not None:
            await asyncio.wait((self._learning,))

    def shut(self) -> None:
        """The part of `close` that waits for nothing."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for closer in self.closers:
            closer()
        line, self._line = list(self._line), deque()
        for run in (*self._runs, *line):
            run.over(Closed("the client was closed before the answer came"))
            run.call.abandon()
        self._runs.clear()
        self._by_name.clear()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def after_fork(self) -> None:
        """In the child: the loop and the sockets are the parent's."""
        _ABANDONED.append((self._links, self._runs, self._loop, self._timer))
        self._links, self._runs, self._line, self._by_name = {}, {}, deque(), {}
        self._loop = self._timer = self._learning = None
        self.closed = True


_ENGINES: Final[weakref.WeakSet[AioEngine]] = weakref.WeakSet()
#: kept so that no finalizer of an inherited socket runs in a child
_ABANDONED: Final[list[object]] = []


def _after_fork_in_child() -> None:
    for engine in list(_ENGINES):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
