"""From the answers of a call to what its caller is shown.

Owns: reading reply columns, verifying checksums, resolving siblings. Must not know: sockets, retries.

Whole replies are read by column; only what is out of the ordinary (several siblings, a checksum that fails) is looked at key by key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from zkv.client.codecs import Codec
from zkv.client.results import Item, PutResult
from zkv.codec.records import context_of_dot, context_to_bytes
from zkv.core import messages as m
from zkv.core.client_parts import Positions, take
from zkv.core.client_puts import GetCall, PutCall
from zkv.errors import CorruptData, NotFound, ZkvError
from zkv.ids import Dot, NodeId, checksum_of, checksums_of
from zkv.resolve import Resolver

_LOW = 0xFFFFFFFF

#: position, reply, first and last column of its siblings, its column
Found = tuple[int, m.GetReply, int, int, int]


def found_items(call: GetCall) -> Iterator[Found]:
    """Every position that was answered, found or not."""
    return chain.from_iterable(map(found_items_of, call.answers))


def item_of(found: Found, codec: Codec, resolver: Resolver | None, key: object) -> Item:
    """Raises: CorruptData, CodecError."""
    _, reply, start, end, column = found
    raw = reply.values[start:end]
    verify(raw, reply.checksums[start:end], key)
    values = tuple(raw) if codec.trivial else tuple([codec.decode(value) for value in raw])
    expires = reply.expires_ms[start:end] if reply.expires_ms else []
    expires_at = max(expires) / 1000 if expires and min(expires) > 0 else None
    context = reply.contexts[column] if reply.contexts else None
    stamps = reply.stamps[start:end] if reply.stamps else []
    resolved = len(values) > 1 and resolver is not None
    return Item(
        bool(values),
        values,
        context_to_bytes(context) if context is not None else b"",
        expires_at,
        tuple([stamp >> 16 for stamp in stamps]),
        resolved,
        resolver(values) if resolver is not None and len(values) > 1 else None,
    )


def verify(values: Sequence[bytes], checksums: Sequence[int], key: object) -> None:
    for value, checksum in zip(values, checksums, strict=True):
        if checksum_of(value) != checksum:
            raise CorruptData(f"{key!r}: {len(value)} bytes came that do not match the checksum their writer gave them")


def plain_values(
    call: GetCall, keys: Sequence[Any], codec: Codec, errors: dict[Any, ZkvError]
) -> tuple[dict[Any, Any], list[Found]]:
    """Values of keys that have one, by column; and what has several, for a closer look. Errors by key go into `errors`."""
    values: dict[Any, Any] = {}
    odd: list[Found] = []
    decode = codec.decode
    for answer in call.answers:
        positions, columns, reply = answer
        if columns is None and reply.counts is None and intact(reply):
            given = take(keys, positions)
            values.update(zip(given, reply.values if codec.trivial else map(decode, reply.values), strict=True))
            continue
        for found in found_items_of(answer):
            position, _, start, end, _ = found
            if end - start > 1:
                odd.append(found)
            elif end > start:
                try:
                    verify(reply.values[start:end], reply.checksums[start:end], keys[position])
                    values[keys[position]] = decode(reply.values[start])
                except CorruptData as error:
                    errors[keys[position]] = error
    return values, odd


def found_items_of(answer: tuple[Positions, list[int] | None, m.GetReply]) -> Iterator[Found]:
    positions, columns, reply = answer
    counts = reply.counts if reply.counts is not None else [1] * len(reply.checksums)
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    for position, column in zip(positions, range(len(counts)) if columns is None else columns, strict=True):
        yield position, reply, starts[column], starts[column + 1], column


def intact(reply: m.GetReply) -> bool:
    return checksums_of(reply.values) == reply.checksums


def expiry_of(found: Found, key: object) -> float | None:
    """Seconds left; None if it never expires. Raises: NotFound."""
    _, reply, start, end, _ = found
    if end == start:
        raise NotFound(key)
    expires = reply.expires_ms[start:end] if reply.expires_ms else [0]
    return max(0.0, max(expires) / 1000 - time.time()) if min(expires) else None


def result_of(stored: tuple[Dot, list[int], bool, bool, int], names: Callable[[NodeId], str]) -> PutResult:
    """The result of a usual put (single)."""
    dot, nodes, durable, sloppy, epoch = stored
    return PutResult(context_of_dot(*dot), tuple([names(NodeId(node)) for node in nodes]), sloppy, durable, epoch)


def receipt_of(call: PutCall, names: Callable[[NodeId], str]) -> PutResult:
    """The result of a put of one key that is ok."""
    return receipts_of(call.answers[0], names)[0]


def receipts_of(
    answer: tuple[Positions, list[int] | None, m.PutReply], names: Callable[[NodeId], str]
) -> list[PutResult]:
    """One result for each position of the answer."""
    positions, columns, reply = answer
    shown = [(tuple(map(names, r.nodes)), r.sloppy, r.durable, r.epoch) for r in reply.receipts]
    places, contexts = reply.receipt_of_item, reply.contexts
    actors, whose, counters = reply.actors, reply.actor_of_item, reply.counters
    results = []
    for column in range(len(positions)) if columns is None else columns:
        place = places[column] if places else 0
        acked, sloppy, durable, epoch = shown[place] if 0 <= place < len(shown) else ((), False, False, 0)
        context = contexts[column] if contexts else None
        if context is not None:
            seen = context_to_bytes(context)
        elif counters[column]:
            seen = context_of_dot(actors[whose[column] if whose else 0], counters[column])
        else:
            seen = b""
        results.append(PutResult(seen, acked, sloppy, durable, epoch))
    return results


def promises_of(call: PutCall) -> tuple[bool, bool]:
    """(any sloppy, all durable) of the receipts of a batch."""
    receipts = [receipt for _, _, reply in call.answers for receipt in reply.receipts]
    return any(r.sloppy for r in receipts), bool(receipts) and all(r.durable for r in receipts)
