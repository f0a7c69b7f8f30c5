"""The calls on keys of one bucket.

Owns: arguments, codecs, resolvers, what is returned and raised. Must not know: sockets, routing, retries.

Sloppy buckets (the default) answer while replicas are down, at a price: a get may miss the last put until they are back. Ask for
`sloppy=False`, or use the bucket `strict`, where that matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from zkv.client.decode import found_items, item_of, plain_values
from zkv.client.keys import Key
from zkv.client.requests import Requests, remaining_of
from zkv.client.results import BatchResult, Item, PutResult
from zkv.core.messages import Level
from zkv.errors import (
    BatchError,
    NotFound,
    Unsupported,
    ZkvError,
)
from zkv.resolve import Resolver

if TYPE_CHECKING:
    from zkv.client.mapping import BucketMapping

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)

_CONDITIONAL = "conditional writes need one agreed order of writes per key, which does not exist yet; read with get_item() and put with its context, or use update()"


class Bucket(Requests[V]):
    """Keys and values of one bucket. Thread-safe; made by Client.bucket()."""

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
        call, entry = self._read([key], r, sloppy, timeout)
        found = next(found_items(call))
        if found[3] - found[2] <= 1:
            item = item_of(found, self._codec, None, key)
        else:  # once more, with the context that settling the conflict needs
            item = self._item(key, r, sloppy, remaining_of(call), self._rule(resolver, entry))
        return item.value if item.found else default

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
        return self._item(key, r, sloppy, timeout, resolver)

    def exists(self, key: Key, *, r: Level = None, sloppy: bool | None = None, timeout: float | None = None) -> bool:
        call, _ = self._read([key], r, sloppy, timeout, heads=True)
        _, _, start, end, _ = next(found_items(call))
        return end > start

    def ttl(self, key: Key, *, timeout: float | None = None) -> float | None:
        """Seconds left; None if it never expires. Raises: NotFound for a miss. The latest expiry where there are siblings."""
        call, _ = self._read([key], None, None, timeout, heads=True)
        _, reply, start, end, _ = next(found_items(call))
        if end == start:
            raise NotFound(key)
        expires = reply.expires_ms[start:end] if reply.expires_ms else [0]
        return max(0.0, max(expires) / 1000 - time.time()) if min(expires) else None

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
        if if_absent is not None or if_match is not None:
            raise Unsupported(f"{'if_absent' if if_absent is not None else 'if_match'}=: {_CONDITIONAL}")
        return self._put_one(key, self._codec.encode(value), context, w, ttl, sloppy, durable, timeout)

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
        return self._put_one(key, None, context, w, None, sloppy, durable, timeout)

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
        call, entry = self._read([key], "quorum", sloppy, timeout, want_context=True)
        item = item_of(next(found_items(call)), self._codec, self._rule(resolver, entry), key)
        value = fn(item.value)
        encoded = self._codec.encode(value)
        self._put_one(key, encoded, item.context, w, ttl, sloppy, False, remaining_of(call))
        return value

    def touch(self, key: Key, ttl: float | timedelta | None, *, timeout: float | None = None) -> bool:
        """Give the value a new time to live, None = for ever. False for a miss. Raises: Conflict as `update` does."""
        call, entry = self._read([key], "quorum", None, timeout, want_context=True)
        item = item_of(next(found_items(call)), self._codec, self._rule(None, entry), key)
        if not item.found:
            return False
        self._put_one(key, self._codec.encode(item.value), item.context, None, ttl, None, False, remaining_of(call))
        return True

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
        given = list(dict.fromkeys(keys))
        if not given:
            return {}
        call, entry = self._read(given, r, sloppy, timeout, whole=False)
        errors: dict[K, ZkvError] = {}
        if call.failures:
            errors.update((given[p], error) for p, error in call.errors().items())
        values, odd = plain_values(call, given, self._codec, errors)
        if odd:
            self._settle(call, given, odd, r, sloppy, self._rule(resolver, entry), values, errors)
        if errors:
            text = f"{len(errors)} of {len(given)} keys could not be read; the first: {next(iter(errors.values()))}"
            raise BatchError(text, result=values, errors=errors)
        return values

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
        pairs = items if isinstance(items, Mapping) else dict(items)
        given = list(pairs)
        encode = self._codec.encode
        values: list[bytes | None]
        if self._codec.trivial and set(map(type, pairs.values())) <= {bytes}:
            values = list(pairs.values())  # type: ignore[arg-type]
        else:
            values = [encode(value) for value in pairs.values()]
        return self._write_many(given, values, w, ttl, sloppy, durable, timeout, errors)

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
        return self._write_many(given, [None] * len(given), w, None, sloppy, durable, timeout, errors)

    # --- everything ---

    def export(
        self, *, values: bool = False, as_bytes: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """All keys in no order that means anything: (key, Item), or with values=True (key, value).

        Not a snapshot: a key written or deleted meanwhile may be there or not. Keys are text (surrogateescape for what is no UTF-8), or bytes
        with as_bytes=True. Raises: Unavailable when too few replicas answer to be sure of any key; Conflict as `get` does, with values=True.
        """
        from zkv.client.export import export

        return export(self, values=values, as_bytes=as_bytes, timeout=timeout)

    def mapping(self) -> BucketMapping[V]:
        """The bucket as a MutableMapping; a miss is KeyError."""
        from zkv.client.mapping import BucketMapping

        return BucketMapping(self)

    def scan(self, prefix: Key = "", **_: object) -> NoReturn:
        raise Unsupported("scan: scans ordered by key do not exist yet; export() goes through all keys, unordered")

    def incr(self, key: Key, by: int = 1, **_: object) -> NoReturn:
        raise Unsupported(f"incr: counters do not exist yet: a retried increment could count twice; {_CONDITIONAL}")

    def lock(self, name: Key, **_: object) -> NoReturn:
        raise Unsupported(f"lock: {_CONDITIONAL}")

    def watch(self, prefix: Key = "", **_: object) -> NoReturn:
        raise Unsupported("watch: nodes do not tell clients of changes yet; read again, or go through export()")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._engine.target.url}>"
