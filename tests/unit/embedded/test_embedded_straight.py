"""Plain calls of the embedded store go without a call, and come to the same."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import zkv
from tests.unit.embedded.stores import Mixed, faulty
from zkv import Store
from zkv.ports import Inbox


def turns(kv: Store) -> int:
    return kv._engine._node.driver.counters["turns"]


def test_plain_calls_go_straight(tmp_path: Path) -> None:
    kv, _ = faulty(tmp_path / "data", fsync="never")
    with kv:
        kv.put("warm", b"", durable=True)  # and the syncing thread has had its turn
        while kv._engine._bell.count != kv._engine._heard:
            kv.exists("warm")
        before = turns(kv)
        for i in range(50):
            kv.put(f"k{i}", b"v")
        assert kv.get("k1") == b"v"
        assert kv.get("no", b"d") == b"d"
        assert kv.put_many(Mixed({"a": b"1", b"b": b"2"})).ok == 2
        assert kv.delete_many(["a", "k0"]).ok == 2
        assert kv.delete("k1").acked
        assert kv.get_many(["a", "b", "k1", "k2"]) == {"b": b"2", "k2": b"v"}
        assert kv.bucket(codec="str").get_many(["k2"]) == {"k2": "v"}
        assert turns(kv) - before < 10, "of more than 50 calls; a few turns are the syncing thread's own"
        status = kv.admin.status().document
        assert "ok" in str(status), "and are counted"


@pytest.mark.seeds(6)
def test_straight_way_comes_to_the_same_as_the_long_one(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    straight, long = zkv.open(tmp_path / "a", name="n"), zkv.open(tmp_path / "b", name="n")
    contexts: list[tuple[bytes, bytes]] = [(b"", b"")]
    keys = [f"k{i}" for i in range(6)]
    for _ in range(300):
        key, value = dice.choice(keys), dice.randbytes(dice.randrange(40))
        long._engine._well = False  # every call goes the long way
        strict = dice.random() < 0.3
        a, b = (kv.bucket("strict") if strict else kv for kv in (straight, long))
        match dice.randrange(7):
            case 0 | 1:
                one, other = a.put(key, value), b.put(key, value)
            case 2:
                one, other = a.delete(key), b.delete(key)
            case 3:
                mine, theirs = dice.choice(contexts)
                one, other = a.put(key, value, context=mine), b.put(key, value, context=theirs)
            case 4:
                pairs = {k: dice.randbytes(9) for k in dice.sample(keys, dice.randrange(1, 7))}
                many = a.put_many(pairs), b.put_many(pairs)
                assert (many[0].keys, many[0].ok) == (many[1].keys, many[1].ok)
                continue
            case 5:
                gone = dice.sample(keys, dice.randrange(1, 7))
                assert a.delete_many(gone).ok == b.delete_many(gone).ok == len(gone)
                continue
            case _:
                assert a.get(key, resolver=max) == b.get(key, resolver=max)
                assert a.get_many([*keys, "no"], resolver=max) == b.get_many([*keys, "no"], resolver=max)
                assert sorted(a.get_item(key).values) == sorted(b.get_item(key).values)
                continue
        contexts.append((one.context, other.context))
        assert (one.acked, one.sloppy, one.epoch) == (other.acked, other.sloppy, other.epoch)
    for kv in (straight, long):
        kv._engine._node._table.check_invariants()
        kv.close()
    shown = []
    for name in ("a", "b"):
        with zkv.open(tmp_path / name) as kv:
            shown.append(
                {key: sorted(bucket.get_item(key).values) for key in keys for bucket in (kv, kv.bucket("strict"))}
            )
    assert shown[0] == shown[1]


def test_sync_that_ends_before_anybody_waits_for_it_is_heard_of(tmp_path: Path) -> None:
    kv, _ = faulty(tmp_path / "data", fsync="never")
    engine = kv._engine
    driver = engine._node.driver
    turn = driver.turn

    def slow(inbox: Inbox) -> None:
        before = engine._bell.count
        turn(inbox)
        while not driver.idle and engine._bell.count == before:
            time.sleep(0)  # the log's thread is at it

    driver.turn = slow  # type: ignore[method-assign]
    with kv:
        began = time.monotonic()
        for i in range(20):
            assert kv.put("k", b"%d" % i, durable=True, timeout=4).durable
        assert time.monotonic() - began < 20, "else each of them is found out about after two seconds"


def test_expired_values_are_not_shown(kv: Store) -> None:
    kv.put_many({f"k{i}": b"v" for i in range(9)}, ttl=0.05)
    kv.put("one", b"v", ttl=0.05)
    assert kv.put("stays", b"v", ttl=100).epoch
    while kv.exists("k8") or kv.exists("one"):
        time.sleep(0.001)
    assert kv.get_many(["k8", "stays"]) == {"stays": b"v"}
    assert kv.get("k8") is None and kv.get("one") is None and kv.get("stays") == b"v"
    kv.put("one", b"w")
    assert kv.get("one") == b"w"
