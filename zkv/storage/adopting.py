"""What an old manifest cannot know: the segments that came after it.

Owns: which files of seg/ count when MANIFEST is gone and MANIFEST.prev stands in. Changes nothing on disk. Must not know: the log.

Since the older manifest was written, log files may have been sealed and unlinked, and segments merged and unlinked. All that they held lies in whole files of seg/,
so every one of those counts; of two records of a key the one with the higher seq does. Source: storage reference, row 10 of section 7.
"""

from __future__ import annotations

from dataclasses import replace

from zkv.errors import CorruptData, VersionMismatch
from zkv.storage.files import FileSystem
from zkv.storage.manifest import Manifest
from zkv.storage.segment import SegmentSummary, summary_of


def adopt_segments(files: FileSystem, directory: str, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """(the manifest with every whole segment of `directory`, what could not be adopted and why). Raises: OSError."""
    summaries: list[SegmentSummary] = []
    trouble: list[str] = []
    for name in files.listdir(directory) if files.is_directory(directory) else ():
        try:
            summary = summary_of(files, f"{directory}/{name}", bytes(manifest.store_id))
            if name != f"{summary.id:016x}.seg":
                raise CorruptData(f"calls itself segment {summary.id}")
        except (CorruptData, VersionMismatch) as error:
            trouble.append(f"{name}: {error}")
        else:
            summaries.append(summary)
    return (
        replace(
            manifest,
            segments=tuple(summary.to_tree() for summary in summaries),
            next_segment=max([manifest.next_segment, *(summary.id + 1 for summary in summaries)]),
            # log files are sealed in their order
            wal_floor=max([manifest.wal_floor, *(summary.max_seq + 1 for summary in summaries)]),
        ),
        trouble,
    )
