"""Questions of operators: `status`, `ring`, `buckets`, `explain KEY`, and pages of keys for an export.

Owns: the documents these return. Must not know: how they are shown. Only plain trees leave here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkv.core import messages as m
from zkv.core.effects import Effect, Read, Reply, Scan, Send
from zkv.core.events import ReadDone, Route, Scanned
from zkv.core.messages import Status
from zkv.core.ring import position_of
from zkv.core.versions import VersionSet, visible
from zkv.core.view import Owner, View
from zkv.ids import NodeId, bucket_of, stored_key

SCHEMA: Final = 1
_UNSYNCED: Final = "this node lost its data and must not answer reads until it is repaired"
SCAN_LIMIT_MAX: Final = 1_000
EXPLAIN_WAIT_NS: Final = 1_000_000_000


class _Explain:
    __slots__ = ("answers", "deadline_ns", "document", "key", "request", "route", "waiting")

    def __init__(
        self, route: Route, request: tuple[int, int], key: bytes, waiting: set[NodeId], deadline_ns: int
    ) -> None:
        self.route = route
        self.request = request
        self.key = key
        self.waiting = waiting
        self.deadline_ns = deadline_ns
        self.answers: dict[NodeId, object] = {}
        self.document: dict[str, object] = {}


class Inspect:
    def __init__(self, view: View) -> None:
        self._view = view
        self._scans: dict[int, tuple[Route, m.Scan, int]] = {}
        self._explains: dict[int, _Explain] = {}
        #: what this node has counted, under the names that /metrics uses
        self.counters: Callable[[], dict[str, object]] = dict
        #: who is missing and who was refused, while the cluster forms
        self.forming: Callable[[], tuple[list[str], list[str]]] = lambda: ([], [])

    # --- scan ---

    def on_scan(self, route: Route, scan: m.Scan) -> list[Effect]:
        view = self._view
        bucket = view.buckets.get(scan.bucket_id)
        if view.ring is None or bucket is None or not 0 <= scan.partition < view.ring.partitions:
            return [Reply(route, m.ScanReply(scan.request, Status.NO_SUCH_BUCKET, 0, [], more=False))]
        row = view.ring.rows[bucket.class_id][scan.partition]
        if view.unsynced or view.node not in row.replicas:
            status = Status.UNSYNCED if view.unsynced else Status.NOT_REPLICA
            return [Reply(route, m.ScanReply(scan.request, status, row.version, [], more=False))]
        cause = view.number(Owner.ADMIN)
        self._scans[cause] = (route, scan, row.version)
        limit = max(1, min(scan.limit, SCAN_LIMIT_MAX))
        return [Scan(cause, scan.bucket_id, scan.partition, scan.after, limit)]

    def on_scanned(self, event: Scanned) -> list[Effect]:
        route, scan, version = self._scans.pop(event.cause)
        status = Status.CORRUPT if event.corrupt else Status.OK
        return [Reply(route, m.ScanReply(scan.request, status, version, event.keys, event.more))]

    # --- documents ---

    def on_admin(self, route: Route, admin: m.Admin) -> list[Effect]:
        match admin.operation:
            case "status":
                document = self.status()
            case "ring":
                document = self.ring()
            case "buckets":
                document = {"schema": SCHEMA, "buckets": self.buckets()}
            case "ping":
                document = {"schema": SCHEMA, "node": self._view.name}
            case "explain":
                return self._explain(route, admin)
            case _:
                text = f"unknown operation {admin.operation!r}"
                return [Reply(route, m.Refused(admin.request, "Unsupported", text))]
        return [Reply(route, m.AdminReply(admin.request, Status.OK, document))]

    def status(self) -> dict[str, object]:
        view = self._view
        nodes = []
        for node, member in view.members.items():
            state = view.state_of(node)
            if node == view.node and view.unsynced:
                state = "syncing"
            nodes.append(
                {
                    "name": member.name,
                    "id": f"{node:016x}",
                    "state": state,
                    "address": member.address,
                    "host": member.host,
                    "dc": member.dc,
                    "rack": member.rack,
                    "weight": member.weight,
                }
            )
        reasons = self.not_ready()
        alive = sum(1 for n in nodes if n["state"] == "alive")
        if view.document is None:
            verdict = self._forming()
        elif view.unsynced:
            verdict = f"degraded: {_UNSYNCED}"
        elif alive == len(nodes):
            verdict = f"healthy: all {alive} nodes are alive"
        else:
            verdict = f"degraded: {alive} of {len(nodes)} nodes are alive"
        return {
            "schema": SCHEMA,
            "verdict": verdict,
            "node": view.name,
            "cluster": view.document.cluster_name if view.document else "",
            "cluster_id": view.document.cluster_id.hex() if view.document else "",
            "epoch": view.epoch,
            "store": view.store.hex(),
            "unsynced": view.unsynced,
            "ready": not reasons,
            "not_ready": reasons,
            "nodes": nodes,
            "counters": self.counters(),
        }

    def not_ready(self) -> list[str]:
        """Why this node does not serve; empty if it does. Whether it is healthy otherwise is another question."""
        view = self._view
        reasons = [] if view.document is not None else [self._forming()]
        if view.unsynced:
            reasons.append(f"unsynced: {_UNSYNCED}")
        if view.draining:
            reasons.append("draining: this node is stopping")
        return reasons

    def _forming(self) -> str:
        missing, refusals = self.forming()
        text = "forming: waiting for " + (", ".join(missing) or "the others to answer")
        return "; ".join((text, *refusals))

    def ring(self) -> dict[str, object]:
        view = self._view
        document: dict[str, object] = {
            "schema": SCHEMA,
            "epoch": view.epoch,
            "partitions": 0,
            "nodes": [],
            "classes": [],
        }
        if view.ring is None:
            return document
        document["partitions"] = view.ring.partitions
        names = {node: member.name for node, member in view.members.items()}
        document["nodes"] = [names[node] for node in sorted(names)]
        place = {node: i for i, node in enumerate(sorted(names))}
        classes = []
        for class_id, rows in view.ring.rows.items():
            shares = dict.fromkeys(names, 0)
            firsts = dict.fromkeys(names, 0)
            for row in rows:
                firsts[row.replicas[0]] += 1
                for node in row.replicas:
                    shares[node] += 1
            classes.append(
                {
                    "class": class_id,
                    "rows": [[place[n] for n in row.replicas] for row in rows],
                    "replicas": {names[n]: count for n, count in shares.items()},
                    "first": {names[n]: count for n, count in firsts.items()},
                }
            )
        document["classes"] = classes
        return document

    def buckets(self) -> list[dict[str, object]]:
        return [
            {
                "name": bucket.name,
                "id": bucket.bucket_id,
                "class": bucket.class_id,
                "sloppy": bucket.sloppy,
                "conflict": bucket.conflict,
                "r": bucket.r,
                "w": bucket.w,
                "value_bytes_max": bucket.value_bytes_max,
            }
            for bucket in self._view.buckets.values()
        ]

    # --- explain ---

    def _explain(self, route: Route, admin: m.Admin) -> list[Effect]:
        view = self._view
        user_key = admin.arguments.get("key")
        name = admin.arguments.get("bucket", "default")
        bucket = next((b for b in view.buckets.values() if b.name == name), None)
        if view.ring is None or bucket is None or type(user_key) is not bytes or not user_key:
            return [Reply(route, m.Refused(admin.request, "NoSuchBucket", f"no bucket {name!r}, or no key given"))]
        key = stored_key(bucket.bucket_id, user_key)
        row = view.ring.row_of(key, bucket.class_id)
        names = {node: member.name for node, member in view.members.items()}
        asked = view.ask_order(row.replicas)
        number = view.number(Owner.ADMIN)
        explain = _Explain(route, admin.request, key, set(asked), view.now_ns + EXPLAIN_WAIT_NS)
        explain.document = {
            "schema": SCHEMA,
            "bucket": bucket.name,
            "position": f"{position_of(key, view.ring.seed):016x}",
            "partition": row.partition,
            "row_version": row.version,
            "preference": [{"name": names[n], "state": view.state_of(n)} for n in row.replicas],
            "r": bucket.r,
            "w": bucket.w,
            "reachable": len(asked),
            "hints": 0,
        }
        self._explains[number] = explain
        effects: list[Effect] = []
        for node in asked:
            if node == view.node:
                effects.append(Read(number, [key], durable=False))
            else:
                ask = m.ReplicaGet(number, [key], [row.version], deadline_ns=explain.deadline_ns)
                effects.append(Send(node, ask))
        return effects + self._explained(number)

    def on_read(self, event: ReadDone) -> list[Effect]:
        if event.statuses is not None:
            return self._take(event.cause, self._view.node, {"refused": Status(event.statuses[0]).name.lower()})
        return self._take(event.cause, self._view.node, self._versions(event.sets[0]))

    def on_reply(self, node: NodeId, reply: m.ReplicaGetReply) -> list[Effect]:
        if reply.statuses:
            return self._take(reply.group, node, {"refused": Status(reply.statuses[0]).name.lower()})
        versions = None if reply.absent or not len(reply.block) else reply.block.records[0].versions
        return self._take(reply.group, node, self._versions(versions))

    def _versions(self, versions: VersionSet | None) -> dict[str, object]:
        if versions is None:
            return {"held": "absent"}
        shown = visible(versions, self._view.wall_ms)
        return {
            "held": "value" if shown else "tombstone" if versions.is_tombstone else "expired",
            "siblings": [
                {"actor": s.actor.hex(), "counter": s.counter, "bytes": len(s.value), "stamp": s.stamp}
                for s in versions.siblings
            ],
            "past": {actor.hex(): n for actor, n in sorted(versions.past.items())},
        }

    def _take(self, number: int, node: NodeId, answer: dict[str, object]) -> list[Effect]:
        explain = self._explains.get(number)
        if explain is None or node not in explain.waiting:
            return []
        explain.waiting.discard(node)
        explain.answers[node] = answer
        return self._explained(number)

    def _explained(self, number: int) -> list[Effect]:
        explain = self._explains[number]
        if explain.waiting and explain.deadline_ns > self._view.now_ns:
            return []
        del self._explains[number]
        bucket = self._view.buckets[bucket_of(explain.key)]
        assert self._view.ring is not None
        row = self._view.ring.row_of(explain.key, bucket.class_id)
        replicas = {}
        for node in row.replicas:
            silent = {"held": "no answer"}
            replicas[self._view.members[node].name] = explain.answers.get(node, silent)
        explain.document["replicas"] = replicas
        return [Reply(explain.route, m.AdminReply(explain.request, Status.OK, explain.document))]

    def next_wakeup_ns(self) -> int | None:
        return min(e.deadline_ns for e in self._explains.values()) if self._explains else None

    def on_time(self) -> list[Effect]:
        late = [n for n, e in self._explains.items() if e.deadline_ns <= self._view.now_ns]
        return [effect for number in late for effect in self._explained(number)]
