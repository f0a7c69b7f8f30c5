"""The client over real sockets, against nodes that do what a test tells them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

import zkv
from tests.unit.client.fake_node import HONEST, FakeCluster, FakeNode, Script, failed_get, failed_put, running
from zkv import resolve
from zkv.client import Client
from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.errors import (
    BatchError,
    Closed,
    CodecError,
    ConfigError,
    Conflict,
    ConnectFailed,
    CorruptData,
    DeadlineExceeded,
    NoSuchBucket,
    NotFound,
    Overloaded,
    QuorumNotMet,
    TooLarge,
    Unavailable,
    Unsupported,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeCluster]:
    with running(3) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: FakeCluster) -> Iterator[FakeCluster]:
    """One cluster for all tests; each leaves it running and honest."""
    shared.sets.clear()
    shared.formed = True
    for node in shared.nodes:
        node.seen.clear()
        node.script = lambda message: HONEST
    yield shared
    for node in shared.nodes:
        node.kill()
        node.start()


@pytest.fixture
def kv(cluster: FakeCluster) -> Iterator[Client]:
    with zkv.connect(cluster.url) as client:
        yield client


def silent_to(kind: type) -> Script:
    return lambda message: None if isinstance(message, kind) else HONEST


def answering(kind: type, answer: Callable[[m.Message], object]) -> Script:
    return lambda message: answer(message) if isinstance(message, kind) else HONEST


# --- plain use ---------------------------------------------------------------------------------------------------------------


def test_put_get_delete(kv: Client) -> None:
    assert kv.get("user:1") is None
    assert kv.get("user:1", b"none") == b"none"
    result = kv.put("user:1", b"Ada")
    assert result.acked
    assert set(result.acked) <= {"n0", "n1", "n2"}
    assert (result.durable, result.sloppy, result.epoch) == (True, False, 1)
    assert kv.get("user:1") == b"Ada" == kv.get(b"user:1")
    assert kv.exists("user:1")
    kv.delete("user:1")
    assert kv.get("user:1") is None
    assert not kv.exists("user:1")


def test_item_and_context_make_a_conflict_and_settle_it(kv: Client) -> None:
    kv.put("cart", b"milk")
    kv.put("cart", b"eggs", context=b"")
    with pytest.raises(Conflict) as caught:
        kv.get("cart")
    assert caught.value.values == (b"milk", b"eggs"), "oldest first"
    item = kv.get_item("cart")
    assert item.found
    assert item.values == (b"milk", b"eggs")
    assert item.context == caught.value.context
    assert len(item.written_ms) == 2
    assert kv.get("cart", resolver=resolve.newest) == b"eggs"
    assert kv.get_item("cart", resolver=resolve.minimum).value == b"eggs"
    kv.put("cart", b"both", context=item.context)
    assert kv.get("cart") == b"both"
    with pytest.raises(CodecError, match="get_item"):
        kv.put("cart", b"x", context=b"junk")


def test_update_reads_resolves_and_puts_with_the_context_it_read(cluster: FakeCluster, kv: Client) -> None:
    numbers = kv.bucket(codec="json", resolver=resolve.union)
    assert numbers.update("n", lambda value: [*(value or []), 1]) == [1]
    (first,) = [put for node in cluster.nodes for put in node.puts()]
    assert first.contexts is not None
    assert first.contexts[0] is not None, "a miss sends the empty context, never none"
    numbers.put("n", [7], context=b"")
    assert numbers.update("n", lambda value: [*(value or []), 2]) == [1, 7, 2]
    assert kv.get_item("n").values == (b"[1,7,2]",)
    kv.put("m", b"1")
    kv.put("m", b"2", context=b"")
    with pytest.raises(Conflict):
        kv.update("m", lambda value: b"3")


def test_ttl_touch_and_expiry(cluster: FakeCluster, kv: Client) -> None:
    with pytest.raises(NotFound):
        kv.ttl("t")
    assert kv.touch("t", 5) is False
    kv.put("t", b"v")
    assert kv.ttl("t") is None
    assert kv.touch("t", timedelta(seconds=50)) is True
    left = kv.ttl("t")
    assert left is not None
    assert 48 < left <= 50
    expires_at = kv.get_item("t").expires_at
    assert expires_at is not None
    assert abs(expires_at - time.time() - left) < 1
    assert kv.touch("t", None)
    assert kv.ttl("t") is None
    kv.put("t", b"v", ttl=0.001)
    gone = time.monotonic() + 5
    while kv.get("t") is not None:
        assert time.monotonic() < gone
    with pytest.raises(ConfigError, match="ttl"):
        kv.put("t", b"v", ttl=0)


def test_batches_return_the_types_they_were_given(kv: Client) -> None:
    values = {f"k{i}": b"%d" % i for i in range(2_500)}
    result = kv.put_many(values)
    assert (result.ok, result.errors, result.durable) == (2_500, {}, True)
    assert kv.get_many([*values, "missing", "k1", "k1"]) == values
    mixed: list[str | bytes] = [b"k1", "k1"]
    assert kv.get_many(mixed) == {b"k1": b"1", "k1": b"1"}
    kv.delete_many(["k1", "k1", "never"])
    assert kv.get_many(["k1", "k2"]) == {"k2": b"2"}
    assert kv.put_many({}).ok == 0
    assert kv.get_many([]) == {}
    with pytest.raises(zkv.InvalidKey, match="twice"):
        kv.put_many(dict.fromkeys([*mixed, b"k2"], b"1"))


def test_batches_resolve_or_give_conflicts_per_key(kv: Client) -> None:
    kv.put_many({"a": b"1", "b": b"2"})
    kv.put("b", b"3", context=b"")
    with pytest.raises(BatchError) as caught:
        kv.get_many(["a", "b", "c"])
    assert caught.value.result == {"a": b"1"}
    conflict = caught.value.errors["b"]
    assert isinstance(conflict, Conflict)
    assert conflict.values == (b"2", b"3")
    assert kv.get_many(["a", "b"], resolver=resolve.newest) == {"a": b"1", "b": b"3"}
    kv.put("b", b"4", context=conflict.context)
    assert kv.get("b") == b"4"


def test_codecs_of_buckets(kv: Client) -> None:
    docs = kv.bucket("strict", codec="msgpack")
    docs.put_many({"x": [1, "two", b"3"], "y": None})
    assert docs.get_many(["x", "y"]) == {"x": [1, "two", b"3"], "y": None}
    assert docs.get("y", "default") is None, "None is a value like any other"
    assert kv.get("x") is None, "another bucket"
    with pytest.raises(NoSuchBucket, match="default, strict"):
        kv.bucket("carts").get("x")


def test_mapping_speaks_of_keys_as_a_dictionary_does(kv: Client) -> None:
    mapping = kv.mapping()
    mapping["a"] = b"1"
    mapping.update({"b": b"2"})
    assert mapping["a"] == b"1"
    assert "a" in mapping
    assert 7 not in mapping  # type: ignore[comparison-overlap]
    assert (sorted(mapping), len(mapping)) == (["a", "b"], 2)
    assert mapping.pop("a") == b"1"
    with pytest.raises(KeyError):
        _ = mapping["a"]
    with pytest.raises(KeyError):
        del mapping["a"]


def test_export_gives_every_key_once(kv: Client) -> None:
    values = {f"k{i}": b"%d" % i for i in range(1_500)} | {"\udcff": b"bytes"}
    kv.put_many(values)
    assert dict(kv.export(values=True)) == values
    items = dict(kv.export(as_bytes=True))
    assert items[b"\xff"].value == b"bytes"
    assert items[b"\xff"].context
    assert len(items) == len(values)
    kv.put("k1", b"sibling", context=b"")
    assert len(dict(kv.export())["k1"].values) == 2
    with pytest.raises(Conflict):
        dict(kv.export(values=True))


def test_export_joins_pages_of_replicas_that_hold_different_keys(cluster: FakeCluster, kv: Client) -> None:
    kv.put_many({f"{{t}}{i:03d}": b"%d" % i for i in range(100)})

    def lossy(offset: int) -> Script:
        """Pages of 7, and every third key missing here."""

        def answer(message: m.Message) -> object:
            assert isinstance(message, m.Scan)
            whole = cluster._scan(m.Scan(message.request, 1, message.partition, message.after, 1_000))
            keys = [key for i, key in enumerate(whole.keys) if (int(key[-3:]) + offset) % 3]
            return m.ScanReply(message.request, 0, 1, keys[:7], len(keys) > 7)

        return answering(m.Scan, answer)

    for offset, node in enumerate(cluster.nodes):
        node.script = lossy(offset)
    assert dict(kv.export(values=True)) == {f"{{t}}{i:03d}": b"%d" % i for i in range(100)}


def test_export_needs_one_replica_of_every_acknowledged_put(cluster: FakeCluster, kv: Client) -> None:
    kv.put_many({f"k{i}": b"v" for i in range(50)})
    unsynced = answering(m.Scan, lambda x: m.ScanReply(x.request, Status.UNSYNCED, 1, [], False))  # type: ignore[union-attr]
    cluster.nodes[0].script = unsynced
    assert len(dict(kv.export())) == 50, "two of three replicas are enough where W=2"
    cluster.nodes[1].script = unsynced
    with pytest.raises(Unavailable, match="1 of 2 required") as caught:
        dict(kv.export(timeout=0.3))
    assert (caught.value.required, caught.value.alive) == (2, 1)


def test_names_that_do_not_exist_yet_say_what_to_use(kv: Client) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: kv.scan("x"), "export"),
        (lambda: kv.incr("x"), "update"),
        (lambda: kv.lock("x"), "get_item"),
        (lambda: kv.watch("x"), "export"),
        (lambda: kv.put("x", b"v", if_absent=True), "if_absent.*update"),
        (lambda: kv.put("x", b"v", if_match=b"c"), "if_match.*get_item"),
        (lambda: kv.admin.create_bucket("carts", n=3), "default.*strict"),
    ]
    for call, said in calls:
        with pytest.raises(Unsupported, match=said):
            call()
    with pytest.raises(ConfigError, match="r='most'"):
        kv.get("x", r="most")
    with pytest.raises(ConfigError, match="w=0"):
        kv.put("x", b"v", w=0)
    with pytest.raises(ConfigError, match="timeout"):
        kv.get("x", timeout=0)
    with pytest.raises(ConfigError, match="errors="):
        kv.put_many({"x": b"v"}, errors="ignore")


def test_arguments_reach_the_node(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v", w="all", sloppy=False, durable=True, context=b"")
    kv.get("k", r=2, sloppy=True)
    (put,) = [put for node in cluster.nodes for put in node.puts()]
    assert (put.w, put.sloppy, put.durable, put.want_context, put.again) == ("all", False, True, True, False)
    (get,) = [get for node in cluster.nodes for get in node.gets()]
    assert (get.r, get.sloppy, get.want_context, get.heads) == (2, True, False, False)
    assert put.request[0] == get.request[0] != 0
    assert 0 < put.deadline_ns - time.monotonic_ns() <= 5_000_000_000


# --- admin -------------------------------------------------------------------------------------------------------------------


def test_admin_reads_documents_of_the_first_node_that_answers(cluster: FakeCluster, kv: Client) -> None:
    document: dict[str, object] = {
        "verdict": "healthy: all 1 nodes are alive",
        "epoch": 3,
        "nodes": [{"name": "n1", "state": "alive", "weight": 2.0, "dc": "eu"}],
        "classes": [{"class": 1, "rows": [[0], [0]]}],
        "partitions": 2,
        "buckets": [
            {
                "name": "default",
                "sloppy": True,
                "conflict": "siblings",
                "r": "quorum",
                "w": "quorum",
                "value_bytes_max": 1,
            }
        ],
    }

    def admin(message: m.Message) -> object:
        assert isinstance(message, m.Admin)
        if message.operation == "explain":
            return m.AdminReply(message.request, 0, dict(message.arguments))
        if message.operation == "ring":
            return m.AdminReply(message.request, 0, document | {"nodes": ["n1"]})
        return m.AdminReply(message.request, 0, document)

    cluster.nodes[0].kill()
    for node in cluster.nodes[1:]:
        node.script = answering(m.Admin, admin)
    status = kv.admin.status()
    assert (status.verdict[:7], status.epoch, status.nodes[0].name, status.nodes[0].weight) == ("healthy", 3, "n1", 2.0)
    assert status.document == document
    assert kv.admin.ring().owners == (("n1",), ("n1",))
    assert kv.admin.explain("ä") == {"key": "ä".encode(), "bucket": "default"}
    assert kv.admin.buckets()[0].sloppy is True
    refuse = answering(m.Admin, lambda x: m.Refused(x.request, "AuthFailed", "role admin needed"))  # type: ignore[union-attr]
    for node in cluster.nodes[1:]:
        node.script = refuse
    with pytest.raises(zkv.AuthFailed, match="role admin"):
        kv.admin.status()


def test_admin_status_works_before_the_cluster_has_formed(cluster: FakeCluster, kv: Client) -> None:
    cluster.formed = False
    assert kv.admin.status(timeout=1).document["node"] in {"n0", "n1", "n2"}
    with pytest.raises(Unavailable, match="not formed"):
        kv.get("k", timeout=0.3)
    threading.Timer(0.1, lambda: setattr(cluster, "formed", True)).start()
    assert kv.get("k") is None, "and goes on by itself when it has"


# --- trouble -----------------------------------------------------------------------------------------------------------------


def test_nobody_there_is_connect_failed_well_within_the_deadline(cluster: FakeCluster) -> None:
    for node in cluster.nodes:
        node.kill()
    started = time.monotonic()
    with zkv.connect(cluster.url) as kv, pytest.raises(ConnectFailed, match="nothing was sent") as caught:
        kv.put("k", b"v")
    assert time.monotonic() - started < 4
    assert caught.value.definite
    assert isinstance(caught.value, ConnectionError)


def test_all_nodes_gone_after_use_is_connect_failed_and_recovers(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v")
    for node in cluster.nodes:
        node.kill()
    with pytest.raises(ConnectFailed):
        kv.get("k", timeout=3)
    for node in cluster.nodes:
        node.start()
    assert kv.get("k") == b"v"


def test_one_node_down_nothing_is_noticed(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k0", b"v")
    cluster.nodes[0].kill()
    started = time.monotonic()
    for i in range(60):
        kv.put(f"k{i}", b"v")
    kv.put_many({f"k{i}": b"v" for i in range(60)})
    assert len(kv.get_many([f"k{i}" for i in range(60)])) == 60
    assert time.monotonic() - started < 2


def kill_on(node: FakeNode, kind: type, *, after_work: bool) -> Script:
    """The node is gone when the first such message arrives, before or after it carried it out."""

    def script(message: m.Message) -> object:
        if not isinstance(message, kind):
            return HONEST
        node.script = lambda message: HONEST
        if after_work:
            node.cluster.answer(node, message)
        threading.Thread(target=node.kill).start()
        return None

    return script


@pytest.mark.parametrize("after_work", [False, True])
def test_node_killed_with_a_put_in_flight_sloppy_is_tried_elsewhere_at_once(
    cluster: FakeCluster, kv: Client, after_work: bool
) -> None:
    kv.ping()
    victim, *others = cluster.replicas(b"k")
    victim.script = kill_on(victim, m.Put, after_work=after_work)
    started = time.monotonic()
    kv.put("k", b"v")
    assert time.monotonic() - started < 1.5, "the broken link tells, not the clock"
    (first,) = victim.puts()
    (second,) = [put for node in others for put in node.puts()]
    assert second.again
    assert not first.again
    assert second.request == first.request
    assert kv.get("k", resolver=resolve.newest) == b"v"
    kv.put("k", b"w")
    last = [put for node in others for put in node.puts()][-1]
    assert last.voids == [(first.request[1],)]
    assert last.bases is not None


def test_node_killed_with_a_blind_put_in_flight_strict_gets_it_again_when_it_is_back(
    cluster: FakeCluster, kv: Client
) -> None:
    strict = kv.bucket("strict")
    strict.get("k")
    victim, *others = cluster.replicas(b"k", 2)
    victim.script = kill_on(victim, m.Put, after_work=False)

    def revive() -> None:
        victim.wait_for(m.Put)
        while victim._thread is not None:
            time.sleep(0.01)
        victim.start()

    reviver = threading.Thread(target=revive)
    reviver.start()
    strict.put("k", b"v")
    reviver.join()
    first, second = victim.puts()
    assert first.request == second.request
    assert not second.again
    assert not [put for node in others for put in node.puts()]


def test_node_killed_for_good_with_a_blind_put_in_flight_strict_is_unknown(cluster: FakeCluster, kv: Client) -> None:
    strict = kv.bucket("strict")
    strict.get("k")
    victim, *others = cluster.replicas(b"k", 2)
    victim.script = kill_on(victim, m.Put, after_work=False)
    with pytest.raises(DeadlineExceeded) as caught:
        strict.put("k", b"v", timeout=0.8)
    assert not caught.value.definite
    assert not [put for node in others for put in node.puts()]
    strict.put("k", b"w")
    (put,) = [put for node in others for put in node.puts()]
    assert put.voids == [(victim.puts()[0].request[1],)]


def test_node_killed_with_a_get_in_flight_is_asked_elsewhere_at_once(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v")
    victim = cluster.replicas(b"k")[0]
    victim.script = kill_on(victim, m.Get, after_work=False)
    started = time.monotonic()
    assert kv.get("k") == b"v"
    assert time.monotonic() - started < 1.5


def test_killed_and_restarted_between_calls_is_not_noticed(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v")
    for node in cluster.nodes:
        node.kill()
        node.start()
    assert kv.get("k") == b"v"
    kv.put("k", b"w")
    assert kv.get("k") == b"w"


def test_silent_nodes_end_at_the_deadline(cluster: FakeCluster, kv: Client) -> None:
    kv.ping()
    for node in cluster.nodes:
        node.script = silent_to(m.Put)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        kv.put("k", b"v", timeout=0.4)
    assert 0.3 < time.monotonic() - started < 1
    assert isinstance(caught.value, TimeoutError)
    assert not caught.value.definite


def test_silent_node_get_is_answered_by_another(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v")
    cluster.replicas(b"k")[0].script = silent_to(m.Get)
    started = time.monotonic()
    assert kv.get("k", timeout=1) == b"v"
    assert time.monotonic() - started < 0.9


def test_refusals_are_retried_elsewhere(cluster: FakeCluster, kv: Client) -> None:
    kv.ping()
    first = cluster.replicas(b"k")[0]
    first.script = answering(m.Put, lambda x: m.Refused(x.request, "Overloaded", "full", {"retry_after_ms": 5}))  # type: ignore[union-attr]
    assert kv.put("k", b"v").acked != (first.name,)
    for node in cluster.nodes:
        node.script = first.script
    with pytest.raises(Overloaded) as caught:
        kv.put("k", b"v", timeout=0.3)
    assert caught.value.retry_after == 0.005
    assert caught.value.definite


def test_statuses_become_errors_with_both_numbers(cluster: FakeCluster, kv: Client) -> None:
    kv.ping()

    def all_answer(script: Script) -> None:
        for node in cluster.nodes:
            node.script = script

    all_answer(answering(m.Put, lambda x: failed_put(x, Status.QUORUM_NOT_MET, 3, 1)))  # type: ignore[arg-type]
    with pytest.raises(QuorumNotMet, match="1 of 3") as missed:
        kv.put("k", b"v", w=3)
    assert (missed.value.required, missed.value.got) == (3, 1)
    assert sum(len(node.puts()) for node in cluster.nodes) == 1, (
        "the answer is the caller's to judge, not ours to repeat"
    )
    all_answer(answering(m.Get, lambda x: failed_get(x, Status.UNAVAILABLE, 2, 1)))  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="1 of 2") as refused:
        kv.get("k")
    assert (refused.value.required, refused.value.alive) == (2, 1)
    all_answer(answering(m.Put, lambda x: failed_put(x, Status.TOO_LARGE, 10_240, 10_241)))  # type: ignore[arg-type]
    with pytest.raises(TooLarge, match=r"10241 bytes.*10240"):
        kv.put("k", b"v")
    with pytest.raises(TooLarge, match="5,000,000"):
        kv.put("k", b"v" * 5_000_000)


def test_batch_error_holds_an_outcome_per_key(cluster: FakeCluster, kv: Client) -> None:
    kv.ping()

    def some(message: m.Message) -> object:
        assert isinstance(message, m.Put)
        statuses = [Status.TOO_LARGE if key.endswith(b"1") else Status.OK for key in message.keys]
        n = len(statuses)
        receipt = [m.Receipt([], False, True, 1)]
        return m.PutReply(
            message.request, [*statuses], [0] * n, [0] * n, [b"a" * 12], None, [1] * n, receipt, [0] * n
        )  # fmt: skip

    for node in cluster.nodes:
        node.script = answering(m.Put, some)
    with pytest.raises(BatchError, match="1 of 3") as caught:
        kv.put_many({"k0": b"", "k1": b"", "k2": b""})
    assert list(caught.value.errors) == ["k1"]
    assert caught.value.result.outcome("k0") == "ok"
    result = kv.put_many({"k0": b"", "k1": b"", "k2": b""}, errors="return")
    assert (result.ok, result.outcome("k1"), result.sloppy, result.durable) == (2, "failed", True, False)


def test_value_that_does_not_match_its_checksum_is_corrupt(cluster: FakeCluster, kv: Client) -> None:
    kv.put_many({"good": b"v", "bad": b"v"})

    def rotten(message: m.Message) -> object:
        assert isinstance(message, m.Get)
        reply = cluster._get(message)
        reply.values = [b"x" if key.endswith(b"bad") else v for key, v in zip(message.keys, reply.values, strict=True)]
        return reply

    for node in cluster.nodes:
        node.script = answering(m.Get, rotten)
    with pytest.raises(CorruptData, match="bad"):
        kv.get("bad")
    with pytest.raises(CorruptData):
        kv.get_item("bad")
    with pytest.raises(BatchError) as caught:
        kv.get_many(["good", "bad"])
    assert caught.value.result == {"good": b"v"}
    assert isinstance(caught.value.errors["bad"], CorruptData)


def test_replies_to_nothing_are_dropped_and_nobody_gets_another_value(cluster: FakeCluster, kv: Client) -> None:
    kv.put_many({"a": b"A", "b": b"B"})
    held: list[m.GetReply] = []

    def late(message: m.Message) -> object:
        """The first gets are answered only after the ones that follow, and each of those twice."""
        assert isinstance(message, m.Get)
        held.append(cluster._get(message))
        return [*held[:-1], held[-1], held[-1]] if speaking else None

    speaking = False
    for node in cluster.nodes:
        node.script = answering(m.Get, late)
    with zkv.connect(cluster.url) as other:
        with pytest.raises(DeadlineExceeded):
            other.get("{t}a", timeout=0.05)
        speaking = True
        for key, value in [("a", b"A"), ("b", b"B")] * 5:
            assert other.get(key) == value
        assert other._engine.dropped >= 5


def test_node_that_speaks_no_protocol_of_ours_is_left_for_another(cluster: FakeCluster, kv: Client) -> None:
    kv.put("k", b"v")
    cluster.replicas(b"k")[0].script = answering(m.Get, lambda message: b"HTTP/1.1 400 Bad Request")
    assert kv.get("k") == b"v"


# --- threads, processes, life ------------------------------------------------------------------------------------------------


def test_threads_share_a_client_and_each_gets_its_own_answers(kv: Client) -> None:
    def work(number: int) -> None:
        for i in range(40):
            kv.put(f"{number}:{i}", b"%d:%d" % (number, i))
            assert kv.get(f"{number}:{i}") == b"%d:%d" % (number, i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(kv.get_many([f"{n}:{i}" for n in range(8) for i in range(40)])) == 320
    assert len(kv._engine._lanes) <= 9, "as many sockets as calls at a time, not as threads there were"


def test_forked_child_has_its_own_session_and_sockets_and_leaves_the_parents_alone(
    cluster: FakeCluster, kv: Client
) -> None:
    kv.put("parent", b"1")
    session = kv._engine.state.session
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert kv.get("parent") == b"1"
            kv.put("child", b"2")
            os.write(write, kv._engine.state.session.to_bytes(8, "big"))
            code = 0
        finally:
            os._exit(code)
    for i in range(50):
        kv.put(f"p{i}", b"v")
    assert os.waitpid(child, 0)[1] == 0
    assert int.from_bytes(os.read(read, 8), "big") not in (0, session)
    os.close(read)
    os.close(write)
    assert kv.get("child") == b"2"
    assert kv._engine.state.session == session


def _in_another_process(kv: Client) -> bytes | None:
    with kv:
        kv.put("sent", b"over")
        return kv.get("sent")


def test_client_travels_to_another_process_as_its_url(cluster: FakeCluster) -> None:
    with zkv.connect(cluster.url + "/strict?timeout=3", resolver=resolve.newest) as kv:
        copy = pickle.loads(pickle.dumps(kv))
        assert (copy.url, copy.name, copy._resolver) == (kv.url, "strict", resolve.newest)
        assert copy._engine is not kv._engine
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_in_another_process, (kv,)) == b"over"
        assert kv.get("sent") == b"over"


def test_closed_client_refuses_and_close_is_idempotent(cluster: FakeCluster) -> None:
    kv = zkv.connect(cluster.url)
    kv.put("k", b"v")
    bucket = kv.bucket("strict")
    kv.close()
    kv.close()
    assert kv.closed
    for call in (lambda: kv.get("k"), lambda: bucket.get("k"), kv.ping, kv.admin.status, lambda: list(kv.export())):
        with pytest.raises(Closed):
            call()


def test_close_lets_a_call_of_another_thread_end(cluster: FakeCluster) -> None:
    kv = zkv.connect(cluster.url)
    kv.ping()
    first = cluster.replicas(b"k")[0]
    started, release = threading.Event(), threading.Event()

    def wait(message: m.Message) -> object:
        started.set()
        assert release.wait(5)
        return HONEST

    first.script = answering(m.Put, wait)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(kv.put, "k", b"v")
        assert started.wait(5)
        kv.close()
        release.set()
        assert future.result(5).acked
    assert not kv._engine._lanes, "and its sockets went with it"


def test_forgotten_client_warns(cluster: FakeCluster) -> None:
    kv = zkv.connect(cluster.url)
    kv.ping()
    forgotten = [kv]
    del kv
    with pytest.warns(ResourceWarning, match="not closed"):
        forgotten.clear()
    unused = zkv.connect(cluster.url)
    del unused
    gc.collect()


def test_interrupted_call_does_not_poison_the_next(
    cluster: FakeCluster, kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv.put("k", b"v")
    decode = wire.decode
    caller = threading.current_thread()

    def interrupted(frames: list[bytes], *, now_ns: int = 0) -> m.Message:
        if threading.current_thread() is not caller:
            return decode(frames, now_ns=now_ns)
        monkeypatch.setattr(wire, "decode", decode)
        raise KeyboardInterrupt

    monkeypatch.setattr(wire, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kv.get_item("k")
    assert not kv._engine._lanes
    assert kv.get("k") == b"v"
