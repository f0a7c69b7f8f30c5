"""All that one node counts, gathered from whoever counted it.

Owns: names and help texts of the counts that the parts below keep as plain ints. Must not know: who asks, Prometheus.

Called on the loop's thread, so what it returns belongs together. Nothing is listed that nobody counts.
"""

from __future__ import annotations

import platform
from typing import Final

import zkv
from zkv.core.node_state import NodeState
from zkv.counters import Family, Histogram, Sample, counter, gauge, histogram
from zkv.driver import REFUSAL_REASONS, Driver
from zkv.storage.log_store import LogStore
from zkv.storage.record_table import RecordTable
from zkv.storage.upkeep import Upkeep

#: the driver's counters: key, name, help
_DRIVER: Final = (
    ("turns", "zkv_loop_turns_total", "Turns of the event loop"),
    ("frames_in", "zkv_messages_received_total", "Messages taken from the sockets"),
    ("frames_foreign", "zkv_messages_foreign_total", "Messages meant for another cluster, refused"),
    ("unsent", "zkv_messages_unsent_total", "Messages that could not be handed over"),
    ("puts_logged", "zkv_records_logged_total", "Records written to the log"),
    ("steps_refused", "zkv_log_steps_refused_total", "Writes that the log refused for lack of space"),
    ("dot_collisions", "zkv_dot_collisions_total", "Versions found with one dot and two values: corrupt"),
)


def families(
    state: NodeState, driver: Driver, table: RecordTable, log: LogStore, upkeep: Upkeep, turn_durations: Histogram
) -> list[Family]:
    view = state.view
    labels = {"version": zkv.__version__, "python": platform.python_version()}
    return [
        Family(
            "zkv_build_info", "gauge", "1; the labels say what runs", tuple(labels), [Sample(tuple(labels.values()), 1)]
        ),
        gauge("zkv_ready", "Whether this node serves: what /readyz says", int(not state.inspect.not_ready())),
        gauge("zkv_epoch", "Epoch of the topology that this node knows", view.epoch),
        Family("zkv_peer_up", "gauge", "Whether a peer is alive, as this node sees it", ("peer",), _peers(state)),
        gauge("zkv_ring_owned_ratio", "Share of the partitions that this node holds a replica of", _owned(state)),
        *state.coordinator.counts.families(),
        gauge("zkv_inflight", "Keys in requests that wait for their answer", state.coordinator.open_items),
        counter(
            "zkv_read_repairs_total", "Repairs sent to replicas that answered with old versions", state.reads.repairs
        ),
        counter("zkv_replica_refusals_total", "Keys that this node refused as a replica", state.replica.refused),
        counter("zkv_resync_records_total", "Records pulled from others after data was lost", state.resync.records),
        gauge("zkv_keys", "Keys held here, deleted ones that are still remembered among them", len(table)),
        counter("zkv_wal_appends_total", "Writes to the log; one holds all puts of a turn", log.appends),
        counter("zkv_wal_bytes_total", "Bytes written to the log", log.appended_bytes),
        histogram("zkv_wal_fsync_seconds", "Syncs of the log", log.sync_durations),
        *_sealed(table, log, upkeep),
        histogram(
            "zkv_event_loop_lag_seconds",
            "Length of a turn of the loop: what arrives meanwhile waits so long",
            turn_durations,
        ),
        *(counter(name, text, driver.counters[key]) for key, name, text in _DRIVER),
        Family(
            "zkv_messages_refused_total",
            "counter",
            "Messages that were not what the protocol says, by what was wrong: the frame, its version, a kind that does not belong on the port, "
            "the cluster, the body, the sender's name",
            ("reason",),
            [Sample((reason,), driver.counters[f"refused_{reason}"]) for reason in REFUSAL_REASONS],
        ),
    ]


def _sealed(table: RecordTable, log: LogStore, upkeep: Upkeep) -> list[Family]:
    sealed = upkeep.sealed
    states = sealed.states()
    written = log.appended_bytes
    amplification = 1 + (upkeep.sealed_bytes + upkeep.merged_bytes) / written if written else 0.0
    return [
        gauge("zkv_layers_frozen", "Full log files that wait to be sealed", len(table.frozen)),
        gauge("zkv_segments", "Sealed segments", len(states)),
        gauge("zkv_segment_bytes", "Bytes of sealed segments", sum(s.file_bytes for s in states)),
        gauge("zkv_segment_live_bytes", "Of these, bytes of records that count", sum(s.live_bytes for s in states)),
        gauge("zkv_index_bytes", "Memory of the index over the segments", sealed.index.bytes),
        gauge("zkv_cache_bytes", "Memory of records that were read from segments", sealed.records.bytes),
        counter("zkv_cache_hits_total", "Sealed records found in the cache", sealed.records.hits),
        counter("zkv_cache_misses_total", "Sealed records looked for in vain in the cache", sealed.records.misses),
        counter("zkv_seals_total", "Log files that became segments", upkeep.seals),
        counter("zkv_merges_total", "Compactions of segments", upkeep.merges),
        counter("zkv_sealed_bytes_total", "Bytes of segments written from the log", upkeep.sealed_bytes),
        counter("zkv_merged_bytes_total", "Bytes of segments written by compaction", upkeep.merged_bytes),
        gauge("zkv_write_amplification_ratio", "Bytes written in all per byte written to the log", amplification),
        counter("zkv_upkeep_failures_total", "Seals and compactions that failed and were tried again", upkeep.failures),
        counter("zkv_records_unreadable_total", "Look-ups of sealed records that do not verify", sealed.unreadable),
    ]


def _peers(state: NodeState) -> list[Sample]:
    view = state.view
    return [Sample((mb.name,), int(view.up(node))) for node, mb in view.members.items() if node != view.node]


def _owned(state: NodeState) -> float:
    """Of the class with the most: what a class of buckets leaves to others must not hide it."""
    ring = state.view.ring
    if ring is None:
        return 0.0
    node = state.view.node
    return max(sum(node in row.replicas for row in rows) / len(rows) for rows in ring.rows.values())
