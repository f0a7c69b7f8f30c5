"""Random histories of a few clients over nodes that are killed, lose power, come back, and links that delay: what was promised must hold.

A seed names everything; a failure prints it. `--seeds-scale` runs more or fewer of them than every commit does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.harness import DEFAULT, MS, SECOND, STRICT, SimCluster, SimNode, status_of
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.versions import EMPTY, Context
from zkv.ids import Actor, checksum_of, stored_key

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


@pytest.mark.seeds(400)
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


@pytest.mark.seeds(200)
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


# --- batches -------------------------------------------------------------------------------------------------------------------

TRIES_MAX = 5


@dataclass(slots=True)
class Item:
    """One item of a batch, and the values that its context replaces."""

    key: bytes
    value: bytes
    context: Context
    replaces: set[bytes]


class Batches:
    """One client of a strict bucket that puts batches of unique values, with empty contexts or with those it has read, and repeats what it did
    not learn the fate of: unmarked at the same life of the same store, marked `again` anywhere else."""

    def __init__(self, seed: int, count: int) -> None:
        self.story = f"seed {seed}"
        self.dice = random.Random(f"batches {seed}")
        self.cluster = SimCluster(count, partitions=8)
        self.wiped: set[SimNode] = set()  # and not started since
        self.sequence = 0
        self.values = 0
        self.issued: dict[bytes, set[bytes]] = {key: set() for key in KEYS}  # may exist somewhere
        self.acked: dict[bytes, set[bytes]] = {key: set() for key in KEYS}
        self.covered: dict[bytes, set[bytes]] = {key: set() for key in KEYS}  # by a put that may have been carried out
        self.replaced: dict[bytes, set[bytes]] = {key: set() for key in KEYS}  # by an acked put, for good
        self.run_twice: set[bytes] = set()  # two dots may stand for such a value, and a context may know one of them
        self.read: dict[bytes, tuple[Context, set[bytes]]] = {}

    # --- requests ---

    def put(self, node: SimNode) -> None:
        self.sequence += 1
        batch = [self._item(key) for key in self.dice.sample(KEYS, self.dice.choice([1, 1, 2, 3]))]
        left = list(range(len(batch)))
        first_at, again = (node, node.lives), False
        for tried in range(TRIES_MAX):
            again = again or (node, node.lives) != first_at
            if again:
                self.run_twice.update(batch[i].value for i in left)
            message = self._message(batch, left, again=again, retry=tried > 0)
            left = self._judge(batch, left, ask(self.cluster, node, message, b"w"), first=not tried)
            if not left or self.dice.random() < 0.3:
                return
            if self.dice.random() < 0.5:
                self.disturb()
            node = self.dice.choice([node for node in self.cluster.nodes if node.up])

    def _item(self, key: bytes) -> Item:
        self.values += 1
        context, shown = self.read.get(key, (EMPTY, set())) if self.dice.random() < 0.5 else (EMPTY, set())
        return Item(key, b"%d" % self.values, context, shown)

    def _message(self, batch: list[Item], left: list[int], *, again: bool, retry: bool) -> m.Put:
        return m.Put(
            (77, self.sequence),
            [stored_key(STRICT, batch[i].key) for i in left],
            [batch[i].value for i in left],
            [checksum_of(batch[i].value) for i in left],
            [batch[i].context for i in left],
            items=left if len(left) < len(batch) else None,
            again=again,
            want_context=True,
            retry=retry,
            deadline_ns=self.cluster.time.now_ns + 1 * SECOND,
        )

    def _judge(self, batch: list[Item], left: list[int], reply: m.Message | None, *, first: bool) -> list[int]:
        """Note what an answer says; the items whose fate is unknown."""
        if isinstance(reply, m.Refused):
            return [] if first else left  # nothing of it was done
        statuses: list[int] = [Status.DEADLINE] * len(left)
        if reply is not None:
            assert isinstance(reply, m.PutReply), f"{self.story}: {reply}"
            statuses = reply.statuses or [Status.OK] * len(left)
        unknown = []
        for i, status in zip(left, statuses, strict=True):
            item = batch[i]
            if first and status != Status.OK and status not in m.UNKNOWN_STATUSES:
                continue  # definite: no get may ever show it
            self.issued[item.key].add(item.value)
            self.covered[item.key] |= item.replaces
            if status == Status.OK:
                self.acked[item.key].add(item.value)
                self.replaced[item.key] |= item.replaces - self.run_twice
            else:
                unknown.append(i)
        return unknown

    def get(self, node: SimNode, key: bytes, *, answered: bool = False) -> None:
        message = self.cluster.get_message(key, bucket=STRICT, timeout_ns=1 * SECOND)
        reply = ask(self.cluster, node, message, b"r")
        if not isinstance(reply, m.GetReply) or reply.statuses is not None:
            assert not answered, f"{self.story}: {node.name} on {key!r}: {reply}"
            return
        shown = set(reply.values)
        where = f"{self.story}: {node.name} shows {shown} for {key!r}"
        assert self.acked[key] - self.covered[key] <= shown, f"{where}, acked was {self.acked[key] - self.covered[key]}"
        assert shown <= self.issued[key], f"{where}: invented"
        assert not shown & self.replaced[key], f"{where}, replaced was {self.replaced[key]}"
        context = (reply.contexts or [None])[0] or EMPTY
        before, _ = self.read.get(key, (EMPTY, set()))
        assert context.joined(before) == context, f"{where}: went back from {before} to {context}"
        self.read[key] = (context, shown)

    # --- the outside world ---

    def start(self, node: SimNode) -> None:
        node.start(active=node not in self.wiped)
        self.wiped.discard(node)

    def disturb(self) -> None:
        cluster, dice = self.cluster, self.dice
        match dice.choice(["wipe", "full", "empty", "blip", "no sync", "sync", *["usual"] * 7]):
            case "wipe":
                self._wipe_one()
            case "full" if self._all_whole():
                dice.choice(cluster.nodes).log.full = True
            case "empty":
                for node in cluster.nodes:
                    node.log.full = False
            case "blip":
                self._blip()
            case "no sync":
                dice.choice(cluster.nodes).log.auto_sync = False
            case "sync":
                for node in cluster.nodes:
                    node.log.auto_sync = True
            case "usual":
                self._usual()
        cluster.held = [w for w in cluster.held if cluster.nodes[w[0]].up and cluster.nodes[w[1]].up]
        cluster.settle()

    def _usual(self) -> None:
        cluster, dice = self.cluster, self.dice
        up = [node for node in cluster.nodes if node.up]
        down = [node for node in cluster.nodes if not node.up]
        match dice.choice(["kill", "power", "start", "start", "delay", "release", "time"]):
            case "kill" if len(up) > 1:
                dice.choice(up).kill()
            case "power" if len(up) > 1:
                dice.choice(up).kill(power_loss=True)
            case "start" if down:
                self.start(dice.choice(down))
            case "delay":
                slow, share = dice.randrange(len(cluster.nodes)), dice.random()
                cluster.hold = lambda source, target, message: source == slow and dice.random() < share
            case "release":
                cluster.release()
            case "time":
                cluster.advance(dice.choice([100 * MS, 700 * MS, 2_500 * MS]), step_ns=50 * MS)

    def _all_whole(self) -> bool:
        return not self.wiped and not any(node.unsynced for node in self.cluster.nodes)

    def _wipe_one(self) -> None:
        """One copy at a time: a second wiped disk takes what W = 2 promised."""
        down = [node for node in self.cluster.nodes if not node.up]
        if down and self._all_whole() and not any(node.log.full for node in self.cluster.nodes):
            node = self.dice.choice(down)
            node.wipe()
            self.wiped.add(node)

    def _blip(self) -> None:
        up = [node for node in self.cluster.nodes if node.up]
        if len(up) < 2:
            return
        one, other = self.dice.sample(up, 2)
        for linked in (False, True):
            one.inbox.links.append((other.node, linked))
            other.inbox.links.append((one.node, linked))
            self.cluster.settle()

    def heal(self) -> None:
        for node in self.cluster.nodes:
            node.log.auto_sync = True
            node.log.full = False
            if not node.up:
                self.start(node)
        self.cluster.release()
        self.cluster.settle()
        self.cluster.advance(5 * SECOND)


@pytest.mark.seeds(200)
@pytest.mark.parametrize("count", [3, 4])
def test_batches_on_a_strict_bucket_keep_every_promise_through_wipes_and_full_disks(seed: int, count: int) -> None:
    """Acked and not replaced: always shown. Refused or replaced: never shown. No read goes back. All heals, and nothing is left open."""
    run = Batches(seed, count)
    cluster, dice = run.cluster, run.dice
    for _ in range(50):
        if dice.random() < 0.4:
            run.disturb()
        node = dice.choice([node for node in cluster.nodes if node.up])
        if dice.random() < 0.55:
            run.put(node)
        else:
            run.get(node, dice.choice(KEYS))
    run.heal()
    assert not any(node.unsynced for node in cluster.nodes), run.story
    for key in KEYS:
        for node in cluster.nodes:
            run.get(node, key, answered=True)
        cluster.values(
            cluster.nodes[0], key, bucket=STRICT, r=3
        )  # two equal copies answer a get; this one repairs the third
        replicas = [cluster.node_of(key, place, STRICT) for place in range(3)]
        first, *others = [node.table.read([stored_key(STRICT, key)])[0][0] for node in replicas]
        for other in others:
            same = other is first if other is None or first is None else other.same_as(first)
            assert same, f"{run.story}: {key!r} is {first} and {other}"
    cluster.check_invariants()
    assert_nothing_left_open(cluster, run.story)


def assert_nothing_left_open(cluster: SimCluster, story: str) -> None:
    for node in cluster.nodes:
        state, where = node.state, f"{story}: {node.name}"
        assert state.coordinator.open_items == 0 and not state.coordinator._puts, where
        assert not state.coordinator._forwards, where
        assert len(state.writes) == 0 and state.writes._settled == 0 and len(state.reads) == 0, where
        assert not state.replica._puts and not state.replica._gets, where
        assert node.driver.idle, where
