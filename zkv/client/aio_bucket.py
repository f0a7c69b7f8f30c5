"""The calls on keys of one bucket, awaited. The twin of bucket; a test holds the two to be equal.

Owns: names, arguments, what they promise. Must not know: how a call is made (requests, gather), sockets, routing, retries.

What concurrent tasks ask for one key each is gathered and travels together; batches and `update` travel on their own. There is no `mapping`: the
operators of a mapping cannot be awaited.

Sloppy buckets (the default) answer while replicas are down, at a price: a get may miss the last put until they are back. Ask for
`sloppy=False`, or use the bucket `strict`, where that matters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from zkv.client.aio_engine import AioEngine
from zkv.client.codecs import Codec
from zkv.client.decode import expiry_of, item_of
from zkv.client.export import Export
from zkv.client.gather import MISS, Gather
from zkv.client.keys import Key
from zkv.client.requests import (
    Requests,
    check_size,
    checked_context,
    checked_expiry,
    checked_level,
    refuse_conditions,
    remaining_of,
)
from zkv.client.results import BatchResult, Item, PutResult
from zkv.core.messages import Level
from zkv.resolve import Resolver

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)


class AsyncBucket(Requests[V]):
    """Keys and values of one bucket. Any number of tasks may call; made by AsyncClient.bucket()."""

    _engine: AioEngine

    def __init__(self, engine: AioEngine, name: str, codec: Codec, resolver: Resolver | None, gather: Gather) -> None:
        super().__init__(engine, name, codec, resolver)
        self._gather = gather

    # --- one key ---

    async def get(
        self,
        key: Key,
        default: D | None = None,
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> V | D | None:
        """The value, or `default` for a miss. Raises: Conflict where several siblings stand and nothing resolves them."""
        found = await self._gather.get(self.name, key, timeout, (checked_level("r", r), sloppy, False, False, True))
        if type(found) is bytes:
            return self._codec.decode(found)  # type: ignore[no-any-return]
        if found is MISS:
            return default
        left = remaining_of(found)
        item = await self.get_item(key, r=r, sloppy=sloppy, timeout=left, resolver=resolver)
        return item.value if item.found else default

    async def get_item(
        self,
        key: Key,
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> Item:
        """All that is known of the key, with the context that a put needs to replace exactly this. A miss has found=False."""
        options = (checked_level("r", r), sloppy, True, False, False)
        found = await self._gather.get(self.name, key, timeout, options)
        return item_of(found, self._codec, self._rule(resolver, self._engine.state.bucket(self.name)), key)

    async def exists(
        self, key: Key, *, r: Level = None, sloppy: bool | None = None, timeout: float | None = None
    ) -> bool:
        options = (checked_level("r", r), sloppy, False, True, False)
        _, _, start, end, _ = await self._gather.get(self.name, key, timeout, options)
        return bool(end > start)

    async def ttl(self, key: Key, *, timeout: float | None = None) -> float | None:
        """Seconds left; None if it never expires. Raises: NotFound for a miss. The latest expiry where there are siblings."""
        return expiry_of(await self._gather.get(self.name, key, timeout, (None, None, False, True, False)), key)

    async def put(
        self,
        key: Key,
        value: V,
        *,
        context: bytes | None = None,
        w: Level = None,
        ttl: float | timedelta | None = None,
        sloppy: bool | None = None,
        durable: bool = False,
        timeout: float | None = None,
        if_absent: object = None,
        if_match: object = None,
    ) -> PutResult:
        """Store a value. context: replace exactly what it covers; b"" replaces nothing; None overwrites what there is.

        Raises: an error whose `.definite` says whether the value is certainly not stored.
        """
        refuse_conditions(if_absent, if_match)
        return await self._one(key, self._codec.encode(value), context, w, ttl, sloppy, durable, timeout)

    async def delete(
        self,
        key: Key,
        *,
        context: bytes | None = None,
        w: Level = None,
        sloppy: bool | None = None,
        durable: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """Delete what there is, or exactly what `context` covers. Deleting what is not there is ok."""
        return await self._one(key, None, context, w, None, sloppy, durable, timeout)

    async def update(
        self,
        key: Key,
        fn: Callable[[V | None], V],
        *,
        w: Level = None,
        ttl: float | timedelta | None = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> V:
        """Read from a quorum, resolve, put fn(value or None) with the context read. Returns what was put.

        Two updates at once become siblings, which the next one resolves. Raises: Conflict for siblings and no resolver.
        """
        return await self._engine.finish(self._update(key, fn, w, ttl, sloppy, timeout, resolver))

    async def touch(self, key: Key, ttl: float | timedelta | None, *, timeout: float | None = None) -> bool:
        """Give the value a new time to live, None = for ever. False for a miss. Raises: Conflict as `update` does."""
        return await self._engine.finish(self._touch(key, ttl, timeout))

    # --- many keys ---

    async def get_many(
        self,
        keys: Iterable[K],
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> dict[K, V]:
        """The keys that were found, as given. Raises: BatchError with what was found as .result and the reason for each other key."""
        return await self._engine.finish(self._get_many(keys, r, sloppy, timeout, resolver))

    async def put_many(
        self,
        items: Mapping[K, V] | Iterable[tuple[K, V]],
        *,
        w: Level = None,
        ttl: float | timedelta | None = None,
        sloppy: bool | None = None,
        durable: bool = False,
        timeout: float | None = None,
        errors: str = "raise",
    ) -> BatchResult:
        """Blind puts. Raises: BatchError with .result and .errors if any key is not ok; errors="return" returns the result instead."""
        return await self._engine.finish(self._put_many(items, w, ttl, sloppy, durable, timeout, errors))

    async def delete_many(
        self,
        keys: Iterable[Key],
        *,
        w: Level = None,
        sloppy: bool | None = None,
        durable: bool = False,
        timeout: float | None = None,
        errors: str = "raise",
    ) -> BatchResult:
        """Blind deletes; the rest as put_many."""
        given = list(dict.fromkeys(keys))
        nothing: list[bytes | None] = [None] * len(given)
        return await self._engine.finish(self._write_many(given, nothing, w, None, sloppy, durable, timeout, errors))

    # --- everything ---

    async def export(
        self, *, values: bool = False, as_bytes: bool = False, timeout: float | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """All keys in no order that means anything: (key, Item), or with values=True (key, value).

        Not a snapshot: a key written or deleted meanwhile may be there or not. Keys are text (surrogateescape for what is no UTF-8), or bytes
        with as_bytes=True. Raises: Unavailable when too few replicas answer to be sure of any key; Conflict as `get` does, with values=True.
        """
        pages = Export(self, values=values, as_bytes=as_bytes, timeout=timeout)
        while (page := await self._engine.finish(pages.next_page())) is not None:
            for pair in page:
                yield pair

    async def _one(
        self,
        key: Key,
        value: bytes | None,
        context: bytes | None,
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        durable: bool,
        timeout: float | None,
    ) -> PutResult:
        check_size(value)
        options = (checked_level("w", w), sloppy, durable, context is None, ttl is None)
        result: PutResult = await self._gather.put(
            self.name,
            key,
            value,
            None if context is None else checked_context(context),
            None if ttl is None else checked_expiry(ttl),
            timeout,
            options,
        )
        return result
