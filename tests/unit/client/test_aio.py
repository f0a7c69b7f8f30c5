"""The asyncio client over real sockets, against nodes that do what a test tells them."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

import zkv
from tests.unit.client.fake_node import HONEST, FakeCluster, Script, failed_get, failed_put, running
from zkv import resolve
from zkv.client import AsyncClient, aio_engine, gather
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
    InvalidArgument,
    InvalidKey,
    NoSuchBucket,
    NotFound,
    ProtocolError,
    QuorumNotMet,
    TooLarge,
    Unavailable,
    Unsupported,
)

pytestmark = pytest.mark.integration

Story = Callable[[AsyncClient], Awaitable[None]]


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


def run(cluster: FakeCluster, story: Story, url: str = "") -> None:
    """In debug mode, so that a future nobody looks at or a callback that fails is told; told is failed."""
    trouble: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        async with zkv.aconnect(url or cluster.url) as kv:
            await story(kv)
            engine = kv._engine
        assert not engine._runs and not engine._by_name and not engine._links and not engine._line
        gc.collect()

    asyncio.run(main(), debug=True)
    assert not trouble


def silent_to(kind: type) -> Script:
    return lambda message: None if isinstance(message, kind) else HONEST


def answering(kind: type, answer: Callable[[m.Message], object]) -> Script:
    return lambda message: answer(message) if isinstance(message, kind) else HONEST


async def outcomes(*calls: Coroutine[Any, Any, object]) -> list[object]:
    return await asyncio.gather(*calls, return_exceptions=True)


# --- plain use ---------------------------------------------------------------------------------------------------------------


def test_calls_of_one_key(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        assert await kv.get("user:1") is None
        assert await kv.get("user:1", b"none") == b"none"
        result = await kv.put("user:1", b"Ada")
        assert set(result.acked) <= {"n0", "n1", "n2"} and result.acked and result.context
        assert await kv.get("user:1") == b"Ada" == await kv.get(b"user:1")
        assert await kv.exists("user:1")
        assert await kv.ttl("user:1") is None
        assert await kv.touch("user:1", 50)
        left = await kv.ttl("user:1")
        assert left is not None and 48 < left <= 50
        item = await kv.get_item("user:1")
        assert item.found and item.value == b"Ada" and item.expires_at is not None
        assert await kv.update("user:1", lambda value: (value or b"") + b"!") == b"Ada!"
        await kv.delete("user:1")
        assert not await kv.exists("user:1") and not await kv.touch("user:1", 1)
        with pytest.raises(NotFound):
            await kv.ttl("user:1")
        await kv.put("short", b"v", ttl=0.001)
        while await kv.get("short") is not None:
            pass
        assert await kv.ping() < 5

    run(cluster, story)


def test_siblings_are_settled_as_by_the_synchronous_client(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("cart", b"milk")
        await kv.put("cart", b"eggs", context=b"")
        with pytest.raises(Conflict) as caught:
            await kv.get("cart")
        assert caught.value.values == (b"milk", b"eggs")
        assert await kv.get("cart", resolver=resolve.newest) == b"eggs"
        await kv.put("cart", b"both", context=caught.value.context)
        assert await kv.get("cart") == b"both"
        with pytest.raises(CodecError, match="get_item"):
            await kv.put("cart", b"x", context=b"junk")

    run(cluster, story)


def test_batches_buckets_codecs_and_export(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        values = {f"k{i}": b"%d" % i for i in range(2_500)}
        assert (await kv.put_many(values)).ok == 2_500
        assert await kv.get_many([*values, "missing"]) == values
        assert {key: value async for key, value in kv.export(values=True)} == values
        await kv.delete_many(["k1", "never"])
        assert await kv.get_many(["k1", "k2"]) == {"k2": b"2"}
        docs = kv.bucket("strict", codec="json")
        await docs.put("x", {"a": [1]})
        assert await docs.get("x") == {"a": [1]}
        assert await docs.get("y", 7) == 7
        with pytest.raises(NoSuchBucket, match="default, strict"):
            await kv.bucket("carts").get("x")
        with pytest.raises(CodecError):
            await docs.put("x", object())
        with pytest.raises(Unsupported):
            await kv.put("x", b"", if_absent=True)
        assert (await kv.admin.status()).document["node"] in {"n0", "n1", "n2"}

    run(cluster, story)


# --- gathering ---------------------------------------------------------------------------------------------------------------


def test_singles_of_one_turn_are_one_request_per_node(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.ping()
        await kv.get("warm")
        for node in cluster.nodes:
            node.seen.clear()
        await asyncio.gather(*(kv.put(f"k{i}", b"%d" % i) for i in range(100)))
        (put,) = [put for node in cluster.nodes for put in node.puts()]
        assert len(put.keys) == 100
        assert await asyncio.gather(*(kv.get(f"k{i}") for i in range(100))) == [b"%d" % i for i in range(100)]
        (get,) = [get for node in cluster.nodes for get in node.gets()]
        assert len(get.keys) == 100

    run(cluster, story)


def test_different_options_travel_apart_and_many_keys_in_several_calls(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.get("warm")
        for node in cluster.nodes:
            node.seen.clear()
        await asyncio.gather(kv.get("a"), kv.get("b", r="all"), kv.get("c", timeout=3), kv.exists("d"), kv.get("e"))
        sizes = sorted(len(get.keys) for node in cluster.nodes for get in node.gets())
        assert sizes == [1, 1, 1, 2]
        await asyncio.gather(*(kv.put(f"k{i}", b"v") for i in range(2 * gather.KEYS_MAX + 1)))
        sizes = sorted(len(put.keys) for node in cluster.nodes for put in node.puts())
        assert sizes == [1, gather.KEYS_MAX, gather.KEYS_MAX]

    run(cluster, story)


def test_two_puts_of_one_key_in_one_turn_travel_apart(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        results = await asyncio.gather(*(kv.put("k", b"%d" % i) for i in range(5)), kv.put(b"k", b"5"))
        assert len({result.context for result in results}) == 6
        assert all(len(set(put.keys)) == len(put.keys) for node in cluster.nodes for put in node.puts())
        assert await kv.get("k") in {b"%d" % i for i in range(6)}

    run(cluster, story)


def test_one_bad_request_does_not_touch_its_neighbours(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        answers = await outcomes(
            kv.put("good", b"1"), kv.put("", b"2"), kv.put("x" * 2_000, b"3"), kv.put("big", bytes(5 << 20))
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [zkv.PutResult, InvalidKey, InvalidKey, TooLarge]
        got = await outcomes(kv.get("good"), kv.get(""), kv.get(7), kv.get("good", r="most"), kv.get("none"))  # type: ignore[arg-type]
        assert got[0] == b"1" and got[4] is None
        assert [type(answer) for answer in got[1:4]] == [InvalidKey, InvalidKey, InvalidArgument]
        for error in (got[1], got[2]):
            assert isinstance(error, InvalidKey)

    run(cluster, story)


def test_each_key_of_a_gathered_batch_has_its_own_outcome(cluster: FakeCluster) -> None:
    def some_fail(message: m.Message) -> object:
        assert isinstance(message, m.Put)
        reply = cluster.answer(cluster.nodes[0], message)
        assert isinstance(reply, m.PutReply)
        bad = [key.endswith(b"bad") for key in message.keys]
        if any(bad):
            reply.statuses = [Status.QUORUM_NOT_MET if b else Status.OK for b in bad]
            reply.required, reply.got = [2] * len(bad), [1] * len(bad)
            reply.actor_of_item = [0] * len(bad)
            reply.receipt_of_item = [0] * len(bad)
        return reply

    def corrupt(message: m.Message) -> object:
        reply = cluster.answer(cluster.nodes[0], message)
        assert isinstance(reply, m.GetReply) and isinstance(message, m.Get)
        reply.checksums = [c ^ key.endswith(b"bad") for c, key in zip(reply.checksums, message.keys, strict=True)]
        return reply

    async def story(kv: AsyncClient) -> None:
        for node in cluster.nodes:
            node.script = answering(m.Put, some_fail)
        first, second, third = await outcomes(kv.put("a", b"1"), kv.put("bad", b"2"), kv.put("also bad", b"3"))
        assert isinstance(first, zkv.PutResult)
        assert isinstance(second, QuorumNotMet) and isinstance(third, QuorumNotMet)
        assert second is not third, "each task raises an error of its own"
        for node in cluster.nodes:
            node.script = answering(m.Get, corrupt)
        first, second = await outcomes(kv.get("a"), kv.get("bad"))
        assert first == b"1" and isinstance(second, CorruptData) and "bad" in str(second)

    run(cluster, story)


# --- cancellation ------------------------------------------------------------------------------------------------------------


def test_cancelled_before_the_turn_ends_is_never_sent(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.get("warm")
        leaving = asyncio.ensure_future(kv.put("gone", b"1"))
        staying = asyncio.ensure_future(kv.put("here", b"2"))
        alone = asyncio.ensure_future(kv.get("alone"))
        asyncio.get_running_loop().call_soon(leaving.cancel)
        asyncio.get_running_loop().call_soon(alone.cancel)
        await staying
        assert leaving.cancelled()
        assert [key[4:] for node in cluster.nodes for put in node.puts() for key in put.keys] == [b"here"]
        assert not [key for node in cluster.nodes for get in node.gets() for key in get.keys if key[4:] == b"alone"]
        assert await kv.get("here") == b"2"

    run(cluster, story)


def test_cancelled_while_it_flies_leaves_the_others_and_the_client_alone(cluster: FakeCluster) -> None:
    release = threading.Event()
    arrived = threading.Event()

    def slow(message: m.Message) -> object:
        arrived.set()
        assert release.wait(5)
        return HONEST

    async def story(kv: AsyncClient) -> None:
        await kv.put_many({f"k{i}": b"%d" % i for i in range(10)})
        for node in cluster.nodes:
            node.script = answering(m.Get, slow)
        tasks = [asyncio.ensure_future(kv.get(f"k{i}")) for i in range(10)]
        many = asyncio.ensure_future(kv.get_many(["k1", "k2"]))
        await asyncio.to_thread(arrived.wait, 5)
        for task in (*tasks[:5], many):
            task.cancel()
        await asyncio.wait([*tasks[:5], many])
        assert all(task.cancelled() for task in (*tasks[:5], many))
        release.set()
        assert await asyncio.gather(*tasks[5:]) == [b"%d" % i for i in range(5, 10)]
        assert await kv.get("k3") == b"3"
        assert kv._engine.dropped <= 3, "at most two late greetings and the answer to the batch that was cancelled"

    run(cluster, story)


def test_cancelled_put_whose_answer_comes_late_is_known_as_ours(cluster: FakeCluster) -> None:
    """A later blind put replaces it: the session heard of it although its task did not."""
    release = threading.Event()

    def slow(message: m.Message) -> object:
        assert release.wait(5)
        return HONEST

    async def story(kv: AsyncClient) -> None:
        await kv.get("warm")
        for node in cluster.nodes:
            node.script = answering(m.Put, slow)
        task = asyncio.ensure_future(kv.put("k", b"1"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        release.set()
        while kv._engine._runs:
            await asyncio.sleep(0.001)
        await kv.put("k", b"2")
        last = [put for node in cluster.nodes for put in node.puts()][-1]
        assert last.bases is not None and last.bases[0] is not None
        assert (await kv.get_item("k")).values == (b"2",)

    run(cluster, story)


def test_random_cancellation_never_mixes_replies(cluster: FakeCluster) -> None:
    dice = random.Random(7)

    async def worker(kv: AsyncClient, number: int) -> int:
        done = 0
        for i in range(30):
            key = f"{number}:{i % 3}"
            call = asyncio.ensure_future(kv.put(key, f"{key}={i}".encode()) if i % 2 else kv.get(key))
            if dice.random() < 0.3:
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                call.cancel()
            await asyncio.wait([call])
            if not call.cancelled():
                result = call.result()
                assert not isinstance(result, bytes) or result.startswith(f"{key}=".encode())
                done += 1
        return done

    async def story(kv: AsyncClient) -> None:
        done = await asyncio.gather(*(worker(kv, n) for n in range(100)))
        assert sum(done) > 1_500

    run(cluster, story)


# --- trouble -----------------------------------------------------------------------------------------------------------------


def test_dead_and_silent_nodes_are_passed_by(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        cluster.replicas(b"k")[0].kill()
        assert await kv.get("k") == b"1"
        assert (await kv.put("k", b"2")).acked
        cluster.replicas(b"k")[1].script = silent_to(m.Get)
        assert await kv.get("k", timeout=2) == b"2"

    run(cluster, story)


def test_killed_node_while_requests_fly(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put_many({f"k{i}": b"%d" % i for i in range(300)})
        victim = cluster.nodes[1]
        victim.script = silent_to(m.Get)
        pairs = [
            (f"k{i}", f"k{i + 1}") for i in range(60)
        ]  # the first key of each picks its node: some pick the victim
        calls = asyncio.gather(*(kv.get(f"k{i}") for i in range(300)), *(kv.get_many(pair) for pair in pairs))
        await asyncio.to_thread(victim.wait_for, m.Get)
        victim.kill()
        answers = await calls
        assert answers[:300] == [b"%d" % i for i in range(300)]
        assert answers[300:] == [{key: key[1:].encode() for key in pair} for pair in pairs]

    run(cluster, story)


def test_nobody_answers(cluster: FakeCluster) -> None:
    async def deadline(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        for node in cluster.nodes:
            node.script = lambda message: None
        started = time.monotonic()
        errors = await outcomes(
            kv.get("k", timeout=0.3), kv.put("k", b"2", timeout=0.3), kv.get_many(["k"], timeout=0.3)
        )
        assert [type(error) for error in errors] == [DeadlineExceeded, DeadlineExceeded, BatchError]
        assert time.monotonic() - started < 3
        for node in cluster.nodes:
            node.script = lambda message: HONEST
        assert await kv.get("k") in {b"1", b"2"}

    async def gone(kv: AsyncClient) -> None:
        await kv.get("k")
        for node in cluster.nodes:
            node.kill()
        errors = await outcomes(kv.get("k", timeout=4), kv.get("j", timeout=4))
        assert [type(error) for error in errors] == [ConnectFailed] * 2
        errors = await outcomes(*(kv.get(f"k{i}", timeout=3) for i in range(4)))
        assert [type(error) for error in errors] == [ConnectFailed] * 4, "the topology could not be asked for"

    run(cluster, deadline)
    run(cluster, gone)


def test_cluster_that_has_not_formed_says_so_to_all(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        cluster.formed = False
        errors = await outcomes(
            kv.get("a", timeout=0.3), kv.put("b", b"", timeout=0.3), kv.get_many(["c"], timeout=0.3)
        )
        assert [type(error) for error in errors] == [Unavailable] * 3
        cluster.formed = True
        assert await kv.get("a") is None

    run(cluster, story)


def test_address_that_cannot_be(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        with pytest.raises(ConnectFailed):
            await kv.get("k", timeout=3)

    run(cluster, story, "zkv://no.such.host.invalid:7400")


def test_frames_that_are_none_end_the_link_and_not_the_client(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        first = cluster.replicas(b"k")[0]
        first.script = answering(m.Get, lambda message: b"not a frame")
        assert await kv.get("k") == b"1"
        first.script = answering(
            m.Get, lambda message: [m.Refused((1, 999_999), "Unavailable", ""), cluster.answer(first, message)]
        )
        assert await kv.get("k") == b"1"

    run(cluster, story)


def test_refusals_are_retried_elsewhere(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        first = cluster.replicas(b"k")[0]
        first.script = lambda message: (
            failed_get(message, Status.UNAVAILABLE) if isinstance(message, m.Get)
            else failed_put(message, Status.DISK_FULL) if isinstance(message, m.Put) else HONEST
        )  # fmt: skip
        assert await kv.get("k") == b"1"
        assert (await kv.put("k", b"2")).acked
        for node in cluster.nodes:
            node.script = answering(m.Put, lambda message: failed_put(message, Status.TOO_LARGE))  # type: ignore[arg-type]
        with pytest.raises(TooLarge):
            await kv.put("k", b"3")

    run(cluster, story)


def test_what_cannot_be_encoded_is_told_to_who_asked(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")

        def refuse(message: m.Message, *, cluster: int = 0, now_ns: int = 0) -> list[bytes]:
            raise ProtocolError("over the limit")

        with monkeypatch.context() as patch:
            patch.setattr(wire, "encode", refuse)
            errors = await outcomes(kv.get("k"), kv.get_many(["k"]))
        assert [type(error) for error in errors] == [ProtocolError] * 2
        assert await kv.get("k") == b"1"

    run(cluster, story)


def test_more_calls_than_may_fly_wait_in_line_within_their_deadline(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_engine, "RUNS_MAX", 2)
    monkeypatch.setattr(gather, "RUNS_MAX", 2)

    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        assert await asyncio.gather(*(kv.get_many(["k"]) for _ in range(20))) == [{"k": b"1"}] * 20
        for node in cluster.nodes:
            node.script = silent_to(m.Get)
        errors = await outcomes(
            *(kv.get_many(["k"], timeout=0.5) for _ in range(4)), *(kv.get("k", timeout=0.3 + i / 10) for i in range(4))
        )
        assert [type(error) for error in errors] == [BatchError] * 4 + [DeadlineExceeded] * 4
        waiting = asyncio.ensure_future(kv.get_many(["k"], timeout=5))
        others = [asyncio.ensure_future(kv.get_many(["k"], timeout=0.3)) for _ in range(3)]
        await asyncio.sleep(0.05)
        others[2].cancel()
        await asyncio.gather(*others, return_exceptions=True)
        waiting.cancel()
        for node in cluster.nodes:
            node.script = lambda message: HONEST
        assert await kv.get("k") == b"1"

    run(cluster, story)


# --- life --------------------------------------------------------------------------------------------------------------------


def test_close_fails_what_was_begun_and_every_later_call(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        for node in cluster.nodes:
            node.script = silent_to(m.Get)
        flying = [asyncio.ensure_future(call) for call in (kv.get("k"), kv.get("j"), kv.get_many(["k"]))]
        await asyncio.sleep(0.05)
        flying.append(asyncio.ensure_future(kv.get("not sent yet")))
        await asyncio.sleep(0)
        await kv.close()
        await kv.close()
        assert [type(error) for error in await asyncio.gather(*flying, return_exceptions=True)] == [Closed] * 4
        for call in (kv.get("k"), kv.put("k", b""), kv.get_many(["k"]), kv.ping(), kv.admin.status()):
            with pytest.raises(Closed):
                await call
        assert kv.closed

    run(cluster, story)


def test_close_while_the_topology_is_asked_for(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        for node in cluster.nodes:
            node.script = lambda message: None
        calls = [asyncio.ensure_future(call) for call in (kv.get("k"), kv.get_many(["k"]))]
        await asyncio.sleep(0.05)
        await kv.close()
        assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [Closed] * 2

    run(cluster, story)


def test_client_belongs_to_one_loop(cluster: FakeCluster) -> None:
    kv = zkv.aconnect(cluster.url)

    async def use() -> None:
        await kv.get("k")

    with asyncio.Runner() as first:
        first.run(use())
        with asyncio.Runner() as second, pytest.raises(ConfigError, match="loop"):
            second.run(use())
        first.run(kv.close())


def test_forgotten_client_warns_and_travels_as_its_url(cluster: FakeCluster) -> None:
    async def main() -> None:
        kv = zkv.aconnect(cluster.url + "/strict?timeout=3", resolver=resolve.newest)
        copy = pickle.loads(pickle.dumps(kv))
        assert (copy.url, copy.name, copy._resolver) == (kv.url, "strict", resolve.newest)
        await kv.get("k")
        forgotten = [kv]
        del kv
        with pytest.warns(ResourceWarning, match="not closed"):
            forgotten.clear()

    asyncio.run(main())


def test_forked_child_finds_its_copy_closed(cluster: FakeCluster) -> None:
    async def story(kv: AsyncClient) -> None:
        await kv.put("k", b"1")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                kv.get("k").send(None)
            except Closed:
                code = 0
            finally:
                os._exit(code)
        assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
        assert await kv.get("k") == b"1"

    run(cluster, story)
