"""zkv as the user calls it.

Owns: the client as a store, sync and asyncio. Must not know: which peer it meets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import zkv
from zkv.errors import Unsupported
from zkv.testing.bench.rounds import NotRun
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

    def __init__(self, kv: Any, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._kv = kv

    async def put(self, key: str, value: bytes) -> None:
        await self._kv.put(key, value)

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._kv.get(key)
        return found


def pids(cluster: LocalCluster) -> dict[str, int]:
    return {node.name: node.pid for node in cluster.nodes}


@contextmanager
def async_client(cluster: LocalCluster, runner: asyncio.Runner) -> Iterator[AsyncKey | NotRun]:
    connect: Callable[..., Any] = zkv.aconnect

    async def opened() -> Any:
        return await connect(cluster.url, timeout=30.0).__aenter__()

    try:
        kv = runner.run(opened())
    except Unsupported as error:
        yield NotRun(str(error))
        return
    try:
        yield AsyncKey(kv, pids(cluster))
    finally:
        runner.run(kv.__aexit__(None, None, None))
