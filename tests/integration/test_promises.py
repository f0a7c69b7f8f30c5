"""What is promised, on real processes with real files: quorums with nodes down, kills at any moment, one sequential writer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

import zkv
from zkv.errors import BatchError, DeadlineExceeded, QuorumNotMet, Unavailable, ZkvError
from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, partitions=64) as running:
        yield running


@pytest.mark.parametrize("bucket", ["default", "strict"])
@pytest.mark.parametrize("down", [0, 1, 2])
def test_w_and_r_of_one_to_three_keep_their_promise_with_nodes_down(
    cluster: LocalCluster, bucket: str, down: int
) -> None:
    key = f"{bucket}-{down}"
    with zkv.connect(f"{cluster.url}/{bucket}?timeout=3") as kv:
        kv.put(key, b"before", w=3)
        for node in cluster.nodes[3 - down :]:
            node.kill()
        try:
            up = 3 - down
            for w in (1, 2, 3):
                needed = max(w, 2) if bucket == "strict" and w > 1 else w
                if up >= needed:
                    result = kv.put(key, b"w%d" % w, w=w)
                    assert len(set(result.acked)) >= w
                    assert result.durable
                    assert not result.sloppy
                else:
                    with pytest.raises(Unavailable) as refused:
                        kv.put(key, b"refused", w=w)
                    assert refused.value.definite
                    assert refused.value.alive == up
                    assert refused.value.required >= w
                    assert str(up) in str(refused.value)
                    assert str(refused.value.required) in str(refused.value)
            for r in (1, 2, 3):
                if up >= r:
                    assert kv.get(key, r=r) == b"w%d" % min(3, up)
                else:
                    with pytest.raises(Unavailable) as refused:
                        kv.get(key, r=r)
                    assert (refused.value.required, refused.value.alive) == (r, up)
        finally:
            for node in cluster.nodes[3 - down :]:
                node.restart()
            cluster.wait_until_healthy()


def test_put_that_minted_and_missed_w_is_unknown_with_both_numbers(cluster: LocalCluster) -> None:
    """Two replicas are stopped, not dead: they are linked, so they are tried, and they never answer."""
    with zkv.connect(cluster.url) as kv:
        firsts = ((f"paused{n}", kv.admin.explain(f"paused{n}")["preference"][0]["name"]) for n in range(100))
        key = next(key for key, first in firsts if first == cluster.nodes[0].name)
    for node in cluster.nodes[1:]:
        node.pause()
    try:
        with zkv.connect(f"zkv://{cluster.nodes[0].url.removeprefix('zkv://')}?timeout=2") as kv:
            with pytest.raises((QuorumNotMet, DeadlineExceeded)) as unknown:
                kv.put(key, b"v")
            assert not unknown.value.definite
            if isinstance(unknown.value, QuorumNotMet):
                assert (unknown.value.required, unknown.value.got) == (2, 1)
    finally:
        for node in cluster.nodes[1:]:
            node.resume()
        cluster.wait_until_healthy()


def test_sequential_writer_on_a_strict_bucket_never_sees_a_conflict_whatever_is_killed(cluster: LocalCluster) -> None:
    dice = random.Random(42)
    stop = threading.Event()

    def nemesis() -> None:
        while not stop.wait(dice.uniform(0.05, 0.4)):
            node = dice.choice(cluster.nodes)
            node.kill()
            stop.wait(dice.uniform(0.0, 0.3))
            node.restart()

    thread = threading.Thread(target=nemesis)
    thread.start()
    written = acknowledged = 0
    try:
        with zkv.connect(f"{cluster.url}/strict?timeout=4") as kv:
            until = time.monotonic() + 12
            last_acked = {b"a": -1, b"b": -1}
            while time.monotonic() < until:
                key = dice.choice([b"a", b"b"])
                written += 1
                try:
                    kv.put(key, b"%d" % written)
                    last_acked[key] = written
                    acknowledged += 1
                except (Unavailable, QuorumNotMet, DeadlineExceeded, zkv.ConnectFailed):
                    continue  # a Conflict is none of these and fails the test
                if written % 3 == 0:
                    try:
                        seen = kv.get(key)
                    except (Unavailable, QuorumNotMet, DeadlineExceeded, zkv.ConnectFailed):
                        continue
                    assert (-1 if seen is None else int(seen)) >= last_acked[key]
    finally:
        stop.set()
        thread.join()
        cluster.wait_until_healthy()
    with zkv.connect(f"{cluster.url}/strict") as kv:
        for key, value in last_acked.items():
            seen = kv.get(key)
            assert seen is not None
            assert int(seen) >= value
    assert acknowledged > 100, "the writer must have got through for this to mean anything"


def kill_all_under_load(cluster: LocalCluster, dice: random.Random, first: int) -> dict[str, bytes]:
    """Write until all three nodes are killed at a random moment; what was acknowledged."""
    acked: dict[str, bytes] = {}

    def write() -> None:
        with zkv.connect(f"{cluster.url}?timeout=3") as kv:
            number = first
            while True:
                batch = {f"key{n}": b"%d" % n + b"." * (n % 500) for n in range(number, number + 40)}
                number += 40
                try:
                    kv.put_many(batch)
                except BatchError as error:
                    acked.update({k: v for k, v in batch.items() if k not in error.errors})
                    return
                except ZkvError:
                    return
                acked.update(batch)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(dice.uniform(0.0, 0.25))  # the random moment is the point: there is no event to wait for
    for node in dice.sample(cluster.nodes, 3):
        node.kill()
    writer.join()
    return acked


def test_kill_of_all_nodes_at_a_random_moment_loses_nothing_acknowledged(
    cluster: LocalCluster, kill_rounds: int
) -> None:
    dice = random.Random(7)
    total = 0
    for number in range(kill_rounds):
        acked = kill_all_under_load(cluster, dice, first=number * 1_000_000)
        for node in cluster.nodes:
            node.spawn()
        cluster.wait_until_healthy()
        with zkv.connect(cluster.url) as kv:
            found = kv.get_many(acked, r=2)
        assert found == acked, (
            f"round {number}: {len(acked) - len(found)} of {len(acked)} acknowledged puts are missing"
        )
        total += len(acked)
    assert total > 0
