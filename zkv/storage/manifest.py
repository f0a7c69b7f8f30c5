"""The manifest: who a data directory is, and what must be known before its log is read.

Owns: MANIFEST and MANIFEST.prev, their bytes and their atomic replacement. Must not know: log files, locks, what
`extra` holds.

Invariants: from the first save on a readable MANIFEST exists at every moment of a crash; the one before it stays as
MANIFEST.prev; a manifest replaces another only after it was synced and read back; one of a newer version is never
replaced. Bytes: `ZKVM | version u16 | 0 u16 | body length u32 | crc32 u32 of these 12 bytes and the body | body`,
little-endian, the body canonical CBOR. The 16 bytes in front stay the same in every version. Source: storage
reference, 6.1 and row 10 of section 7.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from zkv.codec.value import dumps, loads
from zkv.errors import CorruptData, StorageFailed, VersionMismatch, ZkvError
from zkv.ids import OPEN_ID_BYTES, StoreId
from zkv.storage.files import FileSystem, read_whole, write_whole

#: version 2 added `segments`, `next_segment` and `shared_hashes`
MANIFEST_VERSION: Final = 2
MANIFEST: Final = "MANIFEST"
MANIFEST_PREV: Final = "MANIFEST.prev"
TMP: Final = "tmp"
STORE_ID_BYTES: Final = 16

_HEADER = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
_MAGIC: Final = b"ZKVM"
_FRONT_BYTES: Final = _HEADER.size + _CRC.size
_KINDS: Final[Mapping[str, type]] = {
    "store_id": bytes,
    "cluster_id": bytes,
    "node_id": int,
    "node_name": str,
    "wal_floor": int,
    "durable_seq": int,
    "high_water_stamp": int,
    "clean_shutdown": bool,
    "unsynced": bool,
    "fsync": str,
    "next_segment": int,
    "shared_hashes": tuple,
    "extra": dict,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """`dataclasses.replace` makes the next one; `save_manifest` puts it in force."""

    store_id: StoreId
    cluster_id: bytes = b""
    node_id: int = 0
    node_name: str = ""
    #: records below are elsewhere (sealed) and log files that hold nothing else are not read
    wal_floor: int = 1
    #: the log was on disk up to here when this manifest was written
    durable_seq: int = 0
    #: the highest hybrid stamp ever handed out or accepted
    high_water_stamp: int = 0
    #: False while a process has the store open
    clean_shutdown: bool = False
    #: no answer of this store counts until it was compared with others
    unsynced: bool = False
    #: the policy under which the log was written since the last opening
    fsync: str = "group"
    #: every open id that this directory has ever used, oldest first
    open_ids: tuple[bytes, ...] = ()
    #: (first seq, last seq) of durable records that an earlier opening found unreadable and reported
    known_corrupt: tuple[tuple[int, int], ...] = ()
    #: the sealed segments that hold what is below `wal_floor`, as storage/segment describes each
    segments: tuple[Mapping[str, Any], ...] = ()
    #: the id of the next one; no id is ever used twice
    next_segment: int = 1
    #: hashes that several sealed keys have (storage/index); normally none
    shared_hashes: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def encode_manifest(manifest: Manifest) -> bytes:
    body = dumps(
        {
            "store_id": bytes(manifest.store_id),
            "cluster_id": manifest.cluster_id,
            "node_id": manifest.node_id,
            "node_name": manifest.node_name,
            "wal_floor": manifest.wal_floor,
            "durable_seq": manifest.durable_seq,
            "high_water_stamp": manifest.high_water_stamp,
            "clean_shutdown": manifest.clean_shutdown,
            "unsynced": manifest.unsynced,
            "fsync": manifest.fsync,
            # one string instead of an array: it grows by eight bytes an opening, for ever
            "open_ids": b"".join(manifest.open_ids),
            "known_corrupt": [list(seqs) for seqs in manifest.known_corrupt],
            "segments": [dict(segment) for segment in manifest.segments],
            "next_segment": manifest.next_segment,
            "shared_hashes": list(manifest.shared_hashes),
            "extra": dict(manifest.extra),
        }
    )
    front = _HEADER.pack(_MAGIC, MANIFEST_VERSION, 0, len(body))
    return front + _CRC.pack(crc32(body, crc32(front))) + body


def decode_manifest(data: bytes) -> Manifest:
    """Raises: CorruptData for bytes that do not verify, VersionMismatch for a whole manifest of a version that this
    build does not know."""
    if len(data) < _FRONT_BYTES:
        raise CorruptData(f"a manifest of {len(data)} bytes is too short")
    magic, version, _zero, body_bytes = _HEADER.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    body = data[_FRONT_BYTES:]
    if magic != _MAGIC or body_bytes != len(body) or crc != crc32(body, crc32(data[: _HEADER.size])):
        raise CorruptData("a manifest does not verify")
    if not 1 <= version <= MANIFEST_VERSION:
        raise VersionMismatch(f"manifest version {version}; this build reads versions 1 to {MANIFEST_VERSION}")
    try:
        tree: Any = loads(body)
        return _from_tree(
            tree if version > 1 else {"segments": [], "next_segment": 1, "shared_hashes": []} | dict(tree)
        )
    except (ZkvError, KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"a manifest with a right checksum and a wrong body: {error!r}") from error


def _from_tree(tree: Any) -> Manifest:
    fields = dict(tree)
    joined = fields.pop("open_ids")
    fields["open_ids"] = tuple(joined[at : at + OPEN_ID_BYTES] for at in range(0, len(joined), OPEN_ID_BYTES))
    fields["known_corrupt"] = tuple((first_seq, last_seq) for first_seq, last_seq in fields["known_corrupt"])
    fields["segments"] = tuple(fields["segments"])
    fields["shared_hashes"] = tuple(fields["shared_hashes"])
    manifest = Manifest(**fields)
    for name, kind in _KINDS.items():
        if type(getattr(manifest, name)) is not kind:
            raise TypeError(f"{name} is a {type(getattr(manifest, name)).__name__}")
    if len(manifest.store_id) != STORE_ID_BYTES or len(joined) % OPEN_ID_BYTES:
        raise ValueError("an id has the wrong length")
    if not all(type(segment) is dict for segment in manifest.segments):
        raise TypeError("a segment is described by a map")
    if not all(type(h) is int and h >= 0 for h in manifest.shared_hashes):
        raise TypeError("shared hashes are numbers")
    return manifest


def save_manifest(files: FileSystem, path: str, manifest: Manifest) -> None:
    """Atomic and durable when it returns; about 1.5 ms. Raises: OSError (the old one is in force, or the new),
    StorageFailed if it read back wrong."""
    data = encode_manifest(manifest)
    fresh = f"{path}/{TMP}/{MANIFEST}"
    fd = files.open(fresh, write=True, create=True)
    try:
        files.ftruncate(fd, 0)
        write_whole(files, fd, data)
        files.fsync(fd)
        if files.pread(fd, len(data) + 1, 0) != data:
            raise StorageFailed(f"{fresh} does not read back as it was written")
    finally:
        files.close(fd)
    _keep_previous(files, path)
    files.rename(fresh, f"{path}/{MANIFEST}")
    files.fsync_dir(path)


def _keep_previous(files: FileSystem, path: str) -> None:
    """MANIFEST becomes MANIFEST.prev too, without being absent for a moment. A bad MANIFEST must not push out a good
    .prev."""
    try:
        decode_manifest(read_whole(files, f"{path}/{MANIFEST}"))
    except (FileNotFoundError, CorruptData):
        return
    second_name = f"{path}/{TMP}/{MANIFEST_PREV}"
    if MANIFEST_PREV in files.listdir(f"{path}/{TMP}"):
        files.unlink(second_name)
    files.link(f"{path}/{MANIFEST}", second_name)
    files.rename(second_name, f"{path}/{MANIFEST_PREV}")


def load_manifest(files: FileSystem, path: str) -> tuple[Manifest, bool]:
    """(manifest, fell back): the second is True when MANIFEST is damaged or gone and MANIFEST.prev stands in, which
    may be old.

    Raises: FileNotFoundError when there is neither; CorruptData when neither can be read; VersionMismatch.
    """
    trouble: list[str] = []
    found = False
    for name in (MANIFEST, MANIFEST_PREV):
        try:
            return decode_manifest(read_whole(files, f"{path}/{name}")), name == MANIFEST_PREV
        except FileNotFoundError:
            trouble.append(f"{name} is missing")
        except CorruptData as error:
            found = True
            trouble.append(f"{name}: {error}")
        except VersionMismatch as error:
            text = f"{path}/{name}: {error}. It was written by another zkv; nothing was changed"
            raise VersionMismatch(text) from error
    if not found:
        raise FileNotFoundError(f"{path} has no {MANIFEST}")
    raise CorruptData(f"{path}: {'; '.join(trouble)}. Nothing was changed. Run `zkv repair {path}`")
