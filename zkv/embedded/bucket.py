"""The calls on keys of one bucket of an embedded store: those of the client, with a short way for the plainest of them.

Owns: which calls go straight. Must not know: how (engine).

What goes straight means the same as the call it stands for; whatever is out of the ordinary goes the way of every call, and errors come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeVar

from zkv.client.bucket import Bucket
from zkv.client.keys import Key
from zkv.client.requests import ON_ERRORS
from zkv.client.results import BatchResult, PutResult
from zkv.codec.records import context_to_bytes
from zkv.core.messages import Level
from zkv.embedded.engine import EmbeddedEngine
from zkv.embedded.node import UNSURE, Written
from zkv.resolve import Resolver

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)

_PLAIN: Final = (None,) * 4


class EmbeddedBucket(Bucket[V]):
    _engine: EmbeddedEngine

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
        if r is None and sloppy is None and timeout is None:
            found = self._engine.look(self.name, key)
            if found is None:
                return default
            if found is not UNSURE:
                value: V = self._codec.decode(found)
                return value
        return super().get(key, default, r=r, sloppy=sloppy, timeout=timeout, resolver=resolver)

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
        if not durable and (w, ttl, sloppy, timeout) == _PLAIN and context is if_absent is if_match is None:
            written = self._engine.write(self.name, [key], [self._codec.encode(value)])
            if written is not None and not written.failed:
                return self._receipt(written)
        return super().put(
            key,
            value,
            context=context,
            w=w,
            ttl=ttl,
            sloppy=sloppy,
            durable=durable,
            timeout=timeout,
            if_absent=if_absent,
            if_match=if_match,
        )

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
        if not durable and (w, context, sloppy, timeout) == _PLAIN:
            written = self._engine.write(self.name, [key], [None])
            if written is not None and not written.failed:
                return self._receipt(written)
        return super().delete(key, context=context, w=w, sloppy=sloppy, durable=durable, timeout=timeout)

    def get_many(
        self,
        keys: Iterable[K],
        *,
        r: Level = None,
        sloppy: bool | None = None,
        timeout: float | None = None,
        resolver: Resolver | None = None,
    ) -> dict[K, V]:
        given = list(dict.fromkeys(keys))
        if r is None and sloppy is None and timeout is None:
            found = self._engine.look_many(self.name, given)
            if found is not UNSURE:
                pairs = zip(given, found, strict=True)
                if self._codec.trivial:
                    return {key: value for key, value in pairs if value is not None}  # type: ignore[misc]
                decode = self._codec.decode
                return {key: decode(value) for key, value in pairs if value is not None}
        return super().get_many(given, r=r, sloppy=sloppy, timeout=timeout, resolver=resolver)

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
        pairs = items if isinstance(items, Mapping) else dict(items)
        if not durable and (w, ttl, sloppy, timeout) == _PLAIN and errors in ON_ERRORS:
            result = self._write_straight(list(pairs), self._encoded(pairs))
            if result is not None:
                return result
        return super().put_many(pairs, w=w, ttl=ttl, sloppy=sloppy, durable=durable, timeout=timeout, errors=errors)

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
        given = list(dict.fromkeys(keys))
        if not durable and (w, None, sloppy, timeout) == _PLAIN and errors in ON_ERRORS:
            result = self._write_straight(given, [None] * len(given))
            if result is not None:
                return result
        return super().delete_many(given, w=w, sloppy=sloppy, durable=durable, timeout=timeout, errors=errors)

    def _write_straight(self, keys: list[K], values: list[bytes | None]) -> BatchResult | None:
        written = self._engine.write(self.name, keys, values)
        if written is None or written.failed:
            return None  # once more, the long way: what was written is written over, and the rest says what is wrong with it
        return BatchResult(keys, {}, sloppy=False, durable=written.durable)

    def _receipt(self, written: Written) -> PutResult:
        """Of a put of one key: its context covers what it replaced and itself."""
        context = written.block.records[0].versions.context
        engine = self._engine
        return PutResult(context_to_bytes(context), engine.acked, False, written.durable, engine.epoch)

    get.__doc__ = Bucket.get.__doc__
    put.__doc__ = Bucket.put.__doc__
    delete.__doc__ = Bucket.delete.__doc__
    get_many.__doc__ = Bucket.get_many.__doc__
    put_many.__doc__ = Bucket.put_many.__doc__
    delete_many.__doc__ = Bucket.delete_many.__doc__
