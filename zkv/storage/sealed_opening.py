"""Opening the sealed part of a directory: which segments are there, which are not what they were, which nobody needs.

Owns: the verdict on each file of seg/ at start. Must not know: the log's own recovery (recovery, opening), steps, jobs.

A segment that is listed and cannot be opened gets a second name in quarantine/, leaves the list, and makes the store unsynced: what it held must
come from the other replicas before an absent key counts as absent. Files that no manifest names are left by a crash and go away, unless the manifest
may be an old one. Source: storage reference, 6.6; rows 4 and 10 of section 7.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from zkv.errors import CorruptData
from zkv.storage.cache import BlockCache, RecordCache
from zkv.storage.files import FileSystem
from zkv.storage.log_store import LogStore
from zkv.storage.opening import QUARANTINE, SEGMENTS, segment_name
from zkv.storage.recovery import Recovery
from zkv.storage.sealed import SealedStore
from zkv.storage.segment import SegmentSummary

#: of decompressed blocks; a scan needs one per segment
BLOCK_CACHE_BYTES: Final = 8 * 1024 * 1024


def open_sealed(
    files: FileSystem,
    path: str,
    log: LogStore,
    recovery: Recovery,
    *,
    partitions: int,
    hash_seed: int,
    cache_bytes: int,
    note: Callable[[str, str, str], None],
) -> SealedStore:
    """The sealed records of a store whose log is open. Damage is added to `recovery`. Raises: OSError, StorageError, VersionMismatch."""

    def keep_shared(shared: tuple[int, ...]) -> None:
        log.update_manifest(shared_hashes=shared)

    sealed = SealedStore(
        files,
        path,
        partitions=partitions,
        hash_seed=hash_seed,
        shared=log.manifest.shared_hashes,
        keep_shared=keep_shared,
        note=note,
        record_cache=RecordCache(cache_bytes),
        block_cache=BlockCache(BLOCK_CACHE_BYTES),
    )
    try:
        lost = _add_all(sealed, log)
    except BaseException:
        sealed.close()
        raise
    sealed.warm = not sealed  # without segments there is nothing to load
    listed = {segment_name(tree["id"]) for tree in log.manifest.segments}
    present = files.listdir(f"{path}/{SEGMENTS}")
    if lost:
        _quarantine(files, path, [name for name in lost if name in present])
        recovery.lost_segments = list(lost)
        recovery.notes += [f"{SEGMENTS}/{name} cannot be read: {why}" for name, why in lost.items()]
        kept = tuple(tree for tree in log.manifest.segments if segment_name(tree["id"]) not in lost)
        log.update_manifest(segments=kept, unsynced=True)
    if not recovery.degraded:
        for name in present:
            if name not in listed:
                files.unlink(f"{path}/{SEGMENTS}/{name}")
    return sealed


def _add_all(sealed: SealedStore, log: LogStore) -> dict[str, str]:
    """Name and trouble of those that cannot be opened."""
    lost: dict[str, str] = {}
    for tree in log.manifest.segments:
        try:
            sealed.complete(sealed.add(SegmentSummary.from_tree(tree)))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise  # no descriptors left, say: that is no verdict on a file
            lost[segment_name(tree["id"])] = str(error)
        except CorruptData as error:
            lost[segment_name(tree["id"])] = str(error)
    return lost


def _quarantine(files: FileSystem, path: str, names: list[str]) -> None:
    have = files.listdir(f"{path}/{QUARANTINE}")
    for name in names:
        if name not in have:
            files.link(f"{path}/{SEGMENTS}/{name}", f"{path}/{QUARANTINE}/{name}")
    files.fsync_dir(f"{path}/{QUARANTINE}")
