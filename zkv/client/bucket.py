"""The calls on keys of one bucket. The asyncio twin is aio_bucket; a test holds the two to be equal.

Owns: names, arguments, what they promise. Must not know: how a call is made (requests), sockets, routing, retries.

Sloppy buckets (the default) answer while replicas are down, at a price: a get may miss the last put until they are back. Ask for
`sloppy=False`, or use the bucket `strict`, where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from zkv.client.decode import result_of
from zkv.client.engine import ThreadEngine
from zkv.client.export import Export
from zkv.client.keys import Key
from zkv.client.requests import Requests, refuse_conditions
from zkv.client.results import BatchResult, Item, PutResult
from zkv.core.messages import BATCH_VALUES_BYTES_MAX, Level
from zkv.resolve import Resolver

if TYPE_CHECKING:
    from zkv.client.mapping import BucketMapping

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)


class Bucket(Requests[V]):
    """Keys and values of one bucket. Thread-safe; made by Client.bucket()."""

    _engine: ThreadEngine

    # --- one key ---

    def get(
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
        flight = None
        if r is None and sloppy is None and timeout is None:
            answer = self._engine.singles.get(self.name, key)
            if isinstance(answer, tuple):
                (value,) = answer
                return default if value is None else self._codec.decode(value)
            flight = answer
        return self._engine.finish(self._get(key, default, r, sloppy, timeout, resolver, flight), flight)

    def get_item(
        self,
        key: Key,
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> Item:
        """All that is known of the key, with the context that a put needs to replace exactly this. A miss has found=False."""
        return self._engine.finish(self._item(key, r, sloppy, timeout, resolver))

    def exists(self, key: Key, *, r: Level = None, sloppy: bool | None = None, timeout: float | None = None) -> bool:
        return self._engine.finish(self._exists(key, r, sloppy, timeout))

    def ttl(self, key: Key, *, timeout: float | None = None) -> float | None:
        """Seconds left; None if it never expires. Raises: NotFound for a miss. The latest expiry where there are siblings."""
        return self._engine.finish(self._ttl(key, timeout))

    def put(
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
        encoded = self._codec.encode(value)
        flight = None
        usual = context is None and w is None and ttl is None and sloppy is None and timeout is None and not durable
        if usual and len(encoded) <= BATCH_VALUES_BYTES_MAX:
            answer = self._engine.singles.put(self.name, key, encoded)
            if isinstance(answer, tuple):
                return result_of(answer, self._engine.name_of)
            flight = answer
        steps = self._put_one(key, encoded, context, w, ttl, sloppy, durable, timeout, flight)
        return self._engine.finish(steps, flight)

    def delete(
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
        return self._engine.finish(self._put_one(key, None, context, w, None, sloppy, durable, timeout))

    def update(
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
        return self._engine.finish(self._update(key, fn, w, ttl, sloppy, timeout, resolver))

    def touch(self, key: Key, ttl: float | timedelta | None, *, timeout: float | None = None) -> bool:
        """Give the value a new time to live, None = for ever. False for a miss. Raises: Conflict as `update` does."""
        return self._engine.finish(self._touch(key, ttl, timeout))

    # --- many keys ---

    def get_many(
        self,
        keys: Iterable[K],
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> dict[K, V]:
        """The keys that were found, as given. Raises: BatchError with what was found as .result and the reason for each other key."""
        return self._engine.finish(self._get_many(keys, r, sloppy, timeout, resolver))

    def put_many(
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
        return self._engine.finish(self._put_many(items, w, ttl, sloppy, durable, timeout, errors))

    def delete_many(
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
        return self._engine.finish(self._write_many(given, nothing, w, None, sloppy, durable, timeout, errors))

    # --- everything ---

    def export(
        self, *, values: bool = False, as_bytes: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """All keys in no order that means anything: (key, Item), or with values=True (key, value).

        Not a snapshot: a key written or deleted meanwhile may be there or not. Keys are text (surrogateescape for what is no UTF-8), or bytes
        with as_bytes=True. Raises: Unavailable when too few replicas answer to be sure of any key; Conflict as `get` does, with values=True.
        """
        pages = Export(self, values=values, as_bytes=as_bytes, timeout=timeout)
        while (page := self._engine.finish(pages.next_page())) is not None:
            yield from page

    def mapping(self) -> BucketMapping[V]:
        """The bucket as a MutableMapping; a miss is KeyError."""
        from zkv.client.mapping import BucketMapping

        return BucketMapping(self)
