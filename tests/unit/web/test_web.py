"""The HTTP listener's limits, and answers of a node whose loop does not answer."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zkv.config import Address
from zkv.counters import Family, Histogram, counter, document, histogram
from zkv.errors import AddressInUse
from zkv.health import LOOP_SILENT_NS_MAX, STORE_BUSY_NS_MAX, Health
from zkv.web.app import THREADS, WAITING_MAX, WebApp
from zkv.web.server import HEADER_BYTES_MAX, WebServer, bind

HOST = "127.0.0.1"


class Running:
    def __init__(self, ask: Callable[[Callable[[], Any], float], Any]) -> None:
        self.now_ns = 1
        self.health = Health(lambda: self.now_ns)
        self.health.beat(1)
        self.health.set_not_ready([])
        families: Callable[[], list[Family]] = lambda: [counter("zkv_things_total", "Things", 3)]  # noqa: E731
        app = WebApp(self.health, ask=ask, status=lambda: {"verdict": "fine"}, families=families, token=None)
        listener = bind(Address(HOST, 0))
        self.port: int = listener.getsockname()[1]
        self.server = WebServer(listener, app, threads=THREADS, request_s_max=1)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def running() -> Iterator[Running]:
    web = Running(lambda question, timeout_s: question())
    yield web
    web.server.close()


def test_a_silent_loop_and_a_busy_store_are_not_live(running: Running) -> None:
    assert running.get("/livez")[0] == 200
    running.now_ns += LOOP_SILENT_NS_MAX + 1
    for path in ("/livez", "/readyz", "/metrics", "/v1/status"):
        code, body = running.get(path)
        assert (code, b"loop has not turned" in body) == (503, True), path
    running.health.beat(running.now_ns)
    assert running.get("/livez")[0] == 200
    running.health.watch_store(lambda: running.now_ns - STORE_BUSY_NS_MAX - 1)
    assert b"store has been in one call" in running.get("/livez")[1]


def test_readyz_gives_the_reasons_while_livez_is_content(running: Running) -> None:
    running.health.set_not_ready(["draining: this node is stopping"])
    assert running.get("/livez")[0] == 200
    assert running.get("/readyz") == (
        503,
        b'{"schema": 1, "ready": false, "reasons": ["draining: this node is stopping"]}\n',
    )


def test_requests_that_wait_for_the_loop_leave_threads_for_probes() -> None:
    go, asked = threading.Event(), threading.Semaphore(0)

    def ask(question: Callable[[], Any], timeout_s: float) -> Any:
        asked.release()
        assert go.wait(10)
        raise TimeoutError

    web = Running(ask)
    codes: list[int] = []
    waiting = [threading.Thread(target=lambda: codes.append(web.get("/v1/status")[0])) for _ in range(WAITING_MAX)]
    try:
        for thread in waiting:
            thread.start()
        for _ in waiting:
            assert asked.acquire(timeout=10)
        assert web.get("/metrics") == (503, b'{"schema": 1, "error": "2 others are asking; try again"}\n')
        assert web.get("/livez")[0] == 200
        go.set()
        for thread in waiting:
            thread.join(10)
        assert codes == [503] * WAITING_MAX
    finally:
        go.set()
        web.server.close()


def test_large_heads_and_bodies_are_refused(running: Running) -> None:
    assert running.get("/livez", Filler="x" * HEADER_BYTES_MAX)[0] == 431
    with socket.create_connection((HOST, running.port), timeout=10) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 413 " in sock.recv(4096)


def test_a_client_that_trickles_is_cut(running: Running) -> None:
    with socket.create_connection((HOST, running.port), timeout=0.2) as sock:
        deadline = time.monotonic() + 10
        sock.sendall(b"GET /livez HTTP/1.1\r\n")
        while time.monotonic() < deadline:
            try:
                sock.sendall(b"x")
                if sock.recv(4096) == b"":
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            pytest.fail("still connected")
    assert running.get("/livez")[0] == 200


def test_a_port_in_use_names_the_option(running: Running) -> None:
    with pytest.raises(AddressInUse, match="--http"):
        bind(Address(HOST, running.port))


def test_histograms_put_a_bound_into_the_bucket_it_ends() -> None:
    durations = Histogram((0.001, 0.01))
    durations.observe(1_000_000, 2)
    durations.observe(1_000_001)
    durations.observe(99_000_000)
    assert durations.counts == [2, 1, 1]
    shown = document([histogram("zkv_h_seconds", "h", durations)])
    assert shown == {
        "zkv_h_seconds": {
            "count": 4,
            "sum": pytest.approx(0.102_000_001),
            "at_most": {"0.001": 2, "0.01": 1, "+Inf": 1},
        }
    }
