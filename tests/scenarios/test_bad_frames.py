"""Frames that no correct client or peer sends, and turns too large for one message: the node lives, says so, and serves everybody else.

Malformed frames are put into a node's inbox as bytes, for the cluster's network decodes what it carries.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.harness import DEFAULT, SECOND, STRICT, SimCluster, SimNode, status_of
from tests.scenarios.test_counterexamples import KEY, three
from tests.scenarios.test_requests import REQUEST, assert_nothing_is_open, batch, key_at, must, put_answer
from zkv.codec import packed, records, wire
from zkv.codec.columns import RECORDS_MAX
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.versions import Context, VersionSet
from zkv.errors import ProtocolError
from zkv.ids import Actor, checksum_of, stored_key

ACTOR = Actor(b"x" * 12)


def refused(node: SimNode) -> int:
    return node.driver.counters["frames_refused"]


def assert_serves(cluster: SimCluster, node: SimNode) -> None:
    """Whatever it was sent, this node still takes puts and answers gets of other keys."""
    assert node.up
    assert status_of(cluster.put(node, b"other", b"fine")) is Status.OK
    assert cluster.values(node, b"other") == [b"fine"]


# --- bad numbers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("checksums", [-1]),
        ("checksums", [1 << 32]),
        ("expires_ms", [-1]),
        ("expires_ms", [1 << 63]),
        ("voids", [(-1,)]),
        ("items", [70_000]),
        ("items", [-1]),
    ],
)
def test_put_with_a_number_out_of_its_range_is_refused_and_never_logged(column: str, bad: list[object]) -> None:
    """1. a client sends a number that the log could not give back. 2. it is told so, nothing is written. 3. the log still opens."""
    cluster, a, _, _ = three()
    message = cluster.put_message(KEY, b"v", w=1)
    setattr(message, column, bad)
    reply = cluster.ask(a, message)
    assert isinstance(reply, m.Refused) and reply.code == "ProtocolError" and reply.request == message.request
    assert refused(a) == 1
    assert all(node.log.bodies == [] for node in cluster.nodes)
    assert_serves(cluster, a)
    a.kill()
    a.start()
    cluster.settle()
    assert cluster.held_by(a, b"other") == [b"fine"]
    assert cluster.values(a, KEY) == []


def test_context_that_covers_the_last_counter_of_our_own_actor_does_not_stop_the_node() -> None:
    """No dot is left to mint after it: refused, nothing written, and the store goes on minting for others."""
    cluster, a, _, _ = three()
    message = cluster.put_message(KEY, b"v", context=Context({a.table.actor: 2**64 - 1}))
    reply = cluster.ask(a, message)
    assert isinstance(reply, m.Refused) and reply.code == "ProtocolError"
    assert refused(a) == 1
    assert cluster.held_by(a, KEY) == []
    assert_serves(cluster, a)


@pytest.mark.parametrize("how", ["context", "base", "many actors"])
def test_what_a_client_says_it_saw_never_makes_a_record_that_the_log_cannot_give_back(how: str) -> None:
    """Our own counting goes on above what was stated, and must stay within what a log may hold."""
    cluster, a, _, _ = three()
    most = records.STATED_COUNTER_MAX
    message = cluster.put_message(KEY, b"v")
    for counter, fits in ((most, True), (most + 1, False)):
        message = cluster.put_message(KEY, b"v")
        if how == "many actors":
            n = records.CONTEXT_DOTS_MAX + (0 if fits else 1)
            message.contexts = [Context({Actor(i.to_bytes(12, "big")): 1 for i in range(n)})]
        elif how == "context":
            message.contexts = [Context({a.table.actor: counter})]
        else:
            message.bases = [(a.table.actor, counter)]
        reply = cluster.ask(a, message)
        assert isinstance(reply, m.PutReply if fits else m.Refused), reply
    a.kill()
    a.start()
    cluster.settle()
    assert cluster.held_by(a, KEY) == [b"v"]


@pytest.mark.parametrize("absent", [[99], [0, 0], [-1]])
@pytest.mark.parametrize("operation", ["get", "put"])
def test_answer_that_calls_absent_what_was_not_asked_for_is_no_answer(absent: list[int], operation: str) -> None:
    cluster, a, _, _ = three(STRICT)
    cluster.put(a, KEY, b"v", bucket=STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaGetReply)
    message = cluster.get_message(KEY, bucket=STRICT)
    cluster.send(a, message if operation == "get" else cluster.put_message(KEY, b"w", bucket=STRICT))
    cluster.advance(1 * SECOND)
    asked = list(cluster.held)
    cluster.held.clear()
    assert asked
    for _, _, _, origin, frames in asked:
        answer = wire.decode(frames)
        assert isinstance(answer, m.ReplicaGetReply)
        answer.block, answer.absent = m.RecordBlock([]), absent
        a.inbox.replies.append((origin, wire.encode(answer, cluster=cluster.cluster)))  # type: ignore[arg-type]
    cluster.settle()
    assert not [r for r in cluster.answers() if isinstance(r, m.GetReply) and not r.statuses], "absent is never made up"
    cluster.advance(6 * SECOND)
    cluster.drop_held()
    cluster.answers()
    assert cluster.values(a, KEY, bucket=STRICT) == [b"v"]
    assert_serves(cluster, a)


@pytest.mark.parametrize("item", [RECORDS_MAX, 70_000])
def test_record_that_names_an_item_beyond_any_request_is_refused_before_it_is_held(item: int) -> None:
    sibling = [ACTOR, 1, 0, 0, 0, 1, 1, None, 1]
    meta = packed.pack([[stored_key(DEFAULT, KEY), 1, 0, [1, 1, item, 1], [sibling], [ACTOR, 1], None]])
    with pytest.raises(ProtocolError, match="item below"):
        records.decode_block(meta, b"v")


@pytest.mark.parametrize("counter", [2.5, float("inf"), True])
def test_set_whose_past_holds_no_integer_is_refused(counter: float) -> None:
    cluster, a, b, _ = three()
    sibling = [ACTOR, 1, 0, 0, 0, 1, 1, None, 1]
    meta = packed.pack([[stored_key(DEFAULT, KEY), 1, 0, None, [sibling], [ACTOR, counter], None]])
    with pytest.raises(ProtocolError):
        records.decode_block(meta, b"v")
    # the header counts this record; the bytes are those of `meta`
    stand_in = m.Record(stored_key(DEFAULT, KEY), 1, 0, None, VersionSet((), {}))
    block = m.RecordBlock([stand_in], (meta, b"v"))
    put = m.ReplicaPut(1, block, True, deadline_ns=cluster.time.now_ns + 1 * SECOND)
    frames = wire.encode(put, cluster=cluster.cluster, now_ns=cluster.time.now_ns)
    b.inbox.peers.append((bytes([a.index]), frames))
    cluster.settle()
    assert refused(b) == 1
    assert cluster.held_by(b, KEY) == [] and b.log.bodies == []
    assert_serves(cluster, b)


# --- messages that do not fit their kind ---------------------------------------------------------------------------------------


def test_hello_with_a_deadline_is_refused_and_the_node_lives() -> None:
    cluster, a, _, _ = three()
    (frame,) = wire.encode(m.Hello("x"), cluster=cluster.cluster)
    fields = list(wire.HEADER.unpack_from(frame))
    fields[9] = 5  # ms left
    a.inbox.clients.append((b"client", [wire.HEADER.pack(*fields) + frame[wire.HEADER_BYTES :]]))
    cluster.settle()
    (reply,) = cluster.answers()
    assert isinstance(reply, m.Refused) and reply.code == "ProtocolError"
    assert refused(a) == 1
    assert_serves(cluster, a)


def test_reply_with_fewer_pasts_than_asked_for_is_no_answer() -> None:
    """A strict put waits for pasts. Those that come speak of none of its keys: the put is refused in time, with nothing written."""
    cluster, a, _, _ = three(STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaGetReply)
    cluster.send(a, cluster.put_message(KEY, b"v", bucket=STRICT))
    cluster.settle()
    asked = list(cluster.held)
    cluster.held.clear()
    assert asked
    for _, target, _, origin, frames in asked:
        message = wire.decode(frames)
        assert isinstance(message, m.ReplicaGetReply) and target == a.index
        message.block, message.absent = m.RecordBlock([]), []
        a.inbox.replies.append((origin, wire.encode(message, cluster=cluster.cluster)))  # type: ignore[arg-type]
    cluster.settle()
    assert cluster.answers() == []
    cluster.advance(5 * SECOND)
    assert status_of(put_answer(cluster)) is Status.UNAVAILABLE
    cluster.drop_held()
    assert cluster.values(a, KEY, bucket=STRICT) == []
    assert_serves(cluster, a)
    assert_nothing_is_open(cluster)


def test_reply_on_a_part_without_actors_or_receipts_is_refused_and_the_request_ends() -> None:
    """1. X forwards a put to A. 2. A's answer says `ok` and names neither who minted nor who holds it. 3. X refuses the frame; the put is
    unknown at its deadline."""
    cluster = SimCluster(5)
    a, x = cluster.nodes[:2]
    key = must(key_at(a, without=[x]))
    cluster.hold = lambda source, target, message: isinstance(message, m.PutReply)
    cluster.send(x, batch(cluster, [(key, b"v")], timeout_ns=1 * SECOND))
    cluster.settle()
    ((_, target, lane, _, frames),) = cluster.held
    assert (target, lane) == (x.index, "replies")
    message = wire.decode(frames)
    assert isinstance(message, m.PutReply) and message.request == REQUEST
    message.actors, message.receipts = [], []
    cluster.drop_held()
    x.inbox.replies.append((a.node, wire.encode(message, cluster=cluster.cluster)))
    cluster.settle()
    assert refused(x) == 1
    assert cluster.answers() == []
    assert_serves(cluster, x)
    cluster.advance(1 * SECOND)
    assert status_of(put_answer(cluster)) is Status.DEADLINE
    assert Status.DEADLINE in m.UNKNOWN_STATUSES
    assert_nothing_is_open(cluster)


# --- turns too large for one message -------------------------------------------------------------------------------------------


def assert_all_put(cluster: SimCluster, routes: Sequence[bytes]) -> None:
    for route in routes:
        assert put_answer(cluster, route).statuses is None
    assert_nothing_is_open(cluster)
    for node in cluster.nodes:
        assert node.driver.counters["unsent"] == 0


def test_more_items_in_one_turn_than_a_message_holds_are_all_put() -> None:
    """17 clients send 1,000 items each in one turn: as one group no replica would take them."""
    cluster = SimCluster(3)
    routes = [b"c%d" % n for n in range(17)]
    for n, route in enumerate(routes):
        pairs = [(b"%d-%d" % (n, i), b"v") for i in range(1_000)]
        cluster.send(cluster.nodes[0], batch(cluster, pairs, request=(200 + n, 1)), route)
    cluster.settle()
    assert_all_put(cluster, routes)
    assert all(len(node.table) == 17_000 for node in cluster.nodes)


def test_more_bytes_in_one_turn_than_a_message_holds_are_all_put() -> None:
    """17 clients send 4 MB each in one turn: as one group they would pass the 64 MiB of a message."""
    cluster = SimCluster(3)
    routes = [b"c%d" % n for n in range(17)]
    value = b"v" * 10_000
    for n, route in enumerate(routes):
        pairs = [(b"%d-%d" % (n, i), value) for i in range(400)]
        cluster.send(cluster.nodes[0], batch(cluster, pairs, request=(200 + n, 1)), route)
    cluster.settle()
    assert_all_put(cluster, routes)
    assert all(len(node.table) == 6_800 for node in cluster.nodes)


def test_more_bytes_asked_for_in_one_turn_than_a_message_holds_are_all_shown() -> None:
    """7 clients get the same 1,000 keys of 10,000 bytes in one turn: one answer of a replica to all of them would pass 64 MiB."""
    cluster = SimCluster(3)
    a = cluster.nodes[0]
    keys = [b"%d" % i for i in range(1_000)]
    value = b"v" * 10_000
    for n in range(0, 1_000, 250):
        reply = cluster.ask(a, batch(cluster, [(key, value) for key in keys[n : n + 250]], request=(200 + n, 1)))
        assert isinstance(reply, m.PutReply) and reply.statuses is None
    routes = [b"c%d" % n for n in range(7)]
    deadline_ns = cluster.time.now_ns + 5 * SECOND
    for n, route in enumerate(routes):
        message = m.Get((300 + n, 1), [stored_key(DEFAULT, key) for key in keys], deadline_ns=deadline_ns)
        cluster.send(a, message, route)
    cluster.settle()
    for route in routes:
        (answer,) = cluster.answers(route)
        assert isinstance(answer, m.GetReply) and answer.statuses is None
        assert len(answer.values) == 1_000 and set(answer.checksums) == {checksum_of(value)}
    assert_nothing_is_open(cluster)


@pytest.mark.parametrize("place", [2, 3, 4])  # stamp, expires_ms, checksum
def test_bool_among_the_numbers_of_a_sibling_is_refused(place: int) -> None:
    cluster, a, b, _ = three()
    actor = Actor(b"x" * 12)
    sibling: list[object] = [actor, 1, 0, 0, 0, 1, 1, None, 1]
    sibling[place] = True
    meta = packed.pack([[stored_key(DEFAULT, KEY), 1, 0, None, [sibling], [actor, 1], None]])
    put = m.ReplicaPut(1, m.RecordBlock([], (meta, b"v")), True, deadline_ns=cluster.time.now_ns + 1 * SECOND)
    frames = wire.encode(put, cluster=cluster.cluster, now_ns=cluster.time.now_ns)
    # count is in the header and the block above is empty on our side: set it
    fields = list(wire.HEADER.unpack_from(frames[0]))
    fields[10] = 1
    frames[0] = wire.HEADER.pack(*fields) + frames[0][wire.HEADER_BYTES :]
    b.inbox.peers.append((bytes([a.index]), frames))
    cluster.settle()
    assert b.driver.counters["frames_refused"] == 1
    assert b.log.bodies == []
