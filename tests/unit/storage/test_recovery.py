from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.storage.faulty import Rig, bodies_of, flip
from zkv.codec.log import BATCH_HEADER_BYTES, FILE_HEADER_BYTES, FileHeader, encode_file_header
from zkv.errors import CorruptData, StorageError, VersionMismatch
from zkv.storage.manifest import load_manifest
from zkv.storage.recovery import CorruptRange, Recovery, list_log_files, log_name, recover

BODIES = {1: b"one", 2: b"two!", 3: b"three", 4: b"four..", 5: b"5", 6: b"six six"}


@pytest.fixture
def killed(tmp_path: Path) -> Rig:
    """Six batches, the first four durable and marked so by the fifth; then the process is killed."""
    rig = Rig(tmp_path / "live").open()
    for seq, body in BODIES.items():
        if seq == 5:
            rig.sync()
        rig.append(body)
    copy = rig.crash(tmp_path / "killed")
    (file,) = copy.wal
    file.write_bytes(file.read_bytes()[: rig.store._file.offset])
    return copy


def looked_at(rig: Rig) -> Recovery:
    """What recovery says, nothing changed."""
    manifest, _fell_back = load_manifest(rig.files, str(rig.path))
    return recover(rig.files, str(rig.path), manifest)


def seqs(recovery: Recovery) -> list[int]:
    return list(bodies_of(recovery))


def at(seq: int) -> int:
    """Where the batch of `seq` begins."""
    return FILE_HEADER_BYTES + sum(BATCH_HEADER_BYTES + len(BODIES[before]) for before in range(1, seq))


def reopened(rig: Rig, path: Path) -> Rig:
    return rig.crash(path).open()


def test_truncation_at_every_byte_keeps_acked_and_invents_nothing(killed: Rig) -> None:
    """Acknowledged is what the manifest or a later header says is durable; a log cut below that must say what is gone."""
    (file,) = killed.wal
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        recovery = looked_at(killed)
        found = bodies_of(recovery)
        assert found.items() <= BODIES.items()
        fit = [seq for seq in BODIES if at(seq) + BATCH_HEADER_BYTES + len(BODIES[seq]) <= length]
        gone = {seq for lost in recovery.corrupt for seq in range(lost.first_seq, lost.last_seq + 1)}
        assert list(found) == fit
        assert gone == set(range(len(fit) + 1, recovery.watermark + 1))
        assert recovery.last_seq == max(len(fit), recovery.watermark)


def test_truncation_at_every_byte_of_the_unsynced_part_is_a_torn_tail(killed: Rig, tmp_path: Path) -> None:
    (file,) = killed.wal
    whole = file.read_bytes()
    for length in range(at(5) + BATCH_HEADER_BYTES, len(whole)):
        file.write_bytes(whole[:length])
        again = reopened(killed, tmp_path / f"c{length}")
        assert set(bodies_of(again.recovery)) >= {1, 2, 3, 4}, "acknowledged"
        assert not again.recovery.degraded
        assert again.append(b"next") == again.recovery.last_seq + 1
        twice = reopened(again, tmp_path / f"d{length}")
        assert bodies_of(twice.recovery) == {**bodies_of(again.recovery), again.recovery.last_seq + 1: b"next"}
        assert not twice.recovery.degraded


def test_flip_of_every_bit_is_detected_or_harmless(killed: Rig) -> None:
    (file,) = killed.wal
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        recovery = looked_at(killed)
        found = bodies_of(recovery)
        assert found.items() <= BODIES.items(), "never a wrong record"
        gone = {seq for lost in recovery.corrupt for seq in range(lost.first_seq, lost.last_seq + 1)}
        torn = {seq for seq in BODIES if seq not in found and seq not in gone}
        assert torn <= {5, 6}, "what is durable is there or said to be corrupt"
        assert recovery.degraded is bool(gone)
        assert recovery.damaged_files or recovery.torn_bytes, "no flip goes unnoticed"
        if bit // 8 < at(4):
            assert set(found) | gone == set(BODIES), "damage in the middle costs no other batch"


def test_flip_in_the_last_durable_batch_without_a_later_mark_is_seen_by_the_manifest(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d").open()
    for body in BODIES.values():
        rig.append(body)
    rig.store.close()
    flip(rig.wal[0], at(6) + BATCH_HEADER_BYTES)
    again = Rig(rig.path).open()
    assert again.recovery.corrupt == [CorruptRange(rig.wal[0].name, at(6), 6, 6)]
    assert again.append(b"7") == 7, "the seq of a lost durable record is not given out again"


def test_corruption_keeps_what_verifies_and_quarantines_the_file(killed: Rig, tmp_path: Path) -> None:
    (file,) = killed.wal
    flip(file, at(2) + BATCH_HEADER_BYTES)
    damaged = file.read_bytes()
    again = reopened(killed, tmp_path / "a")
    recovery = again.recovery
    assert seqs(recovery) == [1, 3, 4, 5, 6]
    assert recovery.corrupt == [CorruptRange(file.name, at(2), 2, 2)]
    assert recovery.degraded
    assert again.store.manifest.unsynced
    assert any("durable records 2 to 2 cannot be read" in note for note in recovery.notes)
    assert (again.path / "quarantine" / file.name).read_bytes() == damaged
    assert (again.path / "wal" / file.name).read_bytes() == damaged, "nothing is removed or cut after damage"
    assert again.append(b"seven") == 7


def test_damage_stops_every_clean_up(killed: Rig, tmp_path: Path) -> None:
    """The bytes that a person may still want are left as they were found, zeros and taken-over files included."""
    file = killed.wal[0]
    file.write_bytes(file.read_bytes() + bytes(1000))
    (killed.path / "wal" / log_name(1, 7)).write_bytes(bytes(500))
    flip(file, at(2) + BATCH_HEADER_BYTES)
    before = {path.name: path.read_bytes() for path in killed.wal}
    again = reopened(killed, tmp_path / "a")
    assert {name: (again.path / "wal" / name).read_bytes() for name in before} == before
    flip(file, at(2) + BATCH_HEADER_BYTES)
    again = reopened(killed, tmp_path / "b")
    sizes = [path.stat().st_size for path in again.wal]
    assert sizes == [at(6) + BATCH_HEADER_BYTES + len(BODIES[6]), 4096], "without damage both are cleaned up"


def test_corruption_made_good_stays_known_and_does_not_come_up_again(killed: Rig, tmp_path: Path) -> None:
    flip(killed.wal[0], at(2) + BATCH_HEADER_BYTES)
    again = reopened(killed, tmp_path / "a")
    again.store.update_manifest(unsynced=False)  # compared with the other replicas
    again.store.close()
    twice = Rig(again.path).open()
    assert [lost[2:] for lost in twice.recovery.corrupt] == [(2, 2)]
    assert not twice.store.manifest.unsynced
    assert seqs(twice.recovery) == [1, 3, 4, 5, 6]
    twice.store.close()
    flip(twice.path / "wal" / killed.wal[0].name, at(3) + BATCH_HEADER_BYTES)
    assert Rig(again.path).open().store.manifest.unsynced, "more damage is news"


def test_corruption_that_cannot_be_quarantined_is_noted(killed: Rig, tmp_path: Path) -> None:
    flip(killed.wal[0], at(2))
    rig = killed.crash(tmp_path / "a")
    rig.files.fail("link")
    rig.open()
    assert any("could not be linked" in note for note in rig.recovery.notes)


def test_several_breaks_are_each_told(killed: Rig) -> None:
    for seq in (1, 3):
        flip(killed.wal[0], at(seq) + 1)
    recovery = looked_at(killed)
    assert [lost[2:] for lost in recovery.corrupt] == [(1, 1), (3, 3)]
    assert seqs(recovery) == [2, 4, 5, 6]
    assert recovery.damaged_files == [killed.wal[0].name]


def test_corruption_and_a_torn_tail_are_told_apart_in_one_file(killed: Rig, tmp_path: Path) -> None:
    flip(killed.wal[0], at(2))
    flip(killed.wal[0], at(6) + BATCH_HEADER_BYTES)
    again = reopened(killed, tmp_path / "a")
    assert seqs(again.recovery) == [1, 3, 4, 5]
    assert [lost[2:] for lost in again.recovery.corrupt] == [(2, 2)]
    assert again.recovery.torn_bytes == BATCH_HEADER_BYTES + len(BODIES[6])
    assert again.append(b"other six") == 6
    twice = reopened(again, tmp_path / "b")
    assert bodies_of(twice.recovery) == {**{seq: BODIES[seq] for seq in (1, 3, 4, 5)}, 6: b"other six"}


def test_torn_tail_with_later_batches_ends_the_log(killed: Rig, tmp_path: Path) -> None:
    """Pages reach the disk in any order: batch 6 is whole, 5 is not, and nobody was promised either."""
    flip(killed.wal[0], at(5) + BATCH_HEADER_BYTES)
    again = reopened(killed, tmp_path / "a")
    assert seqs(again.recovery) == [1, 2, 3, 4]
    assert not again.recovery.corrupt
    assert again.append(b"new five") == 5
    again.sync()
    again.append(b"new six")
    twice = reopened(again, tmp_path / "b")
    assert bodies_of(twice.recovery) == {**{seq: BODIES[seq] for seq in (1, 2, 3, 4)}, 5: b"new five", 6: b"new six"}
    assert not twice.recovery.degraded, "the old tail is not mistaken for damage by the newer mark"


def test_zeroed_durable_batch_is_damage_not_the_end(killed: Rig) -> None:
    file = killed.wal[0]
    data = bytearray(file.read_bytes())
    data[at(3) : at(5)] = bytes(at(5) - at(3))
    file.write_bytes(data)
    recovery = looked_at(killed)
    assert recovery.corrupt == [CorruptRange(file.name, at(3), 3, 4)]
    assert seqs(recovery) == [1, 2, 5, 6]


def test_recovered_tail_is_copied_and_synced_before_it_counts_as_durable(killed: Rig, tmp_path: Path) -> None:
    """After a failed sync the page cache shows what the disk never got: what recovery read must be written anew."""
    again = reopened(killed, tmp_path / "a")
    assert (again.store.durable_seq, again.recovery.watermark) == (6, 4)
    assert "wal" in again.files.synced_directories
    old, new = again.wal
    assert new.name == log_name(2, 5)
    assert BODIES[5] in new.read_bytes()
    assert BODIES[6] in new.read_bytes()
    old.write_bytes(old.read_bytes()[: at(5)])
    assert bodies_of(again.recovery) == BODIES
    assert again.files.calls.index("fsync") < again.files.calls.index("rename", again.files.calls.index("fsync"))


def test_recovery_of_a_recovery_finds_the_same_many_times(killed: Rig, tmp_path: Path) -> None:
    rig = killed
    for round_ in range(4):
        rig = reopened(rig, tmp_path / str(round_))
        assert bodies_of(rig.recovery) == BODIES
        assert not rig.recovery.degraded
    assert len(rig.wal) == 3, "files that hold nothing any more are removed"


def test_batches_can_be_read_while_the_store_is_written(killed: Rig, tmp_path: Path) -> None:
    again = reopened(killed, tmp_path / "a")
    for _ in range(3):
        again.append(b"x" * 3000)
    assert bodies_of(again.recovery) == BODIES


def test_batches_of_a_file_that_changed_are_corrupt(killed: Rig, tmp_path: Path) -> None:
    again = reopened(killed, tmp_path / "a")
    file = again.wal[0]
    flip(file, at(2) + BATCH_HEADER_BYTES)
    with pytest.raises(CorruptData, match="batch 2 changed"):
        bodies_of(again.recovery)
    file.write_bytes(file.read_bytes()[: at(2)])
    with pytest.raises(CorruptData, match="became shorter"):
        bodies_of(again.recovery)


# --- file headers and whole files ---


def test_damaged_file_header_loses_no_record(killed: Rig, tmp_path: Path) -> None:
    for offset in range(FILE_HEADER_BYTES):
        flip(killed.wal[0], offset)
        recovery = looked_at(killed)
        assert bodies_of(recovery) == BODIES
        assert recovery.damaged_files == [killed.wal[0].name]
        flip(killed.wal[0], offset)
    flip(killed.wal[0], 0)
    again = reopened(killed, tmp_path / "a")
    assert bodies_of(again.recovery) == BODIES
    assert (again.path / "quarantine" / killed.wal[0].name).exists()


def test_file_of_another_store_is_damage(killed: Rig) -> None:
    other = Rig(killed.path.parent / "other").open(mint=lambda length: b"x" * length)
    other.append(b"foreign")
    other.store.close()
    killed.wal[0].write_bytes(other.wal[0].read_bytes())
    recovery = looked_at(killed)
    assert seqs(recovery) == []
    assert recovery.damaged_files == [killed.wal[0].name]


def test_file_of_a_newer_version_stops_the_opening(killed: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    header = killed.wal[0].read_bytes()[:FILE_HEADER_BYTES]
    assert header == encode_file_header(looked_at_header(killed))
    monkeypatch.setattr("zkv.codec.log.LOG_VERSION", 9)
    newer = encode_file_header(looked_at_header(killed))
    monkeypatch.undo()
    data = newer + killed.wal[0].read_bytes()[FILE_HEADER_BYTES:]
    killed.wal[0].write_bytes(data)
    with pytest.raises(VersionMismatch, match="log version 9"):
        killed.open()
    assert killed.wal[0].read_bytes() == data
    assert not killed.files.open_fds


def looked_at_header(rig: Rig) -> FileHeader:
    manifest, _fell_back = load_manifest(rig.files, str(rig.path))
    return FileHeader(manifest.store_id, 1, 1, 0)


def many_files(tmp_path: Path) -> Rig:
    """Six files of one batch each, all durable, then one that nobody was promised; killed."""
    rig = Rig(tmp_path / "live", file_bytes=200).open()
    for number in range(1, 7):
        rig.append(b"%d" % number * 150)
        rig.sync()
        rig.sync()
    rig.append(b"7" * 150)
    return rig.crash(tmp_path / "killed")


def test_lost_file_in_the_middle_is_damage(tmp_path: Path) -> None:
    rig = many_files(tmp_path)
    assert len(rig.wal) == 7
    rig.wal[2].unlink()
    recovery = looked_at(rig)
    assert recovery.corrupt == [CorruptRange(log_name(1, 2), 64 + 40 + 150, 3, 3)]
    assert seqs(recovery) == [1, 2, 4, 5, 6, 7]


def test_lost_first_file_is_damage(tmp_path: Path) -> None:
    rig = many_files(tmp_path)
    rig.wal[0].unlink()
    again = reopened(rig, tmp_path / "a")
    assert again.recovery.corrupt == [CorruptRange("", 0, 1, 1)]
    assert seqs(again.recovery) == [2, 3, 4, 5, 6, 7]
    assert any("a log file that is gone" in note for note in again.recovery.notes)


def test_lost_files_all_of_them_is_damage_up_to_the_manifest(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d").open()
    rig.append(b"x", records=9)
    rig.store.close()
    rig.wal[0].unlink()
    again = Rig(rig.path).open()
    assert again.recovery.corrupt == [CorruptRange("", 0, 1, 9)]
    assert again.append(b"ten") == 10


def test_damage_over_a_file_border_is_told_per_file(tmp_path: Path) -> None:
    rig = many_files(tmp_path)
    for file in rig.wal[2:4]:
        flip(file, FILE_HEADER_BYTES + 1)
    recovery = looked_at(rig)
    assert [lost[2:] for lost in recovery.corrupt] == [(3, 3), (4, 4)]
    assert recovery.damaged_files == [log_name(1, 3), log_name(1, 4)]


def test_unsynced_rotation_lost_in_the_middle_is_a_torn_tail(tmp_path: Path) -> None:
    """Power is lost after a rotation, before any sync: the new file's pages are on disk, the end of the old one is not."""
    rig = Rig(tmp_path / "live", file_bytes=200).open()
    rig.append(b"1" * 50)
    rig.sync()
    rig.append(b"2")
    rig.append(b"3" * 150)
    rig.append(b"4" * 150)
    killed = rig.crash(tmp_path / "killed")
    first = killed.wal[0]
    first.write_bytes(first.read_bytes()[: 64 + 90] + bytes(46))
    again = reopened(killed, tmp_path / "a")
    assert seqs(again.recovery) == [1]
    assert not again.recovery.corrupt
    assert again.recovery.torn_bytes == 2 * 190
    assert len(again.wal) == 4, "a torn tail stays for one more opening"
    assert again.append(b"new 2") == 2
    again.sync()
    again.append(b"new 3")
    twice = reopened(again, tmp_path / "b")
    assert bodies_of(twice.recovery) == {1: b"1" * 50, 2: b"new 2", 3: b"new 3"}
    assert not twice.recovery.degraded
    assert len(twice.wal) == 3


def test_lost_first_file_that_nobody_was_promised_is_torn(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "live", file_bytes=200).open()
    rig.append(b"1" * 150)
    rig.append(b"2" * 150)
    killed = rig.crash(tmp_path / "killed")
    killed.wal[0].unlink()
    again = reopened(killed, tmp_path / "a")
    assert seqs(again.recovery) == []
    assert not again.recovery.corrupt
    assert again.append(b"one") == 1


def test_new_file_whose_header_never_reached_the_disk_is_empty(killed: Rig, tmp_path: Path) -> None:
    (killed.path / "wal" / log_name(1, 7)).write_bytes(bytes(4096))
    again = reopened(killed, tmp_path / "a")
    assert bodies_of(again.recovery) == BODIES
    assert not again.recovery.damaged_files


def test_files_below_the_floor_are_not_read(tmp_path: Path) -> None:
    rig = many_files(tmp_path)
    flip(rig.wal[0], FILE_HEADER_BYTES + 50)
    rig.wal[1].unlink()
    again = rig.open()
    again.store.update_manifest(wal_floor=4)
    again.store.close()
    twice = Rig(rig.path).open()
    assert seqs(twice.recovery) == [4, 5, 6, 7]
    assert not twice.recovery.corrupt


def test_floor_inside_a_file_leaves_out_what_is_below(killed: Rig, tmp_path: Path) -> None:
    again = reopened(killed, tmp_path / "a")
    again.store.update_manifest(wal_floor=3)
    again.store.close()
    flip(again.wal[0], at(1) + 1)
    twice = Rig(again.path).open()
    assert seqs(twice.recovery) == [3, 4, 5, 6]
    assert not twice.recovery.corrupt, "the record below the floor lives elsewhere"


def test_strange_names_in_the_log_directory_are_left_alone(killed: Rig) -> None:
    for name in ("notes.txt", "0-1.wal", "00000001-000000000000000g.wal"):
        (killed.path / "wal" / name).write_text("mine")
    recovery = killed.open().recovery
    assert bodies_of(recovery) == BODIES
    assert len([note for note in recovery.notes if "is not a log file" in note]) == 3
    assert (killed.path / "wal" / "notes.txt").read_text() == "mine"


def test_log_files_are_ordered_by_generation_and_own_disjoint_ranges(killed: Rig) -> None:
    for file in killed.wal:
        file.unlink()
    for generation, first_seq in ((1, 1), (1, 101), (2, 81), (3, 81), (3, 95)):
        (killed.path / "wal" / log_name(generation, first_seq)).touch()
    files, _strange = list_log_files(killed.files, str(killed.path))
    assert [(f.generation, f.first_seq) for f in files if not f.superseded] == [(1, 1), (3, 81), (3, 95)]
    assert [f.limit_seq for f in files if not f.superseded][:2] == [81, 95]


# --- manifests ---


def test_both_manifests_bad_names_the_repair_and_changes_nothing(killed: Rig) -> None:
    for name in ("MANIFEST", "MANIFEST.prev"):
        flip(killed.path / name, 20)
    before = killed.wal[0].read_bytes()
    with pytest.raises(CorruptData, match="zkv repair"):
        killed.open()
    assert killed.wal[0].read_bytes() == before
    for name in ("MANIFEST", "MANIFEST.prev"):
        (killed.path / name).unlink()
    with pytest.raises(CorruptData, match=r"1 log files but no MANIFEST.*zkv repair"):
        killed.open()
    assert not killed.files.open_fds


def test_damaged_manifest_falls_back_and_is_not_trusted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d").open()
    rig.append(b"one")
    rig.store.close()
    flip(rig.path / "MANIFEST", 30)
    again = Rig(rig.path).open()
    assert again.recovery.manifest_fell_back
    assert again.recovery.degraded
    assert not again.recovery.clean_shutdown
    assert again.store.manifest.unsynced
    assert bodies_of(again.recovery) == {1: b"one"}
    again.store.close()
    assert not Rig(rig.path).open().recovery.manifest_fell_back


def test_leftovers_in_tmp_are_removed(killed: Rig) -> None:
    (killed.path / "tmp" / "half").write_text("x")
    killed.open()
    assert not (killed.path / "tmp" / "half").exists()


def test_crash_while_a_store_is_created_is_created_again(tmp_path: Path) -> None:
    for failed_at in range(40):
        rig = Rig(tmp_path / "d")
        rig.files.fail_at = failed_at
        with suppress(StorageError):
            rig.open()
            break
        again = Rig(tmp_path / "d").open()
        assert seqs(again.recovery) == []
        assert again.append(b"one") == 1
        again.store.close()
        shutil.rmtree(tmp_path / "d")
    assert 10 < failed_at < 39
