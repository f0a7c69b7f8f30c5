"""redis-server with an append-only file synced every second, by redis-py and hiredis.

Owns: that server, its sync and asyncio clients as stores.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from zkv.testing.bench.rounds import NotRun
from zkv.testing.bench.servers import scratch, served
from zkv.testing.ports import HOST, free_base_ports


def missing() -> NotRun | None:
    """Why redis cannot be a peer here."""
    if shutil.which("redis-server") is None:
        return NotRun("redis-server is not installed (on Debian: apt install redis-server)")
    for package in ("redis", "hiredis"):
        if importlib.util.find_spec(package) is None:
            return NotRun(f"the Python package {package} is not installed (pip install 'zkv[bench]')")
    return None


@dataclass(frozen=True, slots=True)
class RedisServer:
    port: int
    processes: Mapping[str, int]


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    (port,) = free_base_ports(1)
    with scratch() as directory:
        options = ["--bind", HOST, "--port", str(port), "--dir", str(directory), "--save", ""]
        synced = ["--appendonly", "yes", "--appendfsync", "everysec"]
        with served(["redis-server", *options, *synced], [port]) as pid:
            yield RedisServer(port, {"redis": pid})


class RedisStore:
    """mget and mset; a set and a get where it is one key."""

    def __init__(self, client: Any, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._client = client

    def put(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        self._client.mset(dict(zip(keys, values, strict=True)))

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = self._client.mget(keys)
        return found


@contextmanager
def redis_store(server: RedisServer) -> Iterator[RedisStore]:
    redis = importlib.import_module("redis")
    with redis.Redis(host=HOST, port=server.port) as client:
        yield RedisStore(client, server.processes)


class AsyncRedis:
    def __init__(self, client: Any, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._client = client

    async def put(self, key: str, value: bytes) -> None:
        await self._client.set(key, value)

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._client.get(key)
        return found


@asynccontextmanager
async def async_redis(server: RedisServer, connections: int) -> AsyncIterator[AsyncRedis]:
    """Tasks wait for one of so many connections."""
    redis = importlib.import_module("redis.asyncio")
    pool = redis.BlockingConnectionPool(host=HOST, port=server.port, max_connections=connections, timeout=60)
    client = redis.Redis(connection_pool=pool)
    try:
        yield AsyncRedis(client, server.processes)
    finally:
        await client.aclose()
        await pool.aclose()
