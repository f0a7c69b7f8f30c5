"""Planted bugs: one switch for each rule, so that it can be measured whether the simulator finds what breaks it.

Owns: the switches. Each patches a public seam of the product in the tests only; the number is a seed that finds it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from zkv.core import client_memory, client_outcomes, versions
from zkv.core.bootstrap import Bootstrap
from zkv.core.coordinator import Coordinator
from zkv.core.events import Persisted, ReadDone
from zkv.core.messages import Status
from zkv.core.quorum import Requirement
from zkv.core.reads import Reads
from zkv.core.replica import Replica
from zkv.core.request_memory import Refusals, RequestMemory
from zkv.core.resync import Resync
from zkv.core.versions import EMPTY, VersionSet
from zkv.core.writes import Manner, Writes
from zkv.driver import Driver
from zkv.storage import opening, record_table
from zkv.storage.log_jobs import SyncJob
from zkv.storage.log_store import LogStore
from zkv.storage.record_table import RecordTable

Patch = pytest.MonkeyPatch
PLANTED: dict[str, Callable[[Patch], None]] = {}


def planted(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    PLANTED[plant.__name__] = plant
    return plant


@planted
def ack_counted_twice(patch: Patch) -> None:
    patch.setattr(Requirement, "votes", lambda self, yes: self.count if len(yes) else 0)


@planted
def ack_before_fsync(patch: Patch) -> None:
    def awaiting(self: Any, held: Any, seq: int) -> None:
        self._events.append(Persisted([step.cause for step, _, _ in held], durable=True))

    patch.setattr(Driver, "_await", awaiting)


@planted
def sync_does_not_sync(patch: Patch) -> None:
    patch.setattr(SyncJob, "run", lambda self: None)


@planted
def blind_put_on_strict_reads_nothing_first(patch: Patch) -> None:
    patch.setattr(Coordinator, "_blind_manner", lambda self, message, bucket, row: Manner.HELD)


@planted
def voids_forgotten(patch: Patch) -> None:
    patch.setattr(client_memory.WriteMemory, "voids", lambda self, keys, blind: None)


@planted
def bases_forgotten_and_nothing_read(patch: Patch) -> None:
    patch.setattr(client_memory.WriteMemory, "bases", lambda self, keys: None)
    patch.setattr(Coordinator, "_blind_manner", lambda self, message, bucket, row: Manner.HELD)


@planted
def unsynced_store_answers(patch: Patch) -> None:
    before = Replica.on_get

    def on_get(self: Any, route: Any, get: Any) -> Any:
        unsynced, self._view.unsynced = self._view.unsynced, False
        try:
            return before(self, route, get)
        finally:
            self._view.unsynced = unsynced

    patch.setattr(Replica, "on_get", on_get)


@planted
def own_unsynced_copy_counts(patch: Patch) -> None:
    before = Reads.begin

    def begin(self: Any, group: Any) -> Any:
        unsynced, self._view.unsynced = self._view.unsynced, False
        try:
            return before(self, group)
        finally:
            self._view.unsynced = unsynced

    patch.setattr(Reads, "begin", begin)


@planted
def request_memory_lost(patch: Patch) -> None:
    patch.setattr(RequestMemory, "recall", lambda self, request: None)


@planted
def retry_elsewhere_replaces_what_is_held(patch: Patch) -> None:
    before = Coordinator._on_put

    def on_put(self: Any, route: Any, message: Any, groups: Any) -> Any:
        message.again = False
        return before(self, route, message, groups)

    patch.setattr(Coordinator, "_on_put", on_put)


@planted
def refusals_forgotten(patch: Patch) -> None:
    patch.setattr(Refusals, "of", lambda self, request: {})


@planted
def join_takes_theirs(patch: Patch) -> None:
    patch.setattr(record_table, "sync", lambda mine, theirs: theirs)


@planted
def join_loses_a_sibling(patch: Patch) -> None:
    before = versions.sync

    def sync(a: VersionSet, b: VersionSet) -> VersionSet:
        joined = before(a, b)
        if joined is a or joined is b or len(joined.siblings) < 2:
            return joined
        return VersionSet(joined.siblings[1:], joined.past, joined.cloud)

    patch.setattr(record_table, "sync", sync)


@planted
def tombstone_dropped(patch: Patch) -> None:
    before = RecordTable.join

    def join(self: Any, order: Any) -> Any:
        order.block.records[:] = [r for r in order.block.records if r.versions.siblings]
        return before(self, order)

    patch.setattr(RecordTable, "join", join)


@planted
def open_id_not_renewed(patch: Patch) -> None:
    before = opening._opened_manifest

    def opened(recovery: Any, options: Any, open_id: bytes) -> Any:
        used = recovery.manifest.open_ids
        return before(recovery, options, used[-1] if used else open_id)

    patch.setattr(opening, "_opened_manifest", opened)


@planted
def no_write_back(patch: Patch) -> None:
    def write_back(self: Any, group: Any, differing: Any) -> Any:
        self._settle(group, group.joins)
        return []

    patch.setattr(Reads, "_write_back", write_back)


@planted
def strict_reads_like_sloppy(patch: Patch) -> None:
    patch.setattr(Coordinator, "_agreement", lambda self, message, bucket, row, requirement: 0)


@planted
def failed_fsync_retried(patch: Patch) -> None:
    before = SyncJob.run

    def run(self: Any) -> None:
        try:
            before(self)
        except OSError:
            before(self)

    patch.setattr(SyncJob, "run", run)


@planted
def recovery_stops_at_the_watermark(patch: Patch) -> None:
    before = opening._take_tail

    def take_tail(recovery: Any) -> Any:
        before(recovery)
        return []

    patch.setattr(opening, "_take_tail", take_tail)


@planted
def refused_step_stays(patch: Patch) -> None:
    patch.setattr(RecordTable, "roll_back", RecordTable._forget_step)


@planted
def unknown_said_to_be_failed(patch: Patch) -> None:
    verdicts = client_outcomes.PUT_VERDICTS | {Status.QUORUM_NOT_MET: client_outcomes.Verdict.FINAL}
    from zkv.core.client_puts import PutCall

    patch.setattr(PutCall, "verdicts", verdicts)
    before = client_outcomes.error_of

    def error_of(failure: Any, *, unknown: bool = False) -> Any:
        error = before(failure)
        if failure.status is Status.QUORUM_NOT_MET:
            error.definite = True
        return error

    patch.setattr("zkv.core.client_calls.error_of", error_of)


@planted
def absent_is_said_for_all(patch: Patch) -> None:
    before = Replica.on_read
    dice = random.Random(0)

    def on_read(self: Any, event: ReadDone) -> Any:
        if dice.random() < 0.2:
            event = ReadDone(event.cause, [None] * len(event.held), event.statuses, event.durable)
        return before(self, event)

    patch.setattr(Replica, "on_read", on_read)


@planted
def puts_replace_more_than_was_stated(patch: Patch) -> None:
    before = versions.write

    def write(*arguments: Any, **options: Any) -> Any:
        return before(*arguments, **(options | {"replace_held": True}))

    patch.setattr(record_table, "write", write)


@planted
def damaged_append_not_cut(patch: Patch) -> None:
    before = LogStore._cut

    def cut(self: Any, error: Any, written: int, total: int) -> Any:
        failed = before(self, error, written, total)
        self._written_seq += 1  # a number of the refused step is counted as used
        return failed

    patch.setattr(LogStore, "_cut", cut)


@planted
def deletes_replace_nothing(patch: Patch) -> None:
    before = versions.write

    def write(*arguments: Any, **options: Any) -> Any:
        if options.get("value") is None:
            arguments, options = (arguments[0], EMPTY, *arguments[2:]), options | {"replace_held": False}
        return before(*arguments, **options)

    patch.setattr(record_table, "write", write)


@planted
def only_the_coordinator_keeps_it(patch: Patch) -> None:
    before = Writes.on_vote

    def on_vote(self: Any, number: int, node: Any, *, durable: bool) -> Any:
        group = self._groups.get(number)
        if group is not None and node == self._view.node:
            for other in group.replicas:
                before(self, number, other, durable=durable)
        return before(self, number, node, durable=durable)

    patch.setattr(Writes, "on_vote", on_vote)


@planted
def late_work_is_begun(patch: Patch) -> None:
    patch.setattr(Writes, "on_time", lambda self: None)


@planted
def durable_not_waited_for(patch: Patch) -> None:
    before = Driver._await

    def awaiting(self: Any, held: Any, seq: int) -> None:
        if self._every_ack_durable:
            before(self, held, seq)
        else:
            self._events.append(Persisted([step.cause for step, _, _ in held], durable=True))

    patch.setattr(Driver, "_await", awaiting)


@planted
def wiped_member_thinks_it_is_a_founder(patch: Patch) -> None:
    before = Bootstrap._adopt
    patch.setattr(Bootstrap, "_adopt", lambda self, *, unsynced: before(self, unsynced=False))


@planted
def one_other_replica_is_enough_to_be_synced(patch: Patch) -> None:
    before = Resync._neighbours
    dice = random.Random(0)
    patch.setattr(Resync, "_neighbours", lambda self: [dice.choice(before(self))])


@planted
def reads_show_what_is_not_on_disk(patch: Patch) -> None:
    before = Driver._read

    def read(self: Any, order: Any) -> None:
        order.durable = False
        before(self, order)

    patch.setattr(Driver, "_read", read)


@planted
def nothing_is_repaired(patch: Patch) -> None:
    patch.setattr(Reads, "_repair", lambda self, group, positions: [])
