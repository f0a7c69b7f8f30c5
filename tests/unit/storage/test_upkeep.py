from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.unit.storage.faulty import FaultyFiles
from tests.unit.storage.stores import Store
from zkv.core.messages import Status
from zkv.errors import CorruptData
from zkv.ids import stored_key
from zkv.storage import upkeep
from zkv.storage.segment_check import checks_of
from zkv.storage.verify import Report, verify_directory

KEYS = [stored_key(1, b"key:%03d" % n) for n in range(300)]


def value_of(dice: random.Random) -> bytes:
    return bytes([dice.randrange(97, 123)]) * dice.randrange(1, 120)


@pytest.mark.parametrize("seed", range(6))
def test_store_holds_what_a_dictionary_does_through_seals_merges_and_restarts(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    files = FaultyFiles()
    model: dict[bytes, bytes] = {}
    store = Store(files, str(tmp_path / "d"), cache_bytes=dice.choice([0, 2_000, 1 << 20]))
    for _ in range(300):
        action = dice.random()
        if action < 0.55:
            keys = dice.sample(KEYS, dice.randrange(1, 20))
            values: dict[bytes, bytes | None] = {key: None if dice.random() < 0.2 else value_of(dice) for key in keys}
            store.put(values)
            for key, value in values.items():
                model.pop(key, None)
                if value is not None:
                    model[key] = value
        elif action < 0.85:
            for _ in range(dice.randrange(1, 30)):
                store.turn()
        elif action < 0.9:
            store.close() if dice.random() < 0.5 else store.drop()
            store = Store(files, str(tmp_path / "d"), cache_bytes=dice.choice([0, 2_000, 1 << 20]))
        else:
            for key in dice.sample(KEYS, 10):
                assert store.get(key) == model.get(key)
    store.settle()
    for key in KEYS:
        assert store.get(key) == model.get(key)
    for partition in range(4):
        alive, more = store.table.scan(1, partition, b"", 1000)
        assert not more
        assert alive == [k for k in sorted(model) if store.table._partition_of(k) == partition]
    store.table.check_invariants()
    store.sealed.index.check_invariants()
    assert store.upkeep.failures == 0 and not [note for note in store.notes if note.startswith("error")]
    assert store.log.manifest.next_segment > 1, "nothing was sealed"
    store.close()


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def filled(tmp_path: Path, files: FaultyFiles) -> Iterator[Store]:
    """100 keys of which most lie in closed log files; nothing is sealed yet."""
    store = Store(files, str(tmp_path / "d"))
    for start in range(0, 100, 10):
        store.put({key: key[4:] * 10 for key in KEYS[start : start + 10]})
    yield store
    store.drop()


def all_there(store: Store) -> bool:
    return all(store.get(key) == key[4:] * 10 for key in KEYS[:100])


def test_what_is_sealed_leaves_the_memory_and_the_log(filled: Store, tmp_path: Path) -> None:
    assert filled.table.frozen
    filled.settle()
    assert not filled.table.frozen and all_there(filled) and len(filled.table) == 100
    assert len(filled.table._active) < 50
    assert len(list((tmp_path / "d" / "wal").iterdir())) == 1
    manifest = filled.log.manifest
    assert manifest.wal_floor == filled.log.closed_seq + 1
    assert [f"{tree['id']:016x}.seg" for tree in manifest.segments] == sorted(
        p.name for p in (tmp_path / "d" / "seg").iterdir()
    )
    assert manifest.high_water_stamp == filled.table.stamp_high


@pytest.mark.parametrize("call", ["open", "writev", "fsync", "rename", "fsync_dir", "link"])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_sealing_that_fails_is_tried_again_and_loses_nothing(
    filled: Store, files: FaultyFiles, call: str, after: int
) -> None:
    files.fail(call, errno.ENOSPC, after=after)
    for _ in range(400):
        filled.turn()
    assert all_there(filled)
    if filled.upkeep.failures:
        assert filled.upkeep.next_due_ns(filled.now_ns) == upkeep.RETRY_NS_MIN
        filled.now_ns = upkeep.RETRY_NS_MIN
    files.faults.clear()
    filled.settle()
    assert all_there(filled) and not filled.table.frozen


def test_while_too_much_waits_nothing_is_taken_in_and_then_it_goes_on(filled: Store) -> None:
    before = len(filled.table.frozen)
    for number in range(1000):
        if filled.upkeep.behind:
            break
        filled.put({stored_key(1, b"more:%d" % number): b"x" * 1000})
    assert filled.upkeep.behind and len(filled.table.frozen) > before
    filled.settle()
    assert not filled.upkeep.behind and all_there(filled)


def test_segment_whose_bytes_changed_is_unreadable_and_never_absent(filled: Store, tmp_path: Path) -> None:
    filled.settle()
    path = min((tmp_path / "d" / "seg").iterdir())
    data = bytearray(path.read_bytes())
    for at in range(64, len(data) // 2):
        data[at] ^= 1
    path.write_bytes(data)
    keys: list[bytes] = list(KEYS[:100])
    held, unreadable = filled.table.find(keys)
    assert unreadable
    assert all(one is not None or key in unreadable for key, one in zip(keys, held, strict=True))
    with pytest.raises(CorruptData, match="cannot be read"):
        filled.table.read(keys)
    partition = filled.table._partition_of(min(unreadable))
    with pytest.raises(CorruptData):
        filled.table.scan(1, partition, b"", 1000)
    with pytest.raises(CorruptData):
        filled.table.page([0, 1, 2, 3], b"", 1 << 20)
    key = next(iter(unreadable))
    assert filled.mint({key: b"new"})[2] == [Status.CORRUPT]
    assert filled.sealed.unreadable and any("record_unreadable" in note for note in filled.notes)


@pytest.mark.parametrize("damage", ["gone", "short", "footer", "tree"])
def test_segment_that_cannot_be_opened_makes_the_store_unsynced(
    filled: Store, tmp_path: Path, files: FaultyFiles, damage: str
) -> None:
    filled.settle()
    directory = tmp_path / "d"
    path = min((directory / "seg").iterdir())
    if damage == "tree":
        first, *others = filled.log.manifest.segments
        filled.log.update_manifest(segments=({**first, "codec": "zip"}, *others))
    filled.close()
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "footer":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    store = Store(files, str(directory))
    assert store.recovery.lost_segments == [path.name] and store.recovery.degraded
    assert store.log.manifest.unsynced
    assert path.name not in {f"{tree['id']:016x}.seg" for tree in store.log.manifest.segments}
    assert any(path.name in note for note in store.recovery.notes)
    if damage != "gone":
        assert (directory / "quarantine" / path.name).exists()
        assert path.exists(), "nothing is removed from a damaged directory"
    store.close()


def test_files_that_no_manifest_names_are_removed_at_the_start(
    filled: Store, tmp_path: Path, files: FaultyFiles
) -> None:
    filled.settle()
    filled.close()
    orphan = tmp_path / "d" / "seg" / f"{999:016x}.seg"
    orphan.write_bytes(b"left by a crash")
    store = Store(files, str(tmp_path / "d"))
    assert not orphan.exists() and all_there(store)
    store.close()


def test_log_file_that_cannot_be_unlinked_is_said_and_tried_at_the_next_start(
    filled: Store, tmp_path: Path, files: FaultyFiles
) -> None:
    before = {p.name for p in (tmp_path / "d" / "wal").iterdir()}
    files.fail("unlink", errno.EIO)
    filled.settle()
    left = before & {p.name for p in (tmp_path / "d" / "wal").iterdir()} - {filled.log._file.name}
    assert len(left) == 1 and any("not_unlinked" in note and left.copy().pop() in note for note in filled.notes)
    filled.close()
    store = Store(files, str(tmp_path / "d"))
    assert not left & {p.name for p in (tmp_path / "d" / "wal").iterdir()}
    assert all_there(store)
    store.close()


def test_verify_reads_segments_too(filled: Store, tmp_path: Path) -> None:
    filled.settle()
    filled.close()
    path = str(tmp_path / "d")

    def report() -> Report:
        return verify_directory(FaultyFiles(), path, partial(checks_of, FaultyFiles(), path))

    whole = report()
    assert whole.whole and whole.segments == len(filled.log.manifest.segments)
    assert whole.sealed_records + whole.records >= 100
    segment = min((tmp_path / "d" / "seg").iterdir())
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    (damage,) = report().damages
    assert damage.file == f"seg/{segment.name}"


def test_disk_that_does_not_answer_makes_records_unreadable_and_stops_nothing(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FaultyFiles, fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    filled.settle()
    sealed: list[bytes] = [key for key in KEYS[:100] if key not in filled.table._active.sets]
    monkeypatch.setattr(FaultyFiles, "pread", broken)
    held, unreadable = filled.table.find(sealed)
    assert unreadable == {key for key, one in zip(sealed, held, strict=True) if one is None} and unreadable
    with pytest.raises(CorruptData, match="Input/output"):
        filled.table.scan(1, filled.table._partition_of(min(unreadable)), b"", 1000)
    monkeypatch.undo()
    assert all_there(filled)
