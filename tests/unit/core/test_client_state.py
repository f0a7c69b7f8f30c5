"""Routing, retries, deadlines and memory of the client, without sockets or time."""

from __future__ import annotations

import random
from functools import cache

import pytest

from zkv.core import messages as m
from zkv.core.client_calls import CONNECT_PATIENCE_NS, FLYING_MAX, LAST_TRY_NS
from zkv.core.client_memory import WriteMemory
from zkv.core.client_outcomes import GET_VERDICTS, PUT_VERDICTS, Failure, Verdict, error_of
from zkv.core.client_parts import Order, Part, runs
from zkv.core.client_puts import GetCall, PutCall
from zkv.core.client_state import ClientState
from zkv.core.messages import Status
from zkv.core.topology import TopologyDocument, first_epoch, parse_initial
from zkv.core.versions import EMPTY, Context
from zkv.errors import (
    ConnectFailed,
    CorruptData,
    DeadlineExceeded,
    DiskFull,
    InvalidKey,
    NoSuchBucket,
    Overloaded,
    ProtocolError,
    QuorumNotMet,
    StorageFailed,
    TooLarge,
    Unavailable,
    Unsupported,
    ZkvError,
)
from zkv.ids import Actor, NodeId, actor_of, stored_key

MS = 1_000_000
SECOND = 1_000 * MS
TIMEOUT = 5 * SECOND
ACTOR = actor_of(b"a" * 8, 0)
OTHER = actor_of(b"b" * 8, 0)


@cache
def document(nodes: int = 3) -> TopologyDocument:
    initial = ",".join(f"n{i}@10.0.0.{i + 1}:7400" for i in range(nodes))
    return first_epoch("test", parse_initial(initial), 64)


def state_of(nodes: int = 3, seed: int = 1) -> ClientState:
    state = ClientState(random.Random(seed))
    topology = document(nodes)
    first = topology.members[0]
    state.adopt(topology, first.node_id, first.address)
    return state


def keys_of(*names: str, bucket: int = 1) -> list[bytes]:
    return [stored_key(bucket, name.encode()) for name in names]


def put_call(state: ClientState, keys: list[bytes], bucket: str = "default", **options: object) -> PutCall:
    values = options.pop("values", [b"v"] * len(keys))
    return PutCall(state, state.bucket(bucket), keys, values, [0] * len(keys), 0, TIMEOUT, **options)  # type: ignore[arg-type]


def get_call(state: ClientState, keys: list[bytes]) -> GetCall:
    return GetCall(state, state.bucket("default"), keys, 0, TIMEOUT)


def sent(call: PutCall | GetCall, now_ns: int) -> list[Order]:
    orders = call.turn(now_ns)
    for order in orders:
        call.on_sent(order, now_ns)
    return orders


def one(call: PutCall | GetCall, now_ns: int) -> Order:
    (order,) = sent(call, now_ns)
    return order


def ok(order: Order, counter: int = 1, actor: Actor = ACTOR) -> m.PutReply:
    assert isinstance(order.message, m.Put)
    n = len(order.message.keys)
    return m.PutReply(
        order.message.request, None, None, None, [actor], None, [counter] * n, [m.Receipt([], True, False, 1)], None
    )


def found(order: Order) -> m.GetReply:
    assert isinstance(order.message, m.Get)
    n = len(order.message.keys)
    return m.GetReply(order.message.request, None, None, None, None, [0] * n, None, None, [b""] * n)


def bad(order: Order, *statuses: Status, required: int = 2, got: int = 1) -> m.PutReply | m.GetReply:
    message = order.message
    assert isinstance(message, m.Put | m.Get)
    n = len(message.keys)
    column: list[int] = list(statuses) if len(statuses) == n else [statuses[0]] * n
    if isinstance(message, m.Get):
        counts = [0] * n
        return m.GetReply(message.request, column, [required] * n, [got] * n, counts, [], None, None, [])
    return m.PutReply(message.request, column, [required] * n, [got] * n, [ACTOR], None, [1] * n, [], [-1] * n)


def put_of(order: Order) -> m.Put:
    assert isinstance(order.message, m.Put)
    return order.message


def woken(call: PutCall | GetCall) -> list[Order]:
    """Everything sent at the next moment the call asks for."""
    now_ns = call.next_wakeup_ns()
    assert now_ns, "something was due at once"
    return sent(call, now_ns)


# --- routing -----------------------------------------------------------------------------------------------------------------


def test_batch_goes_to_one_coordinator_where_all_nodes_hold_everything() -> None:
    state = state_of(3)
    keys = keys_of(*(f"k{i}" for i in range(100)))
    batches = [keys[start:] + keys[:start] for start in range(50)]
    assert all(len(state.assign(batch, 1, 0)) == 1 for batch in batches)
    assert {state.assign(batch, 1, 0)[0][0] for batch in batches} == set(state.addresses), "batches spread"
    assert len({state.assign(keys, 1, 0)[0][0] for _ in range(9)}) == 1, "the same batch comes to the same store again"


def test_batch_is_covered_by_few_coordinators_each_a_replica_of_its_keys() -> None:
    state = state_of(7)
    assert state.ring is not None
    keys = keys_of(*(f"k{i}" for i in range(300)))
    assignments = state.assign(keys, 1, 0)
    positions = sorted(p for _, places in assignments for p in places or [])
    assert positions == list(range(300)), "every key exactly once"
    for node, places in assignments:
        assert all(node in state.ring.row_of(keys[p], 1).replicas for p in places or [])
    assert 2 < len(assignments) <= 5


def test_single_key_goes_to_first_replica_until_it_failed() -> None:
    state = state_of(5)
    assert state.ring is not None
    (key,) = keys_of("k")
    first, second, *_ = state.ring.row_of(key, 1).replicas
    assert state.assign([key], 1, 0) == [(first, None)]
    state.failed(state.addresses[first], 0)
    assert state.assign([key], 1, 1) == [(second, None)]
    assert state.assign([key], 1, 60 * SECOND) == [(first, None)], "cooling ends"
    state.failed(state.addresses[first], 60 * SECOND)
    state.answered(state.addresses[first])
    assert state.assign([key], 1, 60 * SECOND + 1) == [(first, None)]


def test_all_replicas_failed_asks_another_node_for_gets_and_only_replicas_for_bound_puts() -> None:
    state = state_of(5)
    assert state.ring is not None
    (key,) = keys_of("k")
    replicas = state.ring.row_of(key, 1).replicas
    for node in replicas:
        state.failed(state.addresses[node], 0)
    assert state.assign([key], 1, 1)[0][0] not in replicas
    assert state.assign([key], 1, 1, replicas_only=True)[0][0] in replicas


def test_cooling_grows_with_each_failure_and_is_bounded() -> None:
    state = state_of(3)
    node = min(state.addresses)
    address = state.addresses[node]
    state.failed(address, 0)
    assert state.is_cooling(node, 249 * MS)
    assert not state.is_cooling(node, 250 * MS)
    for _ in range(20):
        state.failed(address, 0)
    assert state.is_cooling(node, 4_999 * MS)
    assert not state.is_cooling(node, 5_000 * MS)


def test_adopt_older_document_changes_nothing_but_the_way_to_its_node() -> None:
    state = state_of(3)
    before = state.document
    node = max(state.addresses)
    state.adopt(document(3), node, "elsewhere:1")
    assert state.document is before
    assert state.addresses[node] == "elsewhere:1"


def test_bucket_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(NoSuchBucket, match="default, strict"):
        state_of().bucket("carts")


# --- messages ----------------------------------------------------------------------------------------------------------------


def test_large_call_is_split_by_items_and_bytes_and_four_messages_fly() -> None:
    state = state_of()
    call = put_call(state, keys_of(*(f"k{i}" for i in range(7_500))))
    orders = sent(call, 0)
    assert [len(put_of(o).keys) for o in orders] == [1000] * FLYING_MAX
    assert sent(call, 1) == []
    call.on_reply(orders[0].address, ok(orders[0]), 2)
    following = sent(call, 2)
    assert len(following) == 1
    assert put_of(following[0]).request[1] == put_of(orders[3]).request[1] + 1

    big = [b"x" * (1 << 20)] * 9
    call = put_call(state, keys_of(*(f"k{i}" for i in range(9))), values=big)
    assert [len(put_of(o).keys) for o in sent(call, 0)] == [4, 4, 1]
    assert len({put_of(o).keys[0] for o in orders}) == 4


def test_runs_cut_where_items_or_bytes_are_full() -> None:
    assert runs(5, 2, None, 0) == [range(2), range(2, 4), range(4, 5)]
    assert runs(4, 10, [3, 3, 3, 9], 6) == [range(2), range(2, 3), range(3, 4)]


def test_requests_have_one_session_and_growing_sequences() -> None:
    state = state_of()
    requests = [put_of(one(put_call(state, keys_of("k")), 0)).request for _ in range(3)]
    assert [r[0] for r in requests] == [state.session] * 3
    assert [r[1] for r in requests] == [1, 2, 3]


@pytest.mark.parametrize("mangle", ["session", "sequence", "address", "kind", "count"])
def test_reply_that_answers_nothing_is_dropped_and_changes_nothing(mangle: str) -> None:
    call = put_call(state_of(), keys_of("a", "b"))
    order = one(call, 0)
    reply: m.ClientReply = ok(order)
    assert isinstance(reply, m.PutReply)
    session, sequence = reply.request
    address = order.address
    match mangle:
        case "session":
            reply.request = (session + 1, sequence)
        case "sequence":
            reply.request = (session, sequence + 1)
        case "address":
            address = "10.9.9.9:7400"
        case "kind":
            reply = m.GetReply(reply.request, None, None, None, None, [0, 0], None, None, [b"", b""])
        case "count":
            reply.counters = [1, 1, 1]
    assert call.on_reply(address, reply, 1) is False
    assert not call.done
    assert call.on_reply(order.address, ok(order), 1) is True
    assert call.done
    assert call.on_reply(order.address, ok(order), 1) is False, "a second answer to the same request"


# --- outcomes ----------------------------------------------------------------------------------------------------------------

PUT_ERRORS: dict[Status, type[ZkvError]] = {
    Status.UNAVAILABLE: Unavailable,
    Status.QUORUM_NOT_MET: QuorumNotMet,
    Status.DEADLINE: DeadlineExceeded,
    Status.OVERLOADED: Overloaded,
    Status.TOO_LARGE: TooLarge,
    Status.INVALID_KEY: InvalidKey,
    Status.NO_SUCH_BUCKET: NoSuchBucket,
    Status.DISK_FULL: DiskFull,
    Status.CORRUPT: CorruptData,
    Status.ROW_VERSION: Unavailable,
    Status.UNSYNCED: Unavailable,
    Status.NOT_REPLICA: Unavailable,
    Status.TOO_OLD: DeadlineExceeded,
    Status.STORE_FAILED: StorageFailed,
    Status.EXPIRED: DeadlineExceeded,
}


def test_every_status_has_verdicts_and_an_error() -> None:
    every = set(Status) - {Status.OK}
    assert set(PUT_VERDICTS) == set(GET_VERDICTS) == set(PUT_ERRORS) == every
    unknown = {s for s, v in PUT_VERDICTS.items() if v in (Verdict.UNKNOWN, Verdict.UNKNOWN_FINAL)}
    assert unknown == m.UNKNOWN_STATUSES
    assert not set(GET_VERDICTS.values()) & {Verdict.UNKNOWN, Verdict.UNKNOWN_FINAL}


@pytest.mark.parametrize("status", sorted(PUT_ERRORS))
def test_put_that_is_always_answered_so_ends_in_its_error_within_the_deadline(status: Status) -> None:
    call = put_call(state_of(), keys_of("k"))
    now = tries = 0
    while not call.done:
        for order in sent(call, now):
            tries += 1
            call.on_reply(order.address, bad(order, status, required=3, got=1), now)
        now = max(now, call.next_wakeup_ns())
        assert now <= TIMEOUT
    error = call.errors()[0]
    assert type(error) is PUT_ERRORS[status]
    if PUT_VERDICTS[status] in (Verdict.FINAL, Verdict.UNKNOWN_FINAL):
        assert tries == 1
    if status in m.UNKNOWN_STATUSES:
        assert not error.definite, "a put that may live somewhere is never called failed"
    if isinstance(error, QuorumNotMet):
        assert (error.required, error.got) == (3, 1)
    if status is Status.UNAVAILABLE:
        assert isinstance(error, Unavailable)
        assert (error.required, error.alive) == (3, 1)
        assert 1 < tries <= 4


def test_definite_refusal_after_unknown_try_is_never_called_definite() -> None:
    for status in set(Status) - {Status.OK}:
        assert not error_of(Failure(status, 2, 1), unknown=True).definite
    error = error_of(Failure(Status.UNAVAILABLE, 3, 1), unknown=True)
    assert isinstance(error, QuorumNotMet)
    assert (error.required, error.got) == (3, 1)


def test_refusal_of_a_whole_message_becomes_the_class_it_names() -> None:
    call = put_call(state_of(), keys_of("a", "b"))
    order = one(call, 0)
    call.on_reply(order.address, m.Refused(put_of(order).request, "Unsupported", "not today"), 1)
    assert call.done
    assert [type(e) for e in call.errors().values()] == [Unsupported] * 2
    assert isinstance(error_of(Failure(None, code="NoClassOfOurs", message="x")), ProtocolError)
    assert isinstance(error_of(Failure(None, code="annotations", message="x")), ProtocolError)


def test_overloaded_is_retried_elsewhere_as_a_new_request_after_a_pause() -> None:
    call = put_call(state_of(), keys_of("k"))
    order = one(call, 0)
    refused = m.Refused(put_of(order).request, "Overloaded", "full", {"retry_after_ms": 70})
    call.on_reply(order.address, refused, 10)
    assert sent(call, 10) == [], "not before the pause is over"
    (again,) = woken(call)
    assert again.address != order.address
    assert put_of(again).request[1] != put_of(order).request[1], (
        "certainly not applied: nothing ties it to the first try"
    )
    assert not put_of(again).again
    assert not put_of(again).retry
    call.on_reply(again.address, ok(again), 20 * MS)
    assert call.done
    assert not call.failures


def test_each_item_of_a_batch_has_its_own_outcome() -> None:
    state = state_of()
    keys = keys_of("a", "b", "c")
    call = put_call(state, keys, want_context=False)
    order = one(call, 0)
    call.on_reply(order.address, bad(order, Status.OK, Status.TOO_LARGE, Status.UNAVAILABLE), 1)
    (retry,) = woken(call)
    assert put_of(retry).keys == [keys[2]]
    call.on_reply(retry.address, ok(retry, 7), 30 * MS)
    assert call.done
    assert {p: type(e) for p, e in call.errors().items()} == {1: TooLarge}
    assert sorted(p for positions, _, _ in call.answers for p in positions) == [0, 2]
    assert state.memory.bases(keys) == [(ACTOR, 1), None, (ACTOR, 7)]


def test_definite_refusal_is_not_risked_for_a_try_at_the_last_moment() -> None:
    call = put_call(state_of(), keys_of("k"))
    order = one(call, 0)
    late = TIMEOUT - LAST_TRY_NS
    call.on_reply(order.address, bad(order, Status.OVERLOADED), late)
    assert woken(call) == []
    assert call.done
    assert type(call.errors()[0]) is Overloaded
    assert call.errors()[0].definite


def test_stale_topology_is_noticed() -> None:
    state = state_of()
    call = put_call(state, keys_of("k"))
    order = one(call, 0)
    call.on_reply(order.address, bad(order, Status.ROW_VERSION), 1)
    assert state.stale
    assert not call.done


# --- links that break --------------------------------------------------------------------------------------------------------


def with_base(state: ClientState, keys: list[bytes]) -> None:
    call = put_call(state, keys, "strict")
    order = one(call, 0)
    call.on_reply(order.address, ok(order), 0)
    assert call.done


@pytest.mark.parametrize(
    ("bucket", "knowledge", "elsewhere"),
    [
        ("default", "blind", True),
        ("default", "context", True),
        ("strict", "context", True),
        ("strict", "empty context", True),
        ("strict", "base", True),
        ("strict", "blind", False),
        ("strict", "sloppy call", True),
        ("default", "strict call", False),
    ],
)
def test_put_whose_link_broke_goes_elsewhere_only_if_it_cannot_supersede(
    bucket: str, knowledge: str, elsewhere: bool
) -> None:
    state = state_of()
    keys = keys_of("k", bucket=2 if bucket == "strict" else 1)
    options: dict[str, object] = {}
    match knowledge:
        case "context":
            options["contexts"] = [Context({OTHER: 3})]
        case "empty context":
            options["contexts"] = [EMPTY]
        case "base":
            with_base(state, keys)
        case "sloppy call":
            options["sloppy"] = True
        case "strict call":
            options["sloppy"] = False
    call = put_call(state, keys, bucket, **options)
    first = one(call, 0)
    assert not put_of(first).again
    state.failed(first.address, 10)
    call.on_lost(first.address, 10)
    (second,) = sent(call, 10) or woken(call)
    assert put_of(second).request == put_of(first).request, "a retry carries the same request id"
    assert put_of(second).bases == put_of(first).bases
    assert (put_of(first).retry, put_of(second).retry) == (False, True), "a store that forgot requests must know"
    if elsewhere:
        assert second.address != first.address
        assert put_of(second).again
    else:
        assert second.address == first.address
        assert not put_of(second).again


def test_bound_put_waits_for_its_node_to_the_deadline_and_is_unknown() -> None:
    state = state_of()
    keys = keys_of("k", bucket=2)
    call = put_call(state, keys, "strict")
    first = one(call, 0)
    call.on_lost(first.address, 1)
    now = 1
    while not call.done:
        now = call.next_wakeup_ns()
        for order in call.turn(now):
            assert order.address == first.address
            assert not put_of(order).again
            call.on_unsent(order, now)
    (error,) = call.errors().values()
    assert isinstance(error, DeadlineExceeded)
    assert not error.definite
    assert now == TIMEOUT
    later = one(put_call(state, keys, "strict"), 0)
    assert put_of(later).voids == [(put_of(first).request[1],)]


def test_once_marked_again_a_request_stays_marked_also_at_its_first_node() -> None:
    """Otherwise: again at B, somebody replaces what B wrote, and an unmarked try at A would replace that."""
    state = state_of()
    call = put_call(state, keys_of("k"))
    first = one(call, 0)
    call.on_lost(first.address, 1)
    addresses = []
    now = 1
    for _ in range(6):
        while not (orders := sent(call, now)):
            now = call.next_wakeup_ns()
        (order,) = orders
        assert put_of(order).again
        assert put_of(order).request == put_of(first).request
        addresses.append(order.address)
        call.on_lost(order.address, now)
    assert first.address in addresses
    assert len(set(addresses)) == 3


def test_batch_whose_link_broke_is_divided_by_what_may_go_elsewhere() -> None:
    state = state_of()
    keys = keys_of("a", "b", "c", bucket=2)
    with_base(state, keys[1:2])
    call = put_call(state, keys, "strict")
    first = one(call, 0)
    call.on_lost(first.address, 1)
    orders = sent(call, 1)
    while len(orders) < 2:
        orders += woken(call)
    free, bound = sorted(orders, key=lambda o: not put_of(o).again)
    assert (put_of(free).keys, put_of(free).items) == ([keys[1]], [1])
    assert (put_of(bound).keys, put_of(bound).items) == ([keys[0], keys[2]], [0, 2])
    assert free.address != first.address == bound.address
    assert put_of(free).request == put_of(bound).request == put_of(first).request
    whole = ok(first)
    assert call.on_reply(bound.address, whole, 2), "the node had the whole request after all"
    call.on_reply(free.address, ok(free), 2)
    assert call.done
    assert not call.failures


def test_two_pieces_of_one_request_are_never_at_one_node_at_a_time() -> None:
    """The node would take the second for the first come again, and drop it."""
    state = state_of(2)
    keys = keys_of("a", "b", "c", bucket=2)
    with_base(state, keys[1:2])
    call = put_call(state, keys, "strict")
    first = one(call, 0)
    call.on_lost(first.address, 1)
    at: dict[str, Order] = {}
    now = 1
    for _ in range(30):
        now = max(now, call.next_wakeup_ns())
        for order in call.turn(now):
            assert order.address not in at, "still there"
            call.on_sent(order, now)
            at[order.address] = order
        for address in [a for a, o in at.items() if put_of(o).again]:
            del at[address]
            call.on_lost(address, now)
    ((address, order),) = at.items()
    assert address == first.address
    assert put_of(order).items == [0, 2]


def test_single_node_put_whose_link_broke_returns_to_it_unmarked() -> None:
    state = state_of(1)
    call = put_call(state, keys_of("k"))
    first = one(call, 0)
    call.on_lost(first.address, 1)
    (second,) = woken(call)
    assert second.address == first.address
    assert not put_of(second).again
    assert put_of(second).request == put_of(first).request


def test_get_whose_link_broke_goes_elsewhere_at_once() -> None:
    call = get_call(state_of(), keys_of("k"))
    first = one(call, 0)
    call.on_lost(first.address, 5)
    second = one(call, 5)
    assert second.address != first.address
    call.on_reply(second.address, found(second), 6)
    assert call.done
    assert not call.failures


def test_other_link_breaking_concerns_nobody() -> None:
    call = put_call(state_of(), keys_of("k"))
    order = one(call, 0)
    call.on_lost("10.7.7.7:7400", 1)
    assert sent(call, 1) == []
    assert call.on_reply(order.address, ok(order), 2)


def test_unsent_goes_to_the_next_node_at_once_and_fails_when_nobody_can_be_reached() -> None:
    state = state_of()
    call = put_call(state, keys_of("k"))
    tried = []
    for _ in range(3):
        (order,) = call.turn(0)
        tried.append(order.address)
        call.on_unsent(order, 0)
    assert sorted(tried) == sorted(state.addresses.values())
    assert call.turn(0) == [], "all tried: pause"
    now = 0
    while not call.done:
        now = max(now, call.next_wakeup_ns())
        for order in call.turn(now):
            call.on_unsent(order, now)
    (error,) = call.errors().values()
    assert isinstance(error, ConnectFailed)
    assert error.definite
    assert CONNECT_PATIENCE_NS <= now < TIMEOUT
    assert state.memory.voids(keys_of("k"), blind=True) is None


# --- silence -----------------------------------------------------------------------------------------------------------------


def test_silent_node_get_is_asked_elsewhere_and_the_first_answer_counts() -> None:
    call = get_call(state_of(), keys_of("k"))
    first = one(call, 0)
    (second,) = woken(call)
    assert second.address != first.address
    assert call.on_reply(first.address, found(first), 3 * SECOND)
    assert call.done
    assert len(call.answers) == 1


def test_silent_node_put_is_tried_again_elsewhere_if_it_may() -> None:
    state = state_of()
    call = put_call(state, keys_of("k"))
    first = one(call, 0)
    (second,) = woken(call)
    assert call.next_wakeup_ns() > TIMEOUT // 2
    assert put_of(second).again
    assert put_of(second).request == put_of(first).request
    assert second.address != first.address
    call.on_reply(first.address, bad(first, Status.UNAVAILABLE), 3 * SECOND)
    assert not call.done, "the first try has been given up; only its success counts"
    call.on_reply(second.address, ok(second), 3 * SECOND)
    assert call.done
    assert not call.failures
    assert state.memory.voids(keys_of("k"), blind=True) == [(put_of(first).request[1],)]
    assert state.memory.voids(keys_of("k"), blind=False) is None, "it was acknowledged: only a blind put may replace it"


def test_silent_node_bound_put_waits_and_is_unknown_at_the_deadline() -> None:
    state = state_of()
    keys = keys_of("k", bucket=2)
    call = put_call(state, keys, "strict")
    first = one(call, 0)
    assert woken(call) == []
    assert call.next_wakeup_ns() == TIMEOUT
    assert call.turn(TIMEOUT) == []
    assert call.done
    (error,) = call.errors().values()
    assert type(error) is DeadlineExceeded
    assert state.memory.voids(keys, blind=False) == [(put_of(first).request[1],)]


def test_deadline_before_anything_was_sent_is_not_remembered_as_unknown() -> None:
    state = state_of()
    keys = keys_of(*(f"k{i}" for i in range(5_000)))
    call = put_call(state, keys)
    orders = sent(call, 0)
    assert len(orders) == 4
    call.turn(TIMEOUT)
    assert call.done
    voids = state.memory.voids(keys, blind=False)
    assert voids is not None
    assert sum(v is not None for v in voids) == 4_000


def test_get_at_its_deadline_says_so() -> None:
    call = get_call(state_of(1), keys_of("k"))
    one(call, 0)
    call.turn(TIMEOUT)
    assert type(call.errors()[0]) is DeadlineExceeded


@pytest.mark.parametrize("seed", range(40))
def test_any_storm_of_answers_settles_each_item_once_within_the_deadline(seed: int) -> None:
    rng = random.Random(seed)
    state = state_of(rng.choice([1, 3, 5]), seed)
    bucket = rng.choice(["default", "strict"])
    keys = keys_of(*(f"k{i}" for i in range(rng.choice([1, 3, 2_500]))), bucket=2 if bucket == "strict" else 1)
    if rng.random() < 0.5:
        state.memory.note_acked(
            keys[::2], m.PutReply((0, 0), None, None, None, [OTHER], None, [2] * len(keys[::2]), [], None)
        )
    call = put_call(state, keys, bucket) if rng.random() < 0.6 else get_call(state, keys)
    now = 0
    flying: list[Order] = []
    while not call.done:
        for order in call.turn(now):
            if rng.random() < 0.2:
                state.failed(order.address, now)
                call.on_unsent(order, now)
            else:
                call.on_sent(order, now)
                flying.append(order)
        act = rng.random()
        if flying and act < 0.6:
            order = flying.pop(rng.randrange(len(flying)))
            n = len(order.message.keys)  # type: ignore[union-attr]
            statuses = [rng.choice([Status.OK, Status.OK, rng.choice(list(Status))]) for _ in range(n)]
            if isinstance(order.message, m.Get):
                counts = [0] * n
                call.on_reply(
                    order.address,
                    m.GetReply(order.message.request, [*statuses], None, None, counts, [], None, None, []),
                    now,
                )
            else:
                call.on_reply(order.address, bad(order, *statuses), now)
        elif flying and act < 0.8:
            address = rng.choice(flying).address
            flying = [order for order in flying if order.address != address]
            call.on_lost(address, now)
        now = max(now, rng.choice([now + MS, call.next_wakeup_ns()]))
        assert now <= TIMEOUT + MS
    answered = [p for positions, _, _ in call.answers for p in positions]
    failed = [p for positions, _, _ in call.failures for p in positions]
    assert sorted(answered + failed) == list(range(len(keys)))
    assert call.turn(now) == []


# --- memory ------------------------------------------------------------------------------------------------------------------


def acked(actors: list[bytes], counters: list[int], **columns: object) -> m.PutReply:
    return m.PutReply((0, 0), None, None, None, actors, None, counters, [], None, **columns)  # type: ignore[arg-type]


def test_base_is_the_own_dot_or_all_that_the_reply_covers() -> None:
    memory = WriteMemory()
    keys = [b"a", b"b", b"c"]
    assert memory.bases(keys) is None
    memory.note_acked(keys[:2], acked([ACTOR], [1, 4]))
    assert memory.bases(keys) == [(ACTOR, 1), (ACTOR, 4), None]
    full = Context({ACTOR: 9, OTHER: 2})
    memory.note_acked([b"c"], acked([ACTOR], [9], contexts=[full]))
    assert memory.bases([b"c"]) == [full]


def test_base_survives_deletes_which_mint_no_dot() -> None:
    memory = WriteMemory()
    memory.note_acked([b"a"], acked([ACTOR], [3]))
    memory.note_acked([b"a"], acked([ACTOR], [0]))
    memory.note_acked([b"a"], acked([ACTOR], [0], contexts=[EMPTY]))
    assert memory.bases([b"a"]) == [(ACTOR, 3)]


def test_memory_is_bounded_and_keeps_the_newest() -> None:
    memory = WriteMemory(keys_max=100)
    for i in range(1_000):
        memory.note_acked([b"%d" % i], acked([ACTOR], [1]))
    bases = memory.bases([b"%d" % i for i in range(1_000)])
    assert bases is not None
    held = [i for i, base in enumerate(bases) if base is not None]
    assert held == list(range(1_000 - len(held), 1_000))
    assert 100 <= len(held) <= 200


def test_voids_keep_the_last_eight_and_are_sent_with_every_later_put() -> None:
    memory = WriteMemory()
    for sequence in range(1, 12):
        memory.note_unknown([b"a"], sequence)
    assert memory.voids([b"a", b"b"], blind=True) == [tuple(range(4, 12)), None]
    memory.note_acked([b"a"], acked([ACTOR], [1]))
    assert memory.voids([b"a"], blind=False) == [tuple(range(4, 12))]


def test_piece_of_a_tainted_part_keeps_the_numbers_of_the_request() -> None:
    part = Part(range(10, 15))
    part.sequence, part.tainted, part.node = 77, True, NodeId(1)
    piece = part.piece([1, 3]).piece([1])
    assert (piece.sequence, piece.positions, piece.items, piece.width) == (77, [13], [3], 5)
    fresh = Part(range(10, 15)).piece([1, 3])
    assert (fresh.sequence, fresh.positions, fresh.items, fresh.width) == (0, [11, 13], None, 2)


def test_session_of_a_cluster_with_single_copies_says_nothing_of_its_own_writes() -> None:
    """The one store that has a key is where its next write goes: a base could tell it nothing. With three replicas it could."""
    for nodes, expected in ((1, None), (3, [(ACTOR, 1)])):
        state = state_of(nodes)
        keys = keys_of("a")
        first = put_call(state, keys)
        order = one(first, 0)
        assert first.on_reply(order.address, ok(order), 1)
        assert put_of(one(put_call(state, keys), 2)).bases == expected


def test_interrupted_put_is_unknown_to_its_author_and_voided_by_the_next_one() -> None:
    """Ctrl-C between the send and the answer: nobody will hear the outcome, so the next put of the key must say so."""
    state = state_of()
    keys = keys_of("a")
    call = put_call(state, keys)
    order = one(call, 0)
    call.abandon()
    assert put_of(one(put_call(state, keys), 0)).voids == [(put_of(order).request[1],)]
    untouched = put_call(state, keys_of("b"))
    untouched.abandon()
    assert put_of(one(put_call(state, keys_of("b")), 0)).voids is None, "nothing of it had left"


def test_interrupted_adoption_leaves_a_client_that_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ClientState(random.Random(1))
    topology = document()

    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("zkv.core.client_state.ring_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            state.adopt(topology, topology.members[0].node_id, topology.members[0].address)
    assert state.document is None
    state.adopt(topology, topology.members[0].node_id, topology.members[0].address)
    assert state.bucket("default").name == "default"
