"""Requests of one key that are answered at once, against the same histories the general way: same answers, same sets, same log.

A full disk has its own test: a refused step begins another birth, once more for a put that is tried a second way.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.harness import DEFAULT, MS, SECOND, STRICT, SimCluster, SimNode
from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.versions import Context
from zkv.ids import checksum_of, stored_key

NAMES = [b"k%d" % i for i in range(6)]


class Twin:
    """One history on two clusters: in one, nothing is answered at once."""

    def __init__(self, seed: int, nodes: int, fsync: str) -> None:
        self.dice = random.Random(seed)
        self.clusters = [SimCluster(nodes, fsync=fsync), SimCluster(nodes, fsync=fsync)]
        for node in self.clusters[1].nodes:
            node.driver._singles.answer = lambda route, frames: False  # type: ignore[method-assign]
            node.driver._singles.answer_batch = lambda route, message: False  # type: ignore[method-assign]
        self.at_once = self.batches_at_once = 0
        for node in self.clusters[0].nodes:
            self._watch(node)
        self.sequence = 0
        self.sent: list[list[bytes]] = []

    def _watch(self, node: SimNode) -> None:
        answer, answer_batch = node.driver._singles.answer, node.driver._singles.answer_batch

        def watched_batch(route: bytes, message: m.Put | m.Get) -> bool:
            done = answer_batch(route, message)
            self.batches_at_once += done
            return done

        def watched(route: bytes, frames: object) -> bool:
            done = answer(route, frames)  # type: ignore[arg-type]
            self.at_once += done
            return done

        node.driver._singles.answer_batch = watched_batch  # type: ignore[method-assign]
        node.driver._singles.answer = watched  # type: ignore[method-assign]

    def step(self) -> None:
        dice = self.dice
        kind = dice.choices(
            ("put", "get", "odd put", "odd get", "put batch", "get batch", "again", "time", "sync", "drain"),
            (30, 30, 8, 5, 10, 8, 8, 4, 6, 1),
        )[0]
        if self.clusters[0].nodes[0].view.draining and dice.random() < 0.3:
            kind = "drain"
        if kind == "time":
            ns = dice.choice((MS, 50 * MS, SECOND))
            for cluster in self.clusters:
                cluster.advance(ns)
        elif kind == "sync":
            for cluster in self.clusters:
                for node in cluster.nodes:
                    node.log.auto_sync = not node.log.auto_sync
        elif kind == "drain":
            for cluster in self.clusters:
                cluster.nodes[0].view.draining = not cluster.nodes[0].view.draining
        elif kind == "again" and self.sent:
            copy = dice.choice(self.sent)
            header = wire.decode_header(copy)
            waiting = {single.request for single in self.clusters[0].nodes[0].driver._singles.waiting}
            if (header.session, header.sequence) not in waiting:  # such a copy has its own test
                self._send(copy)
        else:
            self._send(self._frames(kind))
        for cluster in self.clusters:
            cluster.settle()
        self.compare()

    def _frames(self, kind: str) -> list[bytes]:
        dice, now_ns = self.dice, self.clusters[0].time.now_ns
        self.sequence += 1
        request = (7, self.sequence)
        bucket = dice.choice((DEFAULT, DEFAULT, DEFAULT, STRICT, 9))
        keys: list[bytes] = [
            stored_key(bucket, name) for name in dice.sample(NAMES, dice.choice((3, 4, 6)) if "batch" in kind else 1)
        ]
        if "batch" in kind and dice.random() < 0.1:
            keys = dice.choice(([], [keys[0]] * 2, [*keys, stored_key(STRICT, b"other")]))
        message: m.Put | m.Get
        if "get" in kind:
            message = m.Get(request, keys)
            if kind == "odd get":
                message.r = dice.choice((1, "one", "all", None))
                message.want_context = dice.random() < 0.5
                message.heads = dice.random() < 0.3
        else:
            data: list[bytes | None] = [dice.randbytes(dice.choice((0, 1, 20, 300))) for _ in keys]
            if keys and dice.random() < 0.03:
                data[0] = bytes(20_000)
            message = m.Put(
                request, keys, data, [checksum_of(v or b"") for v in data], want_context="batch" not in kind
            )
            if keys and dice.random() < 0.03:
                message.checksums[0] ^= 1
            if kind == "odd put":
                which = dice.choice(
                    ("delete", "expiry", "w", "sloppy", "durable", "context", "voids", "retry", "again")
                )
                if which == "delete":
                    message.values = [None]
                elif which == "expiry":
                    message.expires_ms = [self.clusters[0].time.wall_ns() // MS + 500]
                elif which == "context":
                    message.contexts = [Context({})]
                elif which == "voids":
                    message.voids = [(1, 2)]
                else:
                    setattr(message, which, "all" if which == "w" else True)
        message.deadline_ns = now_ns + dice.choice((5 * SECOND, 200 * MS))
        return wire.encode(message, cluster=self.clusters[0].cluster, now_ns=now_ns)

    def _send(self, frames: list[bytes]) -> None:
        self.sent.append(frames)
        route = self.dice.choice((b"a", b"b"))
        for cluster in self.clusters:
            cluster.nodes[0].inbox.clients.append((route, frames))

    def compare(self) -> None:
        one, other = (
            {route: Counter(tuple(f) for f in answers) for route, answers in c.replies.items()} for c in self.clusters
        )
        assert one == other
        for a, b in zip(self.clusters[0].nodes, self.clusters[1].nodes, strict=True):
            assert a.log.bodies == b.log.bodies
            assert (a.log.written_seq, a.log.durable_seq) == (b.log.written_seq, b.log.durable_seq)
            if a.log.durable_seq == a.log.written_seq:  # else the general way waits on for the sync of what it gave up
                assert a.driver.idle == b.driver.idle
            assert a.state.coordinator.open_items == b.state.coordinator.open_items
            counts = a.state.coordinator.counts, b.state.coordinator.counts
            assert counts[0].families()[:3] == counts[1].families()[:3]


@pytest.mark.parametrize("fsync", ["group", "interval"])
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_history_with_and_without_answers_at_once_is_the_same(seed: int, nodes: int, fsync: str) -> None:
    twin = Twin(seed * 100 + nodes, nodes, fsync)
    for _ in range(120):
        twin.step()
    for cluster in twin.clusters:
        cluster.nodes[0].view.draining = False
        for node in cluster.nodes:
            node.log.auto_sync = True
        cluster.advance(6 * SECOND)
        cluster.check_invariants()
    twin.compare()
    assert twin.clusters[0].nodes[0].driver.idle
    assert (twin.at_once > 20) == (twin.batches_at_once > 3) == (nodes == 1)
    for node in twin.clusters[0].nodes:
        node.kill()
        node.start()
    for name in NAMES:
        for bucket in (DEFAULT, STRICT):
            held = [c.held_by(c.nodes[0], name, bucket) for c in twin.clusters]
            assert held[0] == held[1]


def _usual_put(cluster: SimCluster, sequence: int, data: bytes) -> list[bytes]:
    put = m.Put((7, sequence), [stored_key(DEFAULT, b"k")], [data], [checksum_of(data)], want_context=True)
    put.deadline_ns = cluster.time.now_ns + SECOND
    return wire.encode(put, cluster=cluster.cluster, now_ns=cluster.time.now_ns)


def _send(cluster: SimCluster, frames: list[bytes]) -> list[m.Message]:
    cluster.nodes[0].inbox.clients.append((b"client", frames))
    cluster.settle()
    return cluster.answers()


def test_put_on_a_full_disk_is_refused_and_leaves_nothing() -> None:
    cluster = SimCluster(1, fsync="group")
    node = cluster.nodes[0]
    _send(cluster, _usual_put(cluster, 1, b"before"))
    node.log.full = True
    (reply,) = _send(cluster, _usual_put(cluster, 2, b"refused"))
    assert isinstance(reply, m.PutReply) and reply.statuses == [Status.DISK_FULL]
    assert cluster.held_by(node, b"k") == [b"before"]
    node.log.full = False
    (reply,) = _send(cluster, _usual_put(cluster, 2, b"refused"))
    assert isinstance(reply, m.PutReply) and reply.statuses == [Status.DISK_FULL], "a copy is refused as the first was"
    assert cluster.held_by(node, b"k") == [b"before"]
    (reply,) = _send(cluster, _usual_put(cluster, 3, b"after"))
    assert isinstance(reply, m.PutReply) and reply.statuses is None
    assert cluster.held_by(node, b"k") == [b"after"]
    cluster.check_invariants()


def test_put_with_group_sync_is_answered_when_the_sync_returned_and_counts_as_open_until_then() -> None:
    cluster = SimCluster(1, fsync="group")
    node = cluster.nodes[0]
    node.log.auto_sync = False
    assert _send(cluster, _usual_put(cluster, 1, b"v")) == []
    assert node.state.coordinator.open_items == 1 and not node.driver.idle
    cluster.advance(SECOND // 2)
    assert cluster.answers() == []
    node.log.sync()
    cluster.settle()
    (reply,) = cluster.answers()
    assert isinstance(reply, m.PutReply) and reply.receipts[0].durable
    assert node.state.coordinator.open_items == 0 and node.driver.idle


def test_put_that_came_twice_is_carried_out_once() -> None:
    cluster = SimCluster(1, fsync="interval")
    frames = _usual_put(cluster, 1, b"v")
    first, second = _send(cluster, frames), _send(cluster, frames)
    assert [reply.counters for reply in first + second if isinstance(reply, m.PutReply)] == [[1], [1]]
    assert len(cluster.nodes[0].log.bodies) == 1


def test_copy_of_a_put_that_waits_for_its_sync_is_answered_with_it_and_not_carried_out() -> None:
    cluster = SimCluster(1, fsync="group")
    node = cluster.nodes[0]
    node.log.auto_sync = False
    frames = _usual_put(cluster, 1, b"v")
    assert _send(cluster, frames) == _send(cluster, frames) == []
    node.log.sync()
    cluster.settle()
    assert [reply.counters for reply in cluster.answers() if isinstance(reply, m.PutReply)] == [[1], [1]]
    assert len(node.log.bodies) == 1 and node.driver.idle


def test_put_whose_sync_does_not_return_in_time_is_unknown() -> None:
    cluster = SimCluster(1, fsync="group")
    node = cluster.nodes[0]
    node.log.auto_sync = False
    assert _send(cluster, _usual_put(cluster, 1, b"v")) == []
    cluster.advance(950 * MS, step_ns=50 * MS)
    (reply,) = cluster.answers()
    assert isinstance(reply, m.PutReply) and reply.statuses == [Status.QUORUM_NOT_MET]
    assert node.driver.idle and node.state.coordinator.open_items == 0
    node.log.sync()
    cluster.settle()
    assert cluster.answers() == [], "answered once"


def test_put_over_what_another_actor_wrote_names_its_past() -> None:
    cluster = SimCluster(1, fsync="interval")
    _send(cluster, _usual_put(cluster, 1, b"v"))
    cluster.nodes[0].kill()
    cluster.nodes[0].start()
    (reply,) = _send(cluster, _usual_put(cluster, 2, b"w"))
    assert isinstance(reply, m.PutReply) and reply.contexts is not None
    context = reply.contexts[0]
    assert context is not None and len(context.past) == 2


def test_store_that_must_not_answer_reads_refuses_a_single_get() -> None:
    cluster = SimCluster(1)
    cluster.nodes[0].view.unsynced = True
    get = m.Get((7, 1), [stored_key(DEFAULT, b"k")], deadline_ns=cluster.time.now_ns + SECOND)
    (reply,) = _send(cluster, wire.encode(get, cluster=cluster.cluster, now_ns=cluster.time.now_ns))
    assert isinstance(reply, m.GetReply) and reply.statuses == [Status.UNAVAILABLE]
