"""A neighbour that publishes and answers rubbish, to a real node that was told to listen to it: counted by reason, forgotten, survived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.integration.test_cli_serve import Serving
from tests.unit.codec.test_packed import filled
from zkv.codec import wire
from zkv.core import messages as m
from zkv.core.initial import derive_node_ids, initial_hash, parse_initial
from zkv.ids import NodeId
from zkv.testing.ports import HOST, free_base_ports

pytestmark = pytest.mark.integration

WAIT_S = 20.0


class Neighbour:
    """What member `b` would be: a publisher and a ROUTER, in the hands of the test."""

    def __init__(self, tmp_path: Path) -> None:
        self.port, other = free_base_ports(2)
        listed = f"a@{HOST}:{self.port},b@{HOST}:{other}"
        digest = initial_hash("c", parse_initial(listed))
        self.a, self.b = derive_node_ids(digest, ["a", "b"])
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.publisher = self._context.socket(zmq.XPUB)
        self.router = self._context.socket(zmq.ROUTER)
        for socket, step in ((self.router, 1), (self.publisher, 2)):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, int(WAIT_S * 1_000))
            socket.bind(f"tcp://{HOST}:{other + step}")
        self.node = Serving(
            tmp_path, "--name", "a", "--listen", f"{HOST}:{self.port}", "--initial", listed, "--cluster-name", "c"
        )

    def counts(self) -> dict[str, int]:
        with zkv.connect(f"zkv://{HOST}:{self.port}") as kv:
            document: Any = kv.admin.status().document
        refused: dict[str, int] = document["counters"]["zkv_messages_refused_total"]
        counts = {"refused_" + label.removeprefix("reason="): n for label, n in refused.items()}
        counts["frames_refused"] = sum(refused.values())
        return counts

    def wait_until(self, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """Asks for the counts until `holds`; each question is answered in a later turn than what was sent before it arrived in."""
        end = time.monotonic() + WAIT_S
        while not holds(counts := self.counts()):
            assert time.monotonic() < end, counts
        return counts

    def close(self) -> None:
        self.node.process.kill()
        self.node.end()
        for socket in (self.publisher, self.router):
            socket.close()
        self._context.term()


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Neighbour]:
    made = Neighbour(tmp_path)
    try:
        made.node.wait_for("serving a")
        assert made.publisher.recv() == b"\x01", "the node subscribes to everything"
        yield made
    finally:
        made.close()


def heartbeat(node: NodeId, **options: Any) -> bytes:
    (frame,) = wire.encode(m.Heartbeat(node, b"open-id!", 1, 0), **options)
    return frame


def test_rubbish_from_a_publisher_is_counted_by_reason_and_the_node_lives(neighbour: Neighbour) -> None:
    honest = heartbeat(neighbour.b)
    cluster = int.from_bytes(honest[8:16], "little")
    assert cluster == 0  # this neighbour does not know it
    newer = honest[:2] + b"\x09" + honest[3:]
    body = filled(b"\x90", 1024 * 1024 - 200)
    bomb = wire.HEADER.pack(wire.MAGIC, 1, m.Kind.HEARTBEAT, 0, 0, 0, 0, 0, 0, 0, 0, len(body), 0) + body
    sent: list[tuple[str, tuple[bytes, ...]]] = [
        ("frame", (os.urandom(100),)),
        ("frame", (b"",)),
        ("frame", (honest[:30],)),
        ("frame", (honest, b"", b"more")),
        ("version", (newer,)),
        ("port", wire_of(m.Hello("x"))),
        ("cluster", (honest,)),
        ("cluster", (bomb,)),
    ]
    before = neighbour.counts()
    for _, frames in sent:
        neighbour.publisher.send_multipart(frames)
    after = neighbour.wait_until(lambda counts: counts["frames_refused"] - before["frames_refused"] == len(sent))
    for reason in {reason for reason, _ in sent}:
        expected = sum(1 for other, _ in sent if other == reason)
        assert after[f"refused_{reason}"] - before[f"refused_{reason}"] == expected, reason


def test_heartbeat_in_another_name_and_a_body_that_does_not_fit_are_counted(neighbour: Neighbour) -> None:
    """With the number of the cluster, which the hello of the node tells everybody who listens."""
    _, hello = neighbour.router.recv_multipart()
    cluster = int.from_bytes(hello[8:16], "little")
    assert isinstance(wire.decode([hello]), m.PeerHello) and cluster
    body = filled(b"\x90", 1024 * 1024 - 200)
    bomb = wire.HEADER.pack(wire.MAGIC, 1, m.Kind.HEARTBEAT, 0, 0, 0, cluster, 0, 0, 0, 0, len(body), 0) + body
    for node in (neighbour.a, NodeId(7)):
        neighbour.publisher.send(heartbeat(node, cluster=cluster))
    neighbour.publisher.send(bomb)
    after = neighbour.wait_until(lambda counts: counts["refused_body"] >= 1)
    assert after["refused_identity"] == 2
    assert after["refused_body"] == 1


def test_rubbish_as_an_answer_is_counted_and_the_node_asks_again(neighbour: Neighbour) -> None:
    route, _hello = neighbour.router.recv_multipart()
    stranger = m.PeerHelloAck(NodeId(9), "b", b"S" * 16, b"open-id!", b"h" * 32, "active", "", 3, "")
    for frames in ((os.urandom(80),), (b"",), wire_of(m.Hello("x")), wire_of(stranger)):
        neighbour.router.send_multipart((route, *frames))
    after = neighbour.wait_until(lambda counts: counts["frames_refused"] == 3)
    assert after["refused_frame"] == 2 and after["refused_port"] == 1
    _, again = neighbour.router.recv_multipart()
    assert isinstance(wire.decode([again]), m.PeerHello)
    with zkv.connect(f"zkv://{HOST}:{neighbour.port}") as kv:
        assert kv.admin.status().document["epoch"] == 0, "a stranger's word founds no cluster"


def wire_of(message: m.Message) -> tuple[bytes, ...]:
    return tuple(wire.encode(message))
