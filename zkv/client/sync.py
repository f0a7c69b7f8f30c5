"""The synchronous client.

Owns: connect, Client, its life, and what it shares with a store in this process (Handle). Must not know: calls, sockets (bucket, engine, lanes).

Opening costs nothing: the first call connects. One client serves any number of threads and survives fork; it travels to other processes
as its URL.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, overload

from zkv.client.admin import Admin
from zkv.client.bucket import Bucket
from zkv.client.codecs import codec_of
from zkv.client.engine import Engine
from zkv.client.url import Target, target_of
from zkv.resolve import Resolver


class Handle(Bucket[bytes]):
    """A default bucket together with the life of the engine below it."""

    _bucket_type: ClassVar[type[Bucket[Any]]] = Bucket

    @property
    def url(self) -> str:
        return self._engine.target.url

    @property
    def admin(self) -> Admin:
        return Admin(self._engine, self.name)

    @overload
    def bucket(
        self, name: str = ..., codec: Literal["bytes"] = ..., resolver: Resolver | None = ...
    ) -> Bucket[bytes]: ...

    @overload
    def bucket(self, name: str = ..., codec: Literal["str"] = ..., resolver: Resolver | None = ...) -> Bucket[str]: ...

    @overload
    def bucket(self, name: str = ..., codec: str = ..., resolver: Resolver | None = ...) -> Bucket[Any]: ...

    def bucket(self, name: str = "", codec: str = "bytes", resolver: Resolver | None = None) -> Bucket[Any]:
        """Another bucket, or this one with another codec. Whether it exists shows at its first call."""
        return self._bucket_type(self._engine, name or self.name, codec_of(codec), resolver or self._resolver)

    def ping(self, *, timeout: float | None = None) -> float:
        """Seconds to the first node that answers and back. Raises: what any call raises when none does."""
        return self._engine.finish(self._engine.ping(timeout))

    def close(self) -> None:
        """Give up the connections. Idempotent; every later call raises Closed."""
        self._engine.close()

    @property
    def closed(self) -> bool:
        return self._engine.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client(Handle):
    """A connection to a cluster, and its default bucket. Use it in a `with` block or call close()."""

    _engine: Engine

    def __init__(self, target: Target, resolver: Resolver | None = None) -> None:
        super().__init__(Engine(target), target.bucket, codec_of("bytes"), resolver)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.url, self._resolver)

    def __del__(self, warn: Any = warnings.warn) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and not engine.closed and engine.has_sockets:
            warn(f"client of {engine.target.url} was not closed", ResourceWarning, stacklevel=2, source=self)
            engine.close()


def connect(
    url: str | Sequence[str] | None = None,
    *,
    bucket: str | None = None,
    timeout: float | None = None,
    resolver: Resolver | None = None,
) -> Client:
    """A client of the cluster that the URL names: `zkv://h1:7400,h2:7400/bucket?timeout=2`; by default $ZKV_URL or this machine.

    bucket and timeout (seconds for each call, retries included) win over the URL's. Raises: ConfigError.
    """
    return Client(target_of(url, bucket, timeout), resolver)


def _reopen(url: str, resolver: Resolver | None) -> Client:
    return connect(url, resolver=resolver)
