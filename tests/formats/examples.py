"""One example of every message, the same for ever: docs/wire.md and the golden test show their bytes."""

from __future__ import annotations

from zkv.core import messages as m
from zkv.core.columns import Columns
from zkv.core.versions import Context, Sibling, VersionSet
from zkv.ids import NodeId, actor_of, checksum_of, stored_key

CLUSTER = 0x1122334455667788
ACTOR = actor_of(b"open-id!", 1)
OTHER = actor_of(b"open-id?", 2)
ADA = stored_key(1, b"user:1")
BOB = stored_key(1, b"user:2")
SECOND = 1_000_000_000


def block() -> m.RecordBlock:
    ada = Sibling(ACTOR, 3, 0x18BCFE568000001, 0, checksum_of(b"Ada"), 7, 1, (), b"Ada")
    bob = Sibling(OTHER, 1, 0x18BCFE568000002, 1_700_000_060_000, checksum_of(b"Bob"), 7, 2, (1,), b"Bob")
    return m.RecordBlock(
        [
            m.Record(ADA, 1, 0, (7, 1, 0, 3), VersionSet((ada,), {ACTOR: 3})),
            m.Record(BOB, 1, 0, None, VersionSet((bob,), {ACTOR: 2, OTHER: 1}, ((ACTOR, 4),))),
        ]
    )


def columns() -> m.RecordBlock:
    """Three puts of two requests; the second key was written at another store before, the third value expires and gives up on a put."""
    values = [b"Ada", b"Bob", b"Cy"]
    return m.RecordBlock(
        columns=Columns(
            [ADA, BOB, stored_key(1, b"user:3")],
            ACTOR,
            [3, 1, 1],
            0x18BCFE568000003,
            values,
            [checksum_of(value) for value in values],
            [(7, 1, [0, 1]), (8, 5, [2])],
            [1, 1, 2],
            [0, 0, 0],
            [0, 0, 1_700_000_060_000],
            {2: (4,)},
            {1: {ACTOR: 1, OTHER: 6}},
        )
    )


def messages() -> dict[str, m.Message]:
    node, other = NodeId(0x0A), NodeId(0x0B)
    store, open_id, digest = b"S" * 16, b"open-id!", b"h" * 32
    context = Context({ACTOR: 3}, ((OTHER, 2),))
    peer = (node, "n1", store, open_id, digest, "new", "n1@127.0.0.1:7400,n2@127.0.0.1:7410", 0)
    return {
        "hello": m.Hello("zkv-py 0.1.0"),
        "welcome": m.Welcome(node, "n1", b"(document)", [node, other], open_id),
        "put": m.Put((7, 1), [ADA, BOB], [b"Ada", None], [checksum_of(b"Ada"), 0], deadline_ns=5 * SECOND),
        "put_everything": m.Put(
            (7, 2),
            [ADA],
            [b"Bo"],
            [checksum_of(b"Bo")],
            [context],
            [Context({})],
            [1_700_000_060_000],
            [(1,)],
            [4],
            "quorum",
            False,
            True,
            True,
            True,
            True,
            True,
            deadline_ns=2 * SECOND,
        ),
        "put_again": m.Put(
            (7, 2),
            [ADA, BOB],
            [b"Bo", b""],
            [checksum_of(b"Bo"), checksum_of(b"")],
            bases=[(ACTOR, 3), None],
            again=True,
            deadline_ns=2 * SECOND,
        ),
        "put_reply": m.PutReply(
            (7, 1), None, None, None, [ACTOR], None, [3, 0], [m.Receipt([node, other], True, False, 1)], None
        ),
        "put_reply_unknown": m.PutReply((7, 2), [m.Status.QUORUM_NOT_MET], [2], [1], [], [-1], [0], [], [-1], [None]),
        "get": m.Get((7, 3), [ADA, BOB], 2, None, True, deadline_ns=5 * SECOND),
        "get_reply": m.GetReply(
            (7, 3),
            None,
            None,
            None,
            [1, 0],
            [checksum_of(b"Ada")],
            None,
            [0x18BCFE568000001],
            [b"Ada"],
            [context, None],
        ),
        "scan": m.Scan((7, 4), 1, 1023, ADA, 100, deadline_ns=5 * SECOND),
        "scan_reply": m.ScanReply((7, 4), m.Status.OK, 1, [BOB], False),
        "admin": m.Admin((7, 5), "explain", {"key": b"user:1", "bucket": "default"}, deadline_ns=5 * SECOND),
        "admin_reply": m.AdminReply((7, 5), m.Status.OK, {"schema": 1}),
        "refused": m.Refused((7, 6), "Overloaded", "too much", {"retry_after_ms": 50}),
        "peer_hello": m.PeerHello(*peer),
        "peer_hello_ack": m.PeerHelloAck(*peer, "", [(node, store), (other, b"T" * 16)]),
        "replica_put": m.ReplicaPut(0x7F00000004, block(), True, deadline_ns=5 * SECOND),
        "replica_put_columns": m.ReplicaPut(0x7F00000004, columns(), deadline_ns=5 * SECOND),
        "replica_put_ack": m.ReplicaPutAck(0x7F00000004, store, True, [m.Status.OK, m.Status.CORRUPT], [0]),
        "replica_get": m.ReplicaGet(0x7F00000005, [ADA, BOB], [1, 1], True, True, deadline_ns=5 * SECOND),
        "replica_get_reply": m.ReplicaGetReply(0x7F00000005, store, block(), [], None),
        "pull": m.Pull(0x7F0000000C, node, 17, ADA, deadline_ns=5 * SECOND),
        "pull_reply": m.PullReply(0x7F0000000C, store, block(), 18, BOB, False),
        "heartbeat": m.Heartbeat(node, open_id, 42, 1),
    }
