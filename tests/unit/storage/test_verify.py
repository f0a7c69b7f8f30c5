"""A directory is called whole when it is, damaged when a byte of what counts is wrong, and is not changed by the question."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.storage.faulty import Rig, flip
from zkv.cli.main import main
from zkv.codec.log import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from zkv.codec.records import block_to_log
from zkv.core.columns import Columns
from zkv.core.messages import Record, RecordBlock
from zkv.core.versions import Sibling, VersionSet
from zkv.errors import ConfigError, StoreLocked
from zkv.ids import Actor, checksum_of
from zkv.storage import verify
from zkv.storage.manifest import MANIFEST, MANIFEST_PREV, Manifest
from zkv.storage.verify import Damage, Report, verify_directory

ACTOR = Actor(b"a" * 12)


def rows(keys: list[bytes], value: bytes, checksum: int | None = None) -> RecordBlock:
    summed = checksum_of(value) if checksum is None else checksum
    return RecordBlock(
        [
            Record(
                bytes(4) + key,
                1,
                1,
                (7, 1, item, 1),
                VersionSet((Sibling(ACTOR, 1, 99, 0, summed, 7, 1, (), value),), {ACTOR: 1}),
            )
            for item, key in enumerate(keys)
        ]
    )


def columns(keys: list[bytes], value: bytes, checksum: int | None = None) -> RecordBlock:
    count = len(keys)
    summed = checksum_of(value) if checksum is None else checksum
    stored = [bytes(4) + key for key in keys]
    made = Columns(
        stored, ACTOR, list(range(1, count + 1)), 99, [value] * count, [summed] * count, [(7, 2, list(range(count)))], [1] * count, [1] * count
    )  # fmt: skip
    return RecordBlock(columns=made)


def append(rig: Rig, block: RecordBlock) -> None:
    codec, parts = block_to_log(block)
    rig.store.append([(len(block), codec, parts)])


def written(path: Path, *blocks: RecordBlock) -> Rig:
    """Closed by its process."""
    rig = Rig(path).open()
    for block in blocks:
        append(rig, block)
    rig.store.close()
    return rig


BLOCKS = (rows([b"one", b"two"], b"v" * 50), columns([b"a", b"b", b"c", b"d"], b"w" * 60), rows([b"last"], b"x" * 40))


@pytest.fixture
def store(tmp_path: Path) -> Rig:
    return written(tmp_path / "store", *BLOCKS)


def verified(rig: Rig) -> Report:
    """What is found; fails if the question changed a byte."""
    before = snapshot(rig.path)
    report = verify_directory(rig.files, str(rig.path))
    assert snapshot(rig.path) == before
    assert not rig.files.open_fds
    return report


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(os.path.join(place, name), path): Path(place, name).read_bytes()
        for place, _, names in os.walk(path)
        for name in names
    }


def test_whole_store_is_whole_and_counted(store: Rig) -> None:
    report = verified(store)
    assert report.whole and report.clean_shutdown
    assert (report.log_files, report.batches, report.records, report.values) == (1, 3, 7, 7)
    assert report.value_bytes == 2 * 50 + 4 * 60 + 40
    assert (report.last_seq, report.durable_seq, report.torn_bytes) == (7, 7, 0)
    assert report.store_id == bytes(range(16)).hex()


def test_flip_of_any_byte_of_the_log_is_damage(store: Rig) -> None:
    (file,) = store.wal
    whole = file.read_bytes()
    used = store.store._file.offset
    for offset in range(used):
        flip(file, offset, bit=offset % 8)
        report = verified(store)
        assert not report.whole, f"byte {offset}"
        assert all(damage.file == f"wal/{file.name}" for damage in report.damages)
        file.write_bytes(whole)
    assert verified(store).whole


def test_flip_of_any_byte_of_the_manifest_is_damage(store: Rig) -> None:
    manifest = store.path / MANIFEST
    whole = manifest.read_bytes()
    for offset in range(8, len(whole)):
        flip(manifest, offset)
        assert verified(store).damages[0].file == MANIFEST
        manifest.write_bytes(whole)


def test_manifest_that_cannot_be_read_at_all_is_damage(store: Rig) -> None:
    for name in (MANIFEST, MANIFEST_PREV):
        (store.path / name).write_bytes(b"nothing of the kind")
    report = verified(store)
    assert [damage.file for damage in report.damages] == [MANIFEST]
    assert "does not verify" in report.damages[0].what


def test_missing_log_file_is_damage(store: Rig) -> None:
    store.wal[0].unlink()
    assert verified(store).damages == [Damage("wal", "durable records 1 to 7 cannot be read: their file is missing")]


@pytest.mark.parametrize("make", [rows, columns])
def test_value_that_is_not_what_its_writer_summed_is_damage_with_its_key(make: object, tmp_path: Path) -> None:
    block = make([b"k%d" % n for n in range(5)], b"value", 12345)  # type: ignore[operator]
    report = verified(written(tmp_path / "s", BLOCKS[0], block))
    assert len(report.damages) == 5
    assert "record 5, key b'k2'" in report.damages[2].what
    assert report.values == 7


def test_batches_that_verify_and_hold_no_records_are_damage(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s").open()
    codec, parts = block_to_log(rows([b"k"], b"v"))
    rig.store.append([(1, 77, [b"?"])])
    rig.store.append([(1, codec, [b"\xff\xff\xff\xff"])])
    rig.store.append([(1, codec, [b"xx"])])
    rig.store.append([(2, codec, parts)])
    rig.store.close()
    texts = [damage.what for damage in verified(rig).damages]
    assert len(texts) == 4
    assert "codec 77; this build reads [1, 2]" in texts[0]
    assert all("is no batch of records" in text for text in texts[1:3])
    assert "1 records in a batch of 2" in texts[3]


def test_torn_tail_is_no_damage(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "live").open()
    append(rig, BLOCKS[0])
    rig.sync()
    append(rig, BLOCKS[1])
    copy = rig.crash(tmp_path / "killed")
    (file,) = copy.wal
    file.write_bytes(file.read_bytes()[: rig.store._file.offset - 3])
    report = verified(copy)
    assert report.whole and not report.clean_shutdown
    assert report.records == 2
    assert report.torn_bytes > BATCH_HEADER_BYTES


def test_what_an_earlier_start_reported_is_told_and_is_no_new_damage(store: Rig) -> None:
    flip(store.wal[0], FILE_HEADER_BYTES + BATCH_HEADER_BYTES + 4)
    again = Rig(store.path).open()
    assert again.recovery.corrupt
    again.store.close()
    report = verified(again)
    assert report.known_lost == ((1, 2),)
    assert any("quarantine/ keeps 1" in note for note in report.notes)


def test_store_that_is_open_is_refused_and_one_without_a_lock_file_is_not(store: Rig) -> None:
    again = Rig(store.path).open()
    with pytest.raises(StoreLocked, match="verify a copy"):
        verify_directory(again.files, str(store.path))
    again.store.close()
    (store.path / "LOCK").unlink()
    assert verified(again).whole
    assert not (store.path / "LOCK").exists()


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_place_without_a_store_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name):
        verify_directory(Rig(tmp_path).files, str(tmp_path / name))


class Checker:
    """A segment with one thing wrong."""

    def __init__(self, path: str) -> None:
        self.damages: list[_Found] = []
        self.records = 0
        self._path = path

    def steps(self) -> Iterator[int]:
        for _ in range(3):
            self.records += 10
            yield 1
        self.damages.append(_Found(f"{self._path}/seg/1.seg", "block 3 does not verify"))


class _Found:
    def __init__(self, path: str, what: str) -> None:
        self.path = path
        self.what = what


def test_segments_are_checked_by_who_knows_them(store: Rig) -> None:
    seen: list[Manifest] = []

    def checkers(manifest: Manifest) -> list[Checker]:
        seen.append(manifest)
        return [Checker(str(store.path))]

    report = verify_directory(store.files, str(store.path), checkers)
    assert [manifest.durable_seq for manifest in seen] == [7]
    assert (report.segments, report.sealed_records) == (1, 30)
    assert report.damages == [Damage("seg/1.seg", "block 3 does not verify")]


def test_damages_beyond_a_number_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "DAMAGES_KEPT", 3)
    report = verified(written(tmp_path / "s", columns([b"k%d" % n for n in range(5)], b"value", 1)))
    assert (len(report.damages), report.more_damages) == (3, 2)


# --- the command ---


def test_command_says_whole(store: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(store.path)]) == 0
    out = capsys.readouterr().out
    assert "is whole" in out and "7 records, 7 values, 380 bytes" in out


def test_command_names_what_is_damaged(store: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    flip(store.wal[0], FILE_HEADER_BYTES + BATCH_HEADER_BYTES + 4)
    assert main(["verify", str(store.path)]) == 8
    out = capsys.readouterr().out
    assert "DAMAGED" in out and "durable records 1 to 2 cannot be read" in out
    assert "is damaged: 1 findings" in out
    assert main(["verify", str(store.path), "--json"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert document["whole"] is False and len(document["damages"]) == 1
    assert document["log"]["records"] == 5


def test_command_shows_the_first_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "s", columns([b"k%d" % n for n in range(30)], b"value", 1))
    assert main(["verify", str(tmp_path / "s")]) == 8
    out = capsys.readouterr().out
    assert out.count("DAMAGED") == 21 and "and 10 more (--json lists them)" in out


def test_command_tells_torn_tails_and_earlier_losses(
    tmp_path: Path, store: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(store.wal[0], FILE_HEADER_BYTES + BATCH_HEADER_BYTES + 4)
    again = Rig(store.path).open()
    append(again, BLOCKS[1])
    copy = again.crash(tmp_path / "killed")
    again.store.close()
    file = copy.wal[-1]
    file.write_bytes(file.read_bytes()[: again.store._file.offset - 3])
    main(["verify", str(copy.path)])
    out = capsys.readouterr().out
    assert "records 1 to 2 were reported lost by an earlier start" in out
    assert "never acknowledged as durable" in out and "not closed" in out


@pytest.mark.parametrize(("name", "code"), [("absent", 78), ("open", 1)])
def test_command_exit_codes_of_what_cannot_be_checked(
    name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path / "open").open()
    assert main(["verify", str(tmp_path / name)]) == code
    assert name in capsys.readouterr().err
    rig.store.close()
