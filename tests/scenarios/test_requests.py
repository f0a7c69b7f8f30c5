"""What becomes of one request: its id, its retries, its forwarded parts, when it is acked, and what a full disk does to it.

Each test is a story of single frames held, repeated or lost. Three replicas A, B, C of KEY, W = R = 2 unless said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from tests.harness import DEFAULT, MS, SECOND, STRICT, SimCluster, SimNode, context_of, status_of
from tests.scenarios.test_counterexamples import KEY, three
from zkv.core import messages as m
from zkv.core.effects import Join
from zkv.core.messages import Status
from zkv.core.request_memory import REFUSALS_MAX, Outcome, Refusals
from zkv.core.versions import EMPTY, Context, Sibling, VersionSet
from zkv.errors import DiskFull
from zkv.ids import Actor, checksum_of, stored_key

REQUEST = (99, 7)


def batch(
    cluster: SimCluster,
    pairs: Sequence[tuple[bytes, bytes]],
    *,
    request: tuple[int, int] = REQUEST,
    bucket: int = DEFAULT,
    items: list[int] | None = None,
    contexts: list[Context | None] | None = None,
    again: bool = False,
    timeout_ns: int = 5 * SECOND,
) -> m.Put:
    return m.Put(
        request,
        [stored_key(bucket, key) for key, _ in pairs],
        [value for _, value in pairs],
        [checksum_of(value) for _, value in pairs],
        contexts,
        items=items,
        again=again,
        want_context=True,
        deadline_ns=cluster.time.now_ns + timeout_ns,
    )


def ask_put(cluster: SimCluster, node: SimNode, message: m.Put) -> m.PutReply:
    reply = cluster.ask(node, message)
    assert isinstance(reply, m.PutReply), reply
    return reply


def put_answer(cluster: SimCluster, route: bytes = b"client") -> m.PutReply:
    """The one answer that this route has got."""
    (reply,) = cluster.answers(route)
    assert isinstance(reply, m.PutReply), reply
    return reply


def replicas(cluster: SimCluster, key: bytes) -> list[SimNode]:
    return [cluster.node_of(key, place) for place in range(3)]


def key_at(first: SimNode, *others: SimNode, without: Sequence[SimNode] = (), besides: bytes = b"") -> bytes | None:
    """A key that `first` is the first replica of, that `others` hold too and `without` do not; None if the ring has none."""
    for n in range(5_000):
        key = b"q%d" % n
        held_by = replicas(first.cluster, key)
        wanted = held_by[0] is first and all(node in held_by for node in others)
        if wanted and key != besides and not any(node in held_by for node in without):
            return key
    return None


def must(key: bytes | None) -> bytes:
    assert key is not None, "the ring of this cluster has such a key"
    return key


def stored(node: SimNode, key: bytes) -> VersionSet:
    (versions,), _ = node.table.read([stored_key(DEFAULT, key)])
    assert versions is not None
    return versions


def assert_nothing_is_open(cluster: SimCluster) -> None:
    for node in cluster.nodes:
        coordinator = node.state.coordinator
        assert coordinator.open_items == 0 and not coordinator._puts and not coordinator._forwards, node.name


# --- acks and what they promise ------------------------------------------------------------------------------------------------


def test_put_whose_pasts_arrive_in_the_turn_of_its_deadline_is_answered() -> None:
    """1. a strict put waits for B's past. 2. it comes in the very turn in which the put's time is up. 3. one answer, and the node lives."""
    cluster, a, _, _ = three(STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaGetReply)
    cluster.send(a, cluster.put_message(KEY, b"v", bucket=STRICT, timeout_ns=500 * MS))
    cluster.settle()
    cluster.time.now_ns += 460 * MS
    cluster.release()
    cluster.settle()
    status = status_of(put_answer(cluster))
    assert status in (Status.OK, Status.UNAVAILABLE)
    assert cluster.values(a, KEY, bucket=STRICT) == ([b"v"] if status is Status.OK else [])
    assert_nothing_is_open(cluster)


def test_put_whose_pasts_arrive_after_its_deadline_is_not_begun() -> None:
    """1. a strict put waits for B's past. 2. the node is stopped for longer than the put has time. 3. it goes on, and finds the past and the
    end of the time in one turn. 4. nothing may be minted: its author has long gone on."""
    cluster, a, _, _ = three(STRICT)
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaGetReply)
    cluster.send(a, cluster.put_message(KEY, b"v", bucket=STRICT, timeout_ns=500 * MS))
    cluster.settle()
    cluster.time.now_ns += 600 * MS
    cluster.release()
    cluster.settle()
    assert status_of(put_answer(cluster)) is Status.UNAVAILABLE
    assert cluster.values(a, KEY, bucket=STRICT) == []
    assert_nothing_is_open(cluster)


def test_same_set_twice_in_one_turn_is_not_acked_before_it_is_synced() -> None:
    """1. C gets the same replica put twice in one turn. 2. the second changes nothing, yet C must not ack it before the first is on disk."""
    cluster, a, _, c = three(STRICT)
    c.log.auto_sync = False
    cluster.hold = lambda source, target, message: target == c.index and isinstance(message, m.ReplicaPut)
    cluster.put(a, KEY, b"v", bucket=STRICT)
    ((_, _, _, origin, frames),) = cluster.held
    cluster.drop_held()
    acks: list[m.ReplicaPutAck] = []

    def note_acks(source: int, target: int, message: m.Message) -> bool:
        if isinstance(message, m.ReplicaPutAck):
            acks.append(message)
        return False

    cluster.hold = note_acks
    c.inbox.peers.extend([(origin, frames), (origin, frames)])  # type: ignore[list-item]
    cluster.settle()
    assert c.log.durable_seq < c.log.written_seq
    assert acks == [], "nothing is synced"
    c.log.sync()
    cluster.settle()
    assert [ack.durable for ack in acks] == [True, True]


def test_put_sent_again_after_a_link_blip_is_not_acked_by_what_a_power_loss_takes() -> None:
    """1. C is down; A's put to B is slow, the link blips, A sends it again. 2. both arrive in one turn of B, whose sync is late. 3. no ack
    may leave before that sync: B would lose the value with its power, and A is down."""
    cluster, a, b, c = three()
    c.kill()
    b.log.auto_sync = False
    cluster.settle()
    cluster.hold = lambda source, target, message: target == b.index and isinstance(message, m.ReplicaPut)
    cluster.send(a, cluster.put_message(KEY, b"v"))
    cluster.settle()
    for linked in (False, True):
        a.inbox.links.append((b.node, linked))
        cluster.settle()
    assert len(cluster.held) == 2
    cluster.release()
    cluster.settle()
    assert b.log.durable_seq == 0
    assert cluster.answers() == []
    b.log.sync()
    cluster.settle()
    assert status_of(put_answer(cluster)) is Status.OK
    b.kill(power_loss=True)
    a.kill()
    b.start()
    c.start()
    cluster.settle()
    assert cluster.values(c, KEY) == [b"v"]


def test_repeated_durable_put_on_an_interval_store_waits_for_the_sync() -> None:
    """1. a put that asked for `durable` is in memory only; its time runs out. 2. it comes again: what is held is not yet what was asked for."""
    cluster = SimCluster(3, fsync="interval")
    a = cluster.node_of(KEY, 0)
    a.log.auto_sync = False
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPut)
    first = cluster.put(a, KEY, b"v", request=REQUEST, w=1, durable=True, timeout_ns=300 * MS)
    assert status_of(first) is Status.QUORUM_NOT_MET
    cluster.send(a, cluster.put_message(KEY, b"v", request=REQUEST, w=1, durable=True))
    cluster.settle()
    assert cluster.answers() == [], "nothing is synced"
    a.log.sync()
    cluster.settle()
    reply = put_answer(cluster)
    assert status_of(reply) is Status.OK
    assert [receipt.durable for receipt in reply.receipts] == [True]


# --- full disks ----------------------------------------------------------------------------------------------------------------


def test_retry_at_a_replica_whose_full_disk_refused_the_put_is_not_taken_for_done() -> None:
    """1. B's disk is full: it refuses A's put. 2. A dies. 3. the client repeats at B, which has space again. B must carry it out: it holds
    nothing, whatever it had begun to note of the request."""
    cluster, a, b, c = three()
    b.log.full = True
    cluster.hold = lambda source, target, message: source == a.index and target == c.index
    cluster.send(a, cluster.put_message(KEY, b"v", request=REQUEST))
    cluster.settle()
    a.kill()
    cluster.drop_held()
    cluster.replies.clear()
    cluster.settle()
    b.log.full = False
    assert status_of(cluster.put(b, KEY, b"v", request=REQUEST, again=True)) is Status.OK
    assert cluster.values(c, KEY) == [b"v"]


def test_full_disk_for_one_item_does_not_make_the_store_forget_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. one request of two manners, so two steps; the second does not fit. 2. item 0 is replaced knowingly. 3. the client repeats its
    request at the same store: item 0 was carried out once and must not come back."""
    cluster, a, b, c = three()
    one, two = b"one", b"two"
    append = a.log.append

    def full_for_large(blocks: Sequence[tuple[int, int, Sequence[bytes]]], *, allow_reserve: bool = False) -> int:
        if sum(len(part) for _, _, parts in blocks for part in parts) > 4_000:
            raise DiskFull("no space")
        return append(blocks, allow_reserve=allow_reserve)

    monkeypatch.setattr(a.log, "append", full_for_large)
    pairs = [(one, b"1"), (two, b"2" * 5_000)]
    first = ask_put(cluster, a, batch(cluster, pairs, contexts=[EMPTY, None]))
    assert first.statuses == [Status.OK, Status.DISK_FULL]
    seen = cluster.get(c, one)
    assert status_of(cluster.put(c, one, b"newer", context=context_of(seen))) is Status.OK
    repeated = ask_put(cluster, a, batch(cluster, pairs, contexts=[EMPTY, None]))
    assert repeated.statuses == [Status.OK, Status.DISK_FULL]
    assert cluster.values(b, one) == [b"newer"], "carried out once"


def test_replica_that_refused_and_came_back_with_space_is_asked_again() -> None:
    """1. C is down, B is full and refuses. 2. B returns with space before the put's deadline: its vote is what the put still lacks."""
    cluster, a, b, c = three()
    c.kill()
    cluster.settle()
    b.log.full = True
    cluster.send(a, cluster.put_message(KEY, b"v"))
    cluster.settle()
    assert cluster.answers() == []
    b.log.full = False
    b.kill()
    cluster.settle()
    b.start()
    cluster.settle()
    cluster.advance(200 * MS)
    assert status_of(put_answer(cluster)) is Status.OK
    assert cluster.held_by(b, KEY) == [b"v"]


# --- the same request again ----------------------------------------------------------------------------------------------------


def test_repeated_put_without_enough_replicas_is_unknown_and_not_refused() -> None:
    """1. a put is minted and misses W. 2. it comes again while B and C are down: `unavailable` would say that nothing was written."""
    cluster, a, b, c = three()
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPutAck)
    first = cluster.put(a, KEY, b"v", request=REQUEST, timeout_ns=300 * MS)
    assert status_of(first) is Status.QUORUM_NOT_MET
    cluster.drop_held()
    b.kill()
    c.kill()
    cluster.settle()
    assert status_of(cluster.put(a, KEY, b"v", request=REQUEST)) in m.UNKNOWN_STATUSES


def test_repeated_put_whose_sync_hangs_is_unknown_and_not_refused() -> None:
    """1. a put is minted, its sync hangs, it misses W. 2. it comes again and waits for the same sync until its deadline: still unknown."""
    cluster, a, _, _ = three()
    a.log.auto_sync = False
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPutAck)
    cluster.put(a, KEY, b"v", request=REQUEST, timeout_ns=300 * MS)
    cluster.drop_held()
    assert status_of(cluster.put(a, KEY, b"v", request=REQUEST, timeout_ns=300 * MS)) in m.UNKNOWN_STATUSES


def test_retry_at_a_store_that_joined_items_of_two_coordinators_names_the_right_dots() -> None:
    """1. item 0 was minted by A, item 1 by B; C joined both. 2. the whole request comes to C: each dot must be one that C holds."""
    cluster = SimCluster(3)
    a, b, c = cluster.nodes
    keys = [b"x0", b"x1"]
    ask_put(cluster, b, batch(cluster, [(keys[1], b"somebody else's")], request=(55, 1)))
    cluster.hold = lambda source, target, message: target == b.index
    ask_put(cluster, a, batch(cluster, [(keys[0], b"v0")], items=[0]))
    cluster.drop_held()
    ask_put(cluster, b, batch(cluster, [(keys[1], b"v1")], items=[1]))
    reply = ask_put(cluster, c, batch(cluster, [(keys[0], b"v0"), (keys[1], b"v1")], again=True))
    assert reply.statuses is None
    for item, key in enumerate(keys):
        actor = reply.actors[reply.actor_of_item[item] if reply.actor_of_item else 0]
        assert (actor, reply.counters[item]) in [sibling.dot for sibling in stored(c, key).siblings]


def test_retry_at_a_store_that_saw_only_part_carries_out_the_rest() -> None:
    """1. B joined item 0 of a request. 2. items 0 and 1 come to B: that it knows the request must not make item 1 too old for ever."""
    cluster = SimCluster(3)
    a, b, c = cluster.nodes
    ask_put(cluster, a, batch(cluster, [(b"x0", b"v0")], items=[0]))
    reply = ask_put(cluster, b, batch(cluster, [(b"x0", b"v0"), (b"x1", b"v1")], again=True))
    assert reply.statuses is None
    assert cluster.values(c, b"x0") == [b"v0"] and cluster.values(c, b"x1") == [b"v1"]


def test_retry_at_a_store_where_the_value_was_superseded_names_whole_actors() -> None:
    """1. C held a tombstone that covers the request's value before it joined that record. 2. a retry at C: what it answers must be able to
    travel, so every actor has its twelve bytes."""
    cluster, _, _, c = three()
    x, y = Actor(b"x" * 12), Actor(b"y" * 12)
    key = stored_key(DEFAULT, KEY)
    old = Sibling(x, 1, 0, 0, checksum_of(b"old"), *REQUEST, (), b"old")
    other = Sibling(y, 1, 0, 0, checksum_of(b"other"), 5, 5, (), b"other")
    c.table._install(key, None, None, VersionSet((), {x: 1}))
    c.table.commit(0)
    record = m.Record(key, 1, 0, (*REQUEST, 0, 1), VersionSet((old, other), {x: 1, y: 1}))
    c.table.join(Join(1, m.RecordBlock([record]), True))
    c.table.commit(0)
    reply = cluster.put(c, KEY, b"old", request=REQUEST, again=True)
    assert status_of(reply) is Status.OK
    assert reply.actors and all(len(actor) == 12 for actor in reply.actors)
    assert cluster.values(c, KEY) == [b"old", b"other"], "carried out anew, and nothing is replaced by it"


def test_batch_with_one_key_twice_is_refused_and_writes_nothing() -> None:
    cluster, a, _, _ = three(STRICT)
    before = [len(node.log.bodies) for node in cluster.nodes]
    reply = cluster.ask(a, batch(cluster, [(KEY, b"first"), (KEY, b"second")], bucket=STRICT))
    assert isinstance(reply, m.Refused) and reply.code == "InvalidKey" and reply.request == REQUEST
    assert [len(node.log.bodies) for node in cluster.nodes] == before
    assert cluster.values(a, KEY, bucket=STRICT) == []


# --- parts of one request ------------------------------------------------------------------------------------------------------


def test_parts_of_one_request_from_two_forwarders_are_not_mixed_up() -> None:
    """1. A forwards item 1 to B. 2. the client repeats at C, which forwards item 0 to B while item 1 is open there. 3. A, the only holder of
    item 0, dies. C must not take B's word on item 1 for item 0."""
    cluster = SimCluster(5)
    a, c, k0, k1 = next(
        (a, c, k0, k1)
        for a, b, c in itertools.permutations(cluster.nodes, 3)
        if (k0 := key_at(b, a, without=[c])) and (k1 := key_at(b, c, without=[a]))
    )
    pairs = [(k0, b"v0"), (k1, b"v1")]
    cluster.hold = lambda source, target, message: (
        isinstance(message, m.ReplicaPutAck) or (source == a.index and isinstance(message, m.ReplicaPut))
    )
    cluster.send(a, batch(cluster, pairs), b"one")
    cluster.settle()
    cluster.send(c, batch(cluster, pairs, again=True), b"two")
    cluster.settle()
    a.kill()
    cluster.held = [wire for wire in cluster.held if a.index not in wire[:2]]
    cluster.release()
    cluster.settle()
    assert put_answer(cluster, b"two").statuses is None
    assert cluster.values(c, k0, r=2) == [b"v0"]
    assert cluster.values(c, k1, r=2) == [b"v1"]


def test_part_of_a_request_that_is_open_as_a_whole_elsewhere_is_answered() -> None:
    """1. A works on a request of two items. 2. the client repeats at B, which forwards item 0 to A. 3. A's answer on two items is not one on
    the part: both routes are answered and nothing stays open."""
    cluster = SimCluster(5)
    a, b, k0, k1 = next(
        (a, b, k0, k1)
        for a, b in itertools.permutations(cluster.nodes, 2)
        if (k0 := key_at(a, without=[b])) and (k1 := key_at(a, b))
    )
    pairs = [(k0, b"v0"), (k1, b"v1")]
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPutAck)
    cluster.send(a, batch(cluster, pairs, timeout_ns=2 * SECOND), b"one")
    cluster.settle()
    cluster.send(b, batch(cluster, pairs, again=True, timeout_ns=2 * SECOND), b"two")
    cluster.settle()
    cluster.release()
    cluster.settle()
    cluster.advance(5 * SECOND)
    for route in (b"one", b"two"):
        assert put_answer(cluster, route).statuses is None
    assert_nothing_is_open(cluster)


@pytest.mark.parametrize("comes", ["answers", "nothing", "loss"])
def test_two_tries_that_forward_the_same_part_are_both_answered(comes: str) -> None:
    """1. D forwards item 0 of a request to A, whose answer is slow. 2. its author asks D for item 0 alone: the same part goes to A once more.
    3. whatever comes of it, the first try is answered too. Found by the simulator: it was left open for ever."""
    cluster = SimCluster(5)
    d = cluster.nodes[0]
    elsewhere = must(next((k for node in cluster.nodes[1:] if (k := key_at(node, without=[d])) is not None), None))
    a = cluster.node_of(elsewhere, 0)
    here = must(key_at(d))
    cluster.hold = lambda source, target, message: isinstance(message, m.PutReply)
    cluster.send(d, batch(cluster, [(elsewhere, b"1"), (here, b"2")]), b"one")
    cluster.settle()
    cluster.send(d, batch(cluster, [(elsewhere, b"1")], items=[0], again=True, contexts=[EMPTY]), b"two")
    cluster.settle()
    if comes == "answers":
        cluster.release()
        cluster.settle()
        assert put_answer(cluster, b"one").statuses is None and put_answer(cluster, b"two").statuses is None
    else:
        if comes == "loss":
            a.kill()
        cluster.advance(0 if comes == "loss" else 6 * SECOND)
        cluster.settle()
        unknown = Status.QUORUM_NOT_MET if comes == "loss" else Status.DEADLINE
        assert put_answer(cluster, b"one").statuses == [unknown, Status.OK]
        assert put_answer(cluster, b"two").statuses == [unknown]
    assert_nothing_is_open(cluster)


def test_two_coordinators_of_one_request_do_not_wait_for_each_other() -> None:
    """1. A forwards item 1 to B. 2. the same request comes to B, which forwards item 0 to A. Neither may take the other's part for a request
    that is already being worked on."""
    cluster = SimCluster(5)
    a, b, k0, k1 = next(
        (a, b, k0, k1)
        for a, b in itertools.permutations(cluster.nodes, 2)
        if (k0 := key_at(a, without=[b])) and (k1 := key_at(b, without=[a]))
    )
    pairs = [(k0, b"v0"), (k1, b"v1")]
    cluster.hold = lambda source, target, message: isinstance(message, (m.ReplicaPutAck, m.Put))
    cluster.send(a, batch(cluster, pairs, timeout_ns=2 * SECOND), b"one")
    cluster.settle()
    cluster.send(b, batch(cluster, pairs, again=True, timeout_ns=2 * SECOND), b"two")
    cluster.settle()
    cluster.release()
    cluster.settle()
    for route in (b"one", b"two"):
        assert put_answer(cluster, route).statuses is None
    assert_nothing_is_open(cluster)


def test_forwarding_keeps_the_item_numbers_of_the_request() -> None:
    """1. A carried out item 0. 2. item 1 alone is repeated through X, which is no replica of it. A must not take it for item 0."""
    cluster = SimCluster(5)
    a, x = cluster.nodes[:2]
    k0 = must(key_at(a, without=[x]))
    k1 = must(key_at(a, without=[x], besides=k0))
    assert ask_put(cluster, a, batch(cluster, [(k0, b"v0")], items=[0])).statuses is None
    reply = ask_put(cluster, x, batch(cluster, [(k1, b"v1")], items=[1], again=True))
    assert reply.statuses is None and reply.items == [1]
    assert cluster.values(x, k1, r=2) == [b"v1"]


# --- full disks, damaged values, nodes that are missing ------------------------------------------------------------------------


def test_delete_on_a_cluster_that_is_full_everywhere_is_acked_by_w() -> None:
    """Puts are refused before anything is written; deletes, and the tombstones they send, may use what is kept back for them."""
    cluster, a, b, c = three()
    cluster.put(a, KEY, b"v")
    for node in (a, b, c):
        node.log.full = True
    refused = cluster.put(a, KEY, b"more")
    assert status_of(refused) is Status.DISK_FULL
    assert Status.DISK_FULL not in m.UNKNOWN_STATUSES
    deleted = cluster.put(a, KEY, None)
    assert status_of(deleted) is Status.OK
    assert len(deleted.receipts[0].nodes) >= 2
    assert cluster.values(b, KEY) == []


def test_value_that_is_not_what_its_author_sent_is_refused_and_never_written() -> None:
    cluster, a, b, c = three()
    message = cluster.put_message(KEY, b"v")
    message.checksums = [message.checksums[0] ^ 1]
    reply = cluster.ask(a, message)
    assert isinstance(reply, m.PutReply)
    assert status_of(reply) is Status.CORRUPT
    assert [node.log.bodies for node in (a, b, c)] == [[], [], []]


def test_two_tries_of_one_put_at_one_store_are_carried_out_once() -> None:
    """1. A waits for the pasts of a blind strict put. 2. its author gives up waiting and asks D, which is no replica and forwards to A, marked
    as a retry: A mints what was stated. 3. another put replaces that. 4. the pasts arrive: the first try must not bring its value back."""
    cluster = SimCluster(4)
    key = b"once"
    holders = [cluster.node_of(key, place, STRICT) for place in range(3)]
    a = holders[0]
    (d,) = [node for node in cluster.nodes if node not in holders]
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaGetReply)
    cluster.send(a, batch(cluster, [(key, b"once")], bucket=STRICT), b"one")
    cluster.settle()
    cluster.hold = lambda source, target, message: False  # what is held stays held
    retry = batch(cluster, [(key, b"once")], bucket=STRICT, again=True, contexts=[EMPTY])
    cluster.send(d, retry, b"two")
    cluster.settle()
    assert put_answer(cluster, b"two").statuses is None
    assert cluster.put(a, key, b"later", bucket=STRICT).statuses is None
    cluster.release()
    cluster.settle()
    answer = put_answer(cluster, b"one")
    assert answer.statuses == [Status.QUORUM_NOT_MET]  # unknown here; the other try was told
    assert cluster.values(a, key, bucket=STRICT) == [b"later"]
    assert_nothing_is_open(cluster)


@pytest.mark.parametrize("late", ["request", "pasts"])
def test_first_try_that_goes_on_after_one_elsewhere_does_not_replace_what_was_written_since(late: str) -> None:
    """1. A strict put waits at A, which is cut off (or stopped before it took the put in). 2. its author tries at B, marked: B mints, C acks.
    3. somebody replaces that, with its context. 4. A is back and gets the pasts, which hold what was written in step 3. Found by the simulator.
    """
    cluster, a, b, _ = three(STRICT)
    first = batch(cluster, [(KEY, b"once"), (b"other", b"x")], bucket=STRICT)
    cluster.hold = lambda source, target, message: a.index in (source, target)
    if late == "pasts":
        cluster.send(a, first, b"one")
        cluster.settle()
    again = batch(cluster, [(KEY, b"once")], bucket=STRICT, again=True, contexts=[EMPTY])
    assert ask_put(cluster, b, again).statuses is None
    seen = context_of(cluster.get(b, KEY, bucket=STRICT))
    assert cluster.put(b, KEY, b"later", bucket=STRICT, context=seen).statuses is None
    cluster.held = [entry for entry in cluster.held if entry[1] != a.index]  # A misses what B and C took meanwhile
    cluster.release()
    if late == "request":
        cluster.send(a, first, b"one")
    cluster.settle()
    answer = put_answer(cluster, b"one")
    assert answer.statuses == [
        Status.TOO_OLD,
        Status.UNAVAILABLE,
    ]  # unknown here; nothing was written of the other item
    assert cluster.values(b, KEY, bucket=STRICT) == [b"later"]
    assert cluster.values(b, b"other", bucket=STRICT) == []
    assert_nothing_is_open(cluster)


@pytest.mark.xfail(
    strict=True, reason="known: a sloppy put asks nobody before it is minted (docs/consistency.md, retries)"
)
def test_sloppy_first_try_that_comes_after_one_elsewhere_does_not_replace_what_was_written_since() -> None:
    """1. A put is on its way to A, slowly. 2. its author tries at B, marked: B mints, C acks, A misses it. 3. somebody replaces that, with its
    context; A takes it. 4. the first try comes to A. Found by the simulator (1 of some 2,500 seeds)."""
    cluster, a, b, _ = three(DEFAULT)
    first = batch(cluster, [(KEY, b"once")])
    cluster.hold = lambda source, target, message: a.index in (source, target)
    again = batch(cluster, [(KEY, b"once")], again=True, contexts=[EMPTY])
    assert ask_put(cluster, b, again).statuses is None
    seen = context_of(cluster.get(b, KEY))
    cluster.drop_held()
    assert cluster.put(b, KEY, b"later", context=seen).statuses is None
    ask_put(cluster, a, first)
    assert b"later" in cluster.values(b, KEY)


def test_second_copy_of_a_refused_put_is_refused_as_the_first_was() -> None:
    """1. A can reach nobody and refuses the put; its author hears "failed". 2. B and C are back. 3. a second copy of the very same frame comes
    late. 4. nothing may be written: "failed" was promised. 5. a try marked as a retry is carried out."""
    cluster, a, b, c = three()
    b.kill()
    c.kill()
    cluster.settle()
    message = cluster.put_message(KEY, b"v", request=REQUEST)
    assert status_of(ask_put(cluster, a, message)) is Status.UNAVAILABLE
    b.start()
    c.start()
    cluster.settle()
    again = ask_put(cluster, a, message)
    assert (status_of(again), again.required, again.got) == (Status.UNAVAILABLE, [2], [1])
    assert cluster.values(a, KEY) == []
    message.retry = True
    assert status_of(ask_put(cluster, a, message)) is Status.OK
    assert_nothing_is_open(cluster)


def test_second_copy_of_a_forwarded_part_does_only_what_the_first_did() -> None:
    """1. X forwards a part to A, which cannot reach its replicas and refuses it. 2. they come back, and the forwarded frame comes once more."""
    cluster = SimCluster(4)
    a, b, c = (cluster.node_of(KEY, place) for place in range(3))
    x = next(node for node in cluster.nodes if node not in (a, b, c))
    forwarded: list[tuple[int, int, str, object, object]] = []
    cluster.hold = lambda source, target, message: isinstance(message, m.Put)
    cluster.send(x, batch(cluster, [(KEY, b"v")]))
    cluster.settle()
    forwarded += cluster.held
    assert len(forwarded) == 1
    b.kill()
    c.kill()
    cluster.settle()
    cluster.release()
    cluster.settle()
    assert status_of(put_answer(cluster)) is Status.UNAVAILABLE
    b.start()
    c.start()
    cluster.settle()
    _, _, _, origin, frames = forwarded[0]
    a.inbox.peers.append((origin, frames))  # type: ignore[arg-type]
    cluster.settle()
    assert cluster.values(a, KEY) == []
    assert_nothing_is_open(cluster)


def test_only_the_refused_items_of_a_request_are_refused_again() -> None:
    cluster = SimCluster(1)
    (a,) = cluster.nodes
    message = batch(cluster, [(b"small", b"v"), (b"large", b"x" * 20_000)])
    for _ in range(2):
        reply = ask_put(cluster, a, message)
        assert reply.statuses == [Status.OK, Status.TOO_LARGE]
    assert cluster.held_by(a, b"small") == [b"v"] and cluster.held_by(a, b"large") == []


def test_refusals_are_forgotten_by_number_oldest_first() -> None:
    refusals = Refusals()
    for sequence in range(REFUSALS_MAX + 1):
        refusals.note((1, sequence), {0: (int(Status.UNAVAILABLE), 2, 1)})
    assert refusals.of((1, 0)) == {}
    assert refusals.of((1, 1)) == {0: (Status.UNAVAILABLE, 2, 1)}


@pytest.mark.parametrize("count", [2, 6])
def test_put_whose_items_come_in_any_order_can_be_read_from_the_log_again(count: int) -> None:
    """A log that holds an acknowledged put must open, whatever order a client numbers its items in."""
    cluster, a, b, _ = three()
    pairs = [(b"key %d" % i, b"v%d" % i) for i in range(count)]
    reply = ask_put(cluster, a, batch(cluster, pairs, items=list(reversed(range(count)))))
    assert reply.statuses is None
    for node in (a, b):
        node.kill()
        node.start()
    cluster.settle()
    assert [cluster.held_by(node, key) for node in (a, b) for key, _ in pairs] == [[v] for _, v in pairs] * 2
    again = batch(cluster, pairs, items=list(reversed(range(count))))
    again.retry = True
    assert ask_put(cluster, a, again).counters == reply.counters, "carried out once"


def test_copy_of_a_put_that_is_being_worked_on_is_not_told_that_nothing_was_done() -> None:
    """The node begins to stop between the two: the first goes on, and the copy hears what becomes of it."""
    cluster, a, _, _ = three()
    cluster.hold = lambda source, target, message: isinstance(message, m.ReplicaPut)
    message = cluster.put_message(KEY, b"v")
    cluster.send(a, message)
    cluster.settle()
    a.view.draining = True
    cluster.send(a, message, b"again")
    cluster.settle()
    assert cluster.answers(b"again") == []
    cluster.release()
    cluster.settle()
    assert status_of(put_answer(cluster)) == status_of(put_answer(cluster, b"again")) == Status.OK
    cluster.send(a, message, b"late")  # and one that comes after the reply
    cluster.settle()
    assert status_of(put_answer(cluster, b"late")) == Status.OK


def test_refusals_are_bounded_by_the_number_of_items() -> None:
    refusals = Refusals()
    for n in range(REFUSALS_MAX // 1_000 + 50):
        refusals.note((1, n), dict.fromkeys(range(1_000), (int(Status.OVERLOADED), 0, 0)))
    assert len(refusals) <= REFUSALS_MAX
    assert not refusals.of((1, 0)) and refusals.of((1, REFUSALS_MAX // 1_000 + 49))


def test_concurrent_batches_of_long_keys_are_replicated_in_messages_that_fit() -> None:
    """Grouped by number alone, four thousand keys of a kilobyte are more than one message may hold, and none would reach a replica."""
    cluster, a, b, _ = three()
    for n in range(4):
        pairs = [(b"%d %d " % (n, i) + b"k" * 1_000, b"v") for i in range(1_000)]
        message = batch(cluster, pairs, request=(99, n + 1), contexts=[Context({})] * 1_000)
        cluster.send(a, message, b"client %d" % n)
    cluster.settle()
    assert [status_of(put_answer(cluster, b"client %d" % n)) for n in range(4)] == [Status.OK] * 4
    assert len(b.table) == 4_000


def test_store_that_joins_two_tries_of_one_put_remembers_a_dot_that_exists() -> None:
    """A minted (a, 1), B minted (b, 7) for the same request; C learns A's set by repair and B's with its request."""
    _, _, _, c = three()
    key = stored_key(DEFAULT, KEY)
    a, b = Actor(b"open id A" + bytes(3)), Actor(b"open id B" + bytes(3))
    of_a = Sibling(a, 1, 0, 0, checksum_of(b"v"), *REQUEST, (), b"v")
    of_b = Sibling(b, 7, 0, 0, checksum_of(b"v"), *REQUEST, (), b"v")
    c.table.join(Join(1, m.RecordBlock([m.Record(key, 1, 0, None, VersionSet((of_a,), {a: 1}))]), True))
    c.table.commit(1)
    c.table.join(Join(2, m.RecordBlock([m.Record(key, 1, 0, (*REQUEST, 0, 7), VersionSet((of_b,), {b: 7}))]), True))
    c.table.commit(2)
    outcome = c.view.memory.recall(REQUEST)
    assert outcome is not None and outcome.dot_of(0) == (b, 7)


def test_outcome_of_items_in_any_order_keeps_the_first_and_forgets_what_was_added() -> None:
    outcome = Outcome()
    a, b = Actor(b"a" * 12), Actor(b"b" * 12)
    assert outcome.add_run([1], a, [1]) == [1]
    assert outcome.add_run([0], b, [5]) == [0]
    assert outcome.add_run([1], b, [7]) == [], "known, though a lower number came after it"
    assert outcome.add_run([3, 2], a, [8, 9]) == [3, 2]
    assert [outcome.dot_of(i) for i in range(4)] == [(b, 5), (a, 1), (a, 9), (a, 8)]
    outcome.forget(3)
    assert outcome.dot_of(3) is None and len(outcome) == 3


def test_part_of_a_request_that_may_be_forgotten_is_unknown_though_another_part_is_remembered() -> None:
    """1. a batch was carried out in two turns, on both sides of the end of a log file. 2. The older file was sealed, and sealed records do not tell
    their requests. 3. somebody wrote over it. 4. restart, and a late retry: the forgotten half must not be carried out again on top of that."""
    cluster, _, a, _ = three()
    assert cluster.put(a, b"x0", b"newer", bucket=STRICT).statuses is None
    known = ask_put(cluster, a, batch(cluster, [(b"x1", b"v1")], bucket=STRICT, items=[1]))
    assert known.statuses is None
    a.view.forgetful_until_ns = cluster.time.now_ns + 120 * SECOND
    retry = batch(cluster, [(b"x0", b"v0"), (b"x1", b"v1")], bucket=STRICT)
    retry.retry = True
    reply = ask_put(cluster, a, retry)
    assert reply.statuses == [Status.TOO_OLD, Status.OK]
    assert cluster.values(a, b"x0", bucket=STRICT) == [b"newer"]
