"""The asyncio client.

Owns: aconnect, AsyncClient, its life. Must not know: calls, sockets (aio_bucket, aio_engine).

Opening costs nothing: the first call connects, and binds the client to the loop it runs on. Any number of tasks may share it. After a fork
the child's copy is closed, for the loop is the parent's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, overload

from zkv.client.admin import AsyncAdmin
from zkv.client.aio_bucket import AsyncBucket
from zkv.client.aio_engine import AioEngine
from zkv.client.codecs import codec_of
from zkv.client.gather import Gather
from zkv.client.url import Target, target_of
from zkv.resolve import Resolver


class AsyncClient(AsyncBucket[bytes]):
    """A connection to a cluster, and its default bucket. Use it in an `async with` block or await close()."""

    def __init__(self, target: Target, resolver: Resolver | None = None) -> None:
        engine = AioEngine(target)
        super().__init__(engine, target.bucket, codec_of("bytes"), resolver, Gather(engine))

    @property
    def url(self) -> str:
        return self._engine.target.url

    @property
    def admin(self) -> AsyncAdmin:
        return AsyncAdmin(self._engine, self.name)

    @overload
    def bucket(
        self, name: str = ..., codec: Literal["bytes"] = ..., resolver: Resolver | None = ...
    ) -> AsyncBucket[bytes]: ...

    @overload
    def bucket(
        self, name: str = ..., codec: Literal["str"] = ..., resolver: Resolver | None = ...
    ) -> AsyncBucket[str]: ...

    @overload
    def bucket(self, name: str = ..., codec: str = ..., resolver: Resolver | None = ...) -> AsyncBucket[Any]: ...

    def bucket(self, name: str = "", codec: str = "bytes", resolver: Resolver | None = None) -> AsyncBucket[Any]:
        """Another bucket, or this one with another codec. Whether it exists shows at its first call."""
        return AsyncBucket(self._engine, name or self.name, codec_of(codec), resolver or self._resolver, self._gather)

    async def ping(self, *, timeout: float | None = None) -> float:
        """Seconds to the first node that answers and back. Raises: what any call raises when none does."""
        return await self._engine.finish(self._engine.ping(timeout))

    async def close(self) -> None:
        """Give up the connections. Idempotent; calls under way and every later call raise Closed."""
        await self._engine.close()

    @property
    def closed(self) -> bool:
        return self._engine.closed

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.url, self._resolver)

    def __del__(self, warn: Any = warnings.warn) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and not engine.closed and engine.has_sockets:
            warn(f"client of {engine.target.url} was not closed", ResourceWarning, stacklevel=2, source=self)
            engine.shut()


def aconnect(
    url: str | Sequence[str] | None = None,
    *,
    bucket: str | None = None,
    timeout: float | None = None,
    resolver: Resolver | None = None,
) -> AsyncClient:
    """The asyncio twin of connect: the same URLs, the same names, and calls that are awaited. Raises: ConfigError."""
    return AsyncClient(target_of(url, bucket, timeout), resolver)


def _reopen(url: str, resolver: Resolver | None) -> AsyncClient:
    return aconnect(url, resolver=resolver)
