"""The embedded store: what is on disk when, full disks, failed syncs, damage, interrupts."""

from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path

import pytest

import zkv
from tests.unit.embedded.stores import Calls, Mixed, ended_clean, faulty
from zkv import CorruptData, DiskFull, StorageFailed, Store, TooLarge

# --- durability ---


def test_durable_put_returns_after_its_sync(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data", fsync="never")
    with kv:
        files.calls.clear()
        assert not kv.put("k", b"1").durable
        assert "fdatasync" not in files.calls
        assert kv.put("k", b"2", durable=True).durable
        assert "fdatasync" in files.calls
        assert kv.put_many({"a": b"1", "b": b"2"}, durable=True).durable
        assert kv.delete("k", durable=True).durable


def test_group_makes_every_put_durable(tmp_path: Path) -> None:
    with zkv.open(tmp_path / "data", fsync="group") as kv:
        assert kv.put("k", b"v").durable
        assert kv.bucket("strict").get("k") is None


def test_interval_syncs_although_nobody_calls(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data", fsync_interval_ms=30)
    synced = threading.Event()
    fdatasync = files.fdatasync

    def seen(fd: int) -> None:
        fdatasync(fd)
        synced.set()

    files.fdatasync = seen  # type: ignore[method-assign]
    with kv:
        for _ in range(3):
            synced.clear()
            began = time.monotonic()
            kv.put("k", b"v")
            assert synced.wait(5)
            assert time.monotonic() - began > 0.02, "not with the put: after the interval"


# --- trouble ---


def test_full_disk_refuses_puts_and_serves_the_rest(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data", reserve_bytes=1024)
    with kv:
        kv.put_many({"a": b"1", "b": b"2"})
        files.fail("writev", 28, times=50)
        with pytest.raises(DiskFull) as full:
            kv.put("c", b"3")
        assert full.value.definite
        assert kv.get("a") == b"1"
        files.faults.clear()
        kv.put("c", b"3")
        assert kv.get("c") == b"3", "writing resumes by itself"


def test_failed_sync_stops_the_store(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data")
    kv.put("a", b"1", durable=True)
    files.fail("fdatasync")
    with pytest.raises(StorageFailed, match="sync failed") as failed:
        kv.put("a", b"2", durable=True)
    assert not failed.value.definite
    for call in (
        lambda: kv.put("b", b"1"),
        lambda: kv.get("a"),
        lambda: kv.put_many({"b": b"1"}, errors="return").errors["b"],
    ):
        with pytest.raises(StorageFailed):
            raise call()  # type: ignore[misc]
    kv.close()
    assert not files.open_fds
    with zkv.open(tmp_path / "data") as again:
        assert again.get("a") in (b"1", b"2")


def test_refusals_say_why(kv: Store) -> None:
    with pytest.raises(TooLarge):
        kv.put("k", bytes(2 << 20))
    with pytest.raises(zkv.NoSuchBucket):
        kv.bucket("nowhere").get("k")
    with pytest.raises(zkv.InvalidArgument, match="at most"):
        kv.get("k", r=200)
    calls: Calls = (lambda: kv.put_many({"a": b""}, errors="x"), lambda: kv.delete_many(["a"], errors="x"))
    for call in calls:
        with pytest.raises(zkv.InvalidArgument):
            call()
    with pytest.raises(zkv.InvalidKey, match="twice"):
        kv.put_many(Mixed({"a": b"1", b"a": b"2"}))
    for key in ("", "k" * 1_025, 7, "\ud800x", bytearray(b"k"), None):
        with pytest.raises(zkv.InvalidKey):
            kv.get(key)  # type: ignore[arg-type]
        with pytest.raises(zkv.InvalidKey):
            kv.put(key, b"")  # type: ignore[arg-type]
    with pytest.raises(zkv.InvalidKey):
        kv.get_many(["k", ""])
    with pytest.raises(zkv.CodecError):
        kv.put("k", 7)  # type: ignore[arg-type]
    with pytest.raises(zkv.BatchError) as batch:
        kv.put_many({"a": b"1", "b": bytes(20_000)})
    assert batch.value.result.ok == 1 and kv.get("a") == b"1"


@pytest.mark.parametrize("durable", [False, True])
def test_interrupted_step_leaves_a_store_that_must_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    kv = zkv.open(tmp_path / "data")
    kv.put("k", b"1", durable=True)
    table = kv._engine._node._table

    def interrupted(log_seq: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kv.put("k", b"2", durable=durable)
    monkeypatch.undo()
    with pytest.raises(StorageFailed, match="open it again"):
        kv.get("k")
    kv.close()
    assert not ended_clean(tmp_path / "data")
    with zkv.open(tmp_path / "data") as again:
        assert again.get("k") in (b"1", b"2")
        again.put("k", b"3")
        assert again.get_item("k").values == (b"3",)


def test_interrupted_wait_for_a_sync_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data", fsync="never")
    gate = threading.Event()
    fdatasync = files.fdatasync

    def slow(fd: int) -> None:
        _thread.interrupt_main()
        assert gate.wait(5)
        fdatasync(fd)

    with kv:
        kv.put("k", b"1")
        files.fdatasync = slow  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            kv.put("k", b"2", durable=True)
        files.fdatasync = fdatasync  # type: ignore[method-assign]
        assert not kv._engine._open, "nobody waits any more"
        assert kv.get("k") == b"2"
        gate.set()
        assert kv.put("k", b"3", durable=True).durable


def test_damaged_store_takes_writes_and_claims_no_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    with zkv.open(path) as kv:
        kv.put_many({f"k{i}": b"%d" % i * 300 for i in range(50)}, durable=True)
    with zkv.open(path) as kv:
        kv.put("later", b"1", durable=True)
    first = min((path / "wal").iterdir())
    data = bytearray(first.read_bytes())
    data[5_000] ^= 1
    first.write_bytes(data)
    with zkv.open(path) as kv:
        assert "cannot be read" in caplog.text
        for call in (lambda: kv.get("k1"), lambda: kv.exists("k1"), lambda: list(kv.export())):
            with pytest.raises(CorruptData, match="zkv repair"):
                call()
        assert kv.put("k1", b"new", durable=True).durable
        assert "healthy" not in kv.admin.status().verdict
