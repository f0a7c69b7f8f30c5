"""The table of one partition, against a dict."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.storage.shard import EMPTY, LOAD_MAX, Shard

#: few enough that steps meet; ones that crowd around a home or two and at the end of the table, and ones that do not
POOL = [
    *(EMPTY - 1 - n for n in range(12)),
    *((5 << 58) + n for n in range(12)),
    *(n * 0x9E3779B97F4A7C15 & EMPTY for n in range(12)),
]
HASHES = st.sampled_from(POOL)
STEP = st.tuples(
    st.sampled_from(["put", "put", "put", "swap", "remove", "remove", "reserve"]), HASHES, st.integers(1, 2)
)
STEPS = st.lists(STEP, min_size=40, max_size=120)


@given(STEPS)
def test_shard_holds_what_a_dict_holds(steps: list[tuple[str, int, int]]) -> None:
    shard = Shard(skip=32)
    model: dict[int, int] = {}
    for step, hashed, word in steps:
        if step == "put":
            assert shard.put(hashed, word) == model.get(hashed, 0)
            model[hashed] = word
        elif step == "swap":
            held = model.get(hashed)
            assert shard.swap(hashed, 1, word) is (held in (1, word))
            if held == 1:
                model[hashed] = word
        elif step == "remove":
            assert shard.remove(hashed, word) is (model.get(hashed) == word)
            if model.get(hashed) == word:
                del model[hashed]
        else:
            shard.reserve(word * 10)
        shard.check_invariants()
    assert shard.get(EMPTY) == 0
    assert [shard.get(hashed) for hashed in POOL] == [model.get(hashed, 0) for hashed in POOL]
    hashes, words = shard.columns()
    assert dict(zip(hashes.tolist(), words.tolist(), strict=True)) == model
    assert hashes.tolist() == sorted(model)


@given(st.dictionaries(HASHES | st.integers(0, EMPTY - 1), st.integers(1, EMPTY - 1), max_size=200))
def test_shard_built_from_columns_equals_one_built_by_puts(pairs: dict[int, int]) -> None:
    hashes = np.array(sorted(pairs), np.uint64)
    words = np.array([pairs[hashed] for hashed in sorted(pairs)], np.uint64)
    built = Shard(32, hashes, words)
    built.check_invariants()
    assert all(built.get(hashed) == word for hashed, word in pairs.items())
    assert built.count == len(pairs)


@pytest.mark.parametrize("order", [sorted, lambda h: sorted(h, reverse=True), list])
def test_shard_of_one_home_answers_right(order: Callable[[list[int]], list[int]]) -> None:
    """The worst hash there is: it runs over the end again and again."""
    hashes = [EMPTY - 1 - n for n in range(300)]
    random.Random(1).shuffle(hashes)
    shard = Shard(skip=32)
    for hashed in order(hashes):
        shard.put(hashed, 7)
    shard.check_invariants()
    for n, hashed in enumerate(order(hashes)):
        assert shard.remove(hashed, 7)
        assert shard.get(hashed) == 0
        if n % 50 == 0:
            shard.check_invariants()
    assert shard.count == 0


def test_shard_takes_at_most_24_bytes_a_pair_while_it_grows_and_never_more_than_its_load() -> None:
    dice = random.Random(2)
    shard = Shard(skip=32)
    for n in range(1, 20_001):
        shard.put(dice.randrange(EMPTY), n)
        assert shard.count <= shard.capacity * LOAD_MAX
        if n > 10_000:
            assert shard.bytes <= 24.1 * n
    shard.check_invariants()


def test_reserve_makes_room_for_all_at_once() -> None:
    shard = Shard(skip=32)
    shard.reserve(1000)
    capacity = shard.capacity
    for n in range(1000):
        shard.put(n << 40, 1)
    assert shard.capacity == capacity
