"""The bus alone: a ROUTER that sends back what it gets, after a write and fdatasync if it is given a file.

Owns: that server and its client. It is the least that any store on this bus has to pay.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import zmq

from zkv.testing.bench.rounds import WrongAnswer
from zkv.testing.bench.servers import own_server, scratch, served
from zkv.testing.ports import HOST, free_base_ports


class Echo:
    """As a store of single values: each call is one message there and back."""

    def __init__(self, socket: zmq.Socket[bytes], pid: int, file: Path | None) -> None:
        self.processes: Mapping[str, int] = {"echo": pid}
        self._socket = socket
        self._file = file
        self._last: dict[str, bytes] = {}
        self._bytes = 0

    def put(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        (key,), (value,) = keys, values
        self._last[key] = value
        self._bytes += len(value)
        if self._ask(value) != value:
            raise WrongAnswer(f"{key}: the echo of its {len(value)} bytes was another message")

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        (key,) = keys
        return [self._ask(self._last[key])]

    def _ask(self, value: bytes) -> bytes:
        self._socket.send(value)
        return self._socket.recv()

    def check_file(self) -> None:
        """All that was sent must be in the file."""
        if self._file is not None and self._file.stat().st_size < self._bytes:
            raise WrongAnswer(f"{self._file.stat().st_size} bytes on disk of {self._bytes} acknowledged")


@contextmanager
def echo(*, synced: bool) -> Iterator[Echo]:
    (port,) = free_base_ports(1)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with scratch() as directory:
        file = directory / "echo.log" if synced else None
        with served(own_server("echo", port, *([file] if file else [])), [port]) as pid:
            socket = context.socket(zmq.DEALER)
            try:
                socket.setsockopt(zmq.RCVTIMEO, 10_000)
                socket.connect(f"tcp://{HOST}:{port}")
                client = Echo(socket, pid, file)
                yield client
                client.check_file()
            finally:
                socket.close(0)
                context.term()


def serve(port: int, file: str | None) -> None:
    """Until stdin ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(f"tcp://{HOST}:{port}")
    log = None if file is None else os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while sys.stdin.fileno() not in dict(poller.poll()):
        while True:
            try:
                frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if log is not None:
                os.write(log, frames[-1])
                os.fdatasync(log)
            router.send_multipart(frames)
    context.destroy(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
