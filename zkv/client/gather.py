"""What concurrent tasks ask for in one turn of the loop, as batches.

Owns: which single requests travel together, who hears which answer. Must not know: sockets, routing, retries (they are those of any batch).

Requests with the same options become one call at the end of the turn; a call is one message per node. Each waits on a future of its own, which is
settled as soon as the answer to its part is there. Who is cancelled before the turn ends was never sent; who is cancelled later leaves a
future that nobody looks at, and the call goes on for the others.

Invariants: a batch of puts has no key twice. Every future is settled once: by an answer, an error or its task's cancellation.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from zkv.client.aio_engine import AioEngine, Run
from zkv.client.decode import Found, found_items_of, intact, receipts_of, verify
from zkv.client.keys import Key, key_bytes, stored_keys
from zkv.core.client_parts import take
from zkv.core.client_puts import GetCall, PutCall
from zkv.core.topology import Bucket as BucketEntry
from zkv.core.versions import Context
from zkv.errors import Closed, InvalidKey, ZkvError
from zkv.ids import checksum_of

#: keys of one call: few enough that a node works on one while we make the next
KEYS_MAX: Final = 250
#: calls of ours under way; what is asked for meanwhile is gathered until one of them ends
RUNS_MAX: Final = 64

#: the answer to a plain get of a key that is not there
MISS: Final = object()

Options = tuple[Any, ...]


class Several:
    """The answer to a plain get of a key with siblings: read it once more, with the context that settling them needs."""

    __slots__ = ("deadline_ns",)

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns


class Batch:
    """Single requests of one kind with the same options."""

    __slots__ = ("_failed", "_told", "call", "deadline_ns", "engine", "futures", "keys", "name")

    call: GetCall | PutCall

    def __init__(self, engine: AioEngine, name: str, deadline_ns: int) -> None:
        self.engine = engine
        self.name = name
        self.deadline_ns = deadline_ns
        self.keys: list[Key] = []
        self.futures: list[asyncio.Future[Any]] = []
        self._told = self._failed = 0

    def make(self, entry: BucketEntry, now_ns: int) -> GetCall | PutCall:
        raise NotImplementedError

    def tell(self, start: int) -> None:
        """Settle the futures of the answers from this one on."""
        raise NotImplementedError

    def keep(self, places: Sequence[int]) -> None:
        """Only the requests at these places."""
        self.keys = take(self.keys, places)
        self.futures = take(self.futures, places)

    def progress(self) -> None:
        call = self.call
        if len(call.answers) > self._told:
            start, self._told = self._told, len(call.answers)
            self.tell(start)
        if len(call.failures) > self._failed:
            for positions, error in call.errors_from(self._failed):
                self.engine.note_error(error)
                for position in positions:
                    self.fail(self.futures[position], copy.copy(error))
            self._failed = len(call.failures)

    def fail(self, future: asyncio.Future[Any], error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def fail_all(self, error: BaseException) -> None:
        for future in self.futures:
            self.fail(future, copy.copy(error))  # each task adds its own traceback

    def ready(self, entry: BucketEntry, now_ns: int) -> bool:
        """Make the call, without those who have left or whose key is none. False: nobody is left."""
        if any(future.done() for future in self.futures):
            self.keep([i for i, future in enumerate(self.futures) if not future.done()])
        if not self.futures:
            return False
        try:
            self.call = self.make(entry, now_ns)
        except InvalidKey:
            good = []
            for place, key in enumerate(self.keys):
                try:
                    stored_keys(entry.bucket_id, [key])
                    good.append(place)
                except InvalidKey as error:
                    self.fail(self.futures[place], error)
            self.keep(good)
            return self.ready(entry, now_ns)
        return True


class Gets(Batch):
    """plain: answered with the value alone, or MISS or Several; else with what was found."""

    __slots__ = ("_plain", "_r", "_sloppy", "_want_context", "heads")

    call: GetCall

    def __init__(self, engine: AioEngine, name: str, deadline_ns: int, options: Options) -> None:
        super().__init__(engine, name, deadline_ns)
        self._r, self._sloppy, self._want_context, self.heads, self._plain = options

    def make(self, entry: BucketEntry, now_ns: int) -> GetCall:
        return GetCall(
            self.engine.state,
            entry,
            stored_keys(entry.bucket_id, self.keys),
            now_ns,
            self.deadline_ns,
            r=self._r,
            sloppy=self._sloppy,
            want_context=self._want_context,
            heads=self.heads,
        )

    def tell(self, start: int) -> None:
        for answer in self.call.answers[start:]:
            positions, columns, reply = answer
            if self._plain and columns is None and reply.counts is None and intact(reply):
                for future, value in zip(take(self.futures, positions), reply.values, strict=True):
                    if not future.done():
                        future.set_result(value)
                continue
            for found in found_items_of(answer):
                self._tell_one(found)

    def _tell_one(self, found: Found) -> None:
        position, reply, start, end, _ = found
        future = self.futures[position]
        if future.done():
            return
        if not self._plain:
            future.set_result(found)
        elif end == start:
            future.set_result(MISS)
        elif end - start > 1:
            future.set_result(Several(self.deadline_ns))
        else:
            try:
                verify(reply.values[start:end], reply.checksums[start:end], self.keys[position])
            except ZkvError as error:
                future.set_exception(error)
            else:
                future.set_result(reply.values[start])


class Puts(Batch):
    __slots__ = ("_contexts", "_durable", "_expires_ms", "_sloppy", "_taken", "_values", "_w")

    call: PutCall

    def __init__(self, engine: AioEngine, name: str, deadline_ns: int, options: Options) -> None:
        super().__init__(engine, name, deadline_ns)
        self._w, self._sloppy, self._durable, _, _ = options
        self._values: list[bytes | None] = []
        self._contexts: list[Context | None] = []
        self._expires_ms: list[int] = []
        self._taken: set[bytes] = set()

    def take(self, key: Key, value: bytes | None, context: Context | None, expires_ms: int | None) -> bool:
        """False: the key is there already; two puts of it cannot travel together. Raises: InvalidKey."""
        known = key_bytes(key)
        if known in self._taken:
            return False
        self._taken.add(known)
        self.keys.append(key)
        self._values.append(value)
        if context is not None:
            self._contexts.append(context)
        if expires_ms is not None:
            self._expires_ms.append(expires_ms)
        return True

    def keep(self, places: Sequence[int]) -> None:
        super().keep(places)
        self._values = take(self._values, places)
        self._contexts = take(self._contexts, places) if self._contexts else []
        self._expires_ms = take(self._expires_ms, places) if self._expires_ms else []

    def make(self, entry: BucketEntry, now_ns: int) -> PutCall:
        return PutCall(
            self.engine.state,
            entry,
            stored_keys(entry.bucket_id, self.keys),
            self._values,
            [0 if value is None else checksum_of(value) for value in self._values],
            now_ns,
            self.deadline_ns,
            contexts=self._contexts or None,
            expires_ms=self._expires_ms or None,
            w=self._w,
            sloppy=self._sloppy,
            durable=self._durable,
            want_context=True,
        )

    def tell(self, start: int) -> None:
        for answer in self.call.answers[start:]:
            results = receipts_of(answer, self.engine.name_of)
            for future, result in zip(take(self.futures, answer[0]), results, strict=True):
                if not future.done():
                    future.set_result(result)


class Gather:
    """One per client."""

    def __init__(self, engine: AioEngine) -> None:
        self._engine = engine
        self._gets: dict[Options, Gets] = {}
        self._puts: dict[Options, Puts] = {}
        self._waiting: list[Batch] = []
        self._booked = False
        self._runs = 0
        self._learning: set[asyncio.Task[None]] = set()
        engine.closers.append(self._close)

    def get(self, name: str, key: Key, timeout: float | None, options: Options) -> asyncio.Future[Any]:
        """Raises: Closed, ConfigError."""
        loop = self._engine.loop()
        which = (name, timeout, options)
        batch = self._gets.get(which)
        if batch is None or len(batch.keys) >= KEYS_MAX:
            batch = self._gets[which] = Gets(self._engine, name, self._deadline_ns(timeout), options)
            self._add(batch, loop)
        future: asyncio.Future[Any] = loop.create_future()
        batch.keys.append(key)
        batch.futures.append(future)
        return future

    def put(
        self,
        name: str,
        key: Key,
        value: bytes | None,
        context: Context | None,
        expires_ms: int | None,
        timeout: float | None,
        options: Options,
    ) -> asyncio.Future[Any]:
        """Raises: Closed, ConfigError, InvalidKey."""
        loop = self._engine.loop()
        which = (name, timeout, options)
        batch = self._puts.get(which)
        if batch is None or len(batch.keys) >= KEYS_MAX or not batch.take(key, value, context, expires_ms):
            batch = Puts(self._engine, name, self._deadline_ns(timeout), options)
            batch.take(key, value, context, expires_ms)
            self._puts[which] = batch
            self._add(batch, loop)
        future: asyncio.Future[Any] = loop.create_future()
        batch.futures.append(future)
        return future

    def _deadline_ns(self, timeout: float | None) -> int:
        return self._engine.deadline_ns(timeout, time.monotonic_ns())

    def _add(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting.append(batch)
        if not self._booked and self._runs < RUNS_MAX:
            self._booked = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._booked = False
        state = self._engine.state
        if self._engine.closed:
            return
        if state.document is None or state.stale:
            batches, self._waiting = self._waiting, []
            self._forget(batches)
            for batch in batches:
                task = self._engine.loop().create_task(self._learn_first(batch))
                self._learning.add(task)
                task.add_done_callback(self._learning.discard)
            return
        while self._waiting and self._runs < RUNS_MAX:
            batch = self._waiting.pop(0)
            self._forget([batch])
            self._start(batch)

    def _forget(self, batches: list[Batch]) -> None:
        """They are complete: what is asked for from here on goes into others."""
        for table in (self._gets, self._puts):
            for which in [which for which, batch in table.items() if batch in batches]:
                del table[which]

    async def _learn_first(self, batch: Batch) -> None:
        try:
            await self._engine.finish(self._engine.bucket(batch.name, batch.deadline_ns))
        except Exception as error:
            batch.fail_all(error)
        else:
            self._start(batch)

    def _start(self, batch: Batch) -> None:
        try:
            if not batch.ready(self._engine.state.bucket(batch.name), time.monotonic_ns()):
                return
            self._runs += 1
            self._engine.start(Run(batch.call, self._over(batch), batch.progress))
        except Exception as error:
            batch.fail_all(error)

    def _over(self, batch: Batch) -> Callable[[BaseException | None], None]:
        def over(error: BaseException | None) -> None:
            self._runs -= 1
            batch.progress()
            if error is not None:
                batch.fail_all(error)
            if self._waiting and not self._booked and not self._engine.closed:
                self._booked = True
                self._engine.loop().call_soon(self._flush)

        return over

    def _close(self) -> None:
        batches, self._waiting = self._waiting, []
        self._forget(batches)
        for batch in batches:
            batch.fail_all(Closed("the client was closed before the answer came"))
