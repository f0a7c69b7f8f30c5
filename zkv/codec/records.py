"""Record blocks: version sets as bytes, the same for the log and for replicas.

Owns: the byte form of records, contexts and pasts. Must not know: sockets, files, who sends or stores a block.

A block is (meta, values): meta is a msgpack array of records, values the siblings' values joined in order. Values are never re-encoded: what
a coordinator packs once goes to its own log and to every replica, and a replica logs what it received. A record is
`[key, row version, fence, request|nil, siblings, past, cloud|nil]`, a sibling `[actor, counter, stamp, expires_ms, checksum, session,
sequence, voids|nil, value length]`, a past a flat `[actor, n, actor, n, ...]` sorted by actor. docs/wire.md has the picture. Sets that were
minted together have a second form, as columns (codec/columns).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zkv.codec.columns import COLUMNS_FORM, COUNTER_MAX, RECORDS_MAX, columns_from_tree, columns_to_tree
from zkv.codec.packed import pack, unpack
from zkv.core.columns import Columns, Held
from zkv.core.messages import Record, RecordBlock
from zkv.core.versions import Context, Sibling, VersionSet
from zkv.errors import ProtocolError
from zkv.ids import ACTOR_BYTES, BUCKET_BYTES, KEY_BYTES_MAX, Actor, Dot

#: codec ids of a log batch whose body is `length of meta (u32, little-endian) | meta | values`: rows, columns
BLOCK_CODEC: Final = 1
COLUMNS_CODEC: Final = 2
BLOCK_CODECS: Final = frozenset({BLOCK_CODEC, COLUMNS_CODEC})

#: the highest counter that a client may state, and the most actors and single dots of a context
STATED_COUNTER_MAX: Final = COUNTER_MAX >> 1
CONTEXT_DOTS_MAX: Final = 4_096

_META_LENGTH = struct.Struct("<I")
_STORED_KEY_MAX: Final = BUCKET_BYTES + KEY_BYTES_MAX
#: stands where a set is read that has its key elsewhere
_SOME_KEY: Final = bytes(BUCKET_BYTES + 1)

# --- contexts ----------------------------------------------------------------------------------------------------------------


def flat_past(past: Mapping[Actor, int]) -> list[bytes | int]:
    flat: list[bytes | int] = []
    for pair in sorted(past.items()) if len(past) > 1 else past.items():
        flat += pair
    return flat


def past_from_flat(flat: Any) -> dict[Actor, int]:
    if type(flat) is not list or len(flat) % 2:
        raise ProtocolError("a past is a flat list of actors and counters")
    past: dict[Any, int] = {}  # a call of `Actor` costs as much as the rest of a round
    parts = iter(flat)
    for actor in parts:
        n = next(parts)
        # as `_is_dot`, without its call; before it is hashed: a list cannot be
        if type(actor) is not bytes or len(actor) != ACTOR_BYTES or type(n) is not int or not 0 < n <= COUNTER_MAX:
            raise ProtocolError("a past maps 12-byte actors to counters above 0")
        past[actor] = n
    if len(past) * 2 != len(flat):
        raise ProtocolError("an actor stands twice in a past")
    return past


def _is_dot(actor: Any, n: Any) -> bool:
    return type(actor) is bytes and len(actor) == ACTOR_BYTES and type(n) is int and 0 < n <= COUNTER_MAX


def flat_cloud(cloud: Sequence[Dot]) -> list[bytes | int] | None:
    return [part for dot in cloud for part in dot] if cloud else None


def cloud_from_flat(flat: Any) -> tuple[Dot, ...]:
    if flat is None:
        return ()
    if type(flat) is not list or len(flat) % 2:
        raise ProtocolError("a cloud is a flat list of actors and counters")
    dots = list(zip(flat[::2], flat[1::2], strict=True))
    if not all(_is_dot(actor, n) for actor, n in dots):
        raise ProtocolError("a cloud holds 12-byte actors and counters above 0")
    return tuple(sorted(set(dots)))


def context_to_tree(context: Context | None) -> list[Any] | None:
    return None if context is None else [flat_past(context.past), flat_cloud(context.cloud)]


def context_from_tree(tree: Any) -> Context | None:
    if tree is None:
        return None
    if type(tree) is not list or len(tree) != 2:
        raise ProtocolError("a context is a past and a cloud")
    return Context(past_from_flat(tree[0]), cloud_from_flat(tree[1]))


def stated_context_from_tree(tree: Any) -> Context | None:
    """What a put says was seen: bounded more tightly than what a log holds, for a store's own counting goes on above it."""
    context = context_from_tree(tree)
    if context is None:
        return None
    if len(context.past) + len(context.cloud) > CONTEXT_DOTS_MAX:
        raise ProtocolError(f"a context names at most {CONTEXT_DOTS_MAX} actors and single dots")
    if max([*context.past.values(), *(n for _, n in context.cloud)], default=0) > STATED_COUNTER_MAX:
        raise ProtocolError(f"a context counts to {STATED_COUNTER_MAX} at most")
    return context


def context_to_bytes(context: Context) -> bytes:
    """The opaque form that users hold. The empty context is b""."""
    if not context.past and not context.cloud:
        return b""
    return pack(context_to_tree(context))


def context_of_dot(actor: bytes, counter: int) -> bytes:
    """`context_to_bytes` of this dot and those before it of its actor."""
    return pack([[actor, counter], None])


def context_from_bytes(data: bytes) -> Context:
    """Raises: ProtocolError when these are not bytes of `context_to_bytes`."""
    context = context_from_tree(unpack(data)) if data else Context({})
    if context is None:
        raise ProtocolError("not a context")
    return context


# --- blocks ------------------------------------------------------------------------------------------------------------------


def encode_block(block: RecordBlock) -> tuple[bytes, bytes]:
    """(meta, values); made once per block and remembered on it."""
    if block.encoded is None and block.columns is not None:
        tree = columns_to_tree(block.columns, flat_past)
        block.encoded = (pack(tree), b"".join(block.columns.values))
    if block.encoded is None:
        values: list[bytes] = []
        rows: list[Any] = []
        set_tree = _set_to_tree
        for record in block.records:
            row = (record.key, record.row_version, record.fence, record.request)
            rows.append(row + set_tree(record.versions, values))
        block.encoded = (pack(rows), b"".join(values))
    return block.encoded


def _set_to_tree(versions: VersionSet, values: list[bytes]) -> tuple[Any, ...]:
    """Siblings, past and cloud; the values go to the end of `values`."""
    past = versions.past
    siblings = []
    for s in versions.siblings:
        value = s.value
        values.append(value)
        siblings.append(
            (
                s.actor,
                s.counter,
                s.stamp,
                s.expires_ms,
                s.checksum,
                s.session,
                s.sequence,
                s.voids or None,
                len(value),
            )
        )
    return (
        siblings,
        next(iter(past.items())) if len(past) == 1 else flat_past(past),
        flat_cloud(versions.cloud) if versions.cloud else None,
    )


def set_to_bytes(held: Held) -> tuple[bytes, bytes]:
    """(meta, values) of one set, as segments hold it. Equal sets have equal metas, however they are held: `[siblings, past, cloud|nil]`."""
    values: list[bytes] = []
    if type(held) is not tuple:
        assert isinstance(held, VersionSet)
        return pack(_set_to_tree(held, values)), b"".join(values)
    columns, i = held
    actor, counter, value = columns.actor, columns.counters[i], columns.values[i]
    session, sequence, _ = columns.request(i)
    expires_ms = columns.expires_ms[i] if columns.expires_ms else 0
    sibling = (
        *(actor, counter, columns.stamp, expires_ms, columns.checksums[i], session, sequence),
        *(columns.voids.get(i) or None, len(value)),
    )
    past = columns.pasts.get(i)
    if past is None:
        flat: Any = (actor, counter)
    else:
        flat = next(iter(past.items())) if len(past) == 1 else flat_past(past)
    return pack(((sibling,), flat, None)), value


def set_from_bytes(meta: bytes, values: bytes) -> VersionSet:
    """The set that `set_to_bytes` wrote. Raises: ProtocolError for other bytes, or lengths that do not add up."""
    tree = unpack(meta)
    if type(tree) is not list or len(tree) != 3:
        raise ProtocolError("a set is siblings, past and cloud")
    return _records([[_SOME_KEY, 0, 0, None, *tree]], values)[0].versions


def decode_block(meta: bytes, values: bytes) -> RecordBlock:
    """The block that `encode_block` made. Keeps the bytes, so that logging it costs nothing more.

    Raises: ProtocolError for bytes that are not a block, or whose lengths do not add up.
    """
    rows = unpack(meta)
    if type(rows) is not list or len(rows) > RECORDS_MAX:
        raise ProtocolError("a block is an array of at most 16,384 records")
    if rows and type(rows[0]) is int:
        return RecordBlock(encoded=(meta, values), columns=_columns(rows, values))
    return RecordBlock(_records(rows, values), (meta, values))


def _records(rows: list[Any], values: bytes) -> list[Record]:
    records: list[Record] = []
    end = len(values)
    offset = 0
    try:
        for key, row_version, fence, request, sibling_rows, flat, cloud in rows:
            if type(key) is not bytes or not BUCKET_BYTES < len(key) <= _STORED_KEY_MAX or row_version | fence < 0:
                raise ProtocolError("a record begins with a stored key of 5 to 1,028 bytes, a row version and a fence")
            if request is not None:
                session, sequence, item, minted = request
                request = (session, sequence, item, minted)
                if session | sequence | item | minted < 0 or item >= RECORDS_MAX:
                    raise ProtocolError("a record's request is session, sequence, item below 16,384 and counter")
            siblings = []
            for row in sibling_rows:
                actor, counter, stamp, expires_ms, checksum, session, sequence, voids, length = row
                start, offset = offset, offset + length
                # One expression for seven checks: `|` refuses what is no number, and is negative if any of them is.
                # Booleans would pass it; those three are what readers are given.
                if (
                    type(actor) is not bytes
                    or len(actor) != ACTOR_BYTES
                    or counter | stamp | expires_ms | checksum | session | sequence | length < 0
                    or offset > end
                    or type(stamp) is not int
                    or type(expires_ms) is not int
                    or type(checksum) is not int
                ):
                    raise ProtocolError(
                        "a sibling is an actor, numbers that are not negative, and a value within the block"
                    )
                given_up = () if voids is None else _voids(voids)
                siblings.append(
                    Sibling(
                        Actor(actor),
                        counter,
                        stamp,
                        expires_ms,
                        checksum,
                        session,
                        sequence,
                        given_up,
                        values[start:offset],
                    )
                )
            if cloud is None and len(siblings) == 1:
                versions = VersionSet((siblings[0],), past_from_flat(flat))
                if not versions.past.get(actor, 0) >= counter > 0:
                    raise ProtocolError("a set must know its own dots")
            else:
                versions = VersionSet(tuple(siblings), past_from_flat(flat), cloud_from_flat(cloud))
                _check_set(versions)
            records.append(Record(key, row_version, fence, request, versions))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"not a record: {error}") from error
    if offset != end:
        raise ProtocolError(f"the records speak of {offset} bytes of values, {end} came")
    return records


def _columns(tree: list[Any], values: bytes) -> Columns:
    if tree[0] != COLUMNS_FORM:
        raise ProtocolError(f"a record block of the unknown form {tree[0]}")
    try:
        return columns_from_tree(tree, values, past_from_flat)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"not columns: {error}") from error


def _voids(voids: Any) -> tuple[int, ...]:
    if type(voids) is not list or not all(type(n) is int and n >= 0 for n in voids):
        raise ProtocolError("voids are sequence numbers")
    return tuple(voids)


def _check_set(versions: VersionSet) -> None:
    try:
        versions.check_invariants()
    except AssertionError as error:
        raise ProtocolError(f"not a version set: {error}") from error


def block_to_log(block: RecordBlock) -> tuple[int, list[bytes]]:
    """The codec of a log batch, and the parts of its body."""
    meta, values = encode_block(block)
    codec = BLOCK_CODEC if block.columns is None else COLUMNS_CODEC
    return codec, [_META_LENGTH.pack(len(meta)), meta, values]


def block_from_log(body: bytes) -> RecordBlock:
    if len(body) < _META_LENGTH.size:
        raise ProtocolError("a log body shorter than its length field")
    (meta_bytes,) = _META_LENGTH.unpack_from(body)
    end = _META_LENGTH.size + meta_bytes
    if end > len(body):
        raise ProtocolError("a log body shorter than its records")
    return decode_block(body[_META_LENGTH.size : end], body[end:])
