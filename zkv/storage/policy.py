"""Which segments to compact next.

Owns: the choice. Must not know: files, indexes, time, what runs. Pure: the same segments give the same plan.

Segments that hold nothing alive are dropped at once. Else, in this order: segments with the largest part dead while more than half as much is dead as is alive
(so disk <= 1.5 x live data, besides one sealed table and one output); the smallest while there are too many; one of whose records a quarter may be reaped.
Liveness is exact, so each compaction is worth its writing, and there are no levels. Source: storage reference, 6.5 point 4 and its simulation in 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What is known of one segment that no job works on."""

    id: int
    records: int
    #: keys, meta and values, not compressed
    raw_bytes: int
    file_bytes: int
    #: records that the index points to, and their raw bytes
    live_records: int
    live_raw_bytes: int
    #: live records that compacting this segment would certainly purge
    reapable_records: int = 0

    @property
    def live_bytes(self) -> int:
        """Estimated part of the file: blocks of one segment are compressed alike."""
        return self.file_bytes * self.live_raw_bytes // self.raw_bytes if self.raw_bytes else 0

    @property
    def dead_bytes(self) -> int:
        return self.file_bytes - self.live_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    #: dead bytes allowed per live byte
    dead_share: float = 0.5
    #: where a compaction for space may stop: taking more segments at once than that needs writes more than it saves
    dead_share_goal: float = 0.4
    segments_max: int = 96
    inputs_max: int = 8
    output_bytes_max: int = 256 * MIB
    #: part of a segment's records that must be reapable before it is compacted for their sake
    reapable_share: float = 0.25

    def output_max(self, live_bytes: int) -> int:
        """Outputs grow with a store that so few of them could not hold: segments that are full take half of the number allowed."""
        return max(self.output_bytes_max, 2 * live_bytes // self.segments_max)


LIMITS: Final = Limits()


class Reason(StrEnum):
    EMPTY = "empty"
    SPACE = "space"
    COUNT = "count"
    REAP = "reap"


@dataclass(frozen=True, slots=True)
class MergePlan:
    reason: Reason
    #: segment ids, in rising order
    inputs: tuple[int, ...]
    #: estimate of what is written; 0 when the inputs are just dropped
    output_bytes: int

    @property
    def drops_only(self) -> bool:
        return self.reason is Reason.EMPTY


def plan(segments: Sequence[SegmentState], limits: Limits = LIMITS) -> MergePlan | None:
    """The next step, None if there is nothing to do. Each step leaves fewer dead bytes, fewer segments or fewer tombstones, so asking again ends."""
    empty = [segment for segment in segments if segment.live_records == 0]
    if empty:
        return _plan(Reason.EMPTY, empty)
    live = sum(segment.live_bytes for segment in segments)
    dead = sum(segment.dead_bytes for segment in segments)
    output_max = limits.output_max(live)
    # an output that is larger than usual is paid for before it is written
    if dead > limits.dead_share * live - (output_max - limits.output_bytes_max):
        deadest = sorted(
            (segment for segment in segments if segment.dead_bytes),
            key=lambda segment: (-segment.dead_bytes / segment.file_bytes, segment.id),
        )
        if chosen := _fitting(deadest, limits.inputs_max, output_max, dead - int(limits.dead_share_goal * live)):
            return _plan(Reason.SPACE, chosen)
    if len(segments) > limits.segments_max:
        smallest = sorted(segments, key=lambda segment: (segment.live_bytes, segment.id))
        # the two smallest of more than the allowed number fit in any case, because outputs grow with the store
        return _plan(Reason.COUNT, _fitting(smallest, limits.inputs_max, output_max))
    reapable = [segment for segment in segments if segment.reapable_records > limits.reapable_share * segment.records]
    if reapable:
        most = max(reapable, key=lambda segment: (segment.reapable_records / segment.records, -segment.id))
        return _plan(Reason.REAP, [most])
    return None


def _fitting(
    segments: Iterable[SegmentState], inputs_max: int, output_max: int, dead_wanted: float = inf
) -> list[SegmentState]:
    """The first ones that fit one output together, until they hold so many dead bytes. The very first always fits: a merge of one segment only shrinks it."""
    chosen: list[SegmentState] = []
    size = dead = 0
    for segment in segments:
        if not chosen or size + segment.live_bytes <= output_max:
            chosen.append(segment)
            size += segment.live_bytes
            dead += segment.dead_bytes
            if len(chosen) == inputs_max or dead >= dead_wanted:
                break
    return chosen


def _plan(reason: Reason, inputs: list[SegmentState]) -> MergePlan:
    output = 0 if reason is Reason.EMPTY else sum(segment.live_bytes for segment in inputs)
    return MergePlan(reason, tuple(sorted(segment.id for segment in inputs)), output)
