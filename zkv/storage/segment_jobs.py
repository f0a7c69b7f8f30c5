"""What is asked of those who write segments, and what they answer, as plain data that crosses a pipe.

Owns: the fields of seal and merge jobs and their trees. Must not know: how they are carried out, processes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from zkv.codec.segment import BLOCK_RECORDS_MAX
from zkv.storage.segment import SegmentSummary

#: merges whose output is expected to be at least this large compress with zstd
ZSTD_FROM_BYTES: Final = 64 * 1024 * 1024


class LogSource(NamedTuple):
    """A log file to be sealed. It does not count from `limit_seq` on, where a later file took over (storage/recovery)."""

    path: str
    generation: int
    first_seq: int
    limit_seq: int


class SegmentSource(NamedTuple):
    path: str
    summary: SegmentSummary


@dataclass(frozen=True, slots=True)
class SealJob:
    """Log records [first_seq, last_seq] into one segment at `output` (in tmp/)."""

    output: str
    store_id: bytes
    segment_id: int
    hash_seed: int
    #: partition = hash >> shift
    shift: int
    sources: tuple[LogSource, ...]
    first_seq: int
    last_seq: int
    #: (first, last) of records that are known to be unreadable and were reported; any others that are missing are an error
    missing: tuple[tuple[int, int], ...] = ()
    block_records_max: int = BLOCK_RECORDS_MAX

    def to_tree(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _SEAL_FIELDS},
            "sources": [list(source) for source in self.sources],
            "missing": [list(seqs) for seqs in self.missing],
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> SealJob:
        fields = dict(tree)
        fields["sources"] = tuple(LogSource(*source) for source in tree["sources"])
        fields["missing"] = tuple((first, last) for first, last in tree["missing"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Segments of one store into one segment at `output` (in tmp/)."""

    output: str
    store_id: bytes
    segment_id: int
    hash_seed: int
    shift: int
    inputs: tuple[SegmentSource, ...]
    #: per input the places that the index holds, or None: of each key the highest seq among the inputs
    live: tuple[array[int] | None, ...]
    #: (stored key, digest): what the replication layer gives up. Purged where it is the state of its key and no segment of `others` has its hash
    reap: tuple[tuple[bytes, int], ...] = ()
    #: every segment of the store that is not an input; needed when something is reaped
    others: tuple[SegmentSource, ...] = ()
    zstd_from_bytes: int = ZSTD_FROM_BYTES
    block_records_max: int = BLOCK_RECORDS_MAX

    def to_tree(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _MERGE_FIELDS},
            "inputs": _sources_out(self.inputs),
            "others": _sources_out(self.others),
            "live": [None if places is None else places.tobytes() for places in self.live],
            "reap": [list(item) for item in self.reap],
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> MergeJob:
        fields = dict(tree)
        fields["inputs"] = _sources_in(tree["inputs"])
        fields["others"] = _sources_in(tree["others"])
        fields["live"] = tuple(None if data is None else _array("I", data) for data in tree["live"])
        fields["reap"] = tuple((key, digest) for key, digest in tree["reap"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """in = out + superseded + purged, for records and for raw bytes. `summary` is None, and there is no file, when nothing was left."""

    summary: SegmentSummary | None
    records_in: int
    superseded: int
    purged: int
    bytes_in: int
    bytes_superseded: int
    bytes_purged: int
    #: asked for and not done: another segment has the hash, or the key has gone on since
    kept_back: int
    #: of each record of the output, in its order: number of the input << 32 | place in it
    origins: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def records_out(self) -> int:
        return self.summary.records if self.summary is not None else 0

    @property
    def bytes_out(self) -> int:
        return self.summary.raw_bytes if self.summary is not None else 0

    def to_tree(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _RESULT_FIELDS},
            "summary": None if self.summary is None else self.summary.to_tree(),
            "origins": self.origins.tobytes(),
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> MergeResult:
        fields = dict(tree)
        fields["summary"] = None if tree["summary"] is None else SegmentSummary.from_tree(tree["summary"])
        fields["origins"] = _array("Q", tree["origins"])
        return cls(**fields)


_TARGET: Final = ("output", "store_id", "segment_id", "hash_seed", "shift", "block_records_max")
_SEAL_FIELDS: Final = (*_TARGET, "first_seq", "last_seq")
_MERGE_FIELDS: Final = (*_TARGET, "zstd_from_bytes")
_RESULT_FIELDS: Final = (
    *("records_in", "superseded", "purged"),
    *("bytes_in", "bytes_superseded", "bytes_purged", "kept_back"),
)


def _sources_out(sources: tuple[SegmentSource, ...]) -> list[Any]:
    return [[source.path, source.summary.to_tree()] for source in sources]


def _sources_in(tree: list[Any]) -> tuple[SegmentSource, ...]:
    return tuple(SegmentSource(path, SegmentSummary.from_tree(summary)) for path, summary in tree)


def _array(kind: str, data: bytes) -> array[int]:
    """Both ends of the pipe are this machine."""
    made: array[int] = array(kind)
    made.frombytes(data)
    return made
