"""The bytes of a sealed segment never change within a version: decode the page's example, rebuild it, read what an earlier build compressed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.formats.examples import ADA, BOB, block
from tests.formats.test_log_format import STORE_ID, example
from zkv.codec import segment as seg
from zkv.codec.block import CODEC_IDS, LZ4, RAW
from zkv.codec.records import set_from_bytes
from zkv.core.ring import record_hash
from zkv.core.versions import VersionSet
from zkv.ids import stored_key
from zkv.storage.files import RealFiles, read_whole, write_whole
from zkv.storage.sealing import digest_of, record_of
from zkv.storage.segment import Segment, SegmentSummary
from zkv.storage.segment_writer import SegmentWriter
from zkv.testing.sim.disk import SimFiles

FOLDER = Path(__file__).parent
SEED = 3
#: two partitions
SHIFT = 63
CY = stored_key(1, b"user:3")
SETS: dict[bytes, tuple[int, VersionSet]] = {
    ADA: (81, block().records[0].versions),
    BOB: (83, block().records[1].versions),
    CY: (82, VersionSet((), {block().records[0].versions.siblings[0].actor: 2})),
}
SUMMARY = SegmentSummary(6, 3, 1, 202, 748, 81, 83, 1_700_000_060_000, 1_700_000_060_000, 0x178617F8, "lz4")


def written() -> tuple[SimFiles, SegmentSummary]:
    files = SimFiles(random.Random(1))
    writer = SegmentWriter(files, "/s", seg.SegmentHeader(LZ4, SHIFT, STORE_ID, 6, SEED))
    for key in sorted(SETS, key=lambda key: (record_hash(key, SEED, SHIFT) >> SHIFT, key)):
        record = record_of(key, *SETS[key])
        writer.add(
            record_hash(key, SEED, SHIFT) >> SHIFT, [record_hash(key, SEED, SHIFT)], [digest_of(record.meta)], [record]
        )
    return files, writer.finish()


def test_page_segment_is_rebuilt_byte_for_byte() -> None:
    files, summary = written()
    assert read_whole(files, "/s") == example("segment")
    assert summary == SUMMARY


def test_page_segment_decodes_as_it_says() -> None:
    data = example("segment")
    assert seg.decode_header(data) == seg.SegmentHeader(LZ4, SHIFT, STORE_ID, 6, SEED)
    seed = seg.seed_of(STORE_ID, 6)
    frames = list(seg.scan_frames(data, seed))
    assert [(offset, frame.block_no, frame.pid, frame.record_count, frame.codec) for offset, frame, _ in frames] == [
        (0x40, 0, 0, 2, RAW),
        (0xEC, 1, 1, 1, RAW),
    ]


def test_page_segment_is_a_file_that_opens(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(example("segment"))
    segment = Segment.open(RealFiles(), str(tmp_path / "s"), SUMMARY)
    found = {record.key: record for pid in segment.partitions() for record in segment.records(pid)}
    for key, (seq, versions) in SETS.items():
        assert found[key] == record_of(key, seq, versions)
    segment.close()


def text_sets() -> dict[bytes, bytes]:
    """What the compressed files in this folder hold: 40 values that compress, one larger than a block."""
    values: dict[bytes, bytes] = {
        stored_key(1, b"text:%02d" % n): b"all work and no play makes %d a dull boy; " % n * (n + 1) for n in range(40)
    }
    return {**values, stored_key(1, b"large"): b"0123456789abcdef" * 2_000}


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_what_an_earlier_build_compressed_is_read(codec: str) -> None:
    data = (FOLDER / f"segment-{codec}.seg").read_bytes()
    footer, crc = seg.decode_footer(data[-seg.FOOTER_BYTES :], seg.seed_of(STORE_ID, 7))
    summary = SegmentSummary(
        *(7, footer.records, footer.tombstones, footer.raw_bytes, len(data), footer.min_seq, footer.max_seq, 0, 0, crc),
        codec,
    )
    files = SimFiles(random.Random(1))
    write_whole(files, files.open("/s", create=True), data)
    segment = Segment.open(files, "/s", summary)
    assert {segment.check_block(n).codec for n in range(segment.n_blocks)} == {CODEC_IDS[codec]}
    found = {
        record.key: set_from_bytes(record.meta, record.values).siblings[0].value
        for pid in segment.partitions()
        for record in segment.records(pid)
    }
    assert found == text_sets()
