"""Caches: what they hold is right, counted, and not washed out by a scan."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.core.versions import Sibling, VersionSet
from zkv.ids import Actor
from zkv.storage.cache import BLOCK_BYTES, ENTRY_BYTES, BlockCache, RecordCache, record_bytes


def versions_of(n: int, siblings: int = 1, actors: int = 1, value_bytes: int = 100) -> VersionSet:
    """Made of fresh objects, as a decoder makes them."""
    made = tuple(
        Sibling(
            actor=Actor(b"actor-%010d" % n),
            counter=1000 + n,
            stamp=(1_700_000_000_000 << 16) + n,
            expires_ms=1_700_000_000_000 + n,
            checksum=3_000_000_000 + n,
            session=(1 << 60) + n,
            sequence=1000 + n,
            voids=(),
            value=b"%09d" % n + b"v" * (value_bytes - 9),
        )
        for _ in range(siblings)
    )
    return VersionSet(made, {Actor(b"actor-%010d" % (n * 10 + a)): 1000 + n for a in range(actors)})


KEYS = [b"key-%02d" % n for n in range(30)]
STEP = st.tuples(
    st.sampled_from(["get", "get", "get", "put", "put", "put", "drop"]), st.sampled_from(KEYS), st.integers(9, 400)
)


@given(st.lists(STEP, min_size=60, max_size=120), st.sampled_from([0, 10_000, 21_000, 24_000, 30_000]))
def test_record_cache_never_answers_but_what_was_put_last_and_never_exceeds_its_budget(
    steps: list[tuple[str, bytes, int]], bytes_max: int
) -> None:
    cache = RecordCache(bytes_max)
    model: dict[bytes, VersionSet] = {}
    for step, key, size in steps:
        if step == "put":
            model[key] = versions_of(size, value_bytes=size)
            cache.put(key, model[key])
        elif step == "drop":
            cache.drop([key, b"absent"])
            model.pop(key, None)
        else:
            (found,) = cache.get_many([key])
            assert found is None or found is model[key]
        cache.check_invariants()
    found_all = cache.get_many(KEYS)
    assert sum(found is not None for found in found_all) == len(cache)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    cache.check_invariants()


def test_record_cache_with_room_forgets_nothing() -> None:
    cache = RecordCache(2_000_000)
    held = {b"k%d" % n: versions_of(n) for n in range(1000)}
    for key, versions in held.items():
        cache.put(key, versions)
    assert cache.get_many(list(held)) == list(held.values())
    assert (cache.hits, cache.misses) == (1000, 0)
    assert cache.get_many([b"k1000"]) == [None]
    assert cache.misses == 1


def test_record_larger_than_a_sixteenth_of_the_budget_is_not_kept_nor_what_it_replaces() -> None:
    cache = RecordCache(160_000)
    cache.put(b"k", versions_of(1))
    cache.put(b"k", versions_of(1, value_bytes=10_000))
    assert cache.get_many([b"k"]) == [None]
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("siblings", "actors", "value_bytes"),
    [(1, 1, 100), (1, 1, 800), (1, 3, 100), (2, 2, 100), (0, 1, 9), (1, 6, 50), (4, 8, 20)],
)
def test_record_costs_in_memory_what_is_counted(siblings: int, actors: int, value_bytes: int) -> None:
    """Within an eighth, whatever its shape; half of the records are of keys that are only remembered."""
    count = 6000
    cost = record_bytes(b"key-%010d" % 0, versions_of(0, siblings, actors, value_bytes))
    cache = RecordCache(cost * count // 2)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(count):
            cache.put(b"key-%010d" % n, versions_of(n, siblings, actors, value_bytes))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.85 < cache.bytes / cache.bytes_max <= 1.0
    assert 0.88 < (after - before) / cache.bytes < 1.12


def hit_rate(scan_per_get: int) -> float:
    """Of a zipf workload over 20,000 keys through a cache for a tenth of them, beside a scan of 200,000 others; its first third does not count."""
    keys, gets = 20_000, 120_000
    weights = 1 / np.arange(1, keys + 1) ** 0.99
    asked = np.random.default_rng(7).choice(keys, gets, p=weights / weights.sum()).tolist()
    record = versions_of(1)
    cache = RecordCache(record_bytes(b"key-00000", record) * keys // 10)
    scanned = 0
    for n, key in enumerate(asked):
        name = b"key-%05d" % key
        if cache.get_many([name]) == [None]:
            cache.put(name, record)
        hits, misses = cache.hits, cache.misses
        for _ in range(scan_per_get):
            scanned = (scanned + 1) % 200_000
            name = b"scan%05d" % scanned
            if cache.get_many([name]) == [None]:
                cache.put(name, record)
        # only the gets of the workload count
        cache.hits, cache.misses = (hits, misses) if n > gets // 3 else (0, 0)
    return cache.hits / (cache.hits + cache.misses)


def test_scan_of_everything_costs_few_hits() -> None:
    alone, beside_scan = hit_rate(0), hit_rate(1)
    print(f"hit rate {alone:.3f} alone, {beside_scan:.3f} beside a scan")
    assert alone > 0.70
    assert beside_scan > alone - 0.03


def test_key_that_comes_back_soon_after_its_turn_stays() -> None:
    record = versions_of(1)
    cache = RecordCache(record_bytes(b"key-000", record) * 100)
    for n in range(120):
        cache.put(b"key-%03d" % n, record)
    gone = next(b"key-%03d" % n for n in range(120) if cache.get_many([b"key-%03d" % n]) == [None])
    cache.put(gone, record)
    for n in range(200, 300):
        cache.put(b"key-%03d" % n, record)
    assert cache.get_many([gone]) == [record]


def fill(cache: RecordCache, record: VersionSet, first: int, count: int) -> None:
    for n in range(first, first + count):
        cache.put(b"fill%04d" % n, record)


def test_record_that_is_asked_for_in_its_turn_stays_and_one_that_is_not_goes() -> None:
    record = versions_of(1)
    cache = RecordCache(record_bytes(b"key-000", record) * 100)
    cache.put(b"asked", record)
    cache.put(b"other", record)
    assert cache.get_many([b"asked"]) == [record]
    fill(cache, record, 0, 500)
    assert cache.get_many([b"asked", b"other"]) == [record, None]


def test_record_of_the_main_queue_stays_as_long_as_it_is_asked_for() -> None:
    record = versions_of(1)
    cache = RecordCache(record_bytes(b"key-000", record) * 100)
    main = [b"main%04d" % n for n in range(80)]
    for key in main:
        cache.put(key, record)
    assert cache.get_many(main) == [record] * 80
    fill(cache, record, 0, 200)  # moves them on
    hot = main[:10]
    for first in range(1000, 5_000, 40):
        assert cache.get_many(hot) == [record] * 10
        for n in range(first, first + 40):
            key = b"next%05d" % n
            cache.put(key, record)
            cache.get_many([key])  # so that they press into the main queue
    assert cache.get_many(main).count(record) == 10


def test_dropped_record_of_either_queue_is_gone_and_not_counted() -> None:
    record = versions_of(1)
    cache = RecordCache(record_bytes(b"key-000", record) * 100)
    cache.put(b"main", record)
    cache.get_many([b"main"])
    fill(cache, record, 0, 300)
    cache.put(b"small", record)
    before = cache.bytes
    for key in (b"main", b"small"):
        assert cache.get_many([key]) == [record]
        cache.drop([key])
        assert cache.get_many([key]) == [None]
        cache.check_invariants()
    assert cache.bytes == before - record_bytes(b"main", record) - record_bytes(b"small", record)


def test_block_cache_keeps_the_least_recently_used_last_and_counts() -> None:
    cache = BlockCache(3 * (BLOCK_BYTES + 1000))
    for block in range(3):
        cache.put(1, block, bytes(1000))
    assert cache.get(1, 0) == bytes(1000)
    cache.put(2, 0, b"x" * 1000)
    assert [cache.get(1, block) is None for block in range(3)] == [False, True, False]
    cache.put(2, 0, b"y" * 500)
    assert cache.get(2, 0) == b"y" * 500
    assert cache.bytes == 3 * BLOCK_BYTES + 2500
    cache.put(2, 1, bytes(10_000))
    assert cache.get(2, 1) is None
    cache.drop_segment(1)
    assert len(cache) == 1 and cache.bytes == BLOCK_BYTES + 500


def test_block_cache_costs_in_memory_what_is_counted() -> None:
    cache = BlockCache(1 << 40)
    dice = random.Random(1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(3000):
            cache.put(1000 + n, 100_000 + n, dice.randbytes(600))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.85 < (after - before) / cache.bytes < 1.1


def test_entry_costs_more_than_its_bytes() -> None:
    assert record_bytes(b"", VersionSet((), {})) == ENTRY_BYTES
