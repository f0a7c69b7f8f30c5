"""Strict reads whose replicas are full, silent, behind or not yet synced, and members that come back with an empty directory.

Three replicas A, B, C of KEY, W = R = 2 unless said. `strict` is the built-in strict bucket.
"""

from __future__ import annotations

from tests.harness import DEFAULT, MS, SECOND, STRICT, MemoryLog, SimCluster, SimNode, status_of
from tests.scenarios.test_counterexamples import KEY, three
from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.reads import HEDGE_NS
from zkv.core.versions import Sibling, VersionSet
from zkv.ids import Actor, checksum_of, stored_key

# --- strict reads --------------------------------------------------------------------------------------------------------------


def test_strict_get_with_a_full_replica_asks_the_third() -> None:
    """1. B's disk is full; a put is acked by A and C. 2. a strict get at A asks B, which cannot take what it lacks. A and C agree: that is an
    answer."""
    cluster, a, b, _ = three(STRICT)
    cluster.put(a, KEY, b"old", bucket=STRICT)
    b.log.full = True
    assert status_of(cluster.put(a, KEY, b"new", bucket=STRICT)) is Status.OK
    reply = cluster.get(a, KEY, bucket=STRICT, timeout_ns=1 * SECOND)
    assert reply.statuses is None and reply.values == [b"new"]
    assert cluster.held_by(b, KEY, STRICT) == [b"old"]


def test_strict_get_asks_the_third_when_the_one_behind_falls_silent() -> None:
    """1. B answers, is behind, and then takes nothing, though its link stands. 2. A and C hold exactly the join: C must be asked."""
    cluster, a, b, _ = three(STRICT)
    cluster.put(a, KEY, b"old", bucket=STRICT)
    cluster.hold = lambda source, target, message: target == b.index and isinstance(message, m.ReplicaPut)
    assert status_of(cluster.put(a, KEY, b"new", bucket=STRICT)) is Status.OK
    reply = cluster.get(a, KEY, bucket=STRICT, timeout_ns=2 * SECOND)
    assert reply.statuses is None and reply.values == [b"new"]


def test_strict_get_under_steady_writes_of_its_key_ends() -> None:
    """A writer puts at A in every turn, each frame to B one turn late. A strict get at A must find two equal copies all the same."""
    cluster, a, _, _ = three(STRICT)
    cluster.put(a, KEY, b"0", bucket=STRICT)
    cluster.send(a, cluster.get_message(KEY, bucket=STRICT, timeout_ns=1 * SECOND), b"reader")
    written = 0
    while b"reader" not in cluster.replies and written < 100:
        written += 1
        message = cluster.put_message(KEY, b"%d" % written, bucket=STRICT, sloppy=True, timeout_ns=2 * SECOND)
        cluster.send(a, message, b"writer")
        cluster.deliver()
        for node in cluster.nodes:
            node.turn()
        cluster.time.now_ns += 1 * MS
    (reply,) = cluster.answers(b"reader")
    assert isinstance(reply, m.GetReply) and reply.statuses is None
    assert len(reply.values) == 1 and int(reply.values[0]) <= written


def behind_and_not_synced() -> tuple[SimCluster, SimNode, SimNode, SimNode]:
    """`new` is on B's disk alone, A says nothing, C holds `old` and its syncs hang. A strict get is open at C, which
    has joined B's answer."""
    cluster, a, b, c = three(STRICT)
    assert status_of(cluster.put(a, KEY, b"old", bucket=STRICT)) is Status.OK
    cluster.hold = lambda source, target, message: source == b.index and isinstance(message, m.ReplicaPut)
    unknown = cluster.put(b, KEY, b"new", bucket=STRICT, timeout_ns=300 * MS)
    assert status_of(unknown) is Status.QUORUM_NOT_MET
    cluster.held.clear()
    cluster.hold = lambda source, target, message: a.index in (source, target)
    c.log.auto_sync = False
    cluster.send(c, cluster.get_message(KEY, bucket=STRICT, timeout_ns=1 * SECOND), b"reader")
    cluster.settle()
    cluster.advance(HEDGE_NS, step_ns=10 * MS)  # A was asked first; the end of patience brings in B
    assert cluster.held_by(c, KEY, STRICT) == [b"new"], "C has taken what it lacked"
    assert c.log.durable_seq < c.log.written_seq, "in memory"
    return cluster, a, b, c


def test_strict_get_does_not_count_its_own_write_back_before_it_is_synced() -> None:
    """1. C, behind B, takes `new` for its own strict get; its sync hangs. 2. patience ends. B's copy is one vote, C's is none: what the reply
    showed would be gone with C's power, and a read would go back. 3. the get ends without a quorum."""
    cluster, a, b, c = behind_and_not_synced()
    cluster.advance(4 * HEDGE_NS, step_ns=10 * MS)
    shown = cluster.answers(b"reader")
    assert shown == [], "B alone holds it on disk"
    cluster.advance(1 * SECOND)
    (reply,) = cluster.answers(b"reader")
    assert isinstance(reply, m.GetReply) and status_of(reply) in (Status.QUORUM_NOT_MET, Status.DEADLINE)
    assert reply.values == []
    b.kill()
    c.kill(power_loss=True)
    c.log.auto_sync = True
    cluster.drop_held()
    c.start()
    cluster.settle()
    assert cluster.values(a, KEY, bucket=STRICT) == [b"old"], "so nobody may have been shown the new value"


def test_strict_get_answers_once_its_own_write_back_is_synced() -> None:
    """As before, but C's sync returns within its patience: then C's copy is the second vote, and a power loss takes nothing back."""
    cluster, a, b, c = behind_and_not_synced()
    assert cluster.answers(b"reader") == []
    c.log.sync()
    cluster.settle()
    (reply,) = cluster.answers(b"reader")
    assert isinstance(reply, m.GetReply) and reply.statuses is None and reply.values == [b"new"]
    b.kill()
    c.kill(power_loss=True)
    c.log.auto_sync = True
    cluster.drop_held()
    c.start()
    cluster.settle()
    assert cluster.values(a, KEY, bucket=STRICT) == [b"new"]


def test_one_dot_with_two_values_in_a_read_is_corrupt_and_the_node_lives() -> None:
    """A and B hold one dot with two values. A get that meets both says `corrupt` of that key, and answers for the others."""
    cluster, a, b, c = three()
    cluster.put(a, b"other", b"fine")
    actor = Actor(b"x" * 12)
    key = stored_key(DEFAULT, KEY)
    for node, value in ((a, b"1"), (b, b"2")):
        sibling = Sibling(actor, 1, 0, 0, checksum_of(value), 1, 1, (), value)
        node.table._sets[key] = VersionSet((sibling,), {actor: 1})
    message = cluster.get_message(KEY, r=3)
    message.keys.append(stored_key(DEFAULT, b"other"))
    reply = cluster.ask(a, message)
    assert isinstance(reply, m.GetReply) and reply.statuses == [Status.CORRUPT, Status.OK]
    assert reply.values == [b"fine"]
    assert any("two values" in note for note in a.notes)
    assert cluster.held_by(c, KEY) == [], "nothing was repaired with it"


def test_strict_get_at_an_unsynced_node_with_another_down_fails_at_once() -> None:
    """One full answer at most is known to be impossible: the caller hears so now, not at its deadline."""
    cluster, a, b, c = three(STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.Pull)
    a.unsynced = a.view.unsynced = True
    c.kill()
    cluster.settle()
    cluster.send(a, cluster.get_message(KEY, bucket=STRICT))
    cluster.settle()
    (reply,) = cluster.answers()
    assert isinstance(reply, m.GetReply) and status_of(reply) is Status.UNAVAILABLE
    assert (reply.required, reply.got) == ([2], [1])
    assert status_of(cluster.put(b, KEY, b"v", bucket=DEFAULT)) is Status.OK, "it takes puts"


# --- members that come back empty ----------------------------------------------------------------------------------------------


def test_wiped_member_is_not_called_whole_by_one_that_saw_only_its_new_store() -> None:
    """1. B misses the moment in which the cluster forms; a put is acked by A and C. 2. C is wiped, meets B, and both are new. 3. B adopts from
    A, A leaves, and C asks B, which never saw C's first store. A strict get must not say `absent`."""
    cluster = SimCluster(3, active=False)
    a, b, c = cluster.nodes
    b.kill()
    b.active = False
    b.stores = {}
    b.log = MemoryLog()
    cluster.settle()
    assert status_of(cluster.put(a, KEY, b"v", bucket=STRICT)) is Status.OK
    a.kill()
    c.kill()
    c.wipe()
    b.start(active=False)
    c.start(active=False)
    cluster.advance(1 * SECOND)
    assert not b.active and not c.active
    cluster.hold = lambda source, target, message: {source, target} == {a.index, c.index} or isinstance(message, m.Pull)
    a.start()
    cluster.advance(2 * SECOND)
    assert b.active and not b.unsynced
    a.kill()
    cluster.settle()
    assert not c.active or c.unsynced
    reply = cluster.get(b, KEY, bucket=STRICT, timeout_ns=1 * SECOND)
    assert status_of(reply) in (Status.QUORUM_NOT_MET, Status.UNAVAILABLE)
    cluster.release()
    a.start()
    cluster.advance(5 * SECOND)
    assert not any(node.unsynced for node in cluster.nodes)
    assert cluster.values(b, KEY, bucket=STRICT) == [b"v"]


def test_members_wiped_one_after_another_each_find_back() -> None:
    """Each node is wiped once, after the last one is whole again. While two of them adopt, another is down, so they learn only part of the
    stores: still each must find back, and the value with them."""
    cluster = SimCluster(3, active=False)
    a, b, c = cluster.nodes
    cluster.put(a, KEY, b"v")
    for victim, down in ((a, c), (b, c), (c, None)):
        if down is not None:
            down.kill()
        victim.kill()
        victim.wipe()
        victim.start(active=False)
        cluster.advance(2 * SECOND)
        assert victim.active, f"{victim.name} misses {victim.state.bootstrap.missing}"
        if down is not None:
            down.start()
        cluster.advance(4 * SECOND)
        assert not victim.unsynced
    for node in cluster.nodes:
        assert cluster.held_by(node, KEY) == [b"v"]
    assert cluster.values(c, KEY) == [b"v"]


def test_hello_of_a_node_with_another_list_is_answered_with_both_lists_whatever_cluster_it_thinks_it_is_in() -> None:
    cluster = SimCluster(3, active=False, start=1)
    a, b, _ = cluster.nodes
    stranger = m.PeerHello(b.node, "typo", b"S" * 16, b"open-id!", b"x" * 32, "new", "a different list", 0)
    a.inbox.peers.append((bytes([b.index]), wire.encode(stranger, cluster=12345)))
    b.up = True  # somebody is there to take the answer
    cluster.wires.clear()
    a.turn()
    b.up = False
    acks = [wire.decode(frames) for _, target, _, _, frames in cluster.wires if target == b.index]
    (ack,) = [ack for ack in acks if isinstance(ack, m.PeerHelloAck)]
    assert "a different list" in ack.refusal
    assert "different lists" in ack.refusal
    assert a.notes == [ack.refusal]


def test_node_that_waits_for_others_names_them_in_status_and_in_its_log() -> None:
    cluster = SimCluster(3, active=False, start=2)
    a, _, c = cluster.nodes
    cluster.advance(4 * SECOND)
    status = cluster.ask(a, m.Admin((1, 1), "status"))
    assert isinstance(status, m.AdminReply)
    assert status.document["verdict"] == f"forming: waiting for {c.name}"
    assert [note for note in a.notes if c.name in note], "said once the usual start has passed"
    said = len(a.notes)
    cluster.advance(10 * SECOND)
    assert len(a.notes) == said, "and not again every moment"
