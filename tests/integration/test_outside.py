"""A node seen from outside: HTTP probes, metrics, what the service manager hears, logs; real processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import zkv
from tests.integration.test_cli_serve import WAIT_S, Serving, environment, run_serve
from zkv.config import NodeSettings, load
from zkv.node import Node
from zkv.testing import LocalCluster
from zkv.testing.ports import HOST, free_base_ports

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Manager:
    """The receiving end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.heard: list[str] = []

    def wait_for(self, word: str, seconds: float = WAIT_S) -> None:
        deadline = time.monotonic() + seconds
        while word not in self.heard:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self.heard += self._socket.recv(4096).decode().split("\n")

    def drain(self) -> list[str]:
        self._socket.setblocking(False)
        found: list[str] = []
        try:
            while True:
                found += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    heard = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(heard.path))
    yield heard
    heard.close()


def test_probes_metrics_and_status_agree_with_what_was_done() -> None:
    with LocalCluster(1) as cluster:
        node = cluster.nodes[0]
        with zkv.connect(cluster.url) as kv:
            kv.put("a", b"1")
            kv.get("a")
            document = kv.admin.status().document
        assert fetch(f"{node.http}/livez")[0] == fetch(f"{node.http}/readyz")[0] == 200
        code, text = fetch(f"{node.http}/metrics")
        assert code == 200
        samples = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert samples["zkv_requests_total", (("op", "put"), ("result", "ok"))] == 1
        assert samples["zkv_request_duration_seconds_count", (("op", "get"),)] == 1
        assert samples["zkv_keys", ()] == 1
        assert samples["zkv_wal_fsync_seconds_count", ()] >= 1
        assert any(name.startswith("process_") for name, _ in samples)
        assert document["counters"]["zkv_requests_total"] == {"op=get,result=ok": 1, "op=put,result=ok": 1}
        code, text = fetch(f"{node.http}/v1/status")
        assert code == 200
        assert set(json.loads(text)) == set(document)
        assert fetch(f"{node.http}/v1/status", Host="evil.example")[0] == 403
        assert fetch(f"{node.http}/nothing")[0] == 404
        assert fetch(f"{node.http}/livez", method="POST")[0] == 405
        command = [sys.executable, "-m", "zkv", "--url", cluster.url, "health"]
        assert subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0


def test_while_the_cluster_forms_it_lives_but_is_not_ready(tmp_path: Path, manager: Manager) -> None:
    a, b = free_base_ports(2)
    flags = ("--initial", f"a@{HOST}:{a},b@{HOST}:{b}", "--cluster-name", "c", "--name", "a", "--listen", f"{HOST}:{a}")
    node = Serving(tmp_path, *flags)
    try:
        node.wait_for("serving a on")
        manager.wait_for("EXTEND_TIMEOUT_USEC=30000000")
        assert fetch(f"http://{HOST}:{a + 3}/livez")[0] == 200
        code, text = fetch(f"http://{HOST}:{a + 3}/readyz")
        assert code == 503
        assert "forming" in text or "opening" in text
        done = subprocess.run(
            [sys.executable, "-m", "zkv", "--url", f"zkv://{HOST}:{a}", "health"],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 8
        assert "waiting for b" in done.stdout
        assert "READY=1" not in manager.heard + manager.drain()
    finally:
        node.process.terminate()
        assert node.end() == 0


def test_the_manager_hears_ready_then_a_pulse_then_stopping(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    port = free_base_ports(1)[0]
    node = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}")
    try:
        manager.wait_for("READY=1")
        manager.heard.clear()
        manager.wait_for("WATCHDOG=1")
        assert "STOPPING=1" not in manager.heard
    finally:
        node.process.terminate()
        assert node.end() == 0
    manager.wait_for("STOPPING=1")


def test_a_loop_that_hangs_is_not_live_and_the_watchdog_starves(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes a line into a full pipe that nobody reads: SIGTERM makes it log from the loop."""
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    port = free_base_ports(1)[0]
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "zkv", "serve", "--name", "solo", "--listen", f"{HOST}:{port}"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=writer, env=environment())
    try:
        manager.wait_for("READY=1")
        filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)  # its own flags, the same pipe
        with contextlib.suppress(BlockingIOError):
            while os.write(filler, b"x"):
                pass
        os.close(filler)
        process.terminate()
        code = 200
        while code == 200:
            code, text = fetch(f"http://{HOST}:{port + 3}/livez")
        assert code == 503
        assert "loop has not turned" in text
        assert fetch(f"http://{HOST}:{port + 3}/metrics")[0] == 503
        manager.drain()
        manager.heard.clear()
        with pytest.raises(TimeoutError):
            manager.wait_for("WATCHDOG=1", 1.5)  # more than two intervals
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(reader)
        os.close(writer)


_HUNG_STORE = """
import os, sys
from zkv.config import NodeSettings, load
from zkv.node import Node
from zkv.storage.files import RealFiles

class HungFiles(RealFiles):
    def fdatasync(self, fd):
        if os.path.exists(sys.argv[1]):
            os.close(os.open(sys.argv[1], os.O_RDONLY))  # a pipe without a writer: waits for one
        super().fdatasync(fd)

settings = load({"name": "solo", "listen": sys.argv[2], "data": "d"}, {})
settings.validate()
Node(settings, HungFiles()).run()
"""


def test_a_store_that_hangs_in_a_sync_starves_the_watchdog(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    port = free_base_ports(1)[0]
    pipe = tmp_path / "pipe"
    process = subprocess.Popen(
        [sys.executable, "-c", _HUNG_STORE, str(pipe), f"{HOST}:{port}"], cwd=tmp_path, env=environment()
    )
    try:
        manager.wait_for("READY=1")
        os.mkfifo(pipe)
        with zkv.connect(f"zkv://{HOST}:{port}", timeout=1.0) as kv, pytest.raises(zkv.ZkvError):
            kv.put("a", b"1")
        manager.drain()
        manager.heard.clear()
        with pytest.raises(TimeoutError):
            manager.wait_for("WATCHDOG=1", 1.5)
        assert fetch(f"http://{HOST}:{port + 3}/metrics")[0] == 200  # the loop itself lives
        manager.heard.clear()
        with pipe.open("wb"):
            manager.wait_for("WATCHDOG=1")
    finally:
        process.kill()
        process.wait(WAIT_S)


def test_http_port_in_use_exits_1_and_creates_nothing(tmp_path: Path) -> None:
    port = free_base_ports(1)[0]
    with socket.socket() as holder:
        holder.bind((HOST, port + 3))
        holder.listen(1)
        code, err = run_serve(tmp_path, "--listen", f"{HOST}:{port}")
    assert code == 1
    assert str(port + 3) in err
    assert "--http" in err
    assert list(tmp_path.iterdir()) == []


def test_with_a_token_file_v1_wants_it_and_probes_do_not(tmp_path: Path) -> None:
    port = free_base_ports(1)[0]
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    flags = ("--name", "solo", "--listen", f"{HOST}:{port}", "--http-token-file", str(token))
    token.chmod(0o644)
    code, err = run_serve(tmp_path, *flags)
    assert code == 78
    assert "chmod 600" in err
    token.chmod(0o600)
    node = Serving(tmp_path, *flags)
    try:
        node.wait_for("is active")
        base = f"http://{HOST}:{port + 3}"
        assert fetch(f"{base}/livez")[0] == 200
        assert fetch(f"{base}/v1/status")[0] == 401
        assert fetch(f"{base}/v1/status", Authorization="Bearer wrong")[0] == 401
        assert fetch(f"{base}/v1/status", Authorization="Bearer 0123456789abcdef")[0] == 200
    finally:
        node.process.terminate()
        assert node.end() == 0


def test_http_elsewhere_without_a_token_is_refused_and_off_opens_nothing(tmp_path: Path) -> None:
    port = free_base_ports(1)[0]
    code, err = run_serve(tmp_path, "--listen", f"{HOST}:{port}", "--http", f"0.0.0.0:{port + 3}")
    assert code == 78
    assert "--http-token-file" in err
    node = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}", "--http", "off")
    try:
        node.wait_for("is active")
        with socket.socket() as probe:
            assert probe.connect_ex((HOST, port + 3)) != 0
    finally:
        node.process.terminate()
        assert node.end() == 0


def test_json_log_lines_are_named_events_without_keys_and_values(tmp_path: Path) -> None:
    port = free_base_ports(1)[0]
    flags = ("--name", "solo", "--listen", f"{HOST}:{port}", "--log-format", "json", "--log-level", "debug")
    node = Serving(tmp_path, *flags)
    try:
        node.wait_for("epoch_active")
        with zkv.connect(f"zkv://{HOST}:{port}") as kv:
            kv.put("secret-key", b"secret-value")
            with pytest.raises(zkv.ZkvError):
                kv.put("secret-key", b"secret-value" * 10_000)
    finally:
        node.process.terminate()
        assert node.end() == 0
    lines = [json.loads(line) for line in node.lines]
    assert [line["event"] for line in lines] == ["serving", "epoch_active", "stopping"]
    assert lines[0]["fields"]["pid"] == node.process.pid
    assert "secret" not in "".join(node.lines)


def settings_of(tmp_path: Path) -> NodeSettings:
    flags = {"name": "solo", "listen": f"{HOST}:{free_base_ports(1)[0]}", "data": str(tmp_path / "d"), "http": "off"}
    return load(flags, {})


def test_what_the_rules_count_reaches_the_status_document(tmp_path: Path) -> None:
    node = Node(settings_of(tmp_path))
    try:
        node._state.reads.repairs, node._state.replica.refused, node._state.resync.records = 7, 8, 9
        shown = node._status()["counters"]
        assert isinstance(shown, dict)
        names = ("zkv_read_repairs_total", "zkv_replica_refusals_total", "zkv_resync_records_total")
        assert [shown[name] for name in names] == [7, 8, 9]
    finally:
        node._close_outside()
        assert node._log is not None
        node._log.close()


def test_who_asks_a_node_that_closes_hears_that_it_has_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape in that moment is told 503, as by any node that does not answer."""
    node = Node(settings_of(tmp_path))
    asked = threading.Event()
    monkeypatch.setattr(node._transport, "wake", asked.set)  # what follows the question being put
    heard: list[str] = []

    def ask() -> None:
        with pytest.raises(TimeoutError) as caught:
            node.ask(lambda: 1, WAIT_S)
        heard.append(str(caught.value))

    asker = threading.Thread(target=ask)
    asker.start()
    assert asked.wait(WAIT_S)
    node._close_outside()
    asker.join(WAIT_S)
    assert node._log is not None
    node._log.close()
    assert heard == ["the node has stopped"]
    with pytest.raises(TimeoutError, match="has stopped"):
        node.ask(lambda: 1, WAIT_S)
