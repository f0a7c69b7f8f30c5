from __future__ import annotations

import errno
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from tests.unit.storage.faulty import STORE_ID, FaultyFiles, flip
from zkv.codec.value import dumps
from zkv.errors import CorruptData, StorageFailed, VersionMismatch
from zkv.ids import StoreId
from zkv.storage.manifest import Manifest, decode_manifest, encode_manifest, load_manifest, save_manifest

FULL = Manifest(
    store_id=StoreId(STORE_ID),
    cluster_id=b"cluster",
    node_id=2**64 - 1,
    node_name="nöde",
    wal_floor=5,
    durable_seq=99,
    high_water_stamp=2**63,
    clean_shutdown=True,
    unsynced=True,
    fsync="interval",
    open_ids=(b"12345678", b"abcdefgh"),
    known_corrupt=((3, 4), (9, 9)),
    segments=({"id": 7, "records": 100},),
    next_segment=8,
    shared_hashes=(2**63, 5),
    extra={"phase": "active", "stores": {"a": b"b"}},
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def framed(body: bytes, version: int = 2) -> bytes:
    front = struct.pack("<4sHHI", b"ZKVM", version, 0, len(body))
    return front + struct.pack("<I", crc32(front + body)) + body


def test_manifest_round_trip() -> None:
    assert decode_manifest(encode_manifest(FULL)) == FULL
    small = Manifest(StoreId(STORE_ID))
    assert decode_manifest(encode_manifest(small)) == small


def test_manifest_damage_anywhere_is_seen() -> None:
    data = encode_manifest(FULL)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData):
            decode_manifest(bytes(flipped))
    for length in range(len(data)):
        with pytest.raises(CorruptData):
            decode_manifest(data[:length])
    with pytest.raises(CorruptData):
        decode_manifest(data + b"\0")


def test_manifest_of_a_newer_version_is_named_whatever_its_body() -> None:
    with pytest.raises(VersionMismatch, match="manifest version 3; this build reads versions 1 to 2"):
        decode_manifest(framed(b"anything", version=3))
    with pytest.raises(VersionMismatch, match="manifest version 0"):
        decode_manifest(framed(b"anything", version=0))


def test_manifest_of_version_1_has_no_segments() -> None:
    old = {name: GOOD[name] for name in GOOD if name not in ("segments", "next_segment", "shared_hashes")}
    assert decode_manifest(framed(dumps(old), version=1)) == Manifest(StoreId(STORE_ID))
    with pytest.raises(CorruptData, match="wrong body"):
        decode_manifest(framed(dumps(old)))


GOOD: dict[str, Any] = {
    "store_id": STORE_ID,
    "cluster_id": b"",
    "node_id": 0,
    "node_name": "",
    "wal_floor": 1,
    "durable_seq": 0,
    "high_water_stamp": 0,
    "clean_shutdown": False,
    "unsynced": False,
    "fsync": "group",
    "open_ids": b"",
    "known_corrupt": [],
    "segments": [],
    "next_segment": 1,
    "shared_hashes": [],
    "extra": {},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"store_id": b"short"},
        {"open_ids": b"1234567"},
        {"open_ids": 7},
        {"node_id": "7"},
        {"node_id": True},
        {"clean_shutdown": 1},
        {"known_corrupt": [[1]]},
        {"known_corrupt": 5},
        {"unknown": 1},
        {"extra": []},
        {"segments": [7]},
        {"segments": None},
        {"next_segment": "1"},
        {"shared_hashes": [-1]},
        {"shared_hashes": 3},
    ],
)
def test_manifest_with_a_right_checksum_and_a_wrong_body_is_corrupt(changes: dict[str, Any]) -> None:
    assert decode_manifest(framed(dumps(GOOD))) == Manifest(StoreId(STORE_ID))
    with pytest.raises(CorruptData, match="wrong body"):
        decode_manifest(framed(dumps({**GOOD, **changes})))


def test_manifest_without_a_field_or_a_tree_is_corrupt() -> None:
    for body in (dumps({name: GOOD[name] for name in GOOD if name != "open_ids"}), dumps([1]), dumps(7), b"\xff"):
        with pytest.raises(CorruptData, match="wrong body"):
            decode_manifest(framed(body))


def test_save_keeps_the_one_before(directory: Path) -> None:
    files = FaultyFiles()
    for number in range(4):
        save_manifest(files, str(directory), replace(FULL, node_id=number))
        assert load_manifest(files, str(directory)) == (replace(FULL, node_id=number), False)
    assert decode_manifest((directory / "MANIFEST.prev").read_bytes()).node_id == 2
    assert not list((directory / "tmp").iterdir())


def test_save_failing_at_any_call_leaves_the_old_or_the_new(directory: Path) -> None:
    save_manifest(FaultyFiles(), str(directory), replace(FULL, node_id=0))
    save_manifest(FaultyFiles(), str(directory), replace(FULL, node_id=1))
    number = 1
    failed_at = 0
    while True:
        files = FaultyFiles()
        files.fail_at = failed_at
        try:
            save_manifest(files, str(directory), replace(FULL, node_id=number + 1))
        except OSError:
            manifest, fell_back = load_manifest(FaultyFiles(), str(directory))
            assert manifest.node_id in (number, number + 1)
            assert not fell_back, "MANIFEST is never absent"
            assert not files.open_fds
            save_manifest(FaultyFiles(), str(directory), replace(FULL, node_id=number + 1))
        else:
            break
        number += 1
        failed_at += 1
    assert failed_at > 6


def test_save_order_is_write_sync_rename_sync_directory(directory: Path) -> None:
    save_manifest(FaultyFiles(), str(directory), FULL)
    files = FaultyFiles()
    save_manifest(files, str(directory), FULL)
    calls = [call for call in files.calls if call not in ("open", "ftruncate")]
    assert calls == ["writev", "fsync", "link", "rename", "rename", "fsync_dir"]


def test_save_that_does_not_read_back_stops(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_manifest(FaultyFiles(), str(directory), FULL)
    files = FaultyFiles()
    monkeypatch.setattr(FaultyFiles, "pread", lambda self, fd, length, offset: b"something else")
    with pytest.raises(StorageFailed, match="read back"):
        save_manifest(files, str(directory), replace(FULL, node_id=1))
    monkeypatch.undo()
    assert load_manifest(files, str(directory))[0] == FULL


def test_save_without_space_keeps_the_old_one(directory: Path) -> None:
    files = FaultyFiles()
    save_manifest(files, str(directory), FULL)
    files.fail("writev", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        save_manifest(files, str(directory), replace(FULL, node_id=1))
    assert load_manifest(files, str(directory)) == (FULL, False)


def test_load_falls_back_when_damaged_or_missing(directory: Path) -> None:
    files = FaultyFiles()
    save_manifest(files, str(directory), replace(FULL, node_id=1))
    save_manifest(files, str(directory), replace(FULL, node_id=2))
    flip(directory / "MANIFEST", 25)
    assert load_manifest(files, str(directory)) == (replace(FULL, node_id=1), True)
    (directory / "MANIFEST").unlink()
    assert load_manifest(files, str(directory)) == (replace(FULL, node_id=1), True)


def test_save_does_not_push_out_a_good_one_with_a_damaged_one(directory: Path) -> None:
    files = FaultyFiles()
    save_manifest(files, str(directory), replace(FULL, node_id=1))
    save_manifest(files, str(directory), replace(FULL, node_id=2))
    flip(directory / "MANIFEST", 25)
    save_manifest(files, str(directory), replace(FULL, node_id=3))
    flip(directory / "MANIFEST", 25)
    assert load_manifest(files, str(directory))[0].node_id == 1


def test_load_of_nothing_and_of_two_bad_ones(directory: Path) -> None:
    files = FaultyFiles()
    with pytest.raises(FileNotFoundError, match="has no MANIFEST"):
        load_manifest(files, str(directory))
    (directory / "MANIFEST").write_bytes(b"")
    with pytest.raises(CorruptData, match=r"MANIFEST\.prev is missing.*Run `zkv repair"):
        load_manifest(files, str(directory))


def test_load_of_a_newer_version_does_not_fall_back(directory: Path) -> None:
    files = FaultyFiles()
    save_manifest(files, str(directory), FULL)
    save_manifest(files, str(directory), FULL)
    (directory / "MANIFEST").write_bytes(framed(b"", version=3))
    with pytest.raises(VersionMismatch):
        load_manifest(files, str(directory))
    with pytest.raises(VersionMismatch):
        save_manifest(files, str(directory), FULL)
    assert (directory / "MANIFEST").read_bytes() == framed(b"", version=3)
