"""Random histories of a few clients over nodes that are killed, lose power, come back, and links that delay: what was promised must hold.

A seed names everything; a failure prints it. The full simulator goes further (faulty disks, all options); this one runs on every commit.
"""

from __future__ import annotations

import random

import pytest

from tests.harness import DEFAULT, MS, SECOND, STRICT, SimCluster, SimNode, status_of
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.versions import EMPTY, Context
from zkv.ids import Actor, stored_key

KEYS = [b"a", b"b", b"c"]


class Writer:
    """One sequential client with the rules of the client library: base contexts, voids, retries of lost requests at the same store."""

    def __init__(self, cluster: SimCluster, dice: random.Random, session: int, bucket: int) -> None:
        self.cluster = cluster
        self.dice = dice
        self.session = session
        self.bucket = bucket
        self.base: dict[bytes, Context] = {}
        self.voids: dict[bytes, tuple[int, ...]] = {}
        self.counter = 0
        #: key -> values that a get may return: the last acknowledged one and every unknown one since
        self.allowed: dict[bytes, set[bytes | None]] = {key: {None} for key in KEYS}
        self.unknown: dict[bytes, set[bytes | None]] = {key: set() for key in KEYS}

    def put(self, node: SimNode, key: bytes) -> None:
        self.counter += 1
        data = None if self.dice.random() < 0.15 else b"%d-%d" % (self.session, self.counter)
        message = self.cluster.put_message(
            key,
            data,
            bucket=self.bucket,
            base=self.base.get(key) if self.dice.random() < 0.5 else None,  # it is a cache: it may be gone
            voids=self.voids.get(key, ()),
            session=self.session,
            timeout_ns=1 * SECOND,
        )
        sequence = message.request[1]
        reply = ask(self.cluster, node, message, b"w%d" % self.session)
        status = Status.DEADLINE if reply is None or isinstance(reply, m.Refused) else status_of(reply)  # type: ignore[arg-type]
        if isinstance(reply, m.Refused):
            return
        if status is Status.OK:
            assert isinstance(reply, m.PutReply)
            # A put hides what its author gave up on; a delete has no value to say so, and an unknown put may still come to light.
            self.allowed[key] = {data} if data is not None else self.unknown[key] | {None}
            if reply.counters[0]:
                self.base[key] = EMPTY.with_dot((Actor(reply.actors[0]), reply.counters[0]))
        elif status in m.UNKNOWN_STATUSES:
            self.allowed[key].add(data)
            self.unknown[key].add(data)
            self.voids[key] = (*self.voids.get(key, ()), sequence)

    def get(self, node: SimNode, key: bytes) -> list[bytes] | None:
        reply = ask(
            self.cluster,
            node,
            self.cluster.get_message(key, bucket=self.bucket, timeout_ns=1 * SECOND),
            b"r%d" % self.session,
        )
        if not isinstance(reply, m.GetReply) or reply.statuses is not None:
            return None
        return list(reply.values)


def ask(cluster: SimCluster, node: SimNode, message: m.Message, route: bytes) -> m.Message | None:
    """The answer, or None when the node died or time ran out first."""
    cluster.replies.pop(route, None)
    cluster.send(node, message, route)
    cluster.settle()
    for _ in range(15):
        answers = cluster.answers(route)
        if answers:
            return answers[0]
        if not node.up:
            return None
        cluster.advance(100 * MS)
    return None


def disturb(cluster: SimCluster, dice: random.Random) -> None:
    """One random event of the outside world."""
    up = [node for node in cluster.nodes if node.up]
    down = [node for node in cluster.nodes if not node.up]
    match dice.choice(["kill", "power", "start", "start", "delay", "release", "time"]):
        case "kill" if len(up) > 1:
            dice.choice(up).kill()
        case "power" if len(up) > 1:
            dice.choice(up).kill(power_loss=True)
        case "start" if down:
            dice.choice(down).start()
        case "delay":
            source, share = dice.randrange(3), dice.random()
            cluster.hold = lambda s, t, message: s == source and dice.random() < share
        case "release":
            cluster.release()
        case "time":
            cluster.advance(dice.choice([100 * MS, 700 * MS]))
    cluster.held = [w for w in cluster.held if cluster.nodes[w[0]].up and cluster.nodes[w[1]].up]


def heal(cluster: SimCluster) -> None:
    cluster.release()
    for node in cluster.nodes:
        if not node.up:
            node.start()
    cluster.settle()
    cluster.advance(3 * SECOND)


@pytest.mark.parametrize("seed", range(400))
def test_sequential_writer_on_a_strict_bucket_never_sees_a_conflict_nor_loses_an_ack(seed: int) -> None:
    dice = random.Random(seed)
    cluster = SimCluster(3, partitions=8)
    writer = Writer(cluster, dice, session=100 + seed, bucket=STRICT)
    for _ in range(60):
        if dice.random() < 0.35:
            disturb(cluster, dice)
        node = dice.choice(cluster.nodes)
        if not node.up:
            continue
        key = dice.choice(KEYS)
        if dice.random() < 0.6:
            kill_in_the_middle(cluster, dice)
            writer.put(node, key)
        else:
            check(writer, key, writer.get(node, key), f"seed {seed}")
    heal(cluster)
    for key in KEYS:
        for node in cluster.nodes:
            check(writer, key, writer.get(node, key), f"seed {seed}, healed", answered=True)
    cluster.check_invariants()


def kill_in_the_middle(cluster: SimCluster, dice: random.Random) -> None:
    """Now and then a node dies exactly when it has sent, or is about to take, a replica put."""
    if dice.random() > 0.25:
        return
    victim, by_source = dice.randrange(3), dice.random() < 0.5

    def strike(source: int, target: int, message: m.Message) -> bool:
        node = cluster.nodes[victim]
        others_up = sum(1 for n in cluster.nodes if n.up) > 1
        if isinstance(message, m.ReplicaPut) and (source if by_source else target) == victim and node.up and others_up:
            node.up = False  # noticed by the rest when its links break, below
            cluster.hold = lambda s, t, msg: False
            for other in cluster.nodes:
                if other.up:
                    other.inbox.links.append((node.node, False))
            return True
        return False

    cluster.hold = strike


def check(writer: Writer, key: bytes, shown: list[bytes] | None, story: str, *, answered: bool = False) -> None:
    if shown is None:
        assert not answered, f"{story}: no answer for {key!r}"
        return
    assert len(shown) <= 1, f"{story}: conflict on {key!r}: {shown}"
    value = shown[0] if shown else None
    assert value in writer.allowed[key], f"{story}: {key!r} is {value!r}, allowed {writer.allowed[key]}"
    if value in writer.unknown[key]:  # it was carried out after all: what it replaced must never be seen again
        writer.allowed[key] = {value} | (writer.allowed[key] & writer.unknown[key])


@pytest.mark.parametrize("seed", range(200))
def test_values_put_with_empty_contexts_are_all_kept_by_a_healed_cluster(seed: int) -> None:
    """Sloppy bucket, three writers that never replace anything: every acknowledged value is there once all is well, whoever was killed."""
    dice = random.Random(1_000 + seed)
    cluster = SimCluster(3, partitions=8)
    acked: dict[bytes, set[bytes]] = {key: set() for key in KEYS}
    issued: dict[bytes, set[bytes]] = {key: set() for key in KEYS}
    for step in range(40):
        if dice.random() < 0.4:
            disturb(cluster, dice)
        node = dice.choice(cluster.nodes)
        key = dice.choice(KEYS)
        if not node.up or len(issued[key]) > 25:
            continue
        kill_in_the_middle(cluster, dice)
        data = b"%d" % step
        issued[key].add(data)
        reply = ask(cluster, node, cluster.put_message(key, data, context=EMPTY, timeout_ns=1 * SECOND), b"w")
        if isinstance(reply, m.PutReply) and status_of(reply) is Status.OK:
            acked[key].add(data)
    heal(cluster)
    for key in KEYS:
        shown = set(cluster.values(cluster.nodes[0], key, r=3))
        assert acked[key] <= shown <= issued[key], f"seed {seed}"
        again = [cluster.held_by(node, key) for node in cluster.nodes]
        assert len({tuple(held) for held in again}) == 1, f"seed {seed}: read repair left replicas different: {again}"
    dots = [
        ((key, s.dot), s.value)
        for node in cluster.nodes
        for key in KEYS
        for s in getattr(node.table.read([stored_key(DEFAULT, key)])[0][0], "siblings", ())
    ]
    assert len({dot for dot, _ in dots}) == len(set(dots)), "no dot stands for two values"
