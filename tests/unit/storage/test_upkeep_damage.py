"""What upkeep does about damage: each case lost something, brought something back, or stopped all writing when it was first tried."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from tests.unit.storage.faulty import FaultyFiles
from tests.unit.storage.powerless import PowerlessFiles
from tests.unit.storage.stores import Store
from zkv.codec import records
from zkv.codec.segment import INDEX_ROW_BYTES
from zkv.core.effects import Join
from zkv.core.messages import Record, RecordBlock
from zkv.core.versions import VersionSet
from zkv.errors import DiskFull, StorageFailed
from zkv.ids import StoredKey, actor_of, stored_key
from zkv.storage import policy
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import MANIFEST, Manifest

MINUTE_NS = 60_000_000_000


def key(number: int) -> StoredKey:
    return stored_key(1, b"k%05d" % number)


def fill(store: Store, first: int, last: int, text: bytes = b"value %d ") -> dict[bytes, bytes]:
    values: dict[bytes, bytes] = {key(n): (text % n) * 12 for n in range(first, last)}
    for one, value in values.items():
        store.put({one: value})
    return values


def go(store: Store, turns: int = 400) -> None:
    for _ in range(turns):
        store.turn()
        store.now_ns += MINUTE_NS


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def equal(store: Store, values: dict[bytes, bytes]) -> bool:
    return all(store.get(one) == value for one, value in values.items())


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def store(files: FaultyFiles, tmp_path: Path) -> Store:
    return Store(files, str(tmp_path / "d"), cache_bytes=0)


@pytest.mark.parametrize("mark", [False, True])
def test_what_a_recovery_left_out_is_not_sealed(mark: bool) -> None:
    """Power loss tore a hole into what was never synced; what lies behind the hole verifies, and nobody was promised it."""
    files = PowerlessFiles(random.Random(1))
    store = Store(files, "/d", mark_interval_ns=1)

    def append_unsynced(first: int, last: int) -> None:
        block, _, _ = store.mint({key(n): b"never promised" * 9 for n in range(first, last)})
        store.table.commit(store.log.append([(len(block), *records.block_to_log(block))]))

    store.put({key(0): b"first"})
    inode = files.names[f"/d/wal/{store.log._file.name}"]
    assert inode is not None
    begin = store.log._file.offset
    if mark:
        store.log.turn_done(1, False)
        store.log.turn_done(10, False)
    else:
        append_unsynced(1, 2)
    end = store.log._file.offset
    assert end > begin
    append_unsynced(2, 8)
    inode.sync()
    inode.disk[begin:end] = bytes(end - begin)
    inode.data[:] = inode.disk
    files.kill()
    store = Store(files, "/d")
    assert store.get(key(2)) is None and not store.recovery.degraded
    acked = fill(store, 10, 60)
    assert store.table.frozen
    go(store)
    assert not store.table.frozen and not store.upkeep.failures
    assert equal(store, acked) and not any(store.get(key(n)) for n in range(1, 8))


def test_step_that_straddles_two_log_files_shares_no_hash_with_itself(files: FaultyFiles, tmp_path: Path) -> None:
    store = Store(files, str(tmp_path / "d"), file_bytes=16_384)
    dice = random.Random(1)
    for number in range(300):
        store.put({key(n): b"%d" % number * 8 for n in dice.sample(range(500), 60)})
        if number % 5 == 0:
            store.settle()
    assert store.upkeep.seals > 5
    assert store.log.manifest.shared_hashes == ()


def test_log_file_that_cannot_be_read_any_more_is_sealed_from_memory(store: Store, tmp_path: Path) -> None:
    values = fill(store, 0, 100)
    flip(tmp_path / "d" / "wal" / store.log._closed_files[0].name, 300)
    go(store)
    assert not store.table.frozen and equal(store, values)
    assert any("log_unreadable" in note for note in store.notes)
    store.close()
    again = Store(store.files, store.path)
    assert not again.recovery.degraded and equal(again, values)


def test_key_index_that_cannot_be_read_is_made_again_from_the_records(store: Store, files: FaultyFiles) -> None:
    values = fill(store, 0, 100)
    store.settle()
    segment = store.sealed.segment(1)
    store.close()
    flip(Path(segment.path), segment._footer.index_offset + 3)
    store = Store(files, store.path, cache_bytes=0)
    assert equal(store, values) and store.get(key(7_000)) is None
    assert any("key_index_unreadable" in note for note in store.notes)
    values |= fill(store, 50, 200, b"later %d ")
    go(store)
    assert not store.table.frozen and equal(store, values)
    assert 1 not in [state.id for state in store.sealed.states()], "what is damaged is not merged"


def test_partition_with_an_unreadable_part_holds_no_absent_key_until_it_is_restored(
    store: Store, files: FaultyFiles
) -> None:
    fill(store, 0, 100)
    store.settle()
    segment = store.sealed.segment(1)
    pid = segment.partitions()[0]
    run = segment.run(pid)
    assert run is not None
    block = segment.directory.offsets[run[0]] + 40
    index = segment._footer.index_offset + run[2] * INDEX_ROW_BYTES + 3
    store.close()
    flip(Path(segment.path), block)
    flip(Path(segment.path), index)
    store = Store(files, store.path, cache_bytes=0)
    absent = next(key(n) for n in range(9_000, 10_000) if store.table._partition_of(key(n)) == pid)
    elsewhere = next(key(n) for n in range(9_000, 10_000) if store.table._partition_of(key(n)) != pid)
    assert store.table.find([absent])[1] == {absent}
    assert store.table.find([elsewhere]) == ([None], frozenset())
    actor = actor_of(b"another!", 1)
    block_of_others = RecordBlock([Record(absent, 1, 0, None, VersionSet((), {actor: 3}))])
    assert store.table.join(Join(1, block_of_others, True))[2] is not None, "nobody knows what is here"
    logged, _, statuses, _ = store.table.join(Join(2, block_of_others, True, restores=True))
    assert statuses is None and logged is not None
    store.table.commit(store.log.append([(1, *records.block_to_log(logged))]))
    store.sync()
    for one in [key(n) for n in range(200, 300)]:
        if store.table._partition_of(one) != pid:
            store.put({one: b"more" * 30})
    go(store)
    held, unreadable = store.table.find([absent])
    assert not unreadable and held[0] is not None, "what came later than the damage can be trusted"


def test_damaged_segment_does_not_keep_the_others_from_being_merged(store: Store) -> None:
    for number in range(6):
        fill(store, 0, 60, b"%d of round " + b"%d" % number)
    store.settle()
    slot = store.sealed.states()[0].id
    flip(Path(store.sealed.segment(slot).path), 64 + 40)
    for number in range(30):
        fill(store, 100, 150, b"%d of round more " + b"%d" % number)
        go(store, 60)
    assert store.upkeep.failures <= 2
    assert len(store.sealed._segments) < 12 and not store.table.frozen


def test_manifest_that_rots_after_merges_and_seals_costs_nothing(store: Store, files: FaultyFiles) -> None:
    values: dict[bytes, bytes] = {}
    for number in range(8):
        values |= fill(store, 0, 80, b"%d of round " + b"%d" % number)
        store.settle()
    assert store.upkeep.merges
    store.close()
    Path(store.path, MANIFEST).write_bytes(b"rotten")
    Path(store.path, "seg", "readme").write_bytes(b"no segment")
    for opening in range(3):
        store = Store(files, store.path, cache_bytes=0)
        assert store.recovery.manifest_fell_back == (opening == 0)
        if opening == 0:
            assert store.log.manifest.unsynced and any(
                "seg/readme" in note for note in store.notes + store.recovery.notes
            )
        assert not store.recovery.corrupt and not store.recovery.lost_segments
        assert equal(store, values)
        store.close()


def test_sealing_that_is_in_force_is_gone_on_with_after_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    values = fill(store, 0, 60)
    trouble = [DiskFull("no space for the manifest"), OSError(errno.EIO, "the disk does not answer")]
    share_with = store.sealed.share_with

    def sharing(slot: int, keys: list[bytes]) -> None:
        if trouble:
            raise trouble.pop()
        share_with(slot, keys)

    monkeypatch.setattr(store.sealed, "share_with", sharing)
    values |= fill(store, 60, 80)
    while not store.upkeep.failures:
        store.turn()
    assert store.table.frozen and store.upkeep.seals == 0
    assert 1 not in [state.id for state in store.sealed.states()], "no merge may take it before it is complete"
    assert equal(store, values)
    go(store)
    assert not trouble and store.upkeep.failures == 2
    assert not store.table.frozen and equal(store, values)


def test_merge_whose_result_cannot_be_named_leaves_everything_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        values = fill(store, 0, 60, b"%d of round " + b"%d" % number)
    named = LogStore.update_manifest
    refused: list[object] = []

    def update(log: LogStore, **changes: object) -> Manifest:
        if list(changes) == ["segments"] and not refused:
            refused.append(changes)
            raise DiskFull("no space for the manifest")
        return named(log, **changes)

    monkeypatch.setattr(LogStore, "update_manifest", update)
    while not refused:
        store.turn()
        store.now_ns += MINUTE_NS
    named_now = {f"{tree['id']:016x}.seg" for tree in store.log.manifest.segments}
    assert named_now <= {path.name for path in Path(store.path, "seg").iterdir()}
    assert equal(store, values)
    go(store)
    assert store.upkeep.merges and equal(store, values)
    assert {f"{tree['id']:016x}.seg" for tree in store.log.manifest.segments} == {
        path.name for path in Path(store.path, "seg").iterdir()
    }


class NthFails(FaultyFiles):
    """The call with this number fails, and no other."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__()
        self.number = number
        self.code = code
        self.failed = ""

    def _called(self, name: str) -> None:
        super()._called(name)
        if len(self.calls) == self.number:
            self.failed = name
            raise OSError(self.code, f"call {self.number}, {name}")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("stage", ["seal", "merge"])
def test_one_call_that_fails_and_an_end_right_then_lose_nothing(
    tmp_path: Path, stage: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a manifest came under its name and the sync of its directory failed: it may be the one that is read next."""
    number, reached = 0, True
    while reached:
        number += 1
        files = NthFails(0, code)
        path = tmp_path / f"{number}"
        store = Store(files, str(path), cache_bytes=0)
        values: dict[bytes, bytes] = {}
        with monkeypatch.context() as patch:
            patch.setattr(policy, "plan", lambda states: None)
            for round_ in range(1 if stage == "seal" else 4):
                for n in range(0, 40, 1 if round_ == 0 else 2):  # no segment is all dead
                    values |= fill(store, n, n + 1, b"%d of round " + b"%d" % round_)
                while stage == "merge" and store.table.frozen:
                    store.turn()
        files.number = len(files.calls) + number
        try:
            for _ in range(400):
                store.turn()
                if files.failed:
                    store.turn()
                    break
        except StorageFailed:
            assert files.failed
        reached = bool(files.failed)
        store.drop()
        again = Store(FaultyFiles(), str(path), cache_bytes=0)
        assert not again.recovery.lost_segments, (number, files.failed)
        assert not again.recovery.corrupt and equal(again, values), (number, files.failed)
        again.close()
    assert number > 20
