"""The body of each message kind: columns to a msgpack tree and back.

Owns: which column stands where. Must not know: headers, sockets, meaning. Part of codec/wire; one pair of functions per kind, found by
kind or class in a table. Decoders check every type and length that later code relies on; anything else is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final

from zkv.codec.columns import cut_values
from zkv.codec.packed import pack, unpack
from zkv.codec.records import (
    STATED_COUNTER_MAX,
    context_from_tree,
    context_to_tree,
    decode_block,
    encode_block,
    stated_context_from_tree,
)
from zkv.core import messages as m
from zkv.core.versions import Base, Context
from zkv.errors import ProtocolError
from zkv.ids import ACTOR_BYTES, BUCKET_BYTES, KEY_BYTES_MAX, Actor, NodeId

__all__ = ["from_parts", "pack", "to_parts", "unpack"]

#: session, sequence, count, tree, values
Parts = tuple[int, int, int, list[Any], bytes]
_BYTES: Final[frozenset[type]] = frozenset({bytes})
_INT: Final[frozenset[type]] = frozenset({int})
_LIST: Final[frozenset[type]] = frozenset({list})
_first: Final = itemgetter(0)
_second: Final = itemgetter(1)
_LIST_OR_NONE: Final[frozenset[type]] = frozenset({list, type(None)})
_STORED_KEY_MAX: Final = BUCKET_BYTES + KEY_BYTES_MAX
#: more items than a client may send: a node may forward, page and repair in larger steps
_ITEMS_MAX: Final = 16_384


def to_parts(message: m.Message) -> Parts:
    return _ENCODERS[type(message)](message)


def from_parts(kind: m.Kind, session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Message:
    if type(tree) is not list:
        raise ProtocolError("a body is an array")
    if count > _ITEMS_MAX:
        raise ProtocolError(f"{count} items in one message")
    return _DECODERS[kind](session, sequence, count, tree, values)


# --- checks ------------------------------------------------------------------------------------------------------------------


def _column(value: Any, count: int, types: frozenset[type], name: str) -> Any:
    if type(value) is not list or len(value) != count or not set(map(type, value)) <= types:
        raise ProtocolError(f"column {name} does not hold {count} items of its type")
    return value


def _optional(value: Any, count: int, types: frozenset[type], name: str) -> Any:
    return None if value is None else _column(value, count, types, name)


def _keys(value: Any, count: int) -> list[bytes]:
    keys: list[bytes] = _column(value, count, _BYTES, "keys")
    if keys and not (min(map(len, keys)) > BUCKET_BYTES and max(map(len, keys)) <= _STORED_KEY_MAX):
        raise ProtocolError("a stored key has 5 to 1,028 bytes")
    return keys


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"{name} is not of type {kind.__name__}")
    return value


def _level(value: Any) -> m.Level:
    if value is None or (type(value) is int and value >= 1) or (type(value) is str and value in m.LEVELS):
        return value
    raise ProtocolError("a level is a count above 0 or one of " + ", ".join(m.LEVELS))


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(_typed(value, bool, "a flag"))


def _contexts_out(contexts: Iterable[Context | None] | None) -> list[Any] | None:
    return None if contexts is None else [context_to_tree(c) for c in contexts]


def _contexts_in(tree: Any, count: int, *, stated: bool = False) -> list[Context | None] | None:
    column = _optional(tree, count, _LIST_OR_NONE, "contexts")
    one = stated_context_from_tree if stated else context_from_tree
    return None if column is None else [one(c) for c in column]


def _bases_out(bases: list[Base | None] | None) -> list[Any] | None:
    """A dot is `[actor, counter]` (its first element is bytes), a context what it is everywhere."""
    if bases is None or Context not in set(map(type, bases)):
        return bases
    return [context_to_tree(base) if isinstance(base, Context) else base for base in bases]


def _bases_in(tree: Any, count: int) -> list[Base | None] | None:
    column = _optional(tree, count, _LIST_OR_NONE, "bases")
    if column is None:
        return None
    if set(map(type, column)) == _LIST and set(map(len, column)) == {2}:
        actors, counters = list(map(_first, column)), list(map(_second, column))
        if set(map(type, actors)) == _BYTES and set(map(len, actors)) == {ACTOR_BYTES}:
            _unsigned(counters, count, STATED_COUNTER_MAX + 1, "bases")
            if counters and min(counters) > 0:
                return list(zip(actors, counters, strict=True))
    bases: list[Base | None] = []
    for base in column:
        if base is not None and len(base) == 2 and type(base[0]) is bytes:
            actor, counter = base
            if len(actor) != ACTOR_BYTES or type(counter) is not int or not 0 < counter <= STATED_COUNTER_MAX:
                raise ProtocolError("a dot is a 12-byte actor and a counter above 0")
            bases.append((Actor(actor), counter))
        else:
            bases.append(stated_context_from_tree(base))
    return bases


# --- client <-> node ---------------------------------------------------------------------------------------------------------


def _hello_out(x: m.Hello) -> Parts:
    return 0, 0, 0, [x.client], b""


def _hello_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Hello:
    (client,) = tree
    return m.Hello(_typed(client, str, "client"))


def _welcome_out(x: m.Welcome) -> Parts:
    return 0, 0, 0, [x.node, x.name, x.document, x.up, x.open_id], b""


def _welcome_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Welcome:
    node, name, document, up, open_id = tree
    return m.Welcome(
        NodeId(_typed(node, int, "node")),
        _typed(name, str, "name"),
        _typed(document, bytes, "document"),
        _column(up, len(up), _INT, "up"),
        _typed(open_id, bytes, "open_id"),
    )


def _put_out(x: m.Put) -> Parts:
    values = x.values
    if None in values:
        lengths = [-1 if v is None else len(v) for v in values]
        joined = b"".join([v for v in values if v is not None])
    else:
        lengths = list(map(len, values))  # type: ignore[arg-type]
        joined = b"".join(values)  # type: ignore[arg-type]
    tree = [
        x.keys,
        lengths,
        x.checksums,
        _contexts_out(x.contexts),
        _bases_out(x.bases),
        x.expires_ms,
        x.voids,
        x.items,
        x.w,
        x.sloppy,
        x.durable,
        x.again,
        x.want_context,
        x.hop,
        x.retry,
    ]
    return (*x.request, len(x.keys), tree, joined)


def _put_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Put:
    keys, lengths, checksums, contexts, bases, expires, voids, items, *rest = tree
    w, sloppy, durable, again, want, hop, retry = rest
    _column(lengths, count, _INT, "lengths")
    if lengths and min(lengths) < 0:
        if min(lengths) < -1:
            raise ProtocolError("a length below -1")
        given = iter(cut_values(values, [n for n in lengths if n >= 0]))
        cut: list[bytes | None] = [None if n < 0 else next(given) for n in lengths]
    else:
        cut = list(cut_values(values, lengths))
    _optional(voids, count, _LIST_OR_NONE, "voids")
    if voids is not None:
        voids = [None if v is None else tuple(_unsigned(v, len(v), 1 << 64, "voids")) for v in voids]
    return m.Put(
        (session, sequence),
        _keys(keys, count),
        cut,
        _unsigned(checksums, count, 1 << 32, "checksums"),
        _contexts_in(contexts, count, stated=True),
        _bases_in(bases, count),
        None if expires is None else _unsigned(expires, count, 1 << 63, "expires_ms"),
        voids,
        _numbers(items, count),
        _level(w),
        _flag(sloppy),
        _typed(durable, bool, "durable"),
        _typed(again, bool, "again"),
        _typed(want, bool, "want_context"),
        _typed(hop, bool, "hop"),
        _typed(retry, bool, "retry"),
    )


def _put_reply_out(x: m.PutReply) -> Parts:
    receipts = [[r.nodes, r.durable, r.sloppy, r.epoch] for r in x.receipts]
    tree = [
        x.statuses,
        x.required,
        x.got,
        x.actors,
        x.actor_of_item,
        x.counters,
        receipts,
        x.receipt_of_item,
        _contexts_out(x.contexts),
        x.items,
    ]
    return (*x.request, len(x.counters), tree, b"")


def _put_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.PutReply:
    statuses, required, got, actors, actor_of_item, counters, receipts, receipt_of_item, contexts, items = tree
    parsed = []
    for nodes, durable, sloppy, epoch in receipts:
        nodes = [NodeId(n) for n in _column(nodes, len(nodes), _INT, "nodes")]
        parsed.append(
            m.Receipt(
                nodes, _typed(durable, bool, "durable"), _typed(sloppy, bool, "sloppy"), _typed(epoch, int, "epoch")
            )
        )
    reply = m.PutReply(
        (session, sequence),
        _optional(statuses, count, _INT, "statuses"),
        _optional(required, count, _INT, "required"),
        _optional(got, count, _INT, "got"),
        _column(actors, len(actors), _BYTES, "actors"),
        _indexes(actor_of_item, count, len(actors), "actor_of_item"),
        _column(counters, count, _INT, "counters"),
        parsed,
        _indexes(receipt_of_item, count, len(parsed), "receipt_of_item"),
        _contexts_in(contexts, count),
        _numbers(items, count),
    )
    for i in range(count) if statuses is not None or actor_of_item or receipt_of_item else range(min(count, 1)):
        if not (statuses and statuses[i]) and (
            (actor_of_item[i] if actor_of_item else 0 if actors else -1) < 0
            or (receipt_of_item[i] if receipt_of_item else 0 if parsed else -1) < 0
        ):
            raise ProtocolError("an item that is ok names who minted and who holds it")
    return reply


def _numbers(items: Any, count: int) -> list[int] | None:
    """Numbers of items in a client's request."""
    column: list[int] | None = _optional(items, count, _INT, "items")
    if column and not (min(column) >= 0 and max(column) < _ITEMS_MAX and len(set(column)) == len(column)):
        raise ProtocolError("item numbers are distinct and below 16,384")
    return column


def _unsigned(value: Any, count: int, bound: int, name: str) -> Any:
    column = _column(value, count, _INT, name)
    if column and not (min(column) >= 0 and max(column) < bound):
        raise ProtocolError(f"column {name} holds a number out of its range")
    return column


def _indexes(column: Any, count: int, limit: int, name: str) -> list[int] | None:
    _optional(column, count, _INT, name)
    if column and not (min(column) >= -1 and max(column) < limit):
        raise ProtocolError(f"column {name} points outside")
    return column  # type: ignore[no-any-return]


def _get_out(x: m.Get) -> Parts:
    return (*x.request, len(x.keys), [x.keys, x.r, x.sloppy, x.want_context, x.heads], b"")


def _get_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Get:
    keys, r, sloppy, want, heads = tree
    return m.Get(
        (session, sequence),
        _keys(keys, count),
        _level(r),
        _flag(sloppy),
        _typed(want, bool, "want_context"),
        _typed(heads, bool, "heads"),
    )


def _get_reply_out(x: m.GetReply) -> Parts:
    tree = [
        len(x.checksums),
        x.statuses,
        x.required,
        x.got,
        x.counts,
        x.checksums,
        x.expires_ms,
        x.stamps,
        list(map(len, x.values)),
        _contexts_out(x.contexts),
    ]
    count = len(x.checksums) if x.counts is None else len(x.counts)
    return (*x.request, count, tree, b"".join(x.values))


def _get_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.GetReply:
    siblings, statuses, required, got, counts, checksums, expires, stamps, lengths, contexts = tree
    _typed(siblings, int, "siblings")
    _column(lengths, siblings, _INT, "lengths")
    _optional(counts, count, _INT, "counts")
    if (count if counts is None else sum(counts)) != siblings or (counts and min(counts) < 0):
        raise ProtocolError("the counts do not add up to the siblings that came")
    return m.GetReply(
        (session, sequence),
        _optional(statuses, count, _INT, "statuses"),
        _optional(required, count, _INT, "required"),
        _optional(got, count, _INT, "got"),
        counts,
        _column(checksums, siblings, _INT, "checksums"),
        _optional(expires, siblings, _INT, "expires_ms"),
        _optional(stamps, siblings, _INT, "stamps"),
        cut_values(values, lengths),
        _contexts_in(contexts, count),
    )


def _scan_out(x: m.Scan) -> Parts:
    return (*x.request, 0, [x.bucket_id, x.partition, x.after, x.limit], b"")


def _scan_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Scan:
    bucket_id, partition, after, limit = tree
    return m.Scan(
        (session, sequence),
        _typed(bucket_id, int, "bucket"),
        _typed(partition, int, "partition"),
        _typed(after, bytes, "after"),
        _typed(limit, int, "limit"),
    )


def _scan_reply_out(x: m.ScanReply) -> Parts:
    return (*x.request, len(x.keys), [x.status, x.row_version, x.keys, x.more], b"")


def _scan_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.ScanReply:
    status, row_version, keys, more = tree
    return m.ScanReply(
        (session, sequence),
        _typed(status, int, "status"),
        _typed(row_version, int, "row_version"),
        _keys(keys, count),
        _typed(more, bool, "more"),
    )


def _admin_out(x: m.Admin) -> Parts:
    return (*x.request, 0, [x.operation, x.arguments], b"")


def _admin_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Admin:
    operation, arguments = tree
    return m.Admin((session, sequence), _typed(operation, str, "operation"), dict(_typed(arguments, dict, "arguments")))


def _admin_reply_out(x: m.AdminReply) -> Parts:
    return (*x.request, 0, [x.status, x.document], b"")


def _admin_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.AdminReply:
    status, document = tree
    return m.AdminReply((session, sequence), _typed(status, int, "status"), dict(_typed(document, dict, "document")))


def _refused_out(x: m.Refused) -> Parts:
    return (*x.request, 0, [x.code, x.message, x.details], b"")


def _refused_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Refused:
    code, message, details = tree
    return m.Refused(
        (session, sequence),
        _typed(code, str, "code"),
        _typed(message, str, "message"),
        {str(k): int(v) for k, v in _typed(details, dict, "details").items()},
    )


# --- node <-> node -----------------------------------------------------------------------------------------------------------


def _peer_hello_out(x: m.PeerHello) -> Parts:
    tree = [x.node, x.name, x.store, x.open_id, x.initial_hash, x.phase, x.initial, x.epoch]
    return 0, 0, 0, tree, b""


def _peer_fields(tree: list[Any]) -> tuple[NodeId, str, bytes, bytes, bytes, str, str, int]:
    node, name, store, open_id, initial_hash, phase, initial, epoch = tree
    return (
        NodeId(_typed(node, int, "node")),
        _typed(name, str, "name"),
        _typed(store, bytes, "store"),
        _typed(open_id, bytes, "open_id"),
        _typed(initial_hash, bytes, "initial_hash"),
        _typed(phase, str, "phase"),
        _typed(initial, str, "initial"),
        _typed(epoch, int, "epoch"),
    )


def _peer_hello_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.PeerHello:
    return m.PeerHello(*_peer_fields(tree))


def _peer_hello_ack_out(x: m.PeerHelloAck) -> Parts:
    tree = [x.node, x.name, x.store, x.open_id, x.initial_hash, x.phase, x.initial, x.epoch, x.refusal, x.stores]
    return 0, 0, 0, tree, b""


def _peer_hello_ack_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.PeerHelloAck:
    *fields, refusal, stores = tree
    table = [(NodeId(_typed(node, int, "node")), _typed(store, bytes, "store")) for node, store in stores]
    return m.PeerHelloAck(*_peer_fields(fields), _typed(refusal, str, "refusal"), table)


def _replica_put_out(x: m.ReplicaPut) -> Parts:
    meta, values = encode_block(x.block)
    return 0, x.group, len(x.block), [x.durable, meta], values


def _replica_put_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.ReplicaPut:
    durable, meta = tree
    block = decode_block(_typed(meta, bytes, "meta"), values)
    if len(block) != count:
        raise ProtocolError("the header's count is not the number of records")
    return m.ReplicaPut(sequence, block, _typed(durable, bool, "durable"))


def _replica_put_ack_out(x: m.ReplicaPutAck) -> Parts:
    count = len(x.statuses) if x.statuses is not None else 0
    return 0, x.group, count, [x.store, x.durable, x.statuses, x.inexact], b""


def _replica_put_ack_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.ReplicaPutAck:
    store, durable, statuses, inexact = tree
    return m.ReplicaPutAck(
        sequence,
        _typed(store, bytes, "store"),
        _typed(durable, bool, "durable"),
        _optional(statuses, count, _INT, "statuses"),
        _column(inexact, len(inexact), _INT, "inexact"),
    )


def _replica_get_out(x: m.ReplicaGet) -> Parts:
    tree = [x.keys, x.row_versions, x.pasts_only, x.durable]
    return 0, x.group, len(x.keys), tree if x.runs is None else [*tree, x.runs], b""


def _replica_get_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.ReplicaGet:
    keys, row_versions, pasts_only, durable, runs = tree if len(tree) != 4 else (*tree, None)
    return m.ReplicaGet(
        sequence,
        _keys(keys, count),
        _column(row_versions, count, _INT, "row_versions"),
        _typed(pasts_only, bool, "pasts_only"),
        _typed(durable, bool, "durable"),
        runs=None if runs is None else _runs(runs, count),
    )


def _runs(tree: Any, count: int) -> list[tuple[int, int, list[int]]]:
    runs: list[tuple[int, int, list[int]]] = []
    for session, sequence, items in _typed(tree, list, "runs"):
        numbers = _column(items, len(items), _INT, "items")
        runs.append((_typed(session, int, "session"), _typed(sequence, int, "sequence"), numbers))
    if sum([len(items) for _, _, items in runs]) != count:
        raise ProtocolError("the runs do not name each key once")
    return runs


def _replica_get_reply_out(x: m.ReplicaGetReply) -> Parts:
    meta, values = encode_block(x.block)
    count = len(x.statuses) if x.statuses is not None else 0
    return 0, x.group, count, [x.store, meta, x.absent, x.statuses], values


def _replica_get_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.ReplicaGetReply:
    store, meta, absent, statuses = tree
    return m.ReplicaGetReply(
        sequence,
        _typed(store, bytes, "store"),
        decode_block(_typed(meta, bytes, "meta"), values),
        _column(absent, len(absent), _INT, "absent"),
        _optional(statuses, count, _INT, "statuses"),
    )


def _pull_out(x: m.Pull) -> Parts:
    return 0, x.group, 0, [x.node, x.partition, x.after], b""


def _pull_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Pull:
    node, partition, after = tree
    return m.Pull(
        sequence,
        NodeId(_typed(node, int, "node")),
        _typed(partition, int, "partition"),
        _typed(after, bytes, "after"),
    )


def _pull_reply_out(x: m.PullReply) -> Parts:
    meta, values = encode_block(x.block)
    return 0, x.group, len(x.block), [x.store, meta, x.partition, x.after, x.done], values


def _pull_reply_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.PullReply:
    store, meta, partition, after, done = tree
    return m.PullReply(
        sequence,
        _typed(store, bytes, "store"),
        decode_block(_typed(meta, bytes, "meta"), values),
        _typed(partition, int, "partition"),
        _typed(after, bytes, "after"),
        _typed(done, bool, "done"),
    )


def _heartbeat_out(x: m.Heartbeat) -> Parts:
    return 0, 0, 0, [x.node, x.open_id, x.counter, x.epoch], b""


def _heartbeat_in(session: int, sequence: int, count: int, tree: Any, values: bytes) -> m.Heartbeat:
    node, open_id, counter, epoch = tree
    return m.Heartbeat(
        NodeId(_typed(node, int, "node")),
        _typed(open_id, bytes, "open_id"),
        _typed(counter, int, "counter"),
        _typed(epoch, int, "epoch"),
    )


_ENCODERS: Final[dict[type, Callable[[Any], Parts]]] = {
    m.Hello: _hello_out,
    m.Welcome: _welcome_out,
    m.Put: _put_out,
    m.PutReply: _put_reply_out,
    m.Get: _get_out,
    m.GetReply: _get_reply_out,
    m.Scan: _scan_out,
    m.ScanReply: _scan_reply_out,
    m.Admin: _admin_out,
    m.AdminReply: _admin_reply_out,
    m.Refused: _refused_out,
    m.PeerHello: _peer_hello_out,
    m.PeerHelloAck: _peer_hello_ack_out,
    m.ReplicaPut: _replica_put_out,
    m.ReplicaPutAck: _replica_put_ack_out,
    m.ReplicaGet: _replica_get_out,
    m.ReplicaGetReply: _replica_get_reply_out,
    m.Heartbeat: _heartbeat_out,
    m.Pull: _pull_out,
    m.PullReply: _pull_reply_out,
}

_DECODERS: Final[dict[m.Kind, Callable[[int, int, int, Any, bytes], m.Message]]] = {
    m.Kind.HELLO: _hello_in,
    m.Kind.WELCOME: _welcome_in,
    m.Kind.PUT: _put_in,
    m.Kind.PUT_REPLY: _put_reply_in,
    m.Kind.GET: _get_in,
    m.Kind.GET_REPLY: _get_reply_in,
    m.Kind.SCAN: _scan_in,
    m.Kind.SCAN_REPLY: _scan_reply_in,
    m.Kind.ADMIN: _admin_in,
    m.Kind.ADMIN_REPLY: _admin_reply_in,
    m.Kind.REFUSED: _refused_in,
    m.Kind.PEER_HELLO: _peer_hello_in,
    m.Kind.PEER_HELLO_ACK: _peer_hello_ack_in,
    m.Kind.REPLICA_PUT: _replica_put_in,
    m.Kind.REPLICA_PUT_ACK: _replica_put_ack_in,
    m.Kind.REPLICA_GET: _replica_get_in,
    m.Kind.REPLICA_GET_REPLY: _replica_get_reply_in,
    m.Kind.HEARTBEAT: _heartbeat_in,
    m.Kind.PULL: _pull_in,
    m.Kind.PULL_REPLY: _pull_reply_in,
}
