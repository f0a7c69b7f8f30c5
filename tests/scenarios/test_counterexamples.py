"""The ways in which a rule's absence loses data or lies, as far as the rule exists: each test is the story of one.

Three replicas A, B, C; W = R = 2 unless said. `strict` is the built-in strict bucket.
"""

from __future__ import annotations

import pytest

from tests.harness import DEFAULT, MS, SECOND, STRICT, SimCluster, SimNode, context_of, status_of
from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.events import Route
from zkv.core.messages import Status
from zkv.core.versions import EMPTY, DotCollision, Sibling, VersionSet, sync
from zkv.ids import Actor, stored_key

KEY = b"k"
ROUTE = Route(b"\x00", peer=True)


def three(bucket: int = DEFAULT) -> tuple[SimCluster, SimNode, SimNode, SimNode]:
    """A cluster, and A, B, C in the preference order of KEY."""
    cluster = SimCluster(3)
    a, b, c = (cluster.node_of(KEY, place, bucket) for place in range(3))
    return cluster, a, b, c


# --- 3: wiped replica ----------------------------------------------------------------------------------------------------------


def test_wiped_replica_never_answers_absent() -> None:
    """1. put acked. 2. B is wiped and returns. 3. C was cut off from the put. 4. a strict get must not take B's emptiness for an answer."""
    cluster, a, b, c = three(STRICT)
    cluster.hold = lambda source, target, message: target == c.index and isinstance(message, m.ReplicaPut)
    assert status_of(cluster.put(a, KEY, b"v1", bucket=STRICT)) is Status.OK
    cluster.drop_held()
    b.kill()
    b.wipe()
    cluster.hold = lambda source, target, message: isinstance(message, m.Pull)
    b.start(active=False)
    cluster.advance(2 * SECOND)
    assert b.active and b.unsynced, "a new directory that finds an active cluster is a wiped member"
    a.kill()
    cluster.settle()
    reply = cluster.get(c, KEY, bucket=STRICT)
    assert status_of(reply) is Status.QUORUM_NOT_MET
    assert reply.required == [2]
    a.start()
    cluster.settle()
    assert cluster.values(c, KEY, bucket=STRICT) == [b"v1"]


# --- 5: cloned directory -------------------------------------------------------------------------------------------------------


def test_cloned_directory_mints_other_dots_after_reopening() -> None:
    """A's directory is copied. Original and copy each take a put: the two values must be siblings, not one dot with two meanings."""
    cluster, a, b, _ = three()
    cluster.put(a, KEY, b"base")
    clone_bodies = list(a.log.bodies)
    cluster.put(a, KEY, b"original", context=EMPTY)
    first = a.table.read([stored_key(DEFAULT, KEY)])[0][0]
    a.kill()
    a.log.bodies = clone_bodies
    a.start()
    cluster.hold = lambda source, target, message: True  # the clone hears nothing of the rest before it writes
    cluster.send(a, cluster.put_message(KEY, b"clone", context=EMPTY, w=1))
    cluster.settle()
    cluster.answers()
    second = a.table.read([stored_key(DEFAULT, KEY)])[0][0]
    assert first is not None and second is not None
    assert {s.dot for s in first.siblings} & {s.dot for s in second.siblings} == {first.siblings[0].dot}
    cluster.release()
    cluster.settle()
    assert cluster.values(b, KEY) == [b"base", b"clone", b"original"]


def test_one_dot_with_two_values_is_an_alarm() -> None:
    actor = Actor(b"a" * 12)
    one = VersionSet((Sibling(actor, 1, 0, 0, 111, 1, 1, (), b"x"),), {actor: 1})
    other = VersionSet((Sibling(actor, 1, 0, 0, 222, 1, 2, (), b"y"),), {actor: 1})
    with pytest.raises(DotCollision):
        sync(one, other)


# --- 6: retry elsewhere --------------------------------------------------------------------------------------------------------


def test_retry_elsewhere_never_supersedes_what_was_written_since() -> None:
    """1. blind put id 7 at A, reply lost. 2. someone reads it, replaces it with context. 3. the retry at B must not drop that."""
    cluster, a, b, c = three()
    cluster.put(a, KEY, b"v1", request=(99, 7))
    seen = cluster.get(c, KEY)
    assert status_of(cluster.put(c, KEY, b"v2", context=context_of(seen))) is Status.OK
    again = cluster.put(b, KEY, b"v1", request=(99, 7), again=True)
    assert status_of(again) is Status.OK
    assert b"v2" in cluster.values(a, KEY)


def test_retry_at_the_same_store_is_recognised_also_after_a_restart() -> None:
    cluster, a, _, c = three()
    cluster.put(a, KEY, b"v1", request=(99, 7))
    seen = cluster.get(c, KEY)
    cluster.put(c, KEY, b"v2", context=context_of(seen))
    for restart in (False, True):
        if restart:
            a.kill()
            a.start()
            cluster.settle()
        assert status_of(cluster.put(a, KEY, b"v1", request=(99, 7))) is Status.OK
        assert cluster.values(a, KEY) == [b"v2"], "carried out once, replaced for good"


@pytest.mark.parametrize("bucket", [DEFAULT, STRICT])
def test_retry_at_a_store_that_lost_power_never_supersedes_what_was_written_since(bucket: int) -> None:
    """1. blind put id 7 at A reaches B and C; A loses power before its sync. 2. someone replaces v1. 3. A is back and gets the retry."""
    cluster, a, b, _ = three(bucket)
    a.log.auto_sync = False
    cluster.send(a, cluster.put_message(KEY, b"v1", bucket=bucket, request=(99, 7)))
    cluster.settle()
    a.kill(power_loss=True)
    cluster.replies.clear()
    seen = cluster.get(b, KEY, bucket=bucket)
    assert cluster.put(b, KEY, b"v2", bucket=bucket, context=context_of(seen)).statuses is None
    a.log.auto_sync = True
    a.start()
    cluster.settle()
    retried = cluster.put(a, KEY, b"v1", bucket=bucket, request=(99, 7), retry=True)
    assert status_of(retried) is (Status.TOO_OLD if bucket == STRICT else Status.OK)
    assert b"v2" in cluster.values(b, KEY, bucket=bucket)


def test_repeated_delete_does_not_delete_what_came_after() -> None:
    cluster, a, _, _ = three()
    cluster.put(a, KEY, None, request=(99, 7))
    cluster.put(a, KEY, b"later")
    assert status_of(cluster.put(a, KEY, None, request=(99, 7))) is Status.OK
    assert cluster.values(a, KEY) == [b"later"]


def test_two_runs_of_one_request_are_shown_as_one_value() -> None:
    """The first try reached only A, which died; the retry ran at B. Both dots live, the reader sees one value."""
    cluster, a, b, c = three()
    cluster.hold = lambda source, target, message: source == a.index and isinstance(message, m.ReplicaPut)
    cluster.send(a, cluster.put_message(KEY, b"v", request=(99, 7)))
    cluster.settle()
    a.kill()
    cluster.drop_held()
    cluster.replies.clear()
    assert status_of(cluster.put(b, KEY, b"v", request=(99, 7), again=True)) is Status.OK
    a.start()
    cluster.settle()
    assert cluster.values(c, KEY, r=3) == [b"v"]
    held = cluster.get(c, KEY, r=3)
    assert held.counts is None or held.counts == [1]


def test_request_older_than_memory_is_refused_as_unknown() -> None:
    cluster, a, _, _ = three()
    a.view.memory._requests_max = 2
    for sequence in range(1, 6):
        cluster.put(a, b"k%d" % sequence, b"v", request=(99, sequence))
    reply = cluster.put(a, b"k1", b"v", request=(99, 1))
    assert status_of(reply) is Status.TOO_OLD
    assert Status.TOO_OLD in m.UNKNOWN_STATUSES


# --- 7: blind writes of one sequential client ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [DEFAULT, STRICT])
@pytest.mark.parametrize("second", [None, b"v2"])
def test_blind_writes_of_one_client_never_show_the_old_value(bucket: int, second: bytes | None) -> None:
    """1. v1 acked by {A, B}. 2. C, which missed v1, coordinates the client's next blind write. 3. every pair must show that one alone."""
    cluster, a, b, c = three(bucket)
    cluster.hold = lambda source, target, message: target == c.index and isinstance(message, m.ReplicaPut)
    first = cluster.put(a, KEY, b"v1", bucket=bucket)
    assert status_of(first) is Status.OK
    cluster.drop_held()
    base = EMPTY.with_dot((Actor(first.actors[0]), first.counters[0])) if bucket == DEFAULT else None
    assert status_of(cluster.put(c, KEY, second, bucket=bucket, base=base)) is Status.OK
    for node in (a, b, c):
        assert cluster.values(node, KEY, bucket=bucket) == ([] if second is None else [second])


# --- 8: first write by update --------------------------------------------------------------------------------------------------


def test_two_first_writes_with_empty_context_are_both_kept() -> None:
    cluster, a, b, c = three()
    assert status_of(cluster.put(a, KEY, b"x", context=EMPTY)) is Status.OK
    assert status_of(cluster.put(b, KEY, b"y", context=EMPTY)) is Status.OK
    assert cluster.values(c, KEY) == [b"x", b"y"]


# --- 12: failed that was applied -----------------------------------------------------------------------------------------------


def test_put_that_minted_and_missed_w_is_unknown_never_failed() -> None:
    cluster, a, _, _ = three()
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPutAck)
    reply = cluster.put(a, KEY, b"v", timeout_ns=500 * MS)
    assert status_of(reply) is Status.QUORUM_NOT_MET
    assert Status.QUORUM_NOT_MET in m.UNKNOWN_STATUSES
    assert (reply.required, reply.got) == ([2], [1])
    cluster.drop_held()
    assert cluster.values(a, KEY) == [b"v"], "it may appear: that is why it must not be called failed"


def test_put_without_enough_replicas_is_refused_before_anything_is_written() -> None:
    cluster, a, b, c = three()
    b.kill()
    c.kill()
    cluster.settle()
    before = len(a.log.bodies)
    reply = cluster.put(a, KEY, b"v")
    assert status_of(reply) is Status.UNAVAILABLE
    assert (reply.required, reply.got) == ([2], [1])
    assert len(a.log.bodies) == before and a.table.read([stored_key(DEFAULT, KEY)])[0] == [None]


# --- 13a: strong reads answer from durable state -------------------------------------------------------------------------------


def test_strict_get_never_returns_what_a_power_loss_would_take_back() -> None:
    """1. v6 is in memory on A and B, not synced. 2. a strict get must wait. 3. power is lost: whatever was returned must still be there."""
    cluster, a, b, c = three(STRICT)
    cluster.put(a, KEY, b"v5", bucket=STRICT)
    for node in (a, b, c):
        node.log.auto_sync = False
    cluster.send(a, cluster.put_message(KEY, b"v6", bucket=STRICT, timeout_ns=60 * SECOND), route=b"writer")
    cluster.settle()
    assert cluster.held_by(a, KEY, STRICT) == [b"v6"]
    cluster.send(b, cluster.get_message(KEY, bucket=STRICT, timeout_ns=60 * SECOND), route=b"reader")
    cluster.settle()
    assert cluster.answers(b"reader") == [], "nothing that is only in memory leaves"
    for node in (a, b, c):
        node.kill(power_loss=True)
    for node in (a, b, c):
        node.log.auto_sync = True
        node.start()
    cluster.settle()
    assert cluster.values(a, KEY, bucket=STRICT) == [b"v5"]


# --- 13b, 13c: strict reads agree before they answer ---------------------------------------------------------------------------


def test_strict_get_writes_back_a_partial_put_before_it_shows_it() -> None:
    """A put reached A alone and is unknown. Once one strict get has shown it, every later one does, from any pair."""
    cluster, a, b, c = three(STRICT)
    cluster.put(a, KEY, b"old", bucket=STRICT)
    cluster.hold = lambda source, target, message: source == a.index and isinstance(message, m.ReplicaPut)
    reply = cluster.put(a, KEY, b"new", bucket=STRICT, timeout_ns=300 * MS)
    assert status_of(reply) is Status.QUORUM_NOT_MET
    cluster.drop_held()
    assert cluster.values(a, KEY, bucket=STRICT) == [b"new"]
    a.kill()
    cluster.settle()
    assert cluster.values(b, KEY, bucket=STRICT) == [b"new"]
    assert cluster.values(c, KEY, bucket=STRICT) == [b"new"]


# --- 16: quarantine plus put, as far as it applies -----------------------------------------------------------------------------


def test_unsynced_store_takes_puts_but_a_put_does_not_make_its_copy_an_answer() -> None:
    cluster, a, b, c = three(STRICT)
    cluster.put(a, KEY, b"sibling", bucket=STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.Pull)
    b.unsynced = True
    b.view.unsynced = True
    b.table._sets.clear()
    cluster.put(a, KEY, b"second", context=EMPTY, bucket=STRICT)
    assert cluster.held_by(b, KEY, STRICT) != []
    c.kill()
    cluster.settle()
    reply = cluster.get(a, KEY, bucket=STRICT)
    assert status_of(reply) is Status.QUORUM_NOT_MET, "one full answer and one that must not count"


# --- 17: bootstrap -------------------------------------------------------------------------------------------------------------


def test_cluster_forms_only_when_all_listed_nodes_answered() -> None:
    cluster = SimCluster(3, active=False, start=2)
    a, b, c = cluster.nodes
    cluster.advance(3 * SECOND)
    assert not a.active and not b.active, "one of the list is missing"
    refused = cluster.ask(a, cluster.put_message(KEY, b"v"))
    assert isinstance(refused, m.Refused) and refused.code == "Unavailable"
    c.start(active=False)
    cluster.advance(1 * SECOND)
    assert all(node.active and not node.unsynced for node in cluster.nodes)
    assert status_of(cluster.put(a, KEY, b"v")) is Status.OK


def test_two_wiped_of_three_never_vote_a_second_first_epoch() -> None:
    cluster = SimCluster(3, active=False)
    a, b, c = cluster.nodes
    cluster.put(a, KEY, b"v")
    for node in (a, b, c):
        node.kill()
    b.wipe()
    c.wipe()
    b.start(active=False)
    c.start(active=False)
    cluster.advance(5 * SECOND)
    assert not b.active and not c.active, "the third may hold data: wait for it"
    cluster.hold = lambda source, target, message: isinstance(message, m.Pull)
    a.start()
    cluster.advance(2 * SECOND)
    assert b.active and b.unsynced and c.active and c.unsynced
    assert not a.unsynced


def test_node_that_missed_the_moment_adopts_without_being_called_wiped() -> None:
    """A became active and C crashed before it did: C's directory is the one A saw, so it is whole."""
    cluster = SimCluster(3, active=False)
    c = cluster.nodes[2]
    c.kill()
    c.active = False
    c.start(active=False)
    cluster.advance(2 * SECOND)
    assert c.active and not c.unsynced


def test_a_different_list_is_refused_with_both_shown() -> None:
    cluster = SimCluster(3, active=False)
    a, b, _ = cluster.nodes
    b.state.bootstrap._me.initial_hash = b"x" * 32
    b.state.bootstrap._me.initial = "other list"
    a.kill()
    a.start()
    cluster.settle()
    assert any("other list" in note and "list" in note for note in a.notes + b.notes)


# --- 20: deadlines -------------------------------------------------------------------------------------------------------------


def test_request_that_arrives_without_time_is_refused_untouched() -> None:
    cluster, a, _, _ = three()
    late = cluster.put_message(KEY, b"late", timeout_ns=1)
    cluster.send(a, late)
    cluster.time.now_ns += 0  # the frame carries 1 ms, the least there is; it is spent before the turn begins
    message = wire.decode(a.inbox.clients.pop()[1], now_ns=cluster.time.now_ns - 2 * MS)
    assert isinstance(message, m.Put)
    assert a.state.coordinator.on_requests([(ROUTE, message)]) == []
    (reply,) = a.state.coordinator.finished()
    assert reply.message.statuses == [Status.EXPIRED]  # type: ignore[union-attr]
    assert Status.EXPIRED not in m.UNKNOWN_STATUSES


def test_replica_refuses_a_put_whose_time_ran_out_and_touches_nothing() -> None:
    cluster, a, b, _ = three()
    cluster.hold = lambda source, target, message: target == b.index and isinstance(message, m.ReplicaPut)
    cluster.put(a, KEY, b"v", timeout_ns=1 * SECOND)
    ((_, _, _, _, frames),) = cluster.held
    message = wire.decode(frames)
    assert isinstance(message, m.ReplicaPut)
    message.deadline_ns = cluster.time.now_ns - 1
    (reply,) = b.state.replica.on_put(ROUTE, message)
    assert reply.message.statuses == [Status.EXPIRED]  # type: ignore[union-attr]
    assert cluster.held_by(b, KEY) == []


# --- 3, the way back -----------------------------------------------------------------------------------------------------------


def test_wiped_replica_answers_again_once_it_has_joined_what_all_others_hold() -> None:
    cluster, a, b, _ = three(STRICT)
    for n in range(300):
        assert status_of(cluster.put(a, b"k%d" % n, b"v%d" % n, bucket=STRICT)) is Status.OK
    b.kill()
    b.wipe()
    a.kill()
    b.start(active=False)
    cluster.advance(3 * SECOND)
    assert b.unsynced, "not while one of the others cannot be asked"
    a.start()
    cluster.advance(3 * SECOND)
    assert not b.unsynced and not b.view.unsynced
    a.kill()
    cluster.settle()
    for n in range(300):
        assert cluster.values(b, b"k%d" % n, bucket=STRICT) == [b"v%d" % n]
    cluster.check_invariants()


def test_the_rules_count_what_they_repair() -> None:
    cluster, a, b, c = three()
    cluster.hold = lambda source, target, message: target == c.index and isinstance(message, m.ReplicaPut)
    cluster.put(a, KEY, b"v")
    cluster.drop_held()
    assert cluster.values(b, KEY, r=3) == [b"v"]
    assert (b.state.reads.repairs, b.state.replica.refused, b.state.resync.records) == (1, 0, 0)


def test_all_stores_unsynced_at_once_find_back_to_what_any_of_them_holds() -> None:
    cluster, a, b, c = three()
    cluster.put(a, KEY, b"v")
    for node in (a, b, c):
        node.kill()
        node.unsynced = True
    for node in (a, b, c):
        node.start()
    cluster.advance(2 * SECOND)
    assert not any(node.unsynced for node in cluster.nodes)
    assert cluster.values(b, KEY) == [b"v"]
