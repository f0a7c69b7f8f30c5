"""The bytes of log and manifest never change within a version: decode the page's examples, rebuild them, compare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zkv.codec import log
from zkv.errors import CorruptData
from zkv.ids import StoreId
from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import Manifest, decode_manifest, encode_manifest
from zkv.storage.recovery import log_name

PAGE = Path(__file__).parents[2] / "docs" / "log-format.md"
EXAMPLE = re.compile(r"^### `(\w+)`\n.*?```\n(.*?)```", re.MULTILINE | re.DOTALL)
STORE_ID = StoreId(bytes(range(16)))
HEADER = log.FileHeader(STORE_ID, 2, 81, 80)
SEED = 0x97161E83
PARTS = [b"\x02\x00\x00\x00", b"ab", b"value"]
MANIFEST = Manifest(
    STORE_ID,
    cluster_id=b"cccc",
    node_id=7,
    node_name="n1",
    durable_seq=80,
    open_ids=(b"open-id!",),
    extra={"phase": "new"},
)


def example(name: str) -> bytes:
    """The bytes of a hex dump: an offset of four digits, two spaces, up to sixteen bytes."""
    text = dict(EXAMPLE.findall(PAGE.read_text()))[name]
    data = b""
    for line in text.splitlines():
        offset, digits = line.split("  ", 1)
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(digits)
    return data


def test_page_log_decodes_as_it_says() -> None:
    data = example("log")
    assert log.decode_file_header(data) == HEADER
    assert log.chain_seed(STORE_ID, 2, 81) == SEED
    batch = log.decode_batch_header(data, 0x40, SEED)
    assert batch is not None
    assert batch[:4] == (3, 1, log.XXH3_BODY, 11)
    assert batch[5:] == (81, 80, SEED, 0x136E749D)
    mark = log.decode_batch_header(data, 0x73, SEED)
    assert mark is not None
    assert (mark.record_count, mark.codec, mark.first_seq, mark.durable_seq, mark.prev_crc) == (
        0,
        0,
        84,
        83,
        0x136E749D,
    )
    assert log.scan_file(data, SEED, 81, log.SEQ_MAX) == ([log.Run(64, len(data), 81, 84, True)], 83)
    assert list(log.read_batches(data[64:], SEED)) == [log.Batch(81, 3, 1, b"".join(PARTS))]


def test_page_log_of_an_earlier_build_reads_alike_and_is_checked() -> None:
    data = example("log_crc32")
    assert log.scan_file(data, SEED, 81, log.SEQ_MAX) == ([log.Run(64, len(data), 81, 84, True)], 83)
    assert list(log.read_batches(data[64:], SEED)) == [log.Batch(81, 3, 1, b"".join(PARTS))]
    for at in range(0x68, 0x73):
        changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert log.scan_file(changed, SEED, 81, log.SEQ_MAX).runs[0].first_seq == 84, "the body is stepped over"


def test_page_log_is_rebuilt_byte_for_byte() -> None:
    data = log.encode_file_header(HEADER)
    header, _size, crc = log.encode_batch_header(PARTS, 3, 1, 81, 80, SEED, SEED)
    data += header + b"".join(PARTS)
    header, _size, _crc = log.encode_batch_header([], 0, log.MARK_CODEC, 84, 83, crc, SEED)
    assert data + header == example("log")


def test_page_manifest_decodes_and_is_rebuilt() -> None:
    assert decode_manifest(example("manifest")) == MANIFEST
    assert encode_manifest(MANIFEST) == example("manifest")
    assert decode_manifest(example("manifest_1")) == MANIFEST
    with pytest.raises(CorruptData):
        decode_manifest(example("manifest")[:-1])


def test_page_examples_are_a_directory_that_opens(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    (tmp_path / "MANIFEST").write_bytes(encode_manifest(Manifest(STORE_ID, wal_floor=81)))
    (tmp_path / "wal" / log_name(2, 81)).write_bytes(example("log") + bytes(1000))
    (tmp_path / "tmp").mkdir()
    store, recovery = LogStore.open(tmp_path, RealFiles())
    assert [batch.body for batch in recovery.batches()] == [b"".join(PARTS)]
    assert (recovery.last_seq, recovery.watermark, recovery.torn_bytes, recovery.degraded) == (83, 83, 0, False)
    assert store.append([(1, 1, [b"next"])]) == 84
    store.close()
