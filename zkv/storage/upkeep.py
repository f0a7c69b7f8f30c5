"""What a store does beside its requests: full log files become segments, segments become fewer and smaller.

Owns: the order of steps from a full log file to a sealed segment and from segments to a merged one; what is tried again and when. Must not
know: bytes of files, requests, threads.

Each kind of work is one generator. It hands a job to the worker and waits, or does a bounded share on the loop's thread and yields, so that no
turn is long. Invariants: a manifest names a file only after it is complete, synced, under its name, and its key index was read; log files and segments are
unlinked only after a manifest that does not need them is on disk; a layer leaves memory only after every record of it can be looked up sealed. What
fails before its result has its name begins anew later, its inputs stay; from then on it is gone on with: an update of the manifest that failed may be on disk
all the same, so the result stays, too. A log file that cannot be read any
more is no reason to stop: its layer is still in memory and is sealed from there. Source: storage reference, 6.5; rows 2, 4 and 10 of section 7.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from zkv.errors import CorruptData, StorageFailed, ZkvError
from zkv.storage import policy
from zkv.storage.files import FileSystem
from zkv.storage.helpers import MergeTask, SealTask
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import TMP
from zkv.storage.memory_table import MemoryTable
from zkv.storage.opening import SEGMENTS, segment_name, segment_path
from zkv.storage.record_table import RecordTable
from zkv.storage.recovery import WAL
from zkv.storage.sealed import ROWS_AT_ONCE, SealedStore
from zkv.storage.sealing import seal_layer
from zkv.storage.segment import SegmentSummary
from zkv.storage.segment_jobs import LogSource, MergeJob, SealJob, SegmentSource
from zkv.storage.worker import Job, Worker

#: layers that may wait to be sealed; with more of them nothing is taken in
FROZEN_MAX: Final = 3
RETRY_NS_MIN: Final = 1_000_000_000
RETRY_NS_MAX: Final = 60_000_000_000

#: yields a job to wait for, a time in ns to wait, or None: there is more to do
_Work = Generator[Job | int | None, None, None]


@dataclass(slots=True)
class _Lane:
    """One kind of work, and what it waits for."""

    begin: Callable[[], _Work | None]
    work: _Work | None = None
    job: Job | None = None
    not_before_ns: int = 0
    retry_ns: int = RETRY_NS_MIN

    def ready(self, now_ns: int) -> bool:
        return now_ns >= self.not_before_ns and (self.job is None or self.job.ended)


class Upkeep:
    def __init__(
        self,
        files: FileSystem,
        path: str,
        log: LogStore,
        table: RecordTable,
        sealed: SealedStore,
        sealer: Worker,
        merger: Worker,
        note: Callable[[str, str, str], None],
    ) -> None:
        """sealer, merger: where jobs run, a long merge must not hold up a seal; they wake the loop when a job ends.

        note: writes a line to the operator's log: level, name of the event, text.
        """
        self._files = files
        self._path = path
        self._log = log
        self._table = table
        self.sealed = sealed
        self._sealer = sealer
        self._merger = merger
        self._note = note
        self._lanes = [_Lane(self._begin_warming), _Lane(self._begin_sealing), _Lane(self._begin_merging)]
        self.seals = 0
        self.sealed_bytes = 0
        self.merges = 0
        self.merged_bytes = 0
        self.failures = 0

    @property
    def behind(self) -> bool:
        """So much waits to be sealed that nothing more should be taken in."""
        return len(self._table.frozen) > FROZEN_MAX

    def turn(self, now_ns: int) -> None:
        """Take in what ended, begin what is due, do a bounded share of what is left. Raises: StorageFailed."""
        for worker in (self._sealer, self._merger):
            worker.completed()  # the jobs themselves say that they ended
        for lane in self._lanes:
            if not lane.ready(now_ns):
                continue
            if lane.work is None:
                lane.work = lane.begin()
            if lane.work is not None:
                self._step(lane, now_ns)

    def _step(self, lane: _Lane, now_ns: int) -> None:
        assert lane.work is not None
        lane.job = None
        try:
            wanted = next(lane.work)
        except StopIteration:
            lane.work = None
            lane.retry_ns = RETRY_NS_MIN
        except StorageFailed:
            raise
        except (ZkvError, OSError) as error:
            # nothing of it is in force, and what went into it is as it was
            lane.work = None
            lane.not_before_ns = now_ns + lane.retry_ns
            self._say_failed(error, lane.retry_ns)
            lane.retry_ns = min(2 * lane.retry_ns, RETRY_NS_MAX)
        else:
            if isinstance(wanted, int):
                lane.not_before_ns = now_ns + wanted
            else:
                lane.job = wanted

    def _say_failed(self, error: Exception, retry_ns: int) -> None:
        self.failures += 1
        self._note("error", "upkeep_failed", f"{error}; trying again in {retry_ns / 1e9:.0f} s")

    def _until_done(self, work: Callable[[], Iterator[None]]) -> _Work:
        """Goes on until `work`, which may be begun anew, comes to its end: what it belongs to is in force and cannot be taken back."""
        retry_ns = RETRY_NS_MIN
        while True:
            try:
                yield from work()
                return
            except StorageFailed:
                raise
            except (ZkvError, OSError) as error:
                self._say_failed(error, retry_ns)
                yield retry_ns
                retry_ns = min(2 * retry_ns, RETRY_NS_MAX)

    def next_due_ns(self, now_ns: int) -> int | None:
        """When `turn` is wanted although nothing happened: at once while there is work that waits for nobody."""
        due = []
        for lane in self._lanes:
            if lane.not_before_ns > now_ns:
                due.append(lane.not_before_ns)
            elif lane.work is not None and lane.ready(now_ns):
                due.append(now_ns)
        return min(due, default=None)

    # --- warming: shards of the index that nobody has asked for ----------------------------------------------------------

    def _begin_warming(self) -> _Work | None:
        return None if self.sealed.warm else self._warm()

    def _warm(self) -> _Work:
        while self.sealed.warm_next():
            yield None

    # --- sealing ---------------------------------------------------------------------------------------------------------

    def _begin_sealing(self) -> _Work | None:
        frozen = self._table.frozen
        if not frozen or frozen[0].through_seq > self._log.durable_seq:
            return None  # power loss must not leave a segment that knows more than the log
        return self._seal(frozen[0])

    def _seal(self, layer: MemoryTable) -> _Work:
        if layer.recovered:  # its keys came without a look-up: find those whose hash a sealed key has
            yield from self._shares([*layer.sets, *layer.passed_on], self.sealed.compare)
        through_seq = layer.through_seq
        task = SealTask(self._files, self._seal_job(through_seq))
        self._sealer.submit(task)
        yield task
        if isinstance(task.error, CorruptData):
            self._note("error", "log_unreadable", f"{task.error}; its records are sealed from memory")
            task.summary = seal_layer(self._files, task.job, layer.sets)
        elif task.error is not None:
            raise task.error
        summary = task.summary
        added: tuple[dict[str, Any], ...] = ()
        if summary is not None:
            self._publish(summary.id)
            added = (summary.to_tree(),)

        def name() -> Iterator[None]:
            self._log.update_manifest(
                segments=self._log.manifest.segments + added,
                wal_floor=through_seq + 1,
                high_water_stamp=max(self._log.manifest.high_water_stamp, self._table.stamp_high),
            )
            return iter(())

        yield from self._until_done(name)
        if summary is not None:
            yield from self._put_in_force(summary, layer)
            self.seals += 1
            self.sealed_bytes += summary.file_bytes
        self._table.thaw(through_seq)
        for trouble in self._log.drop_closed(through_seq):
            self._note("warning", "not_unlinked", f"{trouble}; the next start tries again")

    def _seal_job(self, through_seq: int) -> SealJob:
        segment_id = self._next_id()
        manifest = self._log.manifest
        wal = f"{self._path}/{WAL}"
        return SealJob(
            output=self._output(segment_id),
            store_id=bytes(manifest.store_id),
            segment_id=segment_id,
            hash_seed=self.sealed.hash_seed,
            shift=self.sealed.shift,
            sources=tuple(
                LogSource(f"{wal}/{file.name}", file.generation, file.first_seq, file.limit_seq)
                for file in self._log.closed_files(through_seq)
            ),
            first_seq=manifest.wal_floor,
            last_seq=through_seq,
            missing=manifest.known_corrupt,
        )

    def _put_in_force(self, summary: SegmentSummary, layer: MemoryTable) -> _Work:
        yield from self._until_done(lambda: self.sealed.install(self.sealed.add(summary)))
        slot = self.sealed.add(summary)
        # what came meanwhile was looked up while these records were in the layer, and by key
        later = [key for table in self._table.later_than(layer) for key in table.sets]

        def share(keys: list[bytes]) -> None:
            self.sealed.share_with(slot, [k for k in keys if k not in layer.sets and k not in layer.passed_on])

        yield from self._until_done(lambda: self._shares(later, share))
        yield from self._shares([*layer.sets, *layer.passed_on], self.sealed.forget)
        self.sealed.complete(slot)

    def _shares(self, keys: list[bytes], carry_out: Callable[[list[bytes]], None]) -> Generator[None, None, None]:
        for start in range(0, len(keys), ROWS_AT_ONCE):
            carry_out(keys[start : start + ROWS_AT_ONCE])
            yield None

    # --- merging ---------------------------------------------------------------------------------------------------------

    def _begin_merging(self) -> _Work | None:
        if not self.sealed.warm:
            return None  # what is dead is not known yet
        plan = policy.plan(self.sealed.states())
        if plan is None:
            return None
        return self._drop(list(plan.inputs)) if plan.drops_only else self._merge(list(plan.inputs))

    def _drop(self, slots: list[int]) -> _Work:
        """Segments in which nothing is alive."""
        self._leave_out(slots)
        yield None

    def _merge(self, slots: list[int]) -> _Work:
        live: list[array[int]] = []
        for slot in slots:
            places = array("I")
            for pid in self.sealed.segment(slot).partitions():
                places.extend(self.sealed.index.live_places(pid, slot))
                yield None
            live.append(places)
        segment_id = self._next_id()
        job = MergeJob(
            output=self._output(segment_id),
            store_id=bytes(self._log.manifest.store_id),
            segment_id=segment_id,
            hash_seed=self.sealed.hash_seed,
            shift=self.sealed.shift,
            inputs=tuple(SegmentSource(s.path, s.summary) for s in map(self.sealed.segment, slots)),
            live=tuple(live),
        )
        task = MergeTask(self._files, job)
        self._merger.submit(task)
        yield task
        if task.error is not None:
            self.sealed.doubt(slots, task.error)
            raise task.error
        result = task.result
        assert result is not None
        if result.summary is None:
            self._leave_out(slots)
            return
        self._publish(segment_id)
        summary = result.summary
        output = self.sealed.add(summary)
        try:
            # read now what pointing to it will need: no manifest names it yet
            moves = self.sealed.moves(output, slots, result.origins)
        except BaseException:
            self._unlink(self.sealed.retire(output))
            raise

        def name() -> Iterator[None]:
            self._name_instead(slots, (summary.to_tree(),))
            return iter(())

        yield from self._until_done(name)
        # from here on a restart reads the output; until the index points to it, this process reads the inputs
        yield from self._until_done(lambda: self.sealed.move(moves))
        self.sealed.complete(output)
        self.merged_bytes += summary.file_bytes
        self._retire(slots)

    def _leave_out(self, slots: list[int]) -> None:
        self._name_instead(slots, ())
        self._retire(slots)

    def _name_instead(self, slots: list[int], trees: tuple[dict[str, Any], ...]) -> None:
        """The manifest without these segments, and with those."""
        gone = {self.sealed.segment(slot).summary.id for slot in slots}
        kept = tuple(tree for tree in self._log.manifest.segments if tree["id"] not in gone)
        self._log.update_manifest(segments=kept + trees)

    def _retire(self, slots: list[int]) -> None:
        self.merges += 1
        for slot in slots:
            self._unlink(self.sealed.retire(slot))

    # --- common ----------------------------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        segment_id = self._log.manifest.next_segment
        self._log.update_manifest(next_segment=segment_id + 1)
        return segment_id

    def _output(self, segment_id: int) -> str:
        return f"{self._path}/{TMP}/{segment_name(segment_id)}"

    def _publish(self, segment_id: int) -> None:
        self._files.rename(self._output(segment_id), segment_path(self._path, segment_id))
        self._files.fsync_dir(f"{self._path}/{SEGMENTS}")

    def _unlink(self, path: str) -> None:
        try:
            self._files.unlink(path)
        except OSError as error:  # nothing needs it, and nothing counts on its being gone
            self._note("warning", "not_unlinked", f"{path}: {error}; the next start tries again")
