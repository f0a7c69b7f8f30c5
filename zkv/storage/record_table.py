"""The records of one store: version sets by key, over the log.

Owns: the set of every key that is held, minting, joining, undo of a step that could not be logged, the order of keys within a partition.
Must not know: files, quorums, peers. The one storage module that knows versions.

A log record is the whole set of its key after a step, so the last record of a key is its state and recovery is assignment in log order.
A step (all mints and joins of one turn) is applied first and logged at once; if the log refuses it, `roll_back` leaves no trace of it.
A batch of plain puts is minted, joined and held as columns; whatever does not fit them goes record by record.
This table is in memory; sealed segments will stand behind it. Source: 50-storage; 30-replication, versions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from zkv.core.columns import Columns, Held, common_columns, overwriting, past_of, replaces_all, versions_of
from zkv.core.effects import Join, Mint
from zkv.core.messages import Record, RecordBlock, Status
from zkv.core.request_memory import Outcome, RequestMemory
from zkv.core.versions import (
    EMPTY,
    UNLOGGED,
    DotCollision,
    Sibling,
    VersionSet,
    context_of_base,
    overwrite,
    sync,
    write,
)
from zkv.errors import TooLarge
from zkv.ids import Actor, RequestId, actor_of, bucket_prefix

#: stands for the actor of a delete, which mints no dot
_NOBODY: Final = Actor(b"")
#: most bytes of values in the sets of one mint: what it makes travels to replicas as one message
MINT_BYTES_MAX: Final = 32 * 1024 * 1024


#: fewer puts than that are cheaper as sets of their own: columns of one key take twice the memory
COLUMNS_MIN: Final = 4


class RecordTable:
    def __init__(self, open_id: bytes, memory: RequestMemory, partition_of: Callable[[bytes], int]) -> None:
        """partition_of: how keys fall into partitions."""
        self._sets: dict[bytes, Held] = {}
        self._memory = memory
        self._open_id = open_id
        self._birth = 1
        self.actor: Actor = actor_of(open_id, self._birth)
        #: keys and what the step replaced there, and what it installed
        self._undo: list[tuple[list[bytes], list[Held | None]]] = []
        self._fresh: list[VersionSet | Columns] = []
        #: (request, items) that the step added to the memory
        self._noted: list[tuple[RequestId, list[int]]] = []
        #: partition -> its keys, without the new ones that nobody has asked for yet: these are in `_unplaced`
        self._partitions: dict[int, dict[bytes, None]] = {}
        self._unplaced: list[bytes] = []
        self._unplaced_before = 0  # how many of them are of earlier steps
        self._partition_of = partition_of
        self.stamp_high = 0
        self.collisions = 0

    def __len__(self) -> int:
        return len(self._sets)

    # --- recovery ---

    def load(self, block: RecordBlock) -> None:
        """Records as the log has them, in log order: later ones replace earlier ones."""
        if block.columns is not None:
            self._install_columns(block.columns, list(map(self._sets.get, block.columns.keys)))
            self.commit(0)
            return
        sets = self._sets
        for record in block.records:
            if record.versions.past or record.versions.cloud:
                self._install(record.key, sets.get(record.key), record.versions)
        self._note_all(block.records)
        self.commit(0)

    # --- a step ---

    def mint(self, mint: Mint) -> tuple[RecordBlock, list[int], list[int] | None]:
        """Carry out puts and deletes: the records to log and send, the counter of each, a status per item or None if all went well."""
        one = self._mint_one(mint) if len(mint.keys) == 1 else None
        if one is not None:
            return one
        columns = self._mint_columns(mint)
        if columns is not None:
            return RecordBlock(columns=columns), columns.counters, None
        return self._mint_rows(mint)

    def _mint_one(self, mint: Mint) -> tuple[RecordBlock, list[int], list[int] | None] | None:
        """As `_mint_rows`, for a new put of one key that replaces what is held. None: something about it is not usual."""
        value = mint.values[0]
        if value is None or not mint.replace_held or mint.covered is not None:
            return None
        key, actor = mint.keys[0], self.actor
        before = self._sets.get(key)
        ((request, items),) = mint.segments
        if self._memory.recall(request) is not None or (type(before) is VersionSet and before.cloud):
            return None
        past = {} if before is None else dict(past_of(before))
        past[actor] = counter = past.get(actor, 0) + 1
        session, sequence = request
        expires_ms = mint.expires_ms[0] if mint.expires_ms else 0
        voids = mint.voids[0] if mint.voids else ()
        new = Sibling(actor, counter, mint.stamp, expires_ms, mint.checksums[0], session, sequence, voids, value)
        versions = VersionSet((new,), past)
        self._install(key, before, versions)
        counters = [counter]
        self._note_run(request, items, actor, counters)
        record = Record(key, mint.row_versions[0], mint.fences[0], (session, sequence, items[0], counter), versions)
        return RecordBlock([record]), counters, None

    def _mint_columns(self, mint: Mint) -> Columns | None:
        """The usual batch: new puts of distinct keys that replace what is held. None: something about it is not usual."""
        if len(mint.keys) < COLUMNS_MIN or not mint.replace_held or None in mint.values:
            return None
        if len(set(mint.keys)) < len(mint.keys) or any(items != sorted(items) for _, items in mint.segments):
            return None
        if any(self._memory.recall(request) is not None for request, _ in mint.segments):
            return None
        held = list(map(self._sets.get, mint.keys))
        following = overwriting(held, self.actor, mint.covered)
        if following is None:
            return None
        columns = Columns(
            mint.keys,
            self.actor,
            following[0],
            mint.stamp,
            mint.values,  # type: ignore[arg-type]  # none of them is None
            mint.checksums,
            [(session, sequence, items) for (session, sequence), items in mint.segments],
            mint.row_versions,
            mint.fences,
            mint.expires_ms,
            None if mint.voids is None else {i: voids for i, voids in enumerate(mint.voids) if voids},
            following[1],
        )
        self._install_columns(columns, held)
        return columns

    def _mint_rows(self, mint: Mint) -> tuple[RecordBlock, list[int], list[int] | None]:
        records: list[Record] = []
        counters: list[int] = []
        failed: dict[int, int] = {}
        sets, actor, stamp = self._sets, self.actor, mint.stamp
        request: RequestId | None = None
        known: Outcome | None = None
        minted: list[int] = []
        size = 0
        n = len(mint.keys)
        replace = mint.replace_held
        columns = zip(
            mint.keys,
            [(request, item) for request, items in mint.segments for item in items],
            mint.values,
            mint.covered or [EMPTY] * n,
            mint.checksums,
            mint.expires_ms or [0] * n,
            mint.voids or [()] * n,
            mint.row_versions,
            mint.fences,
            strict=True,
        )
        for key, (asked, item), value, covered, checksum, expires_ms, voids, version, fence in columns:
            if asked != request:
                if minted:
                    self._note_run(request, minted, actor, counters[-len(minted) :])  # type: ignore[arg-type]
                request, minted = asked, []
                session, sequence = asked
                known = self._memory.recall(asked)
            if known is not None and known.dot_of(item) is not None:
                # another try of it was carried out while this one waited for its pasts: what became of it is that one's to say
                failed[len(records) + len(failed)] = Status.QUORUM_NOT_MET
                continue
            before = sets.get(key)
            current = versions_of(before)
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
                self._install(key, before, versions)
            records.append(Record(key, version, fence, (session, sequence, item, counter), versions))
            counters.append(counter)
            minted.append(item)
        if minted:
            self._note_run(request, minted, actor, counters[-len(minted) :])  # type: ignore[arg-type]
        statuses = [failed.get(i, int(Status.OK)) for i in range(len(mint.keys))] if failed else None
        return RecordBlock(records), counters, statuses

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
        if join.block.columns is not None:
            columns = join.block.columns
            held = list(map(sets.get, columns.keys))
            if replaces_all(columns, held):
                self._install_columns(columns, held)
                return join.block, 0, None, []
        records = join.block.records
        for i, record in enumerate(records):
            theirs = record.versions
            before = sets.get(record.key)
            mine = versions_of(before)
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
            self._install(record.key, before, joined)
            changed.append(record)
        self._note_all(changed)
        statuses = [failed.get(i, int(Status.OK)) for i in range(len(records))] if failed else None
        block = None if not changed else join.block if untouched else RecordBlock(changed)
        return block, held_seq, statuses, inexact

    def commit(self, log_seq: int) -> None:
        """The step since the last commit is logged at `log_seq` (its last record)."""
        for installed in self._fresh:
            installed.log_seq = log_seq
        left: dict[int, Columns] = {}
        for _, replaced in self._undo:
            one = common_columns(replaced)
            if one is not None:
                one.live -= len(replaced)
                one.live_bytes -= sum([len(one.values[i]) for _, i in replaced]) if one.live else one.live_bytes  # type: ignore[misc]
                left[id(one)] = one
                continue
            for before in replaced:
                if type(before) is tuple:
                    columns, i = before
                    columns.live -= 1
                    columns.live_bytes -= len(columns.values[i])
                    left[id(columns)] = columns
        self._forget_step()
        for columns in left.values():
            if columns.live * 2 < len(columns) or columns.live_bytes * 2 < columns.value_bytes:
                self._slim(columns)

    def _slim(self, columns: Columns) -> None:
        """What is still held of columns goes on in its own, so that the values of the rest are given up."""
        if not columns.live:
            return
        sets = self._sets
        alive = []
        for i, key in enumerate(columns.keys):
            held = sets.get(key)
            if type(held) is tuple and held[0] is columns:
                alive.append(i)
        columns.live = columns.live_bytes = 0
        if alive:
            picked = columns.pick(alive)
            sets.update(zip(picked.keys, picked.places(), strict=True))

    def roll_back(self) -> None:
        """The log refused the step: hold what was held before. Dots it minted are never used again."""
        for keys, replaced in reversed(self._undo):
            for key, before in zip(reversed(keys), reversed(replaced), strict=True):
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
        del self._unplaced[self._unplaced_before :]
        self._forget_step()

    def _forget_step(self) -> None:
        self._undo.clear()
        self._fresh.clear()
        self._noted.clear()
        self._unplaced_before = len(self._unplaced)

    def _install(self, key: bytes, before: Held | None, versions: VersionSet) -> None:
        self._undo.append(([key], [before]))
        self._fresh.append(versions)
        versions.log_seq = UNLOGGED
        self._sets[key] = versions
        if before is None:
            self._unplaced.append(key)

    def _install_columns(self, columns: Columns, held: list[Held | None]) -> None:
        """Columns in the place of what is held of their keys, and what else they tell."""
        keys = columns.keys
        self._undo.append((keys, held))
        self._fresh.append(columns)
        columns.log_seq = UNLOGGED
        self._sets.update(zip(keys, columns.places(), strict=True))
        if None in held:
            self._unplaced += keys if not any(held) else [k for k, h in zip(keys, held, strict=True) if h is None]
        start = 0
        for session, sequence, items in columns.runs:
            end = start + len(items)
            self._note_run((session, sequence), items, columns.actor, columns.counters[start:end])
            start = end
        self.stamp_high = max(self.stamp_high, columns.stamp)

    def _note_run(self, request: RequestId, items: list[int], actor: Actor, counters: list[int]) -> None:
        """These items of a request are carried out, with these counters."""
        self._noted.append((request, self._memory.outcome(request).add_run(items, actor, counters)))

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
                    if s.counter == counter and s.sequence == sequence and s.session == session:
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

    def held(self, keys: list[bytes]) -> list[Held | None]:
        """What is held of each key."""
        return list(map(self._sets.get, keys))

    def held_of(self, key: bytes) -> Held | None:
        return self._sets.get(key)

    def logged_at(self, held: list[Held | None]) -> int:
        """The log position that must be durable before strict readers may see all of these."""
        seqs = [h[0].log_seq if type(h) is tuple else h.log_seq for h in held if h is not None]  # type: ignore[union-attr]
        return max(seqs, default=0)

    def read(self, keys: list[bytes]) -> tuple[list[VersionSet | None], int]:
        """The set of each key, and `logged_at` of them."""
        held = self.held(keys)
        return [versions_of(h) for h in held], self.logged_at(held)

    def scan(self, bucket_id: int, partition: int, after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` stored keys of a bucket in a partition, in order, above `after`; and whether more follow.

        Keys that are only tombstones are left out; a key alive on another replica is in that replica's page.
        """
        self._place()
        prefix = bucket_prefix(bucket_id)
        keys = sorted(k for k in self._partitions.get(partition, ()) if k.startswith(prefix) and self._is_alive(k))
        start = bisect_right(keys, after) if after else 0
        return keys[start : start + limit], start + limit < len(keys)

    def _is_alive(self, key: bytes) -> bool:
        held = self._sets[key]
        return type(held) is tuple or bool(held.siblings)  # type: ignore[union-attr]

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
                versions = versions_of(self._sets[key])
                assert versions is not None, "placed keys are held"
                keys.append(key)
                sets.append(versions)
                size += len(key) + 64 + sum(len(s.value) for s in versions.siblings)
        return keys, sets, 0, b"", True

    def _place(self) -> None:
        """New keys into their partitions."""
        for key in self._unplaced:
            self._partitions.setdefault(self._partition_of(key), {})[key] = None
        self._unplaced.clear()
        self._unplaced_before = 0

    def check_invariants(self) -> None:
        live: dict[int, tuple[Columns, int]] = {}
        for key, held in self._sets.items():
            if type(held) is tuple:
                columns, i = held
                assert columns.keys[i] == key
                live[id(columns)] = (columns, live.get(id(columns), (columns, 0))[1] + 1)
            versions = versions_of(held)
            assert versions is not None
            versions.check_invariants()
        for columns, count in live.values():
            columns.check_invariants()
            assert columns.live == count, f"{columns} is held at {count} places"
        self._place()
        assert sum(len(keys) for keys in self._partitions.values()) == len(self._sets)
