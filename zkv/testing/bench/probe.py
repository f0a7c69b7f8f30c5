"""Three bare processes that copy each put to all three and answer after two: no versions, no ring, no promise, nothing but the bus and a log.

Owns: those processes, and a client that keeps so many puts outstanding. It bounds what Python and the bus can give on this machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import msgpack
import zmq

from zkv.testing.bench.ledger import Ledger, digest
from zkv.testing.bench.rounds import Sample, WrongAnswer
from zkv.testing.bench.servers import own_server, scratch, served
from zkv.testing.ports import HOST, free_base_ports

NODES: Final = 3
_PUT, _COPY, _GET = range(3)
_HIGH_WATER: Final = 100_000


class Probe:
    """A side: `outstanding` puts in flight; nodes: how many of the three take requests from us."""

    def __init__(self, sockets: Sequence[zmq.Socket[bytes]], pids: Mapping[str, int], ledger: Ledger) -> None:
        self.processes = pids
        self.outstanding = 1
        self._sockets = sockets
        self._ledger = ledger
        self._poller = zmq.Poller()
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)
        # a batch always goes to the same node, so that its writes cannot overtake one another
        assert len(ledger.keys) % len(sockets) == 0
        self._sent = 0

    def run(self, seconds: float) -> Sample:
        started = time.perf_counter()
        until = started + seconds
        flying = done = 0
        while flying or not done or time.perf_counter() < until:
            while flying < self.outstanding and (not done or time.perf_counter() < until):
                keys, values = self._ledger.write()
                self._send(self._sent % len(self._sockets), [_PUT, self._sent, keys, values])
                self._sent += 1
                flying += 1
            acked = len(self._replies()) if flying else 0
            flying -= acked
            done += acked
        return Sample(done * self._ledger.size, time.perf_counter() - started)

    def check(self) -> str:
        """From the log of the node that took the last put of each batch."""
        homes = {keys[0]: batch % len(self._sockets) for batch, keys in enumerate(self._ledger.keys)}

        def read(keys: Sequence[str]) -> list[bytes | None]:
            self._send(homes[keys[0]], [_GET, 0, keys, None])
            (values,) = self._replies()
            assert isinstance(values, list)
            return values

        return digest([self._ledger], read)

    def _send(self, node: int, operation: list[object]) -> None:
        self._sockets[node].send(msgpack.packb([operation]))

    def _replies(self) -> list[object]:
        """All that has come, at least one."""
        ready = self._poller.poll(10_000)
        if not ready:
            raise WrongAnswer("the probe does not answer")
        replies: list[object] = []
        for socket, _ in ready:
            for frame in _drain(socket):
                replies += msgpack.unpackb(frame[0])
        return replies


@contextmanager
def probe(ledger: Ledger, *, outstanding: int, entries: int, synced: bool) -> Iterator[Probe]:
    """entries: how many of the nodes take puts."""
    ports = free_base_ports(NODES)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        pids = {}
        for index, port in enumerate(ports):
            log = directory / f"{index}.log"
            command = own_server("probe", log, int(synced), port, *(p for p in ports if p != port))
            pids[f"probe{index + 1}"] = stack.enter_context(served(command, [port]))
        stack.callback(context.destroy, 0)
        sockets = [_dealer(context, port) for port in ports[:entries]]
        side = Probe(sockets, pids, ledger)
        side.outstanding = outstanding
        yield side


class BareNode:
    """One of the three. A turn takes all that has come, writes it in one go, syncs if it must, and sends one frame to each."""

    def __init__(self, log: str, synced: bool, port: int, others: Sequence[int]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set_hwm(_HIGH_WATER)
        self._router.bind(f"tcp://{HOST}:{port}")
        self._peers = [_dealer(self._context, other) for other in others]
        self._poller = zmq.Poller()
        for source in (self._router, *self._peers, sys.stdin.fileno()):
            self._poller.register(source, zmq.POLLIN)
        self._log = os.open(log, os.O_CREAT | os.O_RDWR | os.O_APPEND)
        self._synced = synced
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        #: put -> copies it still waits for, and whom to tell
        self._open: dict[int, list[object]] = {}
        self._count = 0
        self._parts: list[bytes] = []

    def serve(self) -> None:
        """Until stdin ends."""
        while sys.stdin.fileno() not in dict(self._poller.poll()):
            self._turn()
        self._context.destroy(0)

    def _turn(self) -> None:
        copies: list[object] = []
        answers: dict[bytes, list[object]] = {}
        voted: list[int] = []
        reads = []
        for route, body in _drain(self._router):
            for kind, ticket, keys, values in msgpack.unpackb(body):
                if kind == _GET:
                    reads.append((route, keys))
                    continue
                self._keep(keys, values)
                if kind == _COPY:
                    answers.setdefault(route, []).append(ticket)
                else:
                    self._count += 1
                    self._open[self._count] = [2, route, ticket]
                    voted.append(self._count)
                    copies.append([_COPY, self._count, keys, values])
        if copies:
            packed = msgpack.packb(copies)
            for peer in self._peers:
                peer.send(packed)
        self._write()
        for peer in self._peers:
            for frame in _drain(peer):
                voted += msgpack.unpackb(frame[0])
        for put in voted:
            self._vote(put, answers)
        for route, keys in reads:
            places = [self._places.get(key) for key in keys]
            found = [None if p is None else os.pread(self._log, p[1], p[0]) for p in places]
            answers.setdefault(route, []).append(found)
        for route, answer in answers.items():
            self._router.send_multipart([route, msgpack.packb(answer)])

    def _keep(self, keys: list[str], values: list[bytes]) -> None:
        end = self._end
        for key, value in zip(keys, values, strict=True):
            self._places[key] = (end, len(value))
            end += len(value)
        self._end = end
        self._parts += values

    def _write(self) -> None:
        if self._parts:
            os.write(self._log, b"".join(self._parts))
            self._parts = []
            if self._synced:
                os.fdatasync(self._log)

    def _vote(self, put: int, answers: dict[bytes, list[object]]) -> None:
        entry = self._open.get(put)
        if entry is None:  # the third copy
            return
        left, route, ticket = entry
        assert isinstance(left, int)
        assert isinstance(route, bytes)
        if left == 1:
            del self._open[put]
            answers.setdefault(route, []).append(ticket)
        else:
            entry[0] = left - 1


def _dealer(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(_HIGH_WATER)
    socket.connect(f"tcp://{HOST}:{port}")
    return socket


def _drain(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    while True:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield frames


if __name__ == "__main__":
    BareNode(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]), [int(port) for port in sys.argv[4:]]).serve()
