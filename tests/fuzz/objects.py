"""Arbitrary valid objects of everything that zkv writes as bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from zkv.codec.columns import COUNTER_MAX, RECORDS_MAX
from zkv.codec.records import STATED_COUNTER_MAX
from zkv.codec.segment import EXPIRES, TOMBSTONE, SegmentRecord
from zkv.core import messages as m
from zkv.core.columns import Columns, Run
from zkv.core.initial import InitialNode
from zkv.core.topology import Bucket, TopologyDocument, first_epoch
from zkv.core.versions import Context, Sibling, VersionSet
from zkv.errors import ConfigError
from zkv.ids import Actor, NodeId, StoreId, stored_key
from zkv.storage.manifest import Manifest

u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(0, 2**63 - 1)
u64 = st.integers(0, 2**64 - 1)
counters = st.integers(1, COUNTER_MAX)
node_ids = u64.map(NodeId)
actors = st.sampled_from([b"a" * 12, b"b" * 12, bytes(12), b"\xff" * 12]).map(Actor) | st.binary(
    min_size=12, max_size=12
).map(Actor)
stored_keys: st.SearchStrategy[bytes] = st.builds(stored_key, u32, st.binary(min_size=1, max_size=20))
small = st.binary(max_size=20)
request = st.tuples(u64, u64)
statuses = st.sampled_from(list(m.Status)).map(int)
levels = st.none() | st.integers(1, 255) | st.sampled_from(m.LEVELS)
flags = st.none() | st.booleans()
short = st.text(max_size=12)
pasts = st.dictionaries(actors, counters, max_size=3)


@st.composite
def contexts(draw: st.DrawFn, counter_max: int = COUNTER_MAX) -> Context:
    past = draw(st.dictionaries(actors, st.integers(1, counter_max), max_size=3))
    cloud = draw(st.sets(st.tuples(actors, st.integers(2, counter_max)), max_size=2))
    return Context(past, tuple(sorted(cloud)))


@st.composite
def version_sets(draw: st.DrawFn) -> VersionSet:
    past = draw(st.dictionaries(actors, st.integers(1, 1_000), min_size=1, max_size=3))
    known = [(actor, n) for actor, last in past.items() for n in range(max(1, last - 1), last + 1)]
    cloud = sorted(draw(st.sets(st.sampled_from([(actor, last + 2) for actor, last in past.items()]), max_size=2)))
    dots = sorted(draw(st.sets(st.sampled_from(known + cloud), max_size=3)))
    siblings = [
        Sibling(
            actor,
            counter,
            draw(u63),
            draw(u63),
            draw(u32),
            draw(u64),
            draw(u64),
            tuple(draw(st.lists(u64, max_size=2))),
            draw(small),
        )
        for actor, counter in dots
    ]
    versions = VersionSet(tuple(siblings), past, tuple(cloud))
    versions.check_invariants()
    return versions


segment_records = st.builds(
    SegmentRecord, stored_keys, u64, small, small, st.sampled_from([EXPIRES, EXPIRES | TOMBSTONE]), u64
) | st.builds(SegmentRecord, stored_keys, u64, small, small, st.sampled_from([0, TOMBSTONE]), st.just(0))
#: in the order of a segment with one partition: (key, set)
segment_sets = st.dictionaries(stored_keys, version_sets(), min_size=1, max_size=4).map(
    lambda sets: sorted(sets.items())
)

records = st.builds(
    m.Record,
    stored_keys,
    u63,
    u63,
    st.none() | st.tuples(u64, u64, st.integers(0, RECORDS_MAX - 1), counters),
    version_sets(),
)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    keys = draw(st.lists(stored_keys, min_size=1, max_size=4, unique=True))
    n = len(keys)

    def column(of: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(of, min_size=n, max_size=n))

    def places(of: st.SearchStrategy[Any]) -> dict[int, Any]:
        return draw(st.dictionaries(st.integers(0, n - 1), of, max_size=2))

    actor = draw(actors)
    counted = column(st.integers(1, 1_000))
    runs: list[Run] = []
    while (made := sum(len(items) for _, _, items in runs)) < n:
        length = draw(st.integers(1, n - made))
        start = draw(st.sampled_from([0, 5]))
        runs.append((draw(u64), draw(u64), list(range(start, start + length))))
    return Columns(
        keys,
        actor,
        counted,
        draw(u63),
        column(small),
        column(u32),
        runs,
        column(u63),
        column(u63),
        None if draw(st.booleans()) else column(u63),
        places(st.lists(u64, min_size=1, max_size=2).map(tuple)),
        {i: {**draw(pasts), actor: counted[i] + 1} for i in places(st.none())},
    )


blocks = st.builds(m.RecordBlock, st.lists(records, max_size=3)) | st.builds(
    lambda made: m.RecordBlock(columns=made), columns()
)


def _column(of: st.SearchStrategy[Any], n: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, min_size=n, max_size=n)


def _maybe(of: st.SearchStrategy[Any], n: int) -> st.SearchStrategy[list[Any] | None]:
    return st.none() | _column(of, n)


deadlines = st.just(0) | st.integers(1, 60_000).map(lambda ms: ms * 1_000_000)
counts = st.integers(0, 4)


@st.composite
def puts(draw: st.DrawFn) -> m.Put:
    n = draw(counts)
    stated = contexts(STATED_COUNTER_MAX)
    bases = st.none() | stated | st.tuples(actors, st.integers(1, STATED_COUNTER_MAX))
    return m.Put(
        draw(request),
        draw(_column(stored_keys, n)),
        draw(_column(st.none() | small, n)),
        draw(_column(u32, n)),
        draw(_maybe(st.none() | stated, n)),
        draw(_maybe(bases, n)),
        draw(_maybe(u63, n)),
        draw(_maybe(st.none() | st.lists(u64, max_size=2).map(tuple), n)),
        draw(st.none() | st.lists(st.integers(0, 16_383), min_size=n, max_size=n, unique=True)),
        draw(levels),
        draw(flags),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(deadlines),
    )


@st.composite
def put_replies(draw: st.DrawFn) -> m.PutReply:
    n = draw(counts)
    names = draw(st.lists(actors, min_size=1, max_size=2))
    receipts = st.builds(m.Receipt, st.lists(node_ids, max_size=3), st.booleans(), st.booleans(), u63)
    given = draw(st.lists(receipts, min_size=1, max_size=2))
    return m.PutReply(
        draw(request),
        draw(_maybe(statuses, n)),
        draw(_maybe(u32, n)),
        draw(_maybe(u32, n)),
        list(names),
        draw(_maybe(st.integers(0, len(names) - 1), n)),
        draw(_column(counters, n)),
        given,
        draw(_maybe(st.integers(0, len(given) - 1), n)),
        draw(_maybe(st.none() | contexts(), n)),
        draw(st.none() | st.lists(st.integers(0, 16_383), min_size=n, max_size=n, unique=True)),
    )


@st.composite
def get_replies(draw: st.DrawFn) -> m.GetReply:
    per_item = draw(st.none() | st.lists(st.integers(0, 3), max_size=3))
    siblings = draw(counts) if per_item is None else sum(per_item)
    n = siblings if per_item is None else len(per_item)
    return m.GetReply(
        draw(request),
        draw(_maybe(statuses, n)),
        draw(_maybe(u32, n)),
        draw(_maybe(u32, n)),
        per_item,
        draw(_column(u32, siblings)),
        draw(_maybe(u63, siblings)),
        draw(_maybe(u63, siblings)),
        draw(_column(small, siblings)),
        draw(_maybe(st.none() | contexts(), n)),
    )


@st.composite
def replica_gets(draw: st.DrawFn) -> m.ReplicaGet:
    n = draw(counts)
    keys, versions = draw(_column(stored_keys, n)), draw(_column(u63, n))
    runs = draw(st.none() | st.just([(1, 2, list(range(n)))]))
    return m.ReplicaGet(draw(u64), keys, versions, draw(st.booleans()), draw(st.booleans()), draw(deadlines), runs)


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | short | small
trees = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3))
documents = st.dictionaries(short, trees, max_size=3)
_peer = (node_ids, short, small, small, small, short, short, u63)
_ids = st.lists(node_ids, max_size=3)
#: statuses None and an ack without items is the usual case
_item_statuses = st.none() | st.lists(statuses, max_size=3)

MESSAGES: dict[m.Kind, st.SearchStrategy[m.Message]] = {
    m.Kind.HELLO: st.builds(m.Hello, short),
    m.Kind.WELCOME: st.builds(m.Welcome, node_ids, short, small, _ids, small),
    m.Kind.PUT: puts(),
    m.Kind.PUT_REPLY: put_replies(),
    m.Kind.GET: st.builds(
        m.Get, request, st.lists(stored_keys, max_size=3), levels, flags, st.booleans(), st.booleans(), deadlines
    ),
    m.Kind.GET_REPLY: get_replies(),
    m.Kind.SCAN: st.builds(m.Scan, request, u32, u32, small, u32, deadlines),
    m.Kind.SCAN_REPLY: st.builds(m.ScanReply, request, statuses, u63, st.lists(stored_keys, max_size=3), st.booleans()),
    m.Kind.ADMIN: st.builds(m.Admin, request, short, documents, deadlines),
    m.Kind.ADMIN_REPLY: st.builds(m.AdminReply, request, statuses, documents),
    m.Kind.REFUSED: st.builds(m.Refused, request, short, short, st.dictionaries(short, u63, max_size=2)),
    m.Kind.PEER_HELLO: st.builds(m.PeerHello, *_peer),
    m.Kind.PEER_HELLO_ACK: st.builds(m.PeerHelloAck, *_peer, short, st.lists(st.tuples(node_ids, small), max_size=3)),
    m.Kind.REPLICA_PUT: st.builds(m.ReplicaPut, u64, blocks, st.booleans(), deadlines),
    m.Kind.REPLICA_PUT_ACK: st.builds(
        m.ReplicaPutAck, u64, small, st.booleans(), _item_statuses, st.lists(u32, max_size=3)
    ),
    m.Kind.REPLICA_GET: replica_gets(),
    m.Kind.REPLICA_GET_REPLY: st.builds(
        m.ReplicaGetReply, u64, small, blocks, st.lists(u32, max_size=3), _item_statuses
    ),
    m.Kind.HEARTBEAT: st.builds(m.Heartbeat, node_ids, small, u63, u63),
    m.Kind.PULL: st.builds(m.Pull, u64, node_ids, u32, small, deadlines),
    m.Kind.PULL_REPLY: st.builds(m.PullReply, u64, small, blocks, u32, small, st.booleans()),
}

canonical_trees = st.recursive(
    plain | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short | st.integers(0, 99) | small, inner, max_size=3),
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
hosts = st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "fe80::1", "db-1.example.org"])


@st.composite
def initial_lists(draw: st.DrawFn) -> list[InitialNode]:
    chosen = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    return sorted(
        InitialNode(
            name, draw(hosts), 7_000 + 10 * i, draw(names), draw(names), weight=draw(st.sampled_from([1.0, 2.5]))
        )
        for i, name in enumerate(chosen)
    )


@st.composite
def topologies(draw: st.DrawFn) -> TopologyDocument:
    try:
        document = first_epoch(draw(names), draw(initial_lists()), draw(st.sampled_from([1, 2, 8])))
    except ConfigError:  # weights or hosts that no plan fits
        document = first_epoch("c", [("a", "127.0.0.1", 7_400)], 2)
    extra = Bucket(
        bucket_id=draw(st.integers(100, 2**32 - 1)),
        name=draw(names),
        class_id=document.buckets[0].class_id,
        sloppy=draw(st.booleans()),
        r=draw(st.integers(1, 255) | st.sampled_from(m.LEVELS)),
        value_bytes_max=draw(st.integers(1, 2**32 - 1)),
    )
    taken = {bucket.name for bucket in document.buckets}
    return (
        document
        if extra.name in taken
        else document.__class__(
            **{field: getattr(document, field) for field in document.__slots__ if field != "buckets"},
            buckets=(*document.buckets, extra),
        )
    )


manifests = st.builds(
    Manifest,
    st.binary(min_size=16, max_size=16).map(StoreId),
    small,
    u64,
    short,
    u63,
    u63,
    u63,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["group", "interval", "never"]),
    st.lists(st.binary(min_size=8, max_size=8), max_size=3).map(tuple),
    st.lists(st.tuples(u63, u63), max_size=2).map(tuple),
    st.lists(st.dictionaries(short, u63 | short, max_size=3), max_size=2).map(tuple),
    u63,
    st.lists(u64, max_size=3).map(tuple),
    st.dictionaries(short, canonical_trees, max_size=3),
)
