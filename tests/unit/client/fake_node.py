"""Nodes for tests of the client: a ROUTER in a thread, the real wire codec, one dictionary of version sets for all nodes of a cluster.

A node answers honestly unless its `script` says otherwise: script(message) returns a reply, None to stay silent, or HONEST.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import zmq

from zkv.codec import value, wire
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.core.topology import TopologyDocument, first_epoch, parse_initial, ring_of
from zkv.core.versions import EMPTY, VersionSet, visible, write
from zkv.ids import Actor, NodeId, actor_of, bucket_of

HONEST = object()
Script = Callable[[m.Message], object]


class FakeNode:
    def __init__(self, cluster: FakeCluster, name: str, port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.port = port
        self.node = NodeId(0)
        self.actor = Actor(b"")
        self.script: Script = lambda message: HONEST
        self.seen: list[m.Message] = []
        #: notified after each message
        self.arrived = threading.Condition()
        self._thread: threading.Thread | None = None
        self._control: zmq.Socket[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def puts(self) -> list[m.Put]:
        return [message for message in self.seen if isinstance(message, m.Put)]

    def gets(self) -> list[m.Get]:
        return [message for message in self.seen if isinstance(message, m.Get)]

    def start(self) -> None:
        context = self.cluster.context
        self._control = context.socket(zmq.PAIR)
        port = self._control.bind_to_random_port("tcp://127.0.0.1")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(port, ready), daemon=True)
        self._thread.start()
        assert ready.wait(5)

    def kill(self) -> None:
        """Gone at once, with all its connections."""
        if self._thread is None or self._control is None:
            return
        self._control.send(b"stop")
        self._thread.join(5)
        assert not self._thread.is_alive()
        self._control.close(0)
        self._thread = self._control = None

    def wait_for(self, kind: type, count: int = 1) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: sum(isinstance(x, kind) for x in self.seen) >= count, 5)

    def _serve(self, control_port: int, ready: threading.Event) -> None:
        context = self.cluster.context
        router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        control: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        control.connect(f"tcp://127.0.0.1:{control_port}")
        for _ in range(200):
            try:
                router.bind(f"tcp://{self.address}")
                break
            except zmq.ZMQError:
                time.sleep(0.01)  # the port of an earlier life is released in the background
        ready.set()
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(control, zmq.POLLIN)
        while True:
            events = dict(poller.poll())
            if control in events:
                break
            self._turn(router)
        router.close(0)
        control.close(0)

    def _turn(self, router: zmq.Socket[bytes]) -> None:
        route, *frames = router.recv_multipart()
        message = wire.decode(frames, now_ns=time.monotonic_ns())
        reply = self.script(message)
        if reply is HONEST:
            reply = self.cluster.answer(self, message)
        with self.arrived:
            self.seen.append(message)
            self.arrived.notify_all()
        for one in reply if isinstance(reply, list) else [reply]:
            if isinstance(one, bytes):
                router.send_multipart([route, one])
            elif one is not None:
                router.send_multipart([route, *wire.encode(cast(m.Message, one), cluster=self.cluster.number)])


class FakeCluster:
    """Replicas share one store: what matters here is what the client sends and makes of answers."""

    def __init__(self, size: int = 3) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sets: dict[bytes, VersionSet] = {}
        self.formed = True
        self._lock = threading.Lock()
        probes = [self.context.socket(zmq.ROUTER) for _ in range(size)]
        ports = [probe.bind_to_random_port("tcp://127.0.0.1") for probe in probes]
        for probe in probes:
            probe.close(0)
        self.nodes = [FakeNode(self, f"n{i}", port) for i, port in enumerate(ports)]
        initial = ",".join(f"{node.name}@{node.address}" for node in self.nodes)
        self.document: TopologyDocument = first_epoch("test", parse_initial(initial), 16)
        self.number = int.from_bytes(self.document.cluster_id[:8], "big")
        self.ring = ring_of(self.document)
        ids = {member.name: member.node_id for member in self.document.members}
        for number, node in enumerate(self.nodes):
            node.node = ids[node.name]
            node.actor = actor_of(bytes([number + 1]) * 8, 0)

    @property
    def url(self) -> str:
        return "zkv://" + ",".join(node.address for node in self.nodes)

    def by_id(self, node: NodeId) -> FakeNode:
        return next(n for n in self.nodes if n.node == node)

    def replicas(self, key: bytes, bucket_id: int = 1) -> list[FakeNode]:
        """In order of preference."""
        row = self.ring.row_of(bucket_id.to_bytes(4, "big") + key, 1)
        return [self.by_id(node) for node in row.replicas]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        self.context.destroy(0)

    def answer(self, node: FakeNode, message: m.Message) -> m.Message | None:
        with self._lock:
            match message:
                case m.Hello():
                    document = value.document_bytes(self.document) if self.formed else b""
                    return m.Welcome(node.node, node.name, document, [n.node for n in self.nodes])
                case m.Put():
                    return self._put(node, message)
                case m.Get():
                    return self._get(message)
                case m.Scan():
                    return self._scan(message)
                case m.Admin():
                    return m.AdminReply(message.request, 0, {"node": node.name, "arguments": sorted(message.arguments)})
        return None

    def _put(self, node: FakeNode, put: m.Put) -> m.PutReply:
        counters = []
        contexts = []
        for i, key in enumerate(put.keys):
            stated = put.contexts[i] if put.contexts else None
            value = put.values[i]
            covered = stated or EMPTY
            held = self.sets.get(key)
            if stated is None and held is not None:
                covered = held.context
            expires_ms = put.expires_ms[i] if put.expires_ms else 0
            versions, counter = write(
                held,
                covered,
                node.actor,
                replace_held=stated is None,
                value=value,
                stamp=time.time_ns() // 1_000_000 << 16 | len(self.sets),
                expires_ms=expires_ms,
                checksum=put.checksums[i],
                session=put.request[0],
                sequence=put.request[1],
            )
            self.sets[key] = versions
            counters.append(counter)
            contexts.append(covered.with_dot((node.actor, counter)) if counter else covered)
        receipt = m.Receipt([node.node], True, False, 1)
        return m.PutReply(
            put.request, None, None, None, [node.actor], None, counters, [receipt], None,
            list(contexts) if put.want_context else None,
        )  # fmt: skip

    def _get(self, get: m.Get) -> m.GetReply:
        now_ms = time.time_ns() // 1_000_000
        shown = [visible(self.sets.get(key), now_ms) for key in get.keys]
        flat = [s for siblings in shown for s in siblings]
        contexts = [s.context if (s := self.sets.get(key)) else None for key in get.keys]
        return m.GetReply(
            get.request, None, None, None,
            None if all(len(siblings) == 1 for siblings in shown) else [len(siblings) for siblings in shown],
            [s.checksum for s in flat],
            [s.expires_ms for s in flat] if any(s.expires_ms for s in flat) else None,
            [s.stamp for s in flat] if get.want_context else None,
            [b"" if get.heads else s.value for s in flat],
            list(contexts) if get.want_context else None,
        )  # fmt: skip

    def _scan(self, scan: m.Scan) -> m.ScanReply:
        keys = sorted(
            key
            for key, versions in self.sets.items()
            if bucket_of(key) == scan.bucket_id
            and self.ring.row_of(key, 1).partition == scan.partition
            and key > scan.after
            and versions.siblings
        )
        return m.ScanReply(scan.request, Status.OK, 1, keys[: scan.limit], len(keys) > scan.limit)


@contextmanager
def running(size: int = 3) -> Iterator[FakeCluster]:
    cluster = FakeCluster(size)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def failed_put(put: m.Put, status: Status, required: int = 2, got: int = 1) -> m.PutReply:
    n = len(put.keys)
    return m.PutReply(put.request, [status] * n, [required] * n, [got] * n, [], [-1] * n, [0] * n, [], [-1] * n)


def failed_get(get: m.Get, status: Status, required: int = 2, got: int = 1) -> m.GetReply:
    n = len(get.keys)
    return m.GetReply(get.request, [status] * n, [required] * n, [got] * n, [0] * n, [], None, None, [])
