"""One bucket's calls from checked arguments to settled outcomes, as steps that either client drives (session).

Owns: the making of put and get calls, per-call deadlines, resolving what has siblings, what is refused for now.
Must not know: what users call these things (bucket, aio_bucket), threads, loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from zkv.client.codecs import Codec
from zkv.client.decode import Found, expiry_of, found_items, item_of, plain_values, promises_of, receipt_of
from zkv.client.keys import Key, stored_keys
from zkv.client.results import BatchResult, Item, PutResult, conflict_of
from zkv.client.session import Flight, Session, Steps
from zkv.codec.records import context_from_bytes
from zkv.core.client_puts import GetCall, PutCall
from zkv.core.messages import BATCH_VALUES_BYTES_MAX, LEVELS, Level
from zkv.core.topology import Bucket as BucketEntry
from zkv.core.versions import EMPTY, Context
from zkv.errors import (
    BatchError,
    CodecError,
    InvalidArgument,
    InvalidKey,
    ProtocolError,
    TooLarge,
    Unsupported,
    ZkvError,
)
from zkv.ids import checksum_of, checksums_of
from zkv.resolve import Resolver, newest

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)


#: what a batch may be told to do with keys that are not ok
ON_ERRORS = ("raise", "return")

_CONDITIONAL = "conditional writes need one agreed order of writes per key, which does not exist yet; read with get_item() and put with its context, or use update()"


class HasDeadline(Protocol):
    @property
    def deadline_ns(self) -> int: ...


class Requests(Generic[V]):
    """What the buckets of both clients stand on."""

    def __init__(self, engine: Session, name: str, codec: Codec, resolver: Resolver | None) -> None:
        self._engine = engine
        self._codec = codec
        self._resolver = resolver
        self.name = name

    # --- what a user's call does ---

    def _get(
        self,
        key: Key,
        default: D | None,
        r: Level,
        sloppy: bool | None,
        timeout: float | None,
        resolver: Resolver | None,
        flight: Flight | None = None,
    ) -> Steps[V | D | None]:
        call, entry = yield from self._read([key], r, sloppy, timeout, flight=flight)
        found = next(found_items(call))
        if found[3] - found[2] <= 1:
            item = item_of(found, self._codec, None, key)
        else:  # once more, with the context that settling the conflict needs
            item = yield from self._item(key, r, sloppy, remaining_of(call), self._rule(resolver, entry))
        return item.value if item.found else default

    def _exists(self, key: Key, r: Level, sloppy: bool | None, timeout: float | None) -> Steps[bool]:
        call, _ = yield from self._read([key], r, sloppy, timeout, heads=True)
        _, _, start, end, _ = next(found_items(call))
        return end > start

    def _ttl(self, key: Key, timeout: float | None) -> Steps[float | None]:
        call, _ = yield from self._read([key], None, None, timeout, heads=True)
        return expiry_of(next(found_items(call)), key)

    def _update(
        self,
        key: Key,
        fn: Callable[[V | None], V],
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        timeout: float | None,
        resolver: Resolver | None,
    ) -> Steps[V]:
        call, entry = yield from self._read([key], "quorum", sloppy, timeout, want_context=True)
        item = item_of(next(found_items(call)), self._codec, self._rule(resolver, entry), key)
        value = fn(item.value)
        encoded = self._codec.encode(value)
        yield from self._put_one(key, encoded, item.context, w, ttl, sloppy, False, remaining_of(call))
        return value

    def _touch(self, key: Key, ttl: float | timedelta | None, timeout: float | None) -> Steps[bool]:
        call, entry = yield from self._read([key], "quorum", None, timeout, want_context=True)
        item = item_of(next(found_items(call)), self._codec, self._rule(None, entry), key)
        if not item.found:
            return False
        encoded = self._codec.encode(item.value)
        yield from self._put_one(key, encoded, item.context, None, ttl, None, False, remaining_of(call))
        return True

    def _get_many(
        self,
        keys: Iterable[K],
        r: Level,
        sloppy: bool | None,
        timeout: float | None,
        resolver: Resolver | None,
    ) -> Steps[dict[K, V]]:
        given = list(dict.fromkeys(keys))
        if not given:
            return {}
        call, entry = yield from self._read(given, r, sloppy, timeout, whole=False)
        errors: dict[K, ZkvError] = {}
        if call.failures:
            errors.update((given[p], error) for p, error in call.errors().items())
        values, odd = plain_values(call, given, self._codec, errors)
        if odd:
            yield from self._settle(call, given, odd, r, sloppy, self._rule(resolver, entry), values, errors)
        if errors:
            text = f"{len(errors)} of {len(given)} keys could not be read; the first: {next(iter(errors.values()))}"
            raise BatchError(text, result=values, errors=errors)
        return values

    def _put_many(
        self,
        items: Mapping[K, V] | Iterable[tuple[K, V]],
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        durable: bool,
        timeout: float | None,
        errors: str,
    ) -> Steps[BatchResult]:
        pairs = items if isinstance(items, Mapping) else dict(items)
        values = self._encoded(pairs)
        return (yield from self._write_many(list(pairs), values, w, ttl, sloppy, durable, timeout, errors))

    def _encoded(self, pairs: Mapping[K, V]) -> list[bytes | None]:
        if self._codec.trivial and set(map(type, pairs.values())) <= {bytes}:
            return list(pairs.values())  # type: ignore[arg-type]
        encode = self._codec.encode
        return [encode(value) for value in pairs.values()]

    # --- what that stands on ---

    def _rule(self, resolver: Resolver | None, entry: BucketEntry) -> Resolver | None:
        return resolver or self._resolver or (newest if entry.conflict == "latest" else None)

    def _read(
        self,
        keys: Sequence[Key],
        r: Level,
        sloppy: bool | None,
        timeout: float | None,
        *,
        want_context: bool = False,
        heads: bool = False,
        whole: bool = True,
        flight: Flight | None = None,
    ) -> Steps[tuple[GetCall, BucketEntry]]:
        """whole: the call has one key; raise its error. flight: it is on its way."""
        engine = self._engine
        now_ns = time.monotonic_ns() if flight is None else flight.began_ns
        if flight is None:
            deadline_ns = engine.deadline_ns(timeout, now_ns)
            entry = yield from engine.bucket(self.name, deadline_ns)
        else:  # sent: from here on nothing may claim that it was not
            deadline_ns = now_ns + int(engine.target.timeout * 1e9)
            entry = flight.entry
        stored = stored_keys(entry.bucket_id, keys)
        call = GetCall(
            engine.state,
            entry,
            stored,
            now_ns,
            deadline_ns,
            r=checked_level("r", r),
            sloppy=sloppy,
            want_context=want_context,
            heads=heads,
        )
        if flight is not None:
            call.flew(flight.address, flight.node, flight.sequence, now_ns)
        yield call
        if call.failures:
            errors = call.errors()
            self._note(errors.values())
            if whole:
                raise errors[0]
        return call, entry

    def _item(
        self, key: Key, r: Level, sloppy: bool | None, timeout: float | None, resolver: Resolver | None
    ) -> Steps[Item]:
        call, entry = yield from self._read([key], r, sloppy, timeout, want_context=True)
        return item_of(next(found_items(call)), self._codec, self._rule(resolver, entry), key)

    def _settle(
        self,
        call: GetCall,
        given: Sequence[K],
        odd: Sequence[Found],
        r: Level,
        sloppy: bool | None,
        rule: Resolver | None,
        values: dict[Any, Any],
        errors: dict[K, ZkvError],
    ) -> Steps[None]:
        """Keys with several siblings: resolved, or read once more for the context that their Conflict carries."""
        for found in odd:
            key = given[found[0]]
            try:
                if rule is not None:
                    values[key] = item_of(found, self._codec, rule, key).value
                else:
                    item = yield from self._item(key, r, sloppy, remaining_of(call), None)
                    if len(item.values) > 1:
                        raise conflict_of(item.values, item.context)
                    if item.found:
                        values[key] = item.value
            except ZkvError as error:
                errors[key] = error

    def _put_one(
        self,
        key: Key,
        value: bytes | None,
        context: bytes | None,
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        durable: bool,
        timeout: float | None,
        flight: Flight | None = None,
    ) -> Steps[PutResult]:
        contexts: list[Context | None] | None = None if context is None else [checked_context(context)]
        call = yield from self._write(
            [key], [value], w, ttl, sloppy, durable, timeout, contexts=contexts, want_context=True, flight=flight
        )
        if call.failures:
            raise call.errors()[0]
        return receipt_of(call, self._engine.name_of)

    def _write(
        self,
        keys: Sequence[Key],
        values: list[bytes | None],
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        durable: bool,
        timeout: float | None,
        *,
        contexts: list[Context | None] | None = None,
        want_context: bool = False,
        flight: Flight | None = None,
    ) -> Steps[PutCall]:
        engine = self._engine
        now_ns = time.monotonic_ns() if flight is None else flight.began_ns
        if flight is None:
            deadline_ns = engine.deadline_ns(timeout, now_ns)
            entry = yield from engine.bucket(self.name, deadline_ns)
        else:  # sent: from here on nothing may claim that it was not
            deadline_ns = now_ns + int(engine.target.timeout * 1e9)
            entry = flight.entry
        stored = stored_keys(entry.bucket_id, keys)
        if len(stored) > 1 and len(set(stored)) < len(stored):
            raise InvalidKey("one key stands twice in the batch, as text and as bytes")
        if None in values:
            checksums = [0 if value is None else checksum_of(value) for value in values]
        else:
            checksums = checksums_of(values)  # type: ignore[arg-type]
        _check_sizes(values)
        expires_ms = None if ttl is None else [checked_expiry(ttl)] * len(stored)
        with engine.lock:
            call = PutCall(
                engine.state,
                entry,
                stored,
                values,
                checksums,
                now_ns,
                deadline_ns,
                contexts=contexts,
                expires_ms=expires_ms,
                w=checked_level("w", w),
                sloppy=sloppy,
                durable=durable,
                want_context=want_context,
            )
            if flight is not None:
                call.flew_following(flight.base, flight.address, flight.node, flight.sequence, now_ns)
        yield call
        if call.failures:
            self._note(call.errors().values())
        return call

    def _write_many(
        self,
        given: Sequence[Key],
        values: list[bytes | None],
        w: Level,
        ttl: float | timedelta | None,
        sloppy: bool | None,
        durable: bool,
        timeout: float | None,
        errors: str,
    ) -> Steps[BatchResult]:
        if errors not in ON_ERRORS:
            raise InvalidArgument(f'errors={errors!r}: expected "raise" or "return"')
        if not given:
            return BatchResult([], {}, sloppy=False, durable=True)
        call = yield from self._write(given, values, w, ttl, sloppy, durable, timeout)
        failed = {given[p]: error for p, error in call.errors().items()} if call.failures else {}
        any_sloppy, all_durable = promises_of(call)
        result = BatchResult(given, failed, sloppy=any_sloppy, durable=all_durable)
        if failed and errors == "raise":
            text = f"{len(failed)} of {len(given)} keys are not ok; the first: {next(iter(failed.values()))}"
            raise BatchError(text, result=result, errors=failed)
        return result

    # --- not yet ---

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

    def _note(self, errors: Iterable[ZkvError]) -> None:
        for error in errors:
            self._engine.note_error(error)


def refuse_conditions(if_absent: object, if_match: object) -> None:
    if if_absent is not None or if_match is not None:
        raise Unsupported(f"{'if_absent' if if_absent is not None else 'if_match'}=: {_CONDITIONAL}")


def checked_level(name: str, level: Level) -> Level:
    if level is None or (type(level) is int and 1 <= level <= 255) or (isinstance(level, str) and level in LEVELS):
        return level
    raise InvalidArgument(f"{name}={level!r}: expected a number from 1 to 255 or one of {', '.join(LEVELS)}")


def checked_context(context: bytes) -> Context:
    try:
        return context_from_bytes(context) if context else EMPTY
    except ProtocolError as error:
        raise CodecError("context=: not a context; pass what get_item() or put() returned") from error


def checked_expiry(ttl: float | timedelta) -> int:
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if type(seconds) not in (int, float) or not 0 < seconds < 1e11:
        raise InvalidArgument(f"ttl={ttl!r}: expected a number of seconds above 0")
    return int(time.time() * 1000 + seconds * 1000)


def _check_sizes(values: Sequence[bytes | None]) -> None:
    check_size(max([value for value in values if value is not None], key=len, default=None))


def check_size(value: bytes | None) -> None:
    """A value that fits in no message. The bucket's own, lower, limit is the node's to know."""
    if value is not None and len(value) > BATCH_VALUES_BYTES_MAX:
        raise TooLarge(
            f"a value of {len(value):,} bytes is over the limit of any bucket, {BATCH_VALUES_BYTES_MAX:,}; nothing was written"
        )


def remaining_of(call: HasDeadline) -> float:
    """Seconds that a call left of its deadline, a moment at least: what follows then says in its own words that the time is up."""
    return max(0.001, (call.deadline_ns - time.monotonic_ns()) / 1e9)
