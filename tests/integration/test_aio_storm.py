"""A thousand asyncio tasks on real nodes, cancelled at random, one node killed meanwhile: every reply goes to its own request."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

import zkv
from zkv.client import AsyncClient
from zkv.errors import ZkvError
from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration

TASKS = 1_000


class Storm:
    """Each task has keys of its own; a value says key and number, so that it can be told whose it is and how old."""

    def __init__(self, kv: AsyncClient, seed: int, seconds: float) -> None:
        self.kv = kv
        self.dice = random.Random(seed)
        self.ends = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()

    async def task(self, number: int) -> None:
        key = f"storm:{number}"
        #: numbers of puts that may be what is stored: the last that was acknowledged, and those whose end this task did not hear of,
        #: for these may still be on their way when a later one is acknowledged
        possible, unheard = {-1}, set[int]()
        i = 0
        while time.monotonic() < self.ends:
            i += 1
            if self.dice.random() < 0.5:
                possible.add(i)
                result = await self.ended(self.kv.put(key, self.value(key, i)))
                if isinstance(result, zkv.PutResult):
                    possible = {i} | unheard
                else:
                    unheard.add(i)
            elif self.dice.random() < 0.9:
                self.check(await self.ended(self.kv.get(key, b"none")), key, possible)
            else:
                both = await self.ended(self.kv.get_many([key, "shared"]))
                if isinstance(both, dict):
                    assert both["shared"] == b"shared"
                    self.check(both.get(key, b"none"), key, possible)

    async def ended(self, call: object) -> object:
        """What came of a call, or None if it was cancelled or failed."""
        task = asyncio.ensure_future(call)  # type: ignore[call-overload]
        if self.dice.random() < 0.3:
            for _ in range(self.dice.randrange(6)):
                await asyncio.sleep(0)
            if self.dice.random() < 0.3:
                await asyncio.sleep(self.dice.random() * 0.02)
            task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            self.counts["cancelled"] += 1
            return None
        error = task.exception()
        if error is not None:
            assert isinstance(error, ZkvError), repr(error)
            self.counts[type(error).__name__] += 1
            return None
        self.counts["answered"] += 1
        result: object = task.result()
        return result

    def value(self, key: str, number: int) -> bytes:
        return f"{key}={number}".encode().ljust(40 + number % 400, b".")

    def check(self, value: object, key: str, possible: set[int]) -> None:
        if value is None:
            return
        assert isinstance(value, bytes)
        if value == b"none":
            assert -1 in possible, f"{key}: an acknowledged put is gone"
            return
        name, _, number = value.rstrip(b".").partition(b"=")
        assert name.decode() == key, f"{key} was given the value of {name.decode()}"
        assert int(number) in possible, f"{key}: {int(number)} was replaced; possible are {sorted(possible)}"
        assert value == self.value(key, int(number))


def test_thousand_tasks_with_random_cancellation_get_their_own_replies(storm_seconds: float) -> None:
    async def main(cluster: LocalCluster) -> Counter[str]:
        trouble: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        # strict: a get that follows an acknowledged put must show it, so an older answer would be noticed
        async with zkv.aconnect(cluster.url, bucket="strict", resolver=zkv.resolve.newest) as kv:
            await kv.put("shared", b"shared")
            storm = Storm(kv, 1, storm_seconds)
            tasks = [asyncio.ensure_future(storm.task(number)) for number in range(TASKS)]
            await asyncio.sleep(storm_seconds / 3)
            await asyncio.to_thread(cluster.nodes[1].kill)
            await asyncio.sleep(storm_seconds / 3)
            await asyncio.to_thread(cluster.nodes[1].restart)
            await asyncio.gather(*tasks)
            assert await kv.get("shared") == b"shared", "and the client is as good as ever"
            engine = kv._engine
            while engine._runs:
                await asyncio.sleep(0.01)
            assert not engine._by_name and not engine._line
        assert not trouble
        return storm.counts

    with LocalCluster(3, fsync="interval") as cluster:
        counts = asyncio.run(main(cluster))
    print(dict(counts))
    assert counts["answered"] > TASKS * 5
    assert counts["cancelled"] > TASKS
    assert sum(counts.values()) - counts["answered"] - counts["cancelled"] <= counts["answered"] // 20, counts
