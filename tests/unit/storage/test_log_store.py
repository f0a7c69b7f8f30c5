from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.unit.storage.faulty import Rig, bodies_of, flip
from zkv.codec.log import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from zkv.errors import ConfigError, DiskFull, StorageError, StorageFailed, StoreLocked
from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore
from zkv.storage.opening import LogOptions

MS = 1_000_000
SECOND = 1_000_000_000


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "data").open()


def test_append_gives_consecutive_seqs_from_one(rig: Rig) -> None:
    assert rig.store.written_seq == 0
    assert rig.append(b"a") == 1
    assert rig.append(b"bc", b"de", records=3) == 7
    assert rig.store.append([]) == 7
    assert (rig.store.written_seq, rig.store.durable_seq) == (7, 0)


def test_append_of_many_blocks_is_one_write(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "data", file_bytes=1 << 20).open()
    before = rig.files.calls.count("writev")
    rig.store.append([(1, 1, [b"x", b"y", b"z"]) for _ in range(10)])
    assert rig.files.calls.count("writev") == before + 1
    rig.store.append([(1, 1, [b"x"]) for _ in range(600)])  # 1,200 parts: more than one writev takes
    assert rig.files.calls.count("writev") == before + 2
    again = rig.crash(rig.path.parent / "copy").open()
    assert list(bodies_of(again.recovery).values()) == [b"xyz"] * 10 + [b"x"] * 600


def test_append_of_a_batch_that_the_header_cannot_count_stops(rig: Rig) -> None:
    for records in (0, 65_536):
        with pytest.raises(AssertionError, match="records"):
            rig.append(b"x", records=records)


def test_reopen_after_close_finds_everything_and_a_clean_shutdown(rig: Rig) -> None:
    rig.append(b"one", b"two")
    rig.store.close()
    assert not rig.files.open_fds
    again = Rig(rig.path).open()
    assert bodies_of(again.recovery) == {1: b"one", 2: b"two"}
    assert again.recovery.clean_shutdown
    assert not again.recovery.created
    assert (again.recovery.last_seq, again.recovery.torn_bytes, again.recovery.notes) == (2, 0, [])
    assert (again.store.durable_seq, again.store.manifest.unsynced) == (2, False)
    assert again.append(b"three") == 3


def test_open_never_writes_an_old_file_again(rig: Rig) -> None:
    rig.append(b"one")
    rig.store.close()
    before = {file.name: file.read_bytes() for file in rig.wal}
    again = Rig(rig.path).open()
    again.append(b"two")
    again.sync()
    for name, data in before.items():
        assert (rig.path / "wal" / name).read_bytes() == data
    assert len(again.wal) == 2


def test_openings_without_writes_leave_no_files_behind(rig: Rig) -> None:
    rig.append(b"one")
    rig.store.close()
    for _ in range(5):
        Rig(rig.path).open().store.close()
    assert len(rig.wal) == 2
    assert sum(file.stat().st_size for file in rig.wal) < 300  # no preallocated rest either


def test_open_draws_an_id_each_time_and_keeps_all(tmp_path: Path) -> None:
    ids = []
    for _ in range(3):
        store, _recovery = LogStore.open(tmp_path / "d", RealFiles(), create=True)
        ids.append(store.open_id)
        store.close()
    store, recovery = LogStore.open(tmp_path / "d", RealFiles())
    assert store.manifest.open_ids == (*ids, store.open_id)
    assert len(set(store.manifest.open_ids)) == 4
    assert recovery.manifest.store_id == store.manifest.store_id
    store.close()


def test_open_without_a_store_creates_nothing_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no zkv store"):
        LogStore.open(tmp_path / "nothing", RealFiles())
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no zkv store"):
        LogStore.open(tmp_path / "empty", RealFiles())
    assert not list((tmp_path / "empty").iterdir())
    store, recovery = LogStore.open(tmp_path / "a" / "b" / "c", RealFiles(), create=True)
    assert recovery.created
    store.close()


def test_open_of_a_directory_in_use_names_the_pid(rig: Rig) -> None:
    with pytest.raises(StoreLocked, match=f"directory in use by pid {os.getpid()}$"):
        Rig(rig.path).open()
    (rig.path / "LOCK").write_text("nonsense")
    with pytest.raises(StoreLocked, match="in use by pid unknown"):
        Rig(rig.path).open()
    rig.store.close()
    Rig(rig.path).open().store.close()


def test_open_with_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="group, interval or never"):
        LogOptions(fsync="sometimes")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EACCES, StorageError)])
def test_open_that_cannot_write_says_why_and_lets_go(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    for name in ("open", "writev", "rename", "fsync", "fsync_dir"):
        rig = Rig(tmp_path / f"{name}{number}")
        rig.files.fail(name, number)
        with pytest.raises(kind) as caught:
            rig.open()
        assert os.strerror(number) in str(caught.value)
        assert not rig.files.open_fds, "a refused opening holds no descriptor and no lock"
        rig.open()


def test_open_failing_at_any_call_loses_nothing_and_works_later(tmp_path: Path) -> None:
    first = Rig(tmp_path / "data").open()
    first.append(b"one", b"two")
    first.sync()
    first.append(b"three")
    failed_at = 0
    while True:
        rig = first.crash(tmp_path / f"copy{failed_at}")
        rig.files.fail_at = failed_at
        try:
            rig.open()
        except StorageError:
            assert not rig.files.open_fds
        else:
            break
        again = Rig(rig.path).open()
        assert bodies_of(again.recovery) == {1: b"one", 2: b"two", 3: b"three"}
        assert not again.recovery.corrupt
        failed_at += 1
    assert failed_at > 15


# --- durability ---


def test_sync_covers_what_was_written_when_it_began(rig: Rig) -> None:
    rig.append(b"a")
    rig.store.request_sync()
    rig.append(b"b")
    rig.worker.run_pending()
    assert rig.wakes == 1
    assert rig.store.durable_seq == 0, "nothing is durable before the owner drains"
    assert rig.store.drain_completions() == 1
    assert rig.store.drain_completions() is None
    assert not rig.worker.pending, "nobody asked for the second one"


def test_sync_asked_again_meanwhile_is_one_next_group(rig: Rig) -> None:
    rig.append(b"a")
    for _ in range(3):
        rig.store.request_sync()
    assert len(rig.worker.pending) == 1
    rig.append(b"b")
    rig.append(b"c")
    for _ in range(3):
        rig.store.request_sync()
    assert len(rig.worker.pending) == 1, "one in flight"
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 1
    assert len(rig.worker.pending) == 1
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 3
    rig.store.request_sync()
    assert not rig.worker.pending, "all is durable: nothing to do"


def test_failed_sync_kills_the_store_and_is_never_retried(rig: Rig) -> None:
    rig.append(b"a")
    rig.files.fail("fdatasync")
    rig.store.request_sync()
    rig.worker.run_pending()
    with pytest.raises(StorageFailed, match="nobody knows what is on disk"):
        rig.store.drain_completions()
    syncs = rig.files.calls.count("fdatasync")
    store = rig.store
    for call in (
        lambda: rig.append(b"b"),
        store.request_sync,
        store.drain_completions,
        lambda: store.turn_done(0, True),
        lambda: store.update_manifest(unsynced=False),
    ):
        with pytest.raises(StorageFailed, match="restart to recover"):
            call()
    store.close()
    assert rig.files.calls.count("fdatasync") == syncs
    assert (store.durable_seq, rig.files.open_fds) == (0, set())
    assert not Rig(rig.path).open().recovery.clean_shutdown


def test_failed_directory_sync_after_rotation_kills_the_store(rig: Rig) -> None:
    rig.append(b"x" * 3000)
    rig.worker.run_pending()
    rig.append(b"y" * 3000)
    rig.files.fail("fsync_dir")
    rig.worker.run_pending()
    with pytest.raises(StorageFailed):
        rig.store.drain_completions()
    rig.store.close()
    assert not rig.files.open_fds


def test_failed_sync_of_a_full_file_leaks_nothing(rig: Rig) -> None:
    rig.append(b"x" * 3000)
    rig.append(b"y" * 3000)
    rig.files.fail("fdatasync")
    rig.worker.run_pending()
    with pytest.raises(StorageFailed):
        rig.store.drain_completions()
    rig.store.close()
    assert not rig.files.open_fds


def test_failed_sync_that_was_not_drained_yet_is_seen_by_close(rig: Rig) -> None:
    rig.append(b"a")
    rig.files.fail("fdatasync")
    rig.store.request_sync()
    with pytest.raises(StorageFailed):
        rig.store.close()
    assert not rig.files.open_fds
    assert not Rig(rig.path).open().recovery.clean_shutdown


@pytest.mark.parametrize("name", ["ftruncate", "fdatasync", "fsync", "rename"])
def test_close_that_fails_is_not_clean(rig: Rig, name: str) -> None:
    rig.append(b"a")
    rig.files.fail(name)
    with pytest.raises(StorageFailed):
        rig.store.close()
    assert not rig.files.open_fds
    rig.store.close()  # once more does nothing
    again = Rig(rig.path).open()
    assert not again.recovery.clean_shutdown
    assert bodies_of(again.recovery) == {1: b"a"}


def test_calls_after_close_fail(rig: Rig) -> None:
    rig.store.close()
    with pytest.raises(StorageFailed, match="closed"):
        rig.append(b"a")


# --- policies ---


def test_turn_done_group_syncs_each_turn_that_wrote(rig: Rig) -> None:
    rig.store.turn_done(0, False)
    assert not rig.worker.pending
    rig.append(b"a")
    rig.store.turn_done(0, False)
    assert len(rig.worker.pending) == 1
    assert rig.store.next_sync_due_ns(0) is None


def test_turn_done_interval_syncs_when_due_or_wanted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", fsync="interval", fsync_interval_ns=100 * MS).open()
    rig.append(b"a")
    rig.store.turn_done(5 * MS, False)
    assert not rig.worker.pending
    assert rig.store.next_sync_due_ns(6 * MS) == 105 * MS
    rig.append(b"b")
    rig.store.turn_done(50 * MS, False)
    assert rig.store.next_sync_due_ns(50 * MS) == 105 * MS, "counted from the oldest write at risk"
    assert rig.store.next_sync_due_ns(200 * MS) == 200 * MS
    rig.store.turn_done(105 * MS, False)
    assert len(rig.worker.pending) == 1
    assert rig.store.next_sync_due_ns(105 * MS) is None
    rig.append(b"c")
    rig.store.turn_done(106 * MS, True)
    assert rig.store.next_sync_due_ns(106 * MS) is None, "asked for already: waiting must not spin"
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 2
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 3


def test_turn_done_never_syncs_only_when_wanted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", fsync="never").open()
    rig.append(b"a")
    rig.store.turn_done(10 * SECOND, False)
    assert not rig.worker.pending
    assert rig.store.next_sync_due_ns(10 * SECOND) is None
    rig.store.turn_done(10 * SECOND, True)
    assert len(rig.worker.pending) == 1


def test_idle_log_records_its_mark_once_a_second(rig: Rig) -> None:
    rig.append(b"a")
    rig.sync()
    rig.store.turn_done(0, False)
    assert rig.store.next_sync_due_ns(0) == SECOND
    size = rig.store._file.offset
    rig.store.turn_done(SECOND - 1, False)
    assert rig.store._file.offset == size
    rig.store.turn_done(SECOND, False)
    assert rig.store._file.offset == size + BATCH_HEADER_BYTES
    assert (rig.store.written_seq, rig.store.next_sync_due_ns(SECOND)) == (1, None)
    rig.store.turn_done(9 * SECOND, False)
    assert rig.store._file.offset == size + BATCH_HEADER_BYTES, "nothing new to say"
    flip(rig.wal[-1], FILE_HEADER_BYTES + BATCH_HEADER_BYTES)
    assert [lost[2:] for lost in rig.crash(rig.path.parent / "copy").open().recovery.corrupt] == [(1, 1)]


def test_idle_mark_on_a_full_disk_waits_for_the_next_time(rig: Rig) -> None:
    rig.append(b"a")
    rig.sync()
    rig.store.turn_done(0, False)
    rig.files.fail("writev", errno.ENOSPC)
    rig.store.turn_done(SECOND, False)
    assert rig.store.next_sync_due_ns(SECOND) is None
    rig.store.turn_done(2 * SECOND, False)
    assert rig.store.next_sync_due_ns(2 * SECOND) == 3 * SECOND
    rig.store.turn_done(3 * SECOND, False)
    assert rig.append(b"b") == 2


# --- full disks and broken ones ---


@pytest.mark.parametrize("short", [0, 1, 39, 40, 41, 45, 90])
def test_short_write_leaves_nothing_and_later_appends_work(rig: Rig, short: int) -> None:
    rig.append(b"before")
    rig.files.short = short
    with pytest.raises(DiskFull, match=f"{short} of 94 bytes") as caught:
        rig.append(b"lost 1", b"lost 22!")
    assert caught.value.definite
    assert rig.store.written_seq == 1
    copy = rig.crash(rig.path.parent / "copy").open()
    assert bodies_of(copy.recovery) == {1: b"before"}
    assert copy.recovery.torn_bytes == 0, "nothing of it is left in the file"
    assert rig.append(b"after") == 2
    again = rig.crash(rig.path.parent / "copy2").open()
    assert bodies_of(again.recovery) == {1: b"before", 2: b"after"}


def test_full_disk_cut_is_on_disk_before_the_error(rig: Rig) -> None:
    rig.files.short = 50
    rig.files.calls.clear()
    with pytest.raises(DiskFull):
        rig.append(b"lost", b"lost")
    assert rig.files.calls[-2:] == ["ftruncate", "fdatasync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_write_without_space_is_definite_and_retryable(rig: Rig, number: int) -> None:
    rig.files.fail("writev", number)
    with pytest.raises(DiskFull) as caught:
        rig.append(b"x")
    assert caught.value.definite
    assert caught.value.retryable
    assert rig.append(b"x") == 1


def test_write_that_breaks_kills_the_store(rig: Rig) -> None:
    rig.files.fail("writev", errno.EIO)
    with pytest.raises(StorageFailed, match="append failed") as caught:
        rig.append(b"x")
    assert not caught.value.definite
    with pytest.raises(StorageFailed):
        rig.append(b"x")


@pytest.mark.parametrize("name", ["ftruncate", "fdatasync"])
def test_cut_that_fails_kills_the_store(rig: Rig, name: str) -> None:
    rig.files.short = 3
    rig.files.fail(name)
    with pytest.raises(StorageFailed, match="could not be cut off"):
        rig.append(b"x")


def test_cut_waits_for_the_sync_under_way_and_sees_its_failure(rig: Rig) -> None:
    rig.append(b"a")
    rig.store.request_sync()
    rig.files.short = 3
    with pytest.raises(DiskFull):
        rig.append(b"x")
    assert rig.store.drain_completions() == 1
    rig.append(b"b")
    rig.store.request_sync()
    rig.files.fail("fdatasync")
    rig.files.short = 3
    with pytest.raises(StorageFailed, match="sync under way failed"):
        rig.append(b"x")


def test_reserve_refuses_puts_lets_deletes_pass_and_ends_by_itself(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", reserve_bytes=1000, reserve_check_appends=3).open()
    rig.files.free = 10_000
    rig.append(b"1")
    asked = rig.files.calls.count("free_bytes")
    rig.files.free = 999
    rig.append(b"2")
    rig.append(b"3")
    assert rig.files.calls.count("free_bytes") == asked, "asks once in three appends"
    with pytest.raises(DiskFull, match="999 bytes are free, 1000 are kept in reserve") as caught:
        rig.append(b"4")
    assert caught.value.definite
    assert rig.append(b"delete", allow_reserve=True) == 4
    with pytest.raises(DiskFull):
        rig.append(b"4")
    rig.files.free = 1000
    assert rig.append(b"5") == 5


def test_reserve_is_checked_after_many_bytes_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", reserve_bytes=1000, reserve_check_appends=1000).open()
    rig.append(b"1" * 600)
    rig.files.free = 0
    with pytest.raises(DiskFull):
        rig.append(b"2")
    assert rig.append(b"3", allow_reserve=True) == 2


def test_reserve_that_a_delete_finds_low_stops_the_next_put(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", reserve_bytes=1000).open()
    rig.files.free = 0
    assert rig.append(b"delete", allow_reserve=True) == 1
    with pytest.raises(DiskFull):
        rig.append(b"put")


def test_free_space_that_cannot_be_asked_kills_the_store(rig: Rig) -> None:
    rig.files.fail("free_bytes")
    with pytest.raises(StorageFailed, match="free space"):
        rig.append(b"x")


# --- rotation ---


def test_rotation_keeps_everything_in_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", file_bytes=1000).open()
    issued = {}
    for number in range(40):
        body = bytes([number]) * (number * 7 + 1)
        issued[rig.append(body)] = body
        if number % 3 == 0:
            rig.sync()
        if number % 5 == 0:
            rig.worker.run_pending()
            rig.store.drain_completions()
    assert len(rig.wal) > 5
    assert all(file.stat().st_size <= 1000 for file in rig.wal)
    killed = rig.crash(tmp_path / "copy").open()
    assert bodies_of(killed.recovery) == issued
    rig.store.close()
    assert not rig.files.open_fds
    again = Rig(rig.path).open()
    assert bodies_of(again.recovery) == issued
    assert again.recovery.clean_shutdown


def test_rotation_takes_an_append_larger_than_a_file(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", file_bytes=200).open()
    for size in (1000, 2000, 3000):
        rig.append(b"x" * size)
    assert [len(body) for body in bodies_of(rig.crash(tmp_path / "c").open().recovery).values()] == [1000, 2000, 3000]


def test_rotation_prepares_the_next_file_before_it_is_needed(rig: Rig) -> None:
    rig.append(b"x" * 2500)
    assert len(rig.worker.pending) == 1
    rig.worker.run_pending()
    rig.store.drain_completions()
    assert (rig.path / "tmp" / "next").stat().st_size == 4096
    rig.files.calls.clear()
    rig.append(b"y" * 2500)
    assert rig.files.calls == ["free_bytes", "writev", "rename", "writev"]


def test_rotation_syncs_whatever_the_policy_and_closes_the_full_file(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", fsync="never").open()
    rig.append(b"x" * 3000)
    rig.append(b"y" * 3000)
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 1, "the full file alone: the append came after the request"
    assert len(rig.files.open_fds) == 2 + (rig.store._prepared_fd >= 0)
    rig.sync()
    assert rig.store.durable_seq == 2


def test_rotation_with_a_sync_in_flight_covers_the_old_file(rig: Rig) -> None:
    rig.append(b"x" * 3000)
    rig.store.request_sync()
    rig.append(b"y" * 3000)
    rig.append(b"z" * 3000)
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 1
    rig.files.calls.clear()
    rig.worker.run_pending()
    assert rig.store.drain_completions() == 3
    assert [call for call in rig.files.calls if "sync" in call] == ["fdatasync", "fdatasync", "fsync_dir", "fdatasync"]


def test_rotation_without_preallocation_works(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EOPNOTSUPP):
        rig = Rig(tmp_path / str(number))
        rig.files.fail("posix_fallocate", number, times=10)
        rig.open()
        rig.append(b"x" * 3000)
        rig.append(b"y" * 3000)
        assert [len(body) for body in bodies_of(rig.crash(tmp_path / f"c{number}").open().recovery).values()] == [
            3000
        ] * 2


def test_rotation_does_not_preallocate_the_reserve_away(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d", reserve_bytes=1000)
    rig.files.free = 5000
    rig.open()
    assert "posix_fallocate" not in rig.files.calls


def test_rotation_without_space_is_definite_and_works_later(rig: Rig) -> None:
    rig.append(b"x" * 3000)
    rig.files.fail("open", errno.ENOSPC, times=2)
    rig.worker.run_pending()
    with pytest.raises(DiskFull, match="next log file"):
        rig.append(b"y" * 3000)
    assert rig.store.written_seq == 1
    assert rig.append(b"y" * 3000) == 2
    rig.files.fail("rename", errno.ENOSPC)
    with pytest.raises(DiskFull):
        rig.append(b"z" * 3000)
    assert rig.append(b"z" * 3000) == 3
    assert len(bodies_of(rig.crash(rig.path.parent / "c").open().recovery)) == 3


def test_rotation_that_breaks_kills_the_store(rig: Rig) -> None:
    rig.append(b"x" * 3000)
    rig.files.fail("rename")
    with pytest.raises(StorageFailed, match="cannot begin"):
        rig.append(b"y" * 3000)
    rig.store.close()
    assert not rig.files.open_fds


def test_preparation_that_breaks_is_tried_again_when_needed(rig: Rig) -> None:
    rig.files.fail("posix_fallocate", errno.EIO)
    rig.append(b"x" * 3000)
    rig.worker.run_pending()
    assert rig.store.drain_completions() is None
    assert rig.append(b"y" * 3000) == 2
    rig.store.close()
    assert not rig.files.open_fds


def test_crash_between_the_steps_of_a_rotation_loses_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "d").open()
    rig.append(b"x" * 3000)
    rig.worker.run_pending()
    for name, after in (("writev", 0), ("rename", 0), ("writev", 1)):
        copy = rig.crash(tmp_path / f"{name}{after}").open()
        copy.append(b"w" * 1000)
        copy.files.fail(name, after=after)
        with pytest.raises(StorageFailed):
            copy.append(b"y" * 3000)
        found = bodies_of(copy.crash(tmp_path / f"{name}{after}x").open().recovery)
        assert [len(body) for body in found.values()] == [3000, 1000]


# --- manifest ---


def test_update_manifest_is_there_after_a_crash(rig: Rig) -> None:
    rig.store.update_manifest(node_name="n1", node_id=7, cluster_id=b"c", high_water_stamp=99, extra={"phase": "new"})
    rig.append(b"a")
    rig.sync()
    again = rig.crash(rig.path.parent / "copy").open()
    manifest = again.store.manifest
    assert (manifest.node_name, manifest.node_id, manifest.cluster_id, manifest.high_water_stamp) == ("n1", 7, b"c", 99)
    assert manifest.extra == {"phase": "new"}
    assert not again.recovery.clean_shutdown


def test_update_manifest_without_space_keeps_the_old_one(rig: Rig) -> None:
    rig.files.fail("writev", errno.ENOSPC)
    with pytest.raises(DiskFull):
        rig.store.update_manifest(node_name="n1")
    assert rig.store.manifest.node_name == ""
    rig.files.fail("rename", errno.EIO)
    with pytest.raises(StorageFailed):
        rig.store.update_manifest(node_name="n1")


@pytest.mark.parametrize(("policy", "unsynced"), [("group", False), ("interval", True), ("never", True)])
def test_crash_makes_unsynced_what_did_not_sync_per_ack(tmp_path: Path, policy: str, unsynced: bool) -> None:
    rig = Rig(tmp_path / "d", fsync=policy).open()
    assert not rig.store.manifest.unsynced
    again = rig.crash(tmp_path / "copy").open()
    assert again.store.manifest.unsynced is unsynced
    again.store.update_manifest(unsynced=False)
    again.store.close()
    assert not Rig(again.path, fsync=policy).open().store.manifest.unsynced


# --- with the real thread ---


def test_thread_group_commit_wakes_the_owner(tmp_path: Path) -> None:
    woken = threading.Event()
    store, _recovery = LogStore.open(tmp_path / "d", RealFiles(), create=True, on_wake=woken.set)
    for number in range(50):
        store.append([(1, 1, [b"%d" % number])])
        store.turn_done(number, True)
        while store.durable_seq < store.written_seq:
            assert woken.wait(10)
            woken.clear()
            store.drain_completions()
    store.append([(1, 1, [b"last"])])
    store.close()
    store, recovery = LogStore.open(tmp_path / "d", RealFiles())
    assert list(bodies_of(recovery).values()) == [*(b"%d" % number for number in range(50)), b"last"]
    store.close()


def test_thread_rotation_under_load(tmp_path: Path) -> None:
    options = LogOptions(file_bytes=8192)
    store, _recovery = LogStore.open(tmp_path / "d", RealFiles(), create=True, options=options)
    for number in range(300):
        store.append([(2, 1, [bytes([number % 256]) * 500])])
        store.turn_done(number, False)
        store.drain_completions()
    store.close()
    store, recovery = LogStore.open(tmp_path / "d", RealFiles())
    assert (recovery.last_seq, len(bodies_of(recovery)), recovery.clean_shutdown) == (600, 300, True)
    store.close()
