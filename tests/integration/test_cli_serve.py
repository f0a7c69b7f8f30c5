"""`zkv serve` as a process: what it says, how it ends, and every refusal of a second start with its exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkv.testing import LocalCluster
from zkv.testing.ports import HOST, free_base_ports

pytestmark = pytest.mark.integration

WAIT_S = 20.0


class Serving:
    """A running `zkv serve`; its stderr is read as it comes, so that the process never blocks on it."""

    def __init__(self, directory: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "zkv", "serve", *flags]
        self.process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, words: str) -> str:
        with self._news:
            assert self._news.wait_for(lambda: self._found(words) or not self._reader.is_alive(), WAIT_S), self.lines
        line = self._found(words)
        assert line is not None, self.lines
        return line

    def end(self) -> int:
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return code

    def _found(self, words: str) -> str | None:
        return next((line for line in self.lines if words in line), None)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip())
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()


def environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ZKV_")}
    return {**ours, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def run_serve(directory: Path, *flags: str) -> tuple[int, str]:
    """For starts that must fail."""
    command = [sys.executable, "-m", "zkv", "serve", *flags]
    done = subprocess.run(
        command, cwd=directory, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, env=environment(), check=False
    )
    return done.returncode, done.stderr


@pytest.fixture
def port() -> int:
    return free_base_ports(1)[0]


@pytest.fixture
def serving(tmp_path: Path, port: int) -> Iterator[Serving]:
    node = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}")
    try:
        node.wait_for("is active")
        yield node
    finally:
        node.process.kill()
        node.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_alone_it_serves_from_zkv_data_and_drains_on_a_signal(
    serving: Serving, tmp_path: Path, port: int, number: int
) -> None:
    line = serving.wait_for("serving solo on")
    assert f"{HOST}:{port}" in line
    assert (tmp_path / "zkv-data").is_dir()
    serving.process.send_signal(number)
    assert serving.end() == 0


def test_a_second_start_in_the_same_directory_needs_no_flags_and_keeps_its_cluster(
    serving: Serving, tmp_path: Path, port: int
) -> None:
    serving.process.kill()
    serving.end()
    again = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}")
    try:
        again.wait_for("serving solo on")
    finally:
        again.process.terminate()
        assert again.end() == 0


def test_directory_in_use_exits_1_and_names_the_pid(serving: Serving, tmp_path: Path) -> None:
    code, err = run_serve(tmp_path, "--name", "solo", "--listen", f"{HOST}:{free_base_ports(1)[0]}")
    assert code == 1
    assert str(serving.process.pid) in err


@pytest.mark.parametrize(("step", "option"), [(0, "--listen"), (1, "--peer-listen"), (2, "--gossip-listen")])
def test_port_in_use_exits_1_names_port_and_option_and_creates_nothing(
    tmp_path: Path, port: int, step: int, option: str
) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, port + step))
        holder.listen(1)
        code, err = run_serve(tmp_path, "--listen", f"{HOST}:{port}")
    assert code == 1
    assert str(port + step) in err
    assert option in err
    assert list(tmp_path.iterdir()) == []


def test_another_name_or_cluster_exits_78(serving: Serving, tmp_path: Path, port: int) -> None:
    serving.process.terminate()
    assert serving.end() == 0
    listen = ("--listen", f"{HOST}:{port}")
    code, err = run_serve(tmp_path, "--name", "other", *listen)
    assert code == 78
    assert "solo" in err
    code, err = run_serve(
        tmp_path, "--name", "solo", *listen, "--initial", f"solo@{HOST}:{port}", "--cluster-name", "different"
    )
    assert code == 78
    assert "different" in err


def test_a_list_without_this_node_exits_78(tmp_path: Path, port: int) -> None:
    code, err = run_serve(
        tmp_path, "--name", "a", "--listen", f"{HOST}:{port}", "--initial", f"b@{HOST}:{port}", "--cluster-name", "c"
    )
    assert code == 78
    assert "--initial" in err


def test_stop_with_stdin_ends_with_the_parent(tmp_path: Path, port: int) -> None:
    node = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}", "--stop-with-stdin")
    node.wait_for("is active")
    assert node.process.stdin is not None
    node.process.stdin.close()
    assert node.end() == 0


def test_config_file_and_environment(tmp_path: Path, port: int) -> None:
    node = Serving(tmp_path, "--name", "solo", "--listen", f"{HOST}:{port}", "--data", "d")
    node.wait_for("is active")
    node.process.terminate()
    assert node.end() == 0
    (tmp_path / "zkv.toml").write_text(f'[node]\nname = "solo"\ndata = "d"\n[network]\nlisten = "{HOST}:{port}"\n')
    again = Serving(tmp_path, "--config", "zkv.toml")
    again.wait_for("serving solo on")
    again.process.terminate()
    assert again.end() == 0


def test_commands_without_standard_streams_say_so_instead_of_failing_with_a_traceback() -> None:
    """`zkv put k - <&-` and `zkv get k >&-`: whoever started us closed them."""
    command = f"{sys.executable} -m zkv"
    with LocalCluster(1) as cluster:
        environment = os.environ | {"ZKV_URL": cluster.url}
        for line, says in (("put k - <&-", "standard input is closed"), ("get k >&-", "standard output is closed")):
            subprocess.run(f"{command} put k v", shell=True, env=environment, check=True, capture_output=True)
            done = subprocess.run(f"{command} {line}", shell=True, env=environment, stderr=subprocess.PIPE, text=True)
            assert done.returncode == 1
            assert says in done.stderr
            assert "Traceback" not in done.stderr
