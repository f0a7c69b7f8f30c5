"""Every decoder: what it reads, what it may raise, and how what it accepts is written again."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from hypothesis import strategies as st

from tests.fuzz import gossip_objects, objects
from tests.fuzz.damage import Parts
from zkv.cli import lines
from zkv.cli.journal import Journal, Position
from zkv.client import codecs, url
from zkv.codec import gossip, log, packed, plain, records, segment, segment_index, value, wire
from zkv.codec.block import LZ4, decompress
from zkv.config import environment_of, load, parse_address, parse_bytes, parse_ms
from zkv.core import messages as m
from zkv.core.initial import initial_text, parse_initial
from zkv.core.ring import record_hash
from zkv.core.versions import VersionSet
from zkv.errors import CodecError, ConfigError, CorruptData, ProtocolError
from zkv.storage.files import read_whole
from zkv.storage.manifest import decode_manifest, encode_manifest
from zkv.storage.sealing import digest_of, record_of
from zkv.storage.segment import SegmentSummary
from zkv.storage.segment_writer import SegmentWriter
from zkv.testing.sim.disk import SimFiles


@dataclass(frozen=True)
class Decoder:
    """covers: the functions under test, as module.name. tree: which part holds a tree, and its codec."""

    covers: tuple[str, ...]
    objects: st.SearchStrategy[Any]
    encode: Callable[[Any], Parts]
    decode: Callable[[Parts], Any]
    refuses: tuple[type[Exception], ...]
    tree: tuple[int, Callable[[bytes], Any], Callable[[bytes], Any]] | None = None
    #: what is equal when two objects are; by default their bytes
    image: Callable[[Any], Any] | None = None

    @property
    def valid(self) -> st.SearchStrategy[Parts]:
        return self.objects.map(self.encode)


# --- messages ----------------------------------------------------------------------------------------------------------------

MSGPACK: Any = (1, packed.unpack, packed.pack)
NOW_NS = 0


def _frames(message: m.Message) -> Parts:
    return wire.encode(message, cluster=7, now_ns=NOW_NS)


def _unframed(frames: Parts) -> m.Message:
    return wire.decode(frames, now_ns=NOW_NS)


def _opened(message: m.Message) -> Parts:
    """Header, body, values."""
    head, *values = _frames(message)
    return [head[: wire.HEADER_BYTES], head[wire.HEADER_BYTES :], *values]


def _closed(parts: Parts) -> m.Message:
    """With the lengths that are, so that a changed body is looked into."""
    head, body, values = (*parts, b"", b"")[:3]
    fields = list(wire.HEADER.unpack(head.ljust(wire.HEADER_BYTES, b"\0")[: wire.HEADER_BYTES]))
    fields[-2:] = len(body), len(values)
    return _unframed([wire.HEADER.pack(*fields) + body, *([values] if values else [])])


def _of_kind(kind: m.Kind) -> Decoder:
    covers = ("zkv.codec.wire.decode", "zkv.codec.wire_bodies.from_parts", f"Kind.{kind.name}")
    return Decoder(covers, objects.MESSAGES[kind], _opened, _closed, (ProtocolError,), MSGPACK)


def _gossip_opened(message: Any) -> Parts:
    frame = gossip.encode(message)
    return [frame[: gossip.HEADER_BYTES], frame[gossip.HEADER_BYTES :]]


def _gossip_closed(parts: Parts) -> Any:
    """With the checksum that is, so that what changed is looked into."""
    frame = _joined(parts).ljust(8, b"\0")
    fitted = crc32(frame[:4] + bytes(4) + frame[8:]).to_bytes(4, "little")
    return gossip.decode(frame[:4] + fitted + frame[8:])


def _members_closed(parts: Parts) -> Any:
    body = _joined(parts)[4:]
    return gossip.decode_members(crc32(body).to_bytes(4, "little") + body)


def _members_opened(members: Any) -> Parts:
    data = gossip.encode_members(members)
    return [data[:4], data[4:]]


# --- log ---------------------------------------------------------------------------------------------------------------------

_STORE = bytes(range(16))
_SEED = log.chain_seed(_STORE, 1, 1)


def _log_file(bodies: list[bytes]) -> Parts:
    data = log.encode_file_header(log.FileHeader(_STORE, 1, 1, 0))
    crc = _SEED
    for seq, body in enumerate(bodies, 1):
        header, _, crc = log.encode_batch_header([body], 1, 1, seq, 0, crc, _SEED)
        data += header + body
    return [data]


def _read_log(parts: Parts) -> list[bytes]:
    """As a recovery does: the header, then every run that verifies."""
    (data,) = parts if len(parts) == 1 else [b"".join(parts)]
    log.decode_file_header(data)
    bodies: list[bytes] = []
    for run in log.scan_file(data, _SEED, 1, log.SEQ_MAX).runs:
        assert log.offset_of_seq(data[run.offset : run.end], _SEED, run.first_seq) == 0
        bodies += [batch.body for batch in log.read_batches(data[run.offset : run.end], _SEED)]
    return bodies


def _log_body(block: m.RecordBlock) -> Parts:
    return [b"".join(records.block_to_log(block)[1])]


# --- segments ----------------------------------------------------------------------------------------------------------------

_SEGMENT_SEED = segment.seed_of(_STORE, 1)
Sets = list[tuple[bytes, VersionSet]]


def _segment_file(sets: Sets) -> Parts:
    """Blocks of two records, one partition."""
    files = SimFiles(random.Random(1))
    writer = SegmentWriter(files, "/s", segment.SegmentHeader(LZ4, 64, _STORE, 1, 0), block_records_max=2)
    for seq, (key, versions) in enumerate(sets, 1):
        record = record_of(key, seq, versions)
        writer.add(0, [record_hash(key, 0, 64)], [digest_of(record.meta)], [record])
    writer.finish()
    return [read_whole(files, "/s")]


def _read_segment(parts: Parts) -> Sets:
    """As a store does, but for the summary in its manifest; and the frames once more, as a repair does."""
    data = b"".join(parts)
    segment.decode_header(data)
    footer, _ = segment.decode_footer(data[-segment.FOOTER_BYTES :], _SEGMENT_SEED)
    directory = segment_index.decode_directory(
        data[footer.directory_offset : -segment.FOOTER_BYTES], footer, _SEGMENT_SEED
    )
    for run in directory.runs.values():
        segment_index.decode_index(data[footer.index_offset : footer.directory_offset], run, _SEGMENT_SEED)
    sets: Sets = []
    for block_no in range(footer.blocks):
        block = data[directory.offsets[block_no] : directory.offsets[block_no + 1]]
        frame, chunk = segment.chunk_of(block, _SEGMENT_SEED, block_no)
        sets += _sets_of(decompress(frame.codec, chunk, frame.payload_bytes), frame.record_count)
    again: Sets = []
    for _, frame, chunk in segment.scan_frames(data, _SEGMENT_SEED):
        again += _sets_of(decompress(frame.codec, chunk, frame.payload_bytes), frame.record_count)
    assert records_image(again) == records_image(sets)
    return sets


def _sets_of(payload: bytes, count: int) -> Sets:
    found = [segment.record_at(payload, slot) for slot in range(count)]
    return [(record.key, records.set_from_bytes(record.meta, record.values)) for record in found]


def records_image(sets: Sets) -> list[tuple[bytes, bytes, bytes]]:
    return [(key, *records.set_to_bytes(versions)) for key, versions in sets]


def _payload(found: list[segment.SegmentRecord]) -> Parts:
    return [segment.encode_payload([segment.encode_record(record) for record in found])]


def _read_payload(parts: Parts) -> list[segment.SegmentRecord]:
    payload = b"".join(parts)
    return [segment.record_at(payload, slot) for slot in range(int.from_bytes(payload[:2], "little"))]


def _directory(keys: list[bytes]) -> Parts:
    """Two partitions; each key begins a block."""
    n = len(keys)
    half = n // 2
    rows = [segment_index.Run(3, 0, half, 0, half, 1, 9), segment_index.Run(7, half, n - half, half, n - half, 2, 9)]
    offsets = array("Q", range(64, 64 + 100 * (n + 1), 100))
    directory = segment_index.encode_directory(rows, offsets, keys)
    index_end = offsets[-1] + n * segment.INDEX_ROW_BYTES
    footer = segment.Footer(
        *(LZ4, 1, n, 0, 9, 1, 2, 0, 0, offsets[-1], index_end, index_end + len(directory) + segment.FOOTER_BYTES),
        *(n, 2, 0),
    )
    return [directory, segment.encode_footer(footer, _SEGMENT_SEED)[0]]


def _read_directory(parts: Parts) -> list[bytes]:
    """With the checksums of what is there, so that what they protect is looked into."""
    data, footer_bytes = (*parts, b"", b"")[:2]
    body = footer_bytes[: segment.FOOTER_BYTES - 4].ljust(segment.FOOTER_BYTES - 4, b"\0")
    crc = crc32(body, _SEGMENT_SEED).to_bytes(4, "little")
    footer, _ = segment.decode_footer(body + crc, _SEGMENT_SEED)
    footer = footer._replace(directory_crc=crc32(data, _SEGMENT_SEED))
    directory = segment_index.decode_directory(data, footer, _SEGMENT_SEED)
    for run in directory.runs.values():
        directory.block_for(run, b"key")
    return [directory.first_key(block_no) for block_no in range(footer.blocks)]


# --- text --------------------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return os.fsdecode(data)


def _joined(parts: Parts) -> bytes:
    return b"".join(parts)


_SETTINGS: dict[str, dict[str, st.SearchStrategy[object]]] = {
    "node": {"name": objects.names, "dc": objects.names, "weight": st.floats(0.5, 100), "data": objects.names},
    "network": {"listen": st.sampled_from(["127.0.0.1:7400", "[::1]:80"]), "insecure_network": st.booleans()},
    "storage": {
        "fsync": st.sampled_from(["group", "interval", "never"]),
        "fsync_interval_ms": st.integers(1, 10_000),
        "wal_bytes": st.sampled_from(["64MiB", "2 mb", 4_000_000]),
    },
    "cluster": {"partitions": st.sampled_from([1, 8, 1024])},
}
_settings = st.fixed_dictionaries({name: st.fixed_dictionaries({}, optional=keys) for name, keys in _SETTINGS.items()})


def _toml(sections: dict[str, dict[str, object]]) -> Parts:
    text = ""
    for name, keys in sections.items():
        text += f"[{name}]\n" + "".join(f"{key} = {json.dumps(given)}\n" for key, given in keys.items())
    return [text.encode()]


def _load_toml(parts: Parts) -> object:
    with tempfile.NamedTemporaryFile() as file:
        file.write(_joined(parts))
        file.flush()
        settings = load({}, {}, Path(file.name))
    settings.validate()
    return settings


def _environment(sections: dict[str, dict[str, object]]) -> Parts:
    given = {environment_of(key): str(text) for keys in sections.values() for key, text in keys.items()}
    return [f"{name}={text}".encode() for name, text in given.items()] or [b""]


def _load_environment(parts: Parts) -> object:
    pairs = (_text(part).partition("=") for part in parts)
    settings = load({}, {name: text for name, _, text in pairs})
    settings.validate()
    return settings


entries = st.builds(
    lines.Entry, st.binary(min_size=1, max_size=20), objects.small, st.none() | st.integers(1, 10**10).map(float)
)


def _lines(style: str) -> Callable[[list[lines.Entry]], Parts]:
    def write(given: list[lines.Entry]) -> Parts:
        text = io.StringIO(newline="")
        writer = lines.LineWriter(text, style)
        for entry in given:
            writer.write(entry)
        return [text.getvalue().encode("utf-8", "surrogateescape")]

    return write


def _read_lines(style: str) -> Callable[[Parts], list[lines.Entry]]:
    def read(parts: Parts) -> list[lines.Entry]:
        read = [entry for _, entry in lines.LineReader(io.BytesIO(_joined(parts)), style)]
        return [entry for entry in read if isinstance(entry, lines.Entry)]

    return read


_positions = st.builds(Position, objects.u63, objects.u63, objects.u63, objects.u63)


def _journal(position: Position) -> Parts:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        Journal(path, b"head").save(position)
        return [path.read_bytes()]


def _read_journal(parts: Parts) -> Position:
    with tempfile.NamedTemporaryFile() as file:
        file.write(_joined(parts))
        file.flush()
        return Journal(Path(file.name), b"head").position


_urls = st.builds(
    url.Target,
    st.lists(st.sampled_from(["h1:7400", "[::1]:7401", "10.0.0.1:1"]), min_size=1, max_size=3, unique=True).map(tuple),
    objects.names,
    st.sampled_from([0.5, 5.0, 60.0]),
)


def _value_codec(name: str, values: st.SearchStrategy[Any], tree: Any = None) -> Decoder:
    codec = codecs.codec_of(name)
    covers = ("zkv.client.codecs.Codec.decode", "zkv.codec.plain.loads")
    return Decoder(covers, values, lambda x: [codec.encode(x)], lambda p: codec.decode(_joined(p)), (CodecError,), tree)


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | objects.short,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(objects.short, inner, max_size=3),
)


def _json_out(tree: Any) -> bytes:
    return json.dumps(tree, default=repr).encode()


def _number_text(option: Callable[[object, str], int]) -> Decoder:
    return Decoder(
        (f"zkv.config.{option.__name__}",),
        objects.u32,
        lambda number: [str(number).encode()],
        lambda parts: option(_text(_joined(parts)), "x"),
        (ConfigError,),
    )


def _fresh(block: m.RecordBlock) -> m.RecordBlock:
    """Without the bytes it came from, so that writing it means encoding it."""
    return m.RecordBlock(block.records) if block.columns is None else m.RecordBlock(columns=block.columns)


# --- the table ---------------------------------------------------------------------------------------------------------------

DECODERS: dict[str, Decoder] = {
    "frames": Decoder(
        ("zkv.codec.wire.decode_header", "zkv.codec.wire.decode"),
        st.one_of(list(objects.MESSAGES.values())),
        _frames,
        _unframed,
        (ProtocolError,),
    ),
    **{f"body of {kind.name}": _of_kind(kind) for kind in m.Kind},
    "msgpack": Decoder(
        ("zkv.codec.packed.unpack",),
        objects.trees,
        lambda tree: [packed.pack(tree)],
        lambda parts: packed.unpack(_joined(parts)),
        (ProtocolError,),
        (0, packed.unpack, packed.pack),
    ),
    "context": Decoder(
        (
            "zkv.codec.records.context_from_bytes",
            "zkv.codec.records.context_from_tree",
            "zkv.codec.records.stated_context_from_tree",
            "zkv.codec.records.past_from_flat",
            "zkv.codec.records.cloud_from_flat",
        ),
        objects.contexts(),
        lambda context: [records.context_to_bytes(context)],
        lambda parts: records.context_from_bytes(_joined(parts)),
        (ProtocolError,),
        (0, lambda data: packed.unpack(data) if data else None, packed.pack),
    ),
    "record block": Decoder(
        ("zkv.codec.records.decode_block", "zkv.codec.columns.columns_from_tree"),
        objects.blocks,
        lambda block: list(records.encode_block(block)),
        lambda parts: _fresh(records.decode_block(*(*parts, b"", b"")[:2])),
        (ProtocolError,),
        (0, packed.unpack, packed.pack),
    ),
    "log body": Decoder(
        ("zkv.codec.records.block_from_log",),
        objects.blocks,
        _log_body,
        lambda parts: _fresh(records.block_from_log(_joined(parts))),
        (ProtocolError,),
    ),
    "log file": Decoder(
        (
            "zkv.codec.log.decode_file_header",
            "zkv.codec.log.decode_batch_header",
            "zkv.codec.log.scan_file",
            "zkv.codec.log.read_batches",
            "zkv.codec.log.offset_of_seq",
        ),
        st.lists(st.binary(min_size=1, max_size=20), max_size=4),
        _log_file,
        _read_log,
        (CorruptData, ProtocolError),
    ),
    "set of a segment": Decoder(
        ("zkv.codec.records.set_from_bytes",),
        objects.version_sets(),
        lambda versions: list(records.set_to_bytes(versions)),
        lambda parts: records.set_from_bytes(*(*parts, b"", b"")[:2]),
        (ProtocolError,),
        (0, packed.unpack, packed.pack),
    ),
    "segment file": Decoder(
        (
            "zkv.codec.segment.decode_header",
            "zkv.codec.segment.decode_footer",
            "zkv.codec.segment.decode_frame",
            "zkv.codec.segment_index.decode_directory",
            "zkv.codec.segment_index.decode_index",
        ),
        objects.segment_sets,
        _segment_file,
        _read_segment,
        (CorruptData, ProtocolError),
        image=records_image,
    ),
    "segment block": Decoder(
        (),
        st.lists(objects.segment_records, min_size=1, max_size=4),
        _payload,
        _read_payload,
        (CorruptData,),
        image=lambda found: found,
    ),
    "segment directory": Decoder(
        ("zkv.codec.segment_index.decode_directory", "zkv.codec.segment.decode_footer"),
        st.lists(objects.stored_keys, min_size=2, max_size=5, unique=True).map(sorted),
        _directory,
        _read_directory,
        (CorruptData,),
        image=lambda keys: keys,
    ),
    "segment summary": Decoder(
        ("zkv.storage.segment.SegmentSummary.from_tree",),
        st.builds(SegmentSummary, *[objects.u63] * 10, st.sampled_from(["lz4", "zstd"])),
        lambda summary: [value.dumps(summary.to_tree())],
        lambda parts: SegmentSummary.from_tree(value.loads(_joined(parts))),
        (CorruptData, ProtocolError),
        (0, value.loads, value.dumps),
    ),
    "canonical CBOR": Decoder(
        ("zkv.codec.value.loads",),
        objects.canonical_trees,
        lambda tree: [value.dumps(tree)],
        lambda parts: value.loads(_joined(parts)),
        (ProtocolError,),
    ),
    "topology": Decoder(
        ("zkv.codec.value.document_from", "zkv.core.topology.from_tree"),
        objects.topologies(),
        lambda document: [value.document_bytes(document)],
        lambda parts: value.document_from(_joined(parts)),
        (ProtocolError,),
        (0, value.loads, value.dumps),
    ),
    "gossip": Decoder(
        ("zkv.codec.gossip.decode",),
        gossip_objects.messages,
        _gossip_opened,
        _gossip_closed,
        (ProtocolError,),
        MSGPACK,
    ),
    "gossip, as it comes": Decoder(
        ("zkv.codec.gossip.decode",),
        gossip_objects.messages,
        lambda message: [gossip.encode(message)],
        lambda parts: gossip.decode(_joined(parts)),
        (ProtocolError,),
    ),
    "remembered members": Decoder(
        ("zkv.codec.gossip.decode_members",),
        gossip_objects.remembered,
        _members_opened,
        _members_closed,
        (ProtocolError,),
        MSGPACK,
    ),
    "manifest": Decoder(
        ("zkv.storage.manifest.decode_manifest",),
        objects.manifests,
        lambda manifest: [encode_manifest(manifest)],
        lambda parts: decode_manifest(_joined(parts)),
        (CorruptData, ProtocolError),
    ),
    "initial list": Decoder(
        ("zkv.core.initial.parse_initial",),
        objects.initial_lists(),
        lambda nodes: [initial_text(nodes).encode()],
        lambda parts: parse_initial(_text(_joined(parts))),
        (ConfigError,),
    ),
    "configuration file": Decoder(
        ("zkv.config.load",), _settings, _toml, _load_toml, (ConfigError,), image=lambda settings: None
    ),
    "environment": Decoder(
        ("zkv.config.load",), _settings, _environment, _load_environment, (ConfigError,), image=lambda settings: None
    ),
    "address": Decoder(
        ("zkv.config.parse_address",),
        st.sampled_from(["127.0.0.1:7400", "[::1]:1", "db.example:65535"]),
        lambda address: [str(address).encode()],
        lambda parts: parse_address(_text(_joined(parts)), "listen"),
        (ConfigError,),
    ),
    "bytes with units": _number_text(parse_bytes),
    "time with units": _number_text(parse_ms),
    "URL": Decoder(
        ("zkv.client.url.parse",),
        _urls,
        lambda target: [target.url.encode("utf-8", "surrogateescape")],
        lambda parts: url.parse(_text(_joined(parts))),
        (ConfigError,),
    ),
    "JSON lines": Decoder(
        ("zkv.cli.lines.LineReader", "zkv.cli.lines.entry_of_json"),
        st.lists(entries, max_size=3),
        _lines("jsonl"),
        _read_lines("jsonl"),
        (lines.Refusal,),
    ),
    "CSV": Decoder(
        ("zkv.cli.lines.LineReader",),
        st.lists(entries, max_size=3),
        _lines("csv"),
        _read_lines("csv"),
        (lines.Refusal,),
    ),
    "journal": Decoder(
        ("zkv.cli.journal.Journal",),
        _positions,
        _journal,
        _read_journal,
        (ConfigError,),
        (0, json.loads, _json_out),
    ),
    "values as text": _value_codec("str", objects.short),
    "values as JSON": _value_codec("json", _json_values),
    "values as msgpack": _value_codec("msgpack", objects.trees, (0, plain.loads, plain.dumps)),
    "values as CBOR": _value_codec("cbor", objects.canonical_trees),
}
