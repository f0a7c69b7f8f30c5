"""How a round is driven: calls one after the other, in threads, or in many tasks of one loop.

Owns: the timed loops. Must not know: which store it is; see Store and AsyncStore.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from zkv.testing.bench.ledger import Ledger, compare_values, digest
from zkv.testing.bench.rounds import Sample


class Store(Protocol):
    """A store as a benchmark sees it: values come back in the order of the keys, None for a miss."""

    @property
    def processes(self) -> Mapping[str, int]: ...

    def put(self, keys: Sequence[str], values: Sequence[bytes]) -> None: ...

    def get(self, keys: Sequence[str]) -> Sequence[bytes | None]: ...


class AsyncStore(Protocol):
    @property
    def processes(self) -> Mapping[str, int]: ...

    async def put(self, key: str, value: bytes) -> None: ...

    async def get(self, key: str) -> bytes | None: ...


class Puts:
    """Batches put one after the other; with several ledgers, in as many threads."""

    def __init__(self, store: Store, ledgers: Sequence[Ledger]) -> None:
        self._store = store
        self._ledgers = ledgers

    @property
    def processes(self) -> Mapping[str, int]:
        return self._store.processes

    def run(self, seconds: float) -> Sample:
        started = time.perf_counter()
        until = started + seconds
        if len(self._ledgers) == 1:
            waits = self._lane(self._ledgers[0], until)
        else:
            with ThreadPoolExecutor(len(self._ledgers), thread_name_prefix="bench") as threads:
                lanes = list(threads.map(self._lane, self._ledgers, [until] * len(self._ledgers)))
            waits = [wait for lane in lanes for wait in lane]
        return Sample(len(waits) * self._ledgers[0].size, time.perf_counter() - started, waits)

    def check(self) -> str:
        return digest(self._ledgers, self._store.get)

    def _lane(self, ledger: Ledger, until: float) -> list[float]:
        put, now = self._store.put, time.perf_counter
        waits: list[float] = []
        while not waits or now() < until:
            keys, values = ledger.write()
            begun = now()
            put(keys, values)
            waits.append(now() - begun)
        return waits


class Gets:
    """Batches read one after the other; each answer is compared with what was written."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        for _ in ledger.keys:
            store.put(*ledger.write())

    @property
    def processes(self) -> Mapping[str, int]:
        return self._store.processes

    def run(self, seconds: float) -> Sample:
        ledger, get, now = self._ledger, self._store.get, time.perf_counter
        started = now()
        waits: list[float] = []
        while not waits or now() < started + seconds:
            keys, expected = ledger.read()
            begun = now()
            found = get(keys)
            waits.append(now() - begun)
            compare_values(keys, expected, found)
        return Sample(len(waits) * ledger.size, now() - started, waits)

    def check(self) -> str:
        return digest([self._ledger], self._store.get)


class Tasks:
    """One task for each ledger, single keys, in one loop; nothing is batched by the caller."""

    def __init__(
        self, runner: asyncio.Runner, store: AsyncStore, ledgers: Sequence[Ledger], *, reading: bool = False
    ) -> None:
        self._runner = runner
        self._store = store
        self._ledgers = ledgers
        self._reading = reading
        if reading:
            runner.run(self._all(self._fill))

    @property
    def processes(self) -> Mapping[str, int]:
        return self._store.processes

    def run(self, seconds: float) -> Sample:
        started = time.perf_counter()
        lane = self._read if self._reading else self._write
        counts = self._runner.run(self._all(lambda ledger: lane(ledger, started + seconds)))
        return Sample(sum(counts), time.perf_counter() - started)

    def check(self) -> str:
        """All tasks read their keys at once: one after the other would take longer than the rounds."""
        found: dict[str, bytes | None] = {}

        async def collect(ledger: Ledger) -> int:
            for batch in ledger.written:
                (key,) = ledger.keys[batch]
                found[key] = await self._store.get(key)
            return len(ledger.written)

        self._runner.run(self._all(collect))
        return digest(self._ledgers, lambda keys: [found[key] for key in keys])

    async def _all(self, lane: Callable[[Ledger], Awaitable[int]]) -> list[int]:
        return await asyncio.gather(*map(lane, self._ledgers))

    async def _fill(self, ledger: Ledger) -> int:
        for _ in ledger.keys:
            (key,), (value,) = ledger.write()
            await self._store.put(key, value)
        return len(ledger.keys)

    async def _write(self, ledger: Ledger, until: float) -> int:
        done = 0
        while not done or time.perf_counter() < until:
            (key,), (value,) = ledger.write()
            await self._store.put(key, value)
            done += 1
        return done

    async def _read(self, ledger: Ledger, until: float) -> int:
        done = 0
        while not done or time.perf_counter() < until:
            names, expected = ledger.read()
            compare_values(names, expected, [await self._store.get(names[0])])
            done += 1
        return done
