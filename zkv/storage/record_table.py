"""The records of one store: version sets by key, over the log.

Owns: the set of every key that is held, minting, joining, undo of a step that could not be logged, the order of keys within a partition.
Must not know: files, quorums, peers. The one storage module that knows versions.

A log record is the whole set of its key after a step, so the last record of a key is its state and recovery is assignment in log order.
A step (all mints and joins of one turn) is applied first and logged at once; if the log refuses it, `roll_back` leaves no trace of it.
This table is in memory; sealed segments will stand behind it. Source: 50-storage; 30-replication, versions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from zkv.core.effects import Join, Mint
from zkv.core.messages import Record, RecordBlock, Status
from zkv.core.request_memory import Outcome, RequestMemory
from zkv.core.versions import EMPTY, UNLOGGED, DotCollision, VersionSet, context_of_base, overwrite, sync, write
from zkv.errors import TooLarge
from zkv.ids import Actor, RequestId, actor_of, bucket_prefix

#: stands for the actor of a delete, which mints no dot
_NOBODY: Final = Actor(b"")
#: most bytes of values in the sets of one mint: what it makes travels to replicas as one message
MINT_BYTES_MAX: Final = 32 * 1024 * 1024


class RecordTable:
    def __init__(self, open_id: bytes, memory: RequestMemory, partition_of: Callable[[bytes], int]) -> None:
        """partition_of: how keys fall into partitions."""
        self._sets: dict[bytes, VersionSet] = {}
        self._memory = memory
        self._open_id = open_id
        self._birth = 1
        self.actor: Actor = actor_of(open_id, self._birth)
        #: what the step replaced, and what it installed
        self._undo: list[tuple[bytes, VersionSet | None]] = []
        self._fresh: list[VersionSet] = []
        #: (request, items) that the step added to the memory
        self._noted: list[tuple[RequestId, list[int]]] = []
        #: partition -> its keys, without the new ones that nobody has asked for yet: these are in `_unplaced`
        self._partitions: dict[int, dict[bytes, None]] = {}
        self._unplaced: list[bytes] = []
        self._partition_of = partition_of
        self.stamp_high = 0
        self.collisions = 0

    def __len__(self) -> int:
        return len(self._sets)

    # --- recovery ---

    def load(self, block: RecordBlock) -> None:
        """Records as the log has them, in log order: later ones replace earlier ones."""
        sets = self._sets
        for record in block.records:
            if record.versions.past or record.versions.cloud:
                if record.key not in sets:
                    self._unplaced.append(record.key)
                sets[record.key] = record.versions
        self._note_all(block.records)
        self._noted.clear()

    # --- a step ---

    def mint(self, mint: Mint) -> tuple[RecordBlock, list[int], list[int] | None]:
        """Carry out puts and deletes: the records to log and send, the counter of each, a status per item or None if all went well."""
        records: list[Record] = []
        counters: list[int] = []
        failed: dict[int, int] = {}
        sets, actor, stamp = self._sets, self.actor, mint.stamp
        undo, fresh = self._undo, self._fresh
        request: RequestId | None = None
        known: Outcome | None = None
        minted: list[int] = []
        size = 0
        columns = zip(
            mint.keys,
            mint.requests,
            mint.values,
            mint.covered,
            mint.replace_held,
            mint.checksums,
            mint.expires_ms,
            mint.voids,
            mint.row_versions,
            mint.fences,
            strict=True,
        )
        for key, (asked, item), value, covered, replace, checksum, expires_ms, voids, version, fence in columns:
            if asked != request:
                if minted:
                    self._note_minted(request, minted, counters)  # type: ignore[arg-type]
                request, minted = asked, []
                session, sequence = asked
                known = self._memory.recall(asked)
            if known is not None and known.dot_of(item) is not None:
                # another try of it was carried out while this one waited for its pasts: what became of it is that one's to say
                failed[len(records) + len(failed)] = Status.QUORUM_NOT_MET
                continue
            current = sets.get(key)
            if covered is not EMPTY and replace:
                covered = context_of_base(covered, current)
            if replace and value is not None and covered is EMPTY and (current is None or not current.cloud):
                versions, counter = overwrite(
                    current, actor, value, stamp, expires_ms, checksum, session, sequence, voids
                )
            else:
                try:
                    versions, counter = write(
                        current,
                        context_of_base(covered),
                        actor,
                        replace_held=replace,
                        value=value,
                        stamp=stamp,
                        expires_ms=expires_ms,
                        checksum=checksum,
                        session=session,
                        sequence=sequence,
                        voids=voids,
                    )
                except TooLarge:
                    failed[len(records) + len(failed)] = Status.TOO_LARGE
                    continue
                # whole sets travel: many keys with many siblings would not fit into one message
                size += sum([len(s.value) for s in versions.siblings])
                if size > MINT_BYTES_MAX and records:
                    failed[len(records) + len(failed)] = Status.OVERLOADED
                    continue
            if versions.past or versions.cloud:
                undo.append((key, current))
                fresh.append(versions)
                versions.log_seq = UNLOGGED
                sets[key] = versions
                if current is None:
                    self._unplaced.append(key)
            records.append(Record(key, version, fence, (session, sequence, item, counter), versions))
            counters.append(counter)
            minted.append(item)
        if minted:
            self._note_minted(request, minted, counters)  # type: ignore[arg-type]
        statuses = [failed.get(i, int(Status.OK)) for i in range(len(mint.keys))] if failed else None
        return RecordBlock(records), counters, statuses

    def _note_minted(self, request: RequestId, items: list[int], counters: list[int]) -> None:
        """These items of a request were minted; their counters are the last of `counters`."""
        added = self._memory.outcome(request).add_run(items, self.actor, counters[-len(items) :])
        self._noted.append((request, added))

    def join(self, join: Join) -> tuple[RecordBlock | None, int, list[int] | None, list[int]]:
        """Join sets with ours: (what must be logged or None, the log position that holds the rest, statuses, inexact items).

        That position is UNLOGGED when it is a record of this very step.
        """
        changed: list[Record] = []
        untouched = True  # every record went in just as it came
        held_seq = 0
        inexact: list[int] = []
        failed: dict[int, int] = {}
        sets = self._sets
        records = join.block.records
        for i, record in enumerate(records):
            theirs = record.versions
            mine = sets.get(record.key)
            if mine is None:
                joined = theirs
                if not theirs.past and not theirs.cloud:
                    untouched = False
                    continue
            else:
                try:
                    joined = sync(mine, theirs)
                except DotCollision:
                    failed[i] = Status.CORRUPT
                    self.collisions += 1
                    untouched = False
                    continue
                if joined is not theirs:
                    untouched = False
                    if not joined.same_as(theirs):
                        inexact.append(i)
                    if joined is mine:
                        held_seq = max(held_seq, mine.log_seq)
                        continue
                    record = Record(record.key, record.row_version, record.fence, record.request, joined)
            self._install(record.key, mine, joined)
            changed.append(record)
        self._note_all(changed)
        statuses = [failed.get(i, int(Status.OK)) for i in range(len(records))] if failed else None
        block = None if not changed else join.block if untouched else RecordBlock(changed)
        return block, held_seq, statuses, inexact

    def commit(self, log_seq: int) -> None:
        """The step since the last commit is logged at `log_seq` (its last record)."""
        for versions in self._fresh:
            versions.log_seq = log_seq
        self._forget_step()

    def roll_back(self) -> None:
        """The log refused the step: hold what was held before. Dots it minted are never used again."""
        for key, before in reversed(self._undo):
            if before is None:
                self._sets.pop(key, None)
            else:
                self._sets[key] = before
        if self._undo:
            self._birth += 1
            self.actor = actor_of(self._open_id, self._birth)
        for request, items in self._noted:
            for item in items:
                self._memory.forget(request, item)
        self._forget_step()

    def _forget_step(self) -> None:
        self._undo.clear()
        self._fresh.clear()
        self._noted.clear()

    def _install(self, key: bytes, before: VersionSet | None, versions: VersionSet) -> None:
        self._undo.append((key, before))
        self._fresh.append(versions)
        versions.log_seq = UNLOGGED
        self._sets[key] = versions
        if before is None:
            self._unplaced.append(key)

    def _note_all(self, records: list[Record]) -> None:
        """What else records tell: the requests they were minted by (neighbours mostly share one) and the highest stamp.

        A request whose value is not in the set any more is left out: its dot cannot be named.
        """
        asked: RequestId | None = None
        high = self.stamp_high
        for record in records:
            siblings = record.versions.siblings
            for s in siblings:
                if s.stamp > high:
                    high = s.stamp
            if record.request is None:
                continue
            session, sequence, item, counter = record.request
            actor = _NOBODY
            if counter:
                for s in siblings:
                    if s.sequence == sequence and s.session == session:
                        actor = s.actor
                        break
                else:
                    continue
            if asked is None or asked[1] != sequence or asked[0] != session:
                asked = (session, sequence)
                outcome = self._memory.outcome(asked)
                added: list[int] = []
                self._noted.append((asked, added))
            if outcome.add(item, actor, counter):
                added.append(item)
        self.stamp_high = high

    # --- reading ---

    def read(self, keys: list[bytes]) -> tuple[list[VersionSet | None], int]:
        """The set of each key, and the log position that must be durable before strict readers may see them."""
        sets = list(map(self._sets.get, keys))
        return sets, max([s.log_seq for s in sets if s is not None], default=0)

    def scan(self, bucket_id: int, partition: int, after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` stored keys of a bucket in a partition, in order, above `after`; and whether more follow.

        Keys that are only tombstones are left out; a key alive on another replica is in that replica's page.
        """
        self._place()
        prefix = bucket_prefix(bucket_id)
        keys = sorted(k for k in self._partitions.get(partition, ()) if k.startswith(prefix) and self._sets[k].siblings)
        start = bisect_right(keys, after) if after else 0
        return keys[start : start + limit], start + limit < len(keys)

    def page(
        self, partitions: list[int], after: bytes, bytes_max: int
    ) -> tuple[list[bytes], list[VersionSet], int, bytes, bool]:
        """Whole sets of these partitions in order, beginning above `after` in the first, until `bytes_max` is passed.

        (keys, sets, partition and key to go on from, whether nothing follows).
        """
        self._place()
        keys: list[bytes] = []
        sets: list[VersionSet] = []
        size = 0
        for place, partition in enumerate(partitions):
            held = sorted(self._partitions.get(partition, ()))
            start = bisect_right(held, after) if place == 0 and after else 0
            for key in held[start:]:
                if size >= bytes_max:
                    return keys, sets, partition, keys[-1] if keys[-1] in self._partitions[partition] else b"", False
                versions = self._sets[key]
                keys.append(key)
                sets.append(versions)
                size += len(key) + 64 + sum(len(s.value) for s in versions.siblings)
        return keys, sets, 0, b"", True

    def _place(self) -> None:
        """New keys into their partitions; a key whose first step was rolled back is gone again."""
        for key in self._unplaced:
            if key in self._sets:
                self._partitions.setdefault(self._partition_of(key), {})[key] = None
        self._unplaced.clear()

    def check_invariants(self) -> None:
        for versions in self._sets.values():
            versions.check_invariants()
        self._place()
        assert sum(len(keys) for keys in self._partitions.values()) == len(self._sets)
