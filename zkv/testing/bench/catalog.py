"""Which benchmark compares what with what.

Owns: P1 to P5 and P7: their servers, sizes and targets. Must not know: how rounds are counted or shown.

Each entry opens the servers of its cases, yields the cases, and stops the servers. The targets are ratios ours / peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

import zkv
from zkv.testing.bench import etcd_peer, redis_peer
from zkv.testing.bench.echo import echo
from zkv.testing.bench.index_memory import BUDGET_BYTES, IndexMemory
from zkv.testing.bench.ledger import Ledger
from zkv.testing.bench.ours import ManyKeys, OneKey, async_client, pids
from zkv.testing.bench.probe import probe
from zkv.testing.bench.rounds import LATENCY, SIZE, Case, NotRun, Side
from zkv.testing.bench.sides import AsyncStore, Gets, Puts, Store, Tasks
from zkv.testing.local_cluster import LocalCluster


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the key sets are, and how many wait at once. The suite runs it tiny."""

    keys: int = 20_100
    #: of workloads that wait for each key, which are also filled and read back one by one
    single_keys: int = 1_500
    outstanding: tuple[int, ...] = (300, 1000)
    etcd_outstanding: tuple[int, ...] = tuple(etcd_peer.LOADS)
    tasks: int = 1000
    connections: tuple[int, ...] = (50, 1000)
    #: of workloads that fill an index
    index_keys: int = 1_000_000

    def ledger(self, name: str, size: int) -> Ledger:
        return Ledger(name, max(3, self.keys // size // 3 * 3), size)

    def single(self, name: str) -> Ledger:
        return Ledger(name, self.single_keys, 1)

    def lanes(self, name: str, count: int, size: int = 1) -> list[Ledger]:
        """One ledger for each of so many at once."""
        return [Ledger(f"{name}.{lane}", max(1, self.keys // size // count), size) for lane in range(count)]


BATCH: Final = 100
#: what the target of P7 is for
P7_KEYS: Final = 10_000_000


def p1(scale: Scale) -> Iterator[Case]:
    """one node, one client, one at a time, against a bare echo on the bus"""
    with _cluster(1, "interval") as (kv, cluster), echo(synced=False) as peer:
        ours = OneKey(kv, pids(cluster))
        for name, side, bound in (("get", Gets, 1.5), ("put interval", _puts, 1.5)):
            pair: list[Side] = [side(store, scale.single(name)) for store in (ours, peer)]
            yield Case(f"P1 {name}", "1 node, 1 KB, one at a time", pair[0], "echo", pair[1], LATENCY, bound)
    with _cluster(1, "group") as (kv, cluster), echo(synced=True) as peer:
        ours = OneKey(kv, pids(cluster))
        pair = [_puts(store, scale.single("put group")) for store in (ours, peer)]
        yield Case("P1 put group", "1 node, 1 KB, one at a time", pair[0], "echo + fdatasync", pair[1], LATENCY, 1.2)


def p2(scale: Scale) -> Iterator[Case]:
    """one node, batches of 100, against redis mget and mset with AOF everysec"""
    missing = redis_peer.missing()
    with ExitStack() as stack:
        kv, cluster = stack.enter_context(_cluster(1, "interval"))
        ours = ManyKeys(kv, pids(cluster))
        peer = None
        if missing is None:
            server = stack.enter_context(redis_peer.redis_server())
            peer = stack.enter_context(redis_peer.redis_store(server))
        for name, verb, side, bound in (("get_many", "mget", Gets, 0.7), ("put_many", "mset", _puts, 0.8)):
            theirs = missing or side(_given(peer), scale.ledger(name, BATCH))
            mine = side(ours, scale.ledger(name, BATCH))
            yield Case(f"P2 {name}(100)", "1 node, 1 KB, interval", mine, f"redis {verb}", theirs, bound=bound)


def p3(scale: Scale) -> Iterator[Case]:
    """three nodes, W=2, single puts outstanding, group, against the bare probe with fdatasync and etcd"""
    with ExitStack() as stack:
        _, cluster = stack.enter_context(_cluster(3, "group"))
        runner = stack.enter_context(asyncio.Runner())
        client = stack.enter_context(async_client(cluster, runner))

        def ours(count: int) -> Side:
            return Tasks(runner, client, scale.lanes(f"p3.{count}", count))

        for count in scale.outstanding:
            shape = f"3 nodes W=2, 1 KB, group, {count} tasks"
            with probe(scale.ledger(f"p3.{count}", 1), outstanding=count, entries=3, synced=True) as peer:
                yield Case(f"P3 put x{count}", shape, ours(count), "probe + fdatasync", peer, bound=0.9)
        missing = etcd_peer.missing()
        for count in scale.etcd_outstanding:
            case = Case(
                f"P3 put x{count}",
                f"3 nodes W=2, 1 KB, group, {count} tasks",
                ours(count),
                "etcd x3",
                missing or NotRun("not asked"),
                bound=5.0,
            )
            if missing is not None:
                yield case
                continue
            with etcd_peer.etcd(count) as members:
                yield replace(case, peer=members)


def p4(scale: Scale) -> Iterator[Case]:
    """three nodes, W=2, four put_many(100) outstanding, against the bare probe"""
    for fsync, bound in (("never", 0.6), ("group", 1.0)):
        synced = fsync == "group"
        with (
            _cluster(3, fsync) as (kv, cluster),
            probe(scale.ledger("p4", BATCH), outstanding=4, entries=1, synced=synced) as peer,
        ):
            ours = Puts(ManyKeys(kv, pids(cluster)), scale.lanes("p4", 4, BATCH))
            shape = f"3 nodes W=2, 1 KB, {fsync}, 4 outstanding"
            peer_name = "probe + fdatasync" if synced else "probe"
            yield Case(f"P4 put_many(100) {fsync}", shape, ours, peer_name, peer, bound=bound)


def p5(scale: Scale) -> Iterator[Case]:
    """1,000 asyncio tasks, single gets and puts, one and three nodes, against redis.asyncio"""
    missing = redis_peer.missing()
    for nodes, bound in ((1, 5.0), (3, None)):
        with ExitStack() as stack:
            _, cluster = stack.enter_context(_cluster(nodes, "interval"))
            runner = stack.enter_context(asyncio.Runner())
            client = stack.enter_context(async_client(cluster, runner))
            peers = {} if missing else stack.enter_context(_async_redis(scale, runner))
            for name, reading in (("get", True), ("put", False)):
                lanes = scale.lanes(f"p5.{name}", scale.tasks)
                mine = Tasks(runner, client, lanes, reading=reading)
                peer_name, theirs = "redis.asyncio", missing
                if missing is None:
                    peer_name, theirs = _better(runner, peers, scale, name, reading)  # type: ignore[assignment]
                assert theirs is not None
                shape = f"{nodes} node{'s' * (nodes > 1)}, 1 KB, interval, {scale.tasks} tasks"
                yield Case(f"P5 {name} x{scale.tasks}", shape, mine, peer_name, theirs, bound=bound)


def p7(scale: Scale) -> Iterator[Case]:
    """memory of the index over sealed records, against its budget and a dictionary of keys; --keys 10000000 for the full size"""
    ours, shape = IndexMemory("index", scale.index_keys), f"{scale.index_keys:,} keys, all in"
    yield Case(
        "P7 index", shape, ours, f"{BUDGET_BYTES} bytes a key", IndexMemory("budget", scale.index_keys), SIZE, 1.0
    )
    yield Case("P7 index", shape, ours, "dictionary", IndexMemory("dict", scale.index_keys), SIZE)


CATALOG: Final[dict[str, Callable[[Scale], Iterator[Case]]]] = {
    "P1": p1,
    "P2": p2,
    "P3": p3,
    "P4": p4,
    "P5": p5,
    "P7": p7,
}
#: what runs untold: in less than a minute
QUICK: Final = ("P1", "P2", "P4")


def running(kv: zkv.Client, scale: Scale) -> Iterator[Case]:
    """Our own workloads on a cluster that is the user's: nothing but keys of our own prefix is written, and these are deleted."""
    prefix = f"zkv-bench-{uuid4().hex[:12]}"
    nothing = NotRun("no peer on a cluster of yours")
    used: list[Ledger] = []

    def ledger(name: str, size: int) -> Ledger:
        used.append(scale.ledger(f"{prefix}:{name}", size))
        return used[-1]

    try:
        one, many = OneKey(kv, {}), ManyKeys(kv, {})
        yield Case("get", "one at a time, 1 KB", Gets(one, ledger("get", 1)), "", nothing, LATENCY)
        yield Case("put", "one at a time, 1 KB", Puts(one, [ledger("put", 1)]), "", nothing, LATENCY)
        yield Case("get_many(100)", "1 KB", Gets(many, ledger("gets", BATCH)), "", nothing)
        yield Case("put_many(100)", "1 KB", Puts(many, [ledger("puts", BATCH)]), "", nothing)
    finally:
        for entry in used:
            kv.delete_many(key for batch in entry.written for key in entry.keys[batch])


def _puts(store: Store, ledger: Ledger) -> Puts:
    return Puts(store, [ledger])


def _given(store: Store | None) -> Store:
    assert store is not None
    return store


@contextmanager
def _cluster(nodes: int, fsync: str) -> Iterator[tuple[zkv.Client, LocalCluster]]:
    with LocalCluster(nodes, fsync=fsync) as cluster, zkv.connect(cluster.url, timeout=30.0) as kv:
        yield kv, cluster


@contextmanager
def _async_redis(scale: Scale, runner: asyncio.Runner) -> Iterator[dict[int, AsyncStore]]:
    """A client for each number of connections, of one server."""
    with redis_peer.redis_server() as server:
        stack = AsyncExitStack()

        async def opened() -> dict[int, AsyncStore]:
            return {
                count: await stack.enter_async_context(redis_peer.async_redis(server, count))
                for count in scale.connections
            }

        try:
            yield runner.run(opened())
        finally:
            runner.run(stack.aclose())


def _better(
    runner: asyncio.Runner, peers: dict[int, AsyncStore], scale: Scale, name: str, reading: bool
) -> tuple[str, Side]:
    """Whichever number of connections is faster in a second round of each (the first opens the connections)."""
    sides: dict[int, Side] = {
        count: Tasks(runner, store, scale.lanes(f"{name}.{count}", scale.tasks), reading=reading)
        for count, store in peers.items()
    }
    rates = {}
    for count, side in sides.items():
        side.run(0.3)
        sample = side.run(0.5)
        rates[count] = sample.keys / sample.seconds
    best = max(rates, key=rates.__getitem__)
    return f"redis.asyncio, {best} connections", sides[best]
