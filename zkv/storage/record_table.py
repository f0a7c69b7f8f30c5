"""The records of one store: version sets by key, over the log.

Owns: the set of every key that is held, in layers; minting, joining, undo of a step that could not be logged.
Must not know: files, quorums, peers. The one storage module that knows what a step is.

A log record is the whole set of its key after a step, so the last record of a key is its state and recovery is assignment in log order.
A step (all mints and joins of one turn) is applied first and logged at once; if the log refuses it, `roll_back` leaves no trace of it.
A batch of plain puts is minted, joined and held as columns; whatever does not fit them goes record by record.
What was written since the log began its current file is in the active layer; older records wait in frozen layers until they are sealed, and
the sealed ones stand behind. A key is looked up from the newest layer to the oldest. Source: 50-storage; 30-replication, versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from heapq import merge
from itertools import groupby, islice
from typing import Final, Protocol

from zkv.core.columns import (
    Columns,
    Held,
    common_columns,
    logged_at,
    overwriting,
    past_of,
    replaces_all,
    versions_of,
)
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
from zkv.errors import CorruptData, TooLarge
from zkv.ids import Actor, RequestId, actor_of, bucket_prefix
from zkv.storage.memory_table import MemoryTable

#: stands for the actor of a delete, which mints no dot
_NOBODY: Final = Actor(b"")
#: most bytes of values in the sets of one mint: what it makes travels to replicas as one message
MINT_BYTES_MAX: Final = 32 * 1024 * 1024


#: keys of a scan that are looked up together
_KEYS_AT_ONCE: Final = 256
#: fewer puts than that are cheaper as sets of their own: columns of one key take twice the memory
COLUMNS_MIN: Final = 4


class Sealed(Protocol):
    """The records that left memory. See storage/sealed."""

    def __len__(self) -> int: ...

    def look_up(self, keys: list[bytes]) -> tuple[dict[bytes, VersionSet], Set[bytes]]:
        """(what is held of those keys that are held, keys whose record cannot be read)."""

    def keys_of(self, partition: int, after: bytes) -> Iterator[bytes]:
        """Keys above `after` in order; one may come that is not held any more, or twice."""


_NOTHING: Final[tuple[Mapping[bytes, Held], Set[bytes]]] = ({}, frozenset())


class RecordTable:
    def __init__(
        self,
        open_id: bytes,
        memory: RequestMemory,
        partition_of: Callable[[bytes], int],
        sealed: Sealed | None = None,
    ) -> None:
        """partition_of: how keys fall into partitions. sealed: what stands behind the memory."""
        self._partition_of = partition_of
        self._active = MemoryTable(partition_of)
        self._sets = self._active.sets
        #: oldest first
        self._frozen: list[MemoryTable] = []
        self._sealed = sealed
        self._memory = memory
        self._open_id = open_id
        self._birth = 1
        self.actor: Actor = actor_of(open_id, self._birth)
        #: keys and what the step replaced there in the active layer
        self._undo: list[tuple[list[bytes], list[Held | None]]] = []
        #: what it installed
        self._fresh: list[VersionSet | Columns] = []
        #: (request, items) that the step added to the memory
        self._noted: list[tuple[RequestId, list[int]]] = []
        self._before = self._active.mark
        #: of the step that was committed last: what `_undo` was, and how many of its keys were new
        self._last_step: list[tuple[list[bytes], list[Held | None]]] = []
        self._last_new = 0
        self.stamp_high = 0
        self.collisions = 0

    def __len__(self) -> int:
        """Keys held, tombstones among them; while sealed partitions are still unread, or after a recovery, some may be counted twice."""
        sealed = 0 if self._sealed is None else len(self._sealed)
        return sealed + self._active.new_keys + sum(table.new_keys for table in self._frozen)

    # --- recovery ---

    def load(self, block: RecordBlock) -> None:
        """Records as the log has them, in log order: later ones replace earlier ones."""
        self._active.recovered = True
        if block.columns is not None:
            self._install_columns(block.columns, list(map(self._sets.get, block.columns.keys)), {})
            self.commit(0)
            return
        sets = self._sets
        for record in block.records:
            if record.versions.past or record.versions.cloud:
                self._install(record.key, sets.get(record.key), None, record.versions)
        self._note_all(block.records)
        self.commit(0)

    # --- layers ---

    @property
    def frozen(self) -> tuple[MemoryTable, ...]:
        """Layers that wait to be sealed, oldest first."""
        return tuple(self._frozen)

    def freeze(self, through_seq: int) -> None:
        """All but the step committed last is at or below `through_seq`, where a log file ended: a layer that can be sealed."""
        step = [(key, own) for keys, owns in self._last_step for key, own in zip(keys, owns, strict=True)]
        came: dict[bytes, None] = {}
        replaced = []
        for key, own in step:
            if own is not None and key not in came:
                replaced.append(key)
            came[key] = None
        following = self._active.split(came, replaced, self._last_new, through_seq)
        self._last_step = []
        self._frozen.append(self._active)
        self._active = following
        self._sets = following.sets
        self._before = following.mark

    def later_than(self, layer: MemoryTable) -> list[MemoryTable]:
        """The layers that hold newer records than this one."""
        return [table for table in self._frozen if table.through_seq > layer.through_seq] + [self._active]

    def thaw(self, through_seq: int) -> None:
        """What the log holds up to here is sealed and can be looked up there."""
        self._frozen = [table for table in self._frozen if table.through_seq > through_seq]

    def _behind(self, keys: list[bytes], own: list[Held | None]) -> tuple[Mapping[bytes, Held], Set[bytes]]:
        """(what older layers hold of the keys that the active one does not, keys whose record cannot be read)."""
        if (not self._frozen and not self._sealed) or None not in own:
            return _NOTHING
        missing = [key for key, held in zip(keys, own, strict=True) if held is None]
        found: dict[bytes, Held] = {}
        for table in reversed(self._frozen):
            sets = table.sets
            found.update([(key, sets[key]) for key in missing if key in sets])
            missing = [key for key in missing if key not in found]
        if not self._sealed or not missing:
            return found, _NOTHING[1]
        sealed, unreadable = self._sealed.look_up(missing)
        return found | sealed, unreadable

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
        own = self._sets.get(key)
        older, unreadable = self._behind(mint.keys, [own])
        if unreadable:
            return None
        before = older.get(key) if own is None else own
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
        self._install(key, own, before, versions)
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
        own = list(map(self._sets.get, mint.keys))
        older, unreadable = self._behind(mint.keys, own)
        if unreadable:
            return None
        following = overwriting(_over(mint.keys, own, older), self.actor, mint.covered)
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
        self._install_columns(columns, own, older)
        return columns

    def _mint_rows(self, mint: Mint) -> tuple[RecordBlock, list[int], list[int] | None]:
        records: list[Record] = []
        counters: list[int] = []
        failed: dict[int, int] = {}
        sets, actor, stamp = self._sets, self.actor, mint.stamp
        older, unreadable = self._behind(mint.keys, list(map(sets.get, mint.keys)))
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
            own = sets.get(key)
            if own is None and key in unreadable:
                failed[len(records) + len(failed)] = Status.CORRUPT
                continue
            before = older.get(key) if own is None else own
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
                self._install(key, own, before, versions)
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
            older, unreadable = self._behind(columns.keys, held)
            if not unreadable and replaces_all(columns, _over(columns.keys, held, older)):
                self._install_columns(columns, held, older)
                return join.block, 0, None, []
        else:
            keys = join.block.keys
            older, unreadable = self._behind(keys, list(map(sets.get, keys)))
        records = join.block.records
        for i, record in enumerate(records):
            theirs = record.versions
            own = sets.get(record.key)
            if own is None and record.key in unreadable and not join.restores:
                failed[i] = Status.CORRUPT
                untouched = False
                continue
            before = older.get(record.key) if own is None else own
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
            self._install(record.key, own, before, joined)
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
        self._active.rewind(self._before)
        self._forget_step()

    def _forget_step(self) -> None:
        self._last_step, self._undo = self._undo, []
        self._last_new = self._active.new_keys - self._before[1]
        self._fresh.clear()
        self._noted.clear()
        self._before = self._active.mark

    def _install(self, key: bytes, own: Held | None, before: Held | None, versions: VersionSet) -> None:
        """own: what the active layer holds. before: what any layer does."""
        self._undo.append(([key], [own]))
        self._fresh.append(versions)
        versions.log_seq = UNLOGGED
        self._sets[key] = versions
        if own is None:
            self._active.added((key,))
            self._active.new_keys += before is None

    def _install_columns(self, columns: Columns, own: list[Held | None], older: Mapping[bytes, Held]) -> None:
        """Columns in the place of what is held of their keys, here (own) and in older layers, and what else they tell."""
        keys = columns.keys
        self._undo.append((keys, own))
        self._fresh.append(columns)
        columns.log_seq = UNLOGGED
        self._sets.update(zip(keys, columns.places(), strict=True))
        if None in own:
            fresh = keys if not any(own) else [k for k, h in zip(keys, own, strict=True) if h is None]
            self._active.added(fresh)
            self._active.new_keys += len(fresh) - len(older)
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

    def find(self, keys: list[bytes]) -> tuple[list[Held | None], Set[bytes]]:
        """(what is held of each key, keys whose record cannot be read)."""
        own = list(map(self._sets.get, keys))
        older, unreadable = self._behind(keys, own)
        return _over(keys, own, older), unreadable

    def held_of(self, key: bytes) -> Held | None:
        """What is held of one key. Raises: CorruptData if its record cannot be read."""
        held = self._sets.get(key)
        if held is not None or (not self._frozen and not self._sealed):
            return held
        older, unreadable = self._behind([key], [None])
        if unreadable:
            raise CorruptData(f"the record of {key!r} cannot be read")
        return older.get(key)

    def logged_at(self, held: list[Held | None]) -> int:
        """The log position that must be durable before strict readers may see all of these."""
        return max([logged_at(h) for h in held if h is not None], default=0)

    def read(self, keys: list[bytes]) -> tuple[list[VersionSet | None], int]:
        """The set of each key, and `logged_at` of them. Raises: CorruptData if one of them cannot be read."""
        held, unreadable = self.find(keys)
        if unreadable:
            raise CorruptData(f"the records of {len(unreadable)} keys cannot be read, {min(unreadable)!r} among them")
        return [versions_of(h) for h in held], self.logged_at(held)

    def scan(self, bucket_id: int, partition: int, after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` stored keys of a bucket in a partition, in order, above `after`; and whether more follow.

        Keys that are only tombstones are left out; a key alive on another replica is in that replica's page. Raises: CorruptData.
        """
        prefix = bucket_prefix(bucket_id)
        found: list[bytes] = []
        for keys, held in self._in_order(partition, max(after, prefix)):
            for key, one in zip(keys, held, strict=True):
                if not key.startswith(prefix):
                    if key > prefix:
                        return found, False
                elif type(one) is tuple or one.siblings:  # type: ignore[union-attr]
                    if len(found) == limit:
                        return found, True
                    found.append(key)
        return found, False

    def page(
        self, partitions: list[int], after: bytes, bytes_max: int
    ) -> tuple[list[bytes], list[VersionSet], int, bytes, bool]:
        """Whole sets of these partitions in order, beginning above `after` in the first, until `bytes_max` is passed.

        (keys, sets, partition and key to go on from, whether nothing follows). Raises: CorruptData.
        """
        keys: list[bytes] = []
        sets: list[VersionSet] = []
        size = 0
        for place, partition in enumerate(partitions):
            last = b""
            for here, held in self._in_order(partition, b"" if place else after):
                for key, one in zip(here, held, strict=True):
                    if size >= bytes_max:
                        return keys, sets, partition, last, False
                    versions = versions_of(one)
                    assert versions is not None
                    keys.append(key)
                    sets.append(versions)
                    size += len(key) + 64 + sum(len(s.value) for s in versions.siblings)
                    last = key
        return keys, sets, 0, b"", True

    def _in_order(self, partition: int, after: bytes) -> Iterator[tuple[list[bytes], list[Held]]]:
        """All that is held in a partition above `after`, some keys at a time. Raises: CorruptData."""
        layers: list[Iterable[bytes]] = [table.keys_of(partition, after) for table in (*self._frozen, self._active)]
        if self._sealed:
            layers.append(self._sealed.keys_of(partition, after))
        ordered = (key for key, _ in groupby(merge(*layers)))
        while keys := list(islice(ordered, _KEYS_AT_ONCE)):
            held, unreadable = self.find(keys)
            if unreadable:
                raise CorruptData(
                    f"the records of {len(unreadable)} keys cannot be read, {min(unreadable)!r} among them"
                )
            alive = [(key, one) for key, one in zip(keys, held, strict=True) if one is not None]
            yield [key for key, _ in alive], [one for _, one in alive]

    def check_invariants(self) -> None:
        for table in (*self._frozen, self._active):
            table.check_invariants()


def _over(keys: list[bytes], own: list[Held | None], older: Mapping[bytes, Held]) -> list[Held | None]:
    """What is held of each key: in the active layer, else in an older one."""
    if not older:
        return own
    return [older.get(key) if held is None else held for key, held in zip(keys, own, strict=True)]
