"""The hash index against a model of the store around it, with so few hashes that most keys share one."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_64_intdigest

from zkv.errors import CorruptData
from zkv.storage.index import TOMBSTONE, Columns, HashIndex, Superseded, pack_loc, place_of, slot_of
from zkv.storage.shard import EMPTY

PARTITIONS, SHIFT = 4, 62
KEYS = [b"key-%d" % n for n in range(60)]


def hash_8(key: bytes) -> int:
    """Few bits of a hash, in the place of the highest; 255 stands for the one value that a shard cannot hold."""
    full = xxh3_64_intdigest(key)
    short = (full & 3) << 6 | full >> 2 & 7 | 0x38
    return EMPTY if short == 255 else short << 56


@dataclass
class Rows:
    """One segment: its records in order of (partition, key), the place of each is its row."""

    #: b"" of a row that was reaped
    keys: list[bytes]
    seqs: list[int]
    #: partitions whose rows were installed or moved
    done: set[int] = field(default_factory=set)
    #: of a merge: the location that each row was read from; None for a sealed table
    read_from: list[int] | None = None

    def rows(self, pid: int) -> list[int]:
        return [row for row, key in enumerate(self.keys) if key and hash_8(key) >> SHIFT == pid]


class Store:
    """What the index needs of a store: published segments, and their columns."""

    def __init__(self) -> None:
        self.segments: dict[int, Rows] = {}
        self.loads: list[int] = []

    def publish(self, slot: int, records: dict[bytes, int], read_from: dict[bytes, int] | None = None) -> Rows:
        keys = sorted(records, key=lambda key: (hash_8(key) >> SHIFT, key))
        origin = None if read_from is None else [read_from[key] for key in keys]
        self.segments[slot] = Rows(keys, [records[key] for key in keys], read_from=origin)
        return self.segments[slot]

    def columns_of(self, slot: int, pid: int) -> Columns:
        segment = self.segments[slot]
        rows = segment.rows(pid)
        return Columns(
            array("Q", [hash_8(segment.keys[row]) for row in rows]),
            array("Q", [segment.seqs[row] for row in rows]),
            array("Q", [pack_loc(slot, row) for row in rows]),
            array("Q", [100 for _ in rows]),
        )

    def load(self, pid: int) -> list[Columns]:
        self.loads.append(pid)
        return [self.columns_of(slot, pid) for slot in sorted(self.segments)]

    def key_at(self, loc: int) -> bytes:
        return self.segments[slot_of(loc)].keys[place_of(loc)]

    def newest(self, pid: int) -> dict[bytes, int]:
        """Per key of a partition the location of its newest record; of equal ones, the one in the later segment."""
        found: dict[bytes, tuple[int, int]] = {}
        for slot, segment in sorted(self.segments.items()):
            for row in segment.rows(pid):
                key, at = segment.keys[row], (segment.seqs[row], pack_loc(slot, row))
                found[key] = max(found.get(key, (0, 0)), at)
        return {key: loc for key, (_, loc) in found.items()}


class Machine(RuleBasedStateMachine):
    """Puts, seals, merges, reaping and restarts, interleaved partition by partition. `model` is what `find` must say."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.manifest_shared: tuple[int, ...] = ()
        self.model: list[dict[bytes, int]] = [{} for _ in range(PARTITIONS)]
        self.table: dict[bytes, int] = {}
        self.frozen: dict[bytes, int] = {}
        self.sealing = 0
        self.merging = 0
        self.slot = 0
        self.seq = 0

    @initialize()
    def start(self) -> None:
        self.index = HashIndex(
            PARTITIONS, SHIFT, self.loading, self.store.key_at, self.manifest_shared, on_shared=self.keep_shared
        )

    def loading(self, pid: int) -> list[Columns]:
        self.model[pid] = self.store.newest(pid)
        return self.store.load(pid)

    def keep_shared(self, shared: tuple[int, ...]) -> None:
        assert set(shared) > set(self.manifest_shared)
        self.manifest_shared = shared

    # --- writing ---

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=12))
    def put(self, keys: list[bytes]) -> None:
        for key in keys:
            if key not in self.table and key not in self.frozen:
                loc = self.index.find(key, hash_8(key))
                if loc and self.store.key_at(loc) != key:
                    self.index.share(hash_8(key))
                    assert self.index.find(key, hash_8(key)) == 0
            self.seq += 1
            self.table[key] = self.seq

    @precondition(lambda self: self.table and not self.sealing)
    @rule()
    def seal(self) -> None:
        """The frozen table's segment is published; until it is installed the table stays."""
        self.frozen, self.table = self.table, {}
        self.slot += 1
        self.store.publish(self.slot, self.frozen)
        self.sealing = self.slot

    @precondition(lambda self: self.sealing)
    @rule(pid=st.integers(0, PARTITIONS - 1), columns=st.booleans())
    def install(self, pid: int, columns: bool) -> None:
        segment = self.store.segments[self.sealing]
        if pid in segment.done:
            return
        segment.done.add(pid)
        hashes, _, locs, _ = self.store.columns_of(self.sealing, pid)
        before = dict(self.model[pid]) if self.index.loaded(pid) else None
        replaced = self.index.install(pid, hashes if columns else list(hashes), locs if columns else list(locs))
        rows = [self.store.key_at(loc) for loc in locs]
        if before is None:
            assert not any(replaced)
        else:
            expected = [before.get(key, 0) for key in rows]
            assert replaced == [old if old != loc else 0 for old, loc in zip(expected, locs, strict=True)]
            self.model[pid].update(zip(rows, locs, strict=True))
        if len(segment.done) == PARTITIONS:
            self.index.share_with(self.sealing, [hash_8(key) for key in self.table if key not in self.frozen])
            self.sealing = 0
            self.frozen = {}

    # --- merging ---

    @precondition(lambda self: not self.merging and len(self.store.segments) > 1)
    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        """Reads what is alive in two segments; its output is published at once and moved in later, pid by pid."""
        whole = [slot for slot in self.store.segments if slot != self.sealing]
        self.inputs = data.draw(st.lists(st.sampled_from(whole), min_size=1, max_size=2, unique=True))
        alive: dict[bytes, int] = {}
        seqs: dict[bytes, int] = {}
        for slot in self.inputs:
            for pid in range(PARTITIONS):
                for place in self.index.live_places(pid, slot):
                    key = self.store.key_at(pack_loc(slot, place))
                    assert self.model[pid][key] == pack_loc(slot, place)
                    alive[key] = pack_loc(slot, place)
                    seqs[key] = self.store.segments[slot].seqs[place]
        self.slot += 1
        self.store.publish(self.slot, seqs, alive)
        self.merging = self.slot

    @precondition(lambda self: self.merging)
    @rule(pid=st.integers(0, PARTITIONS - 1))
    def move(self, pid: int) -> None:
        output = self.store.segments[self.merging]
        if pid not in output.done:
            output.done.add(pid)
            hashes, _, locs, _ = self.store.columns_of(self.merging, pid)
            assert output.read_from is not None
            old = [output.read_from[row] for row in output.rows(pid)]
            moved = self.index.move(pid, hashes, old, locs)
            for loc, was, alive in zip(locs, old, moved, strict=True):
                key = self.store.key_at(loc)
                assert alive is (self.model[pid].get(key) in (was, loc))
                if alive:
                    self.model[pid][key] = loc
        if len(output.done) == PARTITIONS:
            for slot in self.inputs:
                assert not any(slot_of(loc) == slot for keys in self.model for loc in keys.values())
                del self.store.segments[slot]
            self.merging = 0

    @precondition(lambda self: not self.merging and not self.sealing)
    @rule(key=st.sampled_from(KEYS), stale=st.booleans())
    def reap(self, key: bytes, stale: bool) -> None:
        """A key is gone from all files, and from the index if that still points to what was reaped."""
        loc = self.index.find(key, hash_8(key))
        pid = hash_8(key) >> SHIFT
        if key not in self.model[pid]:
            assert not loc or self.store.key_at(loc) != key
            assert not self.index.discard(hash_8(key), pack_loc(1, 12345))
            return
        if stale:
            assert not self.index.discard(hash_8(key), loc ^ 1 << 38)
            return
        assert self.index.discard(hash_8(key), loc)
        for segment in self.store.segments.values():
            for row, held in enumerate(segment.keys):
                if held == key:
                    segment.keys[row], segment.seqs[row] = b"", 0
        del self.model[pid][key]

    # --- restarts ---

    @rule(pid=st.integers(0, PARTITIONS - 1))
    def unload(self, pid: int) -> None:
        self.index.unload(pid)
        assert not self.index.loaded(pid)

    @precondition(lambda self: not self.sealing and not self.merging)
    @rule()
    def restart(self) -> None:
        """Nothing but the segments and the shared hashes is left; tables come back from the log."""
        self.start()

    @rule(limit=st.integers(1, 3))
    def warm(self, limit: int) -> None:
        cold = sum(not self.index.loaded(pid) for pid in range(PARTITIONS))
        assert self.index.warm(limit) == min(limit, cold)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "index"):
            return
        loaded = [pid for pid in range(PARTITIONS) if self.index.loaded(pid)]
        keys = [key for key in KEYS if hash_8(key) >> SHIFT in loaded]
        found = self.index.find_many(keys, [hash_8(key) for key in keys])
        for key, loc in zip(keys, found, strict=True):
            expected = self.model[hash_8(key) >> SHIFT].get(key, 0)
            if expected:
                assert loc == expected, key
            else:
                assert loc == 0 or self.store.key_at(loc) != key, key
            assert loc == self.index.find(key, hash_8(key))
        assert len(self.index) == sum(len(self.model[pid]) for pid in loaded)
        assert self.index.shared == self.manifest_shared
        self.index.check_invariants()


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestHashIndexAgainstModel = Machine.TestCase


def test_keys_of_the_model_share_hashes_and_one_has_the_hash_that_no_shard_holds() -> None:
    hashes = [hash_8(key) for key in KEYS]
    assert len(set(hashes)) < len(KEYS) * 0.75
    assert {hashed >> SHIFT for hashed in hashes} == set(range(PARTITIONS))
    assert EMPTY in hashes


def two_of_one_hash() -> tuple[bytes, bytes]:
    by_hash: dict[int, bytes] = {}
    for key in KEYS:
        other = by_hash.setdefault(hash_8(key), key)
        if other != key and hash_8(key) != EMPTY:
            return other, key
    raise AssertionError


def index_of(store: Store, **options: Any) -> HashIndex:
    return HashIndex(PARTITIONS, SHIFT, store.load, store.key_at, **options)


def test_load_tells_what_is_superseded_in_which_segment() -> None:
    store = Store()
    store.publish(1, {key: n + 1 for n, key in enumerate(KEYS)})
    store.publish(2, {key: n + 100 for n, key in enumerate(KEYS[:20])})
    store.publish(3, {key: n + 200 for n, key in enumerate(KEYS[:5])})
    told: list[Superseded] = []
    index = index_of(store, on_superseded=lambda pid, dead: told.extend(dead))
    assert index.warm(PARTITIONS) == PARTITIONS
    assert [sum(dead.records for dead in told if dead.slot == slot) for slot in (1, 2, 3)] == [20, 5, 0]
    assert sum(dead.raw_bytes for dead in told) == 2500
    assert len(index) == len(KEYS)


def test_two_new_keys_of_one_hash_in_one_table_are_told_apart() -> None:
    one, two = two_of_one_hash()
    store = Store()
    index = index_of(store)
    pid = hash_8(one) >> SHIFT
    assert index.get(hash_8(one)) == 0
    store.publish(1, {one: 1, two: 2})
    hashes, _, locs, _ = store.columns_of(1, pid)
    # in slices of one record, as they may fall
    assert index.install(pid, hashes[:1], locs[:1]) == [0]
    assert index.install(pid, hashes[1:], locs[1:]) == [0]
    assert sorted(index.find_many([one, two], [hash_8(one)] * 2)) == list(locs)
    assert index.shared == (hash_8(one),)


def test_new_key_whose_look_up_missed_a_table_that_was_being_sealed_is_told_apart() -> None:
    one, two = two_of_one_hash()
    store = Store()
    index = index_of(store)
    pid = hash_8(one) >> SHIFT
    assert index.find(two, hash_8(two)) == 0  # the put of `two`: nothing is sealed yet
    store.publish(1, {one: 1})
    hashes, _, locs, _ = store.columns_of(1, pid)
    index.install(pid, hashes, locs)
    assert index.share_with(1, [hash_8(two)]) == [hash_8(two)]
    assert index.share_with(1, [hash_8(two)]) == []
    store.publish(2, {two: 2})
    hashes, _, locs, _ = store.columns_of(2, pid)
    assert index.install(pid, hashes, locs) == [0]
    assert index.find(one, hash_8(one)) >> 40 == 1
    assert index.find(two, hash_8(two)) >> 40 == 2
    # and after a restart, from the columns and what the manifest kept
    again = index_of(store, shared=index.shared)
    assert [again.find(key, hash_8(key)) >> 40 for key in (one, two)] == [1, 2]


def test_install_of_what_a_load_took_in_already_replaces_nothing_and_shares_nothing() -> None:
    store = Store()
    store.publish(1, {key: n + 1 for n, key in enumerate(KEYS[:3])})
    index = index_of(store)
    index.warm(PARTITIONS)
    for pid in range(PARTITIONS):
        hashes, _, locs, _ = store.columns_of(1, pid)
        assert index.install(pid, hashes, locs) == [0] * len(hashes)
    assert index.shared == () and len(index) == 3


def test_load_goes_by_seqs_not_by_the_order_of_segments() -> None:
    """A merge writes old records into a new segment."""
    one, two = two_of_one_hash()
    store = Store()
    store.publish(1, {one: 7, two: 3})
    store.publish(2, {one: 5, two: 4})
    index = index_of(store)
    assert [index.find(key, hash_8(key)) >> 40 for key in (one, two)] == [1, 2]
    store.publish(3, {KEYS[0]: 9})
    store.publish(4, {KEYS[0]: 8})
    assert index_of(store).find(KEYS[0], hash_8(KEYS[0])) >> 40 == 3


def test_shared_hash_moves_and_is_discarded_key_by_key() -> None:
    one, two = two_of_one_hash()
    hashed = hash_8(one)
    store = Store()
    store.publish(1, {one: 1, two: 2})
    index = index_of(store)
    old = index.find_many([one, two], [hashed] * 2)
    new = [loc + (1 << 40) for loc in old]
    assert index.discard(hashed, new[0]) is False and len(index) == 2
    assert index.move(hashed >> SHIFT, [hashed] * 2, old, new) == [True, True]
    # loaded from the merge's output, before it was moved in
    assert index.move(hashed >> SHIFT, [hashed] * 2, old, new) == [True, True]
    assert index.find_many([one, two], [hashed] * 2) == new
    assert index.move(hashed >> SHIFT, [hashed], [old[0]], [old[1]]) == [False]
    assert index.discard(hashed, new[1]) is True
    assert index.find_many([one, two], [hashed] * 2) == [new[0], 0]


def test_warm_loads_again_what_was_unloaded() -> None:
    index = index_of(Store())
    assert [index.warm(3), index.warm(3), index.warm(3)] == [3, 1, 0]
    index.unload(0)
    assert [index.warm(3), index.warm(3)] == [1, 0]


class Unreadable(Store):
    def key_at(self, loc: int) -> bytes:
        raise CorruptData("block 3 does not verify")


def test_error_of_a_key_that_cannot_be_read_leaves_nothing_half_done() -> None:
    one, two = two_of_one_hash()
    store = Unreadable()
    index = index_of(store)
    pid = hash_8(one) >> SHIFT
    index.get(hash_8(one))
    store.publish(1, {one: 1, two: 2})
    hashes, _, locs, _ = store.columns_of(1, pid)
    with pytest.raises(CorruptData):
        index.install(pid, hashes, locs)
    assert not index.loaded(pid)
    with pytest.raises(CorruptData):
        index.find(one, hash_8(one))
    assert not index.loaded(pid)


def test_share_that_cannot_read_the_other_key_changes_nothing() -> None:
    one, _ = two_of_one_hash()
    store = Unreadable()
    store.publish(1, {one: 1})
    index = index_of(store)
    loc = index.get(hash_8(one))
    with pytest.raises(CorruptData):
        index.share(hash_8(one))
    assert index.get(hash_8(one)) == loc and index.shared == ()


def test_shared_hashes_that_cannot_be_kept_change_nothing() -> None:
    one, two = two_of_one_hash()
    store = Store()
    store.publish(1, {one: 1, two: 2})
    kept: list[tuple[int, ...]] = []

    def keep(shared: tuple[int, ...]) -> None:
        if not kept:
            kept.append(shared)
            raise OSError("disk full")
        kept.append(shared)

    index = index_of(store, on_shared=keep)
    with pytest.raises(OSError, match="disk full"):
        index.find(one, hash_8(one))
    assert index.shared == () and not index.loaded(hash_8(one) >> SHIFT)
    assert index.find(one, hash_8(one))
    assert index.share(hash_8(one)) is False
    assert kept == [(hash_8(one),)] * 2


def test_keys_of_one_segment_stay_apart_when_one_of_them_leaves_it() -> None:
    """What the columns of one segment gave away, those of two do not any more."""
    one, two = two_of_one_hash()
    store = Store()
    store.publish(1, {one: 1, two: 2})
    kept: list[tuple[int, ...]] = []
    index_of(store, on_shared=kept.append).find(one, hash_8(one))
    del store.segments[1]
    store.publish(2, {one: 1})
    store.publish(3, {two: 2})
    again = index_of(store, shared=kept[-1])
    assert [again.find(key, hash_8(key)) >> 40 for key in (one, two)] == [2, 3]


def test_warm_passes_over_a_partition_that_cannot_be_loaded() -> None:
    class Damaged(Store):
        def load(self, pid: int) -> list[Columns]:
            if pid == 1:
                raise CorruptData("key index of segment 7")
            return []

    index = index_of(Damaged())
    with pytest.raises(CorruptData):
        index.warm(PARTITIONS)
    assert index.warm(PARTITIONS) == 2
    assert [index.loaded(pid) for pid in range(PARTITIONS)] == [True, False, True, True]


def test_error_of_load_passes_through_and_the_next_touch_tries_again() -> None:
    calls = []

    def load(pid: int) -> list[Columns]:
        calls.append(pid)
        raise CorruptData("key index of segment 7")

    index = HashIndex(PARTITIONS, SHIFT, load, Store().key_at)
    touches: list[Callable[[], object]] = [
        lambda: index.get(0),
        lambda: index.warm(1),
        lambda: index.install(0, [1], [2]),
    ]
    for touch in touches:
        with pytest.raises(CorruptData):
            touch()
    assert calls == [0, 0, 0] and not index.loaded(0)


def test_install_of_a_segment_that_load_does_not_know_is_refused() -> None:
    index = index_of(Store())
    with pytest.raises(AssertionError, match="sources"):
        index.install(0, [1], [pack_loc(1, 0)])


def test_location_holds_slot_place_and_flags() -> None:
    loc = pack_loc((1 << 24) - 2, (1 << 32) - 1, TOMBSTONE)
    assert (slot_of(loc), place_of(loc), loc & 255) == ((1 << 24) - 2, (1 << 32) - 1, TOMBSTONE)
    assert loc < EMPTY


def test_bytes_grow_with_what_is_loaded() -> None:
    store = Store()
    store.publish(1, {key: n + 1 for n, key in enumerate(KEYS)})
    index = index_of(store)
    empty = index.bytes
    index.warm(1)
    some = index.bytes
    index.warm(PARTITIONS)
    assert empty < some < index.bytes
