"""Questions about the cluster: status, ring, explain, buckets.

Owns: the shapes of the answers. Must not know: how nodes come to them. Each shape keeps the node's own document as `.document`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from zkv.client.engine import ThreadEngine
from zkv.client.keys import Key, key_bytes
from zkv.client.session import Session, Steps
from zkv.core import messages as m
from zkv.core.client_outcomes import error_of, failure_of_refusal
from zkv.errors import ConnectFailed, DeadlineExceeded, ProtocolError, Unsupported, ZkvError

if TYPE_CHECKING:
    from zkv.client.aio_engine import AioEngine


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """state: alive, suspect, dead, joining, syncing, leaving or left, as the asked node sees it."""

    name: str
    state: str
    address: str
    host: str
    dc: str
    rack: str
    weight: float


@dataclass(frozen=True, slots=True)
class StatusReport:
    verdict: str
    epoch: int
    nodes: tuple[NodeStatus, ...]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RingReport:
    """owners[partition] = names of the replicas, in order of preference, of the class of bucket `default`."""

    epoch: int
    partitions: int
    owners: tuple[tuple[str, ...], ...]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BucketReport:
    name: str
    sloppy: bool
    conflict: str
    r: str
    w: str
    value_bytes_max: int
    document: Mapping[str, Any]


class Questions:
    """What both clients ask. Any node may answer; the first that can is taken."""

    def __init__(self, engine: Session, bucket: str) -> None:
        self._engine = engine
        self._bucket = bucket

    def create_bucket(self, name: str, **settings: object) -> NoReturn:
        raise Unsupported(
            f"bucket {name!r}: buckets are part of the topology that all nodes agree on, and that cannot change yet; "
            "use the built-in `default` (sloppy) or `strict`"
        )

    def _explain(self, key: Key, bucket: str | None, timeout: float | None) -> Steps[dict[str, Any]]:
        return self._ask("explain", {"key": key_bytes(key), "bucket": bucket or self._bucket}, timeout)

    def _ask(self, operation: str, arguments: dict[str, object], timeout: float | None) -> Steps[dict[str, Any]]:
        """Ask one node after the other, within one deadline. Raises the last trouble when none answered."""
        engine = self._engine
        deadline_ns = engine.deadline_ns(timeout, time.monotonic_ns())
        trouble: ZkvError | None = None
        addresses = self._addresses()
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            now_ns = time.monotonic_ns()
            if now_ns >= deadline_ns:
                break
            share_ns = now_ns + (deadline_ns - now_ns) // left  # a silent node must not use up what the others need
            (request,) = engine.new_requests(1)
            message = m.Admin(request, operation, arguments, deadline_ns=share_ns)
            (reply,) = yield from engine.ask([(address, message)], share_ns)
            if isinstance(reply, m.AdminReply):
                return reply.document
            if isinstance(reply, m.Refused):
                trouble = error_of(failure_of_refusal(reply))
                if not trouble.retryable:
                    raise trouble
            elif isinstance(reply, m.ScanReply):
                trouble = ProtocolError(f"{address} answered {operation!r} with a page of a scan")
            elif trouble is None and time.monotonic_ns() >= share_ns:
                trouble = DeadlineExceeded(f"{address} did not answer {operation!r} in time")
        raise trouble or ConnectFailed(f"no node could be reached ({', '.join(addresses)}); nothing was sent")

    def _addresses(self) -> list[str]:
        """Those of the URL first: who names one node wants that one's view."""
        engine = self._engine
        with engine.lock:
            known = [engine.state.addresses[node] for node in engine.state.any_nodes(time.monotonic_ns())]
        return list(dict.fromkeys((*engine.target.addresses, *known)))


class Admin(Questions):
    """Questions of the synchronous client."""

    _engine: ThreadEngine

    def status(self, *, timeout: float | None = None) -> StatusReport:
        """Also of a cluster that has not formed yet."""
        return status_of(self._engine.finish(self._ask("status", {}, timeout)))

    def ring(self, *, timeout: float | None = None) -> RingReport:
        return ring_of(self._engine.finish(self._ask("ring", {}, timeout)))

    def explain(self, key: Key, *, bucket: str | None = None, timeout: float | None = None) -> Mapping[str, Any]:
        """Where a key lives, who can be reached, and what each replica holds of it."""
        return self._engine.finish(self._explain(key, bucket, timeout))

    def buckets(self, *, timeout: float | None = None) -> tuple[BucketReport, ...]:
        return buckets_of(self._engine.finish(self._ask("buckets", {}, timeout)))


class AsyncAdmin(Questions):
    """The same questions of the asyncio client."""

    _engine: AioEngine

    async def status(self, *, timeout: float | None = None) -> StatusReport:
        """Also of a cluster that has not formed yet."""
        return status_of(await self._engine.finish(self._ask("status", {}, timeout)))

    async def ring(self, *, timeout: float | None = None) -> RingReport:
        return ring_of(await self._engine.finish(self._ask("ring", {}, timeout)))

    async def explain(self, key: Key, *, bucket: str | None = None, timeout: float | None = None) -> Mapping[str, Any]:
        """Where a key lives, who can be reached, and what each replica holds of it."""
        return await self._engine.finish(self._explain(key, bucket, timeout))

    async def buckets(self, *, timeout: float | None = None) -> tuple[BucketReport, ...]:
        return buckets_of(await self._engine.finish(self._ask("buckets", {}, timeout)))


def status_of(document: dict[str, Any]) -> StatusReport:
    nodes = document.get("nodes")
    return StatusReport(
        str(document.get("verdict", "")),
        int(document.get("epoch", 0)),
        tuple([_node(node) for node in nodes]) if isinstance(nodes, list) else (),
        document,
    )


def ring_of(document: dict[str, Any]) -> RingReport:
    names = [str(name) for name in document.get("nodes", [])]
    classes = document.get("classes") or [{"rows": []}]
    owners = tuple([tuple([names[place] for place in row]) for row in classes[0]["rows"]])
    return RingReport(int(document.get("epoch", 0)), int(document.get("partitions", 0)), owners, document)


def buckets_of(document: dict[str, Any]) -> tuple[BucketReport, ...]:
    return tuple(
        [
            BucketReport(e["name"], e["sloppy"], e["conflict"], e["r"], e["w"], e["value_bytes_max"], e)
            for e in document.get("buckets", [])
        ]
    )


def _node(tree: Mapping[str, Any]) -> NodeStatus:
    def text(name: str) -> str:
        return str(tree.get(name, ""))

    weight = float(tree.get("weight", 1.0))
    return NodeStatus(text("name"), text("state"), text("address"), text("host"), text("dc"), text("rack"), weight)
