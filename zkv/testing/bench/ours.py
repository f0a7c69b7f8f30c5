"""zkv as the user calls it.

Owns: the client as a store, sync and asyncio. Must not know: which peer it meets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import zkv
from zkv.testing.local_cluster import LocalCluster


class ManyKeys:
    """get_many and put_many; a call that is not wholly ok raises."""

    def __init__(self, kv: zkv.Client, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._kv = kv

    def put(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        self._kv.put_many(dict(zip(keys, values, strict=True)))

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found = self._kv.get_many(keys)
        return [found.get(key) for key in keys]


class OneKey:
    """get and put."""

    def __init__(self, kv: zkv.Client, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._kv = kv

    def put(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        self._kv.put(keys[0], values[0])

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._kv.get(keys[0])]


class AsyncKey:
    """get and put of the asyncio client."""

    def __init__(self, kv: zkv.AsyncClient, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._kv = kv

    async def put(self, key: str, value: bytes) -> None:
        await self._kv.put(key, value)

    async def get(self, key: str) -> bytes | None:
        return await self._kv.get(key)


def pids(cluster: LocalCluster) -> dict[str, int]:
    return {node.name: node.pid for node in cluster.nodes}


@contextmanager
def async_client(cluster: LocalCluster, runner: asyncio.Runner) -> Iterator[AsyncKey]:
    """A client that lives in the runner's loop."""

    async def opened() -> zkv.AsyncClient:
        return zkv.aconnect(cluster.url, timeout=30.0)

    kv = runner.run(opened())
    try:
        yield AsyncKey(kv, pids(cluster))
    finally:
        runner.run(kv.close())
