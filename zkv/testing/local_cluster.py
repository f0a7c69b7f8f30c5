"""A cluster of real node processes on loopback, for tests, demos and trying things out.

Owns: the processes, their ports, directories and captured logs. Must not know: how a node works inside; it is started
by its command line
and asked over the wire like any other.

Invariants: no process outlives the cluster: `close` kills them, an exit of this interpreter calls `close`, and a node
whose stdin ends (this
process was killed) stops by itself. Every wait has a deadline and ends at once when the process it waits for dies.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import zkv
from zkv.config import HTTP_STEP, environment_of
from zkv.errors import ConfigError, Unsupported, ZkvError
from zkv.testing.ports import HOST, free_base_ports

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 20.0
_LOG_LINES: Final = 40
_START_TRIES: Final = 5
_POLL: Final = 0.05


class LocalCluster:
    """`count` nodes that serve. Keywords are settings of `NodeSettings`, such as `fsync="interval"`.

    >>> with LocalCluster(3, fsync="never") as cluster:         # doctest: +SKIP
    ...     with zkv.connect(cluster.url) as kv:
    ...         kv.put("a", b"1")

    directory: where data and logs go and stay; without it a temporary one that is removed at the end.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        directory: Path | str | None = None,
        names: Sequence[str] | None = None,
        timeout: float = START_TIMEOUT,
        **settings: object,
    ) -> None:
        if count < 1:
            raise ConfigError(f"a cluster of {count} nodes cannot serve; ask for at least 1")
        self._names = list(names) if names is not None else [f"n{index + 1}" for index in range(count)]
        if len(set(self._names)) != count:
            raise ConfigError(f"{count} nodes need {count} different names, not {self._names}")
        self._environment = _environment(settings)
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="zkv-")) if directory is None else Path(directory).absolute()
        self.nodes: list[LocalNode] = []
        atexit.register(self.close)
        try:
            self._start(timeout)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """A client URL that names every node."""
        return "zkv://" + ",".join(node.address for node in self.nodes)

    def add(self) -> LocalNode:
        raise Unsupported(
            "LocalCluster.add: nodes cannot join a running cluster yet; start it with as many as you need"
        )

    def wait_until_healthy(self, timeout: float = START_TIMEOUT) -> None:
        """Return when every node that runs sees every node that runs as alive."""
        deadline = time.monotonic() + timeout
        running = [node for node in self.nodes if node.is_running]
        names = {node.name for node in running}
        for node in running:
            node.wait_until(lambda status: names <= _alive(status), "sees all running nodes alive", deadline)

    def logs(self, lines: int = _LOG_LINES) -> str:
        """The end of each node's log, under its name."""
        return "\n".join(f"--- {node.name} ({node.state}) ---\n{node.log_tail(lines)}" for node in self.nodes)

    def close(self) -> None:
        """Kill all that runs and remove what is temporary. May be called again."""
        for node in self.nodes:
            node.kill()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, Exception):
            print(f"LocalCluster: the block failed; the nodes said:\n{self.logs()}", file=sys.stderr)
        self.close()

    def _start(self, timeout: float) -> None:
        """Start all nodes; with other ports again if somebody took one between our probe and the node's bind."""
        for left in range(_START_TRIES - 1, -1, -1):
            deadline = time.monotonic() + timeout
            ports = free_base_ports(len(self._names))
            initial = ",".join(f"{name}@{HOST}:{port}" for name, port in zip(self._names, ports, strict=True))
            self.nodes = [
                LocalNode(name, port, self.directory, initial, self._environment)
                for name, port in zip(self._names, ports, strict=True)
            ]
            try:
                for node in self.nodes:
                    node.spawn()
                for node in self.nodes:
                    node.wait_until_serving(deadline)
                self.wait_until_healthy(max(0.0, deadline - time.monotonic()))
            except NodeStartFailed as failure:
                for node in self.nodes:
                    node.kill()
                if left == 0 or not failure.port_in_use:
                    raise NodeStartFailed(f"{failure}\n{self.logs()}") from failure
            else:
                return


class LocalNode:
    """One node process. It keeps name, ports and directory over any number of kills and restarts."""

    __slots__ = ("_environment", "_initial", "_process", "address", "data", "http", "log", "name", "url")

    def __init__(self, name: str, port: int, directory: Path, initial: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.address = f"{HOST}:{port}"
        self.url = f"zkv://{self.address}"
        #: where it answers /livez, /readyz, /metrics and /v1/status, unless a setting says otherwise
        self.http = f"http://{HOST}:{port + HTTP_STEP}"
        self.data = directory / name
        self.log = directory / f"{name}.log"
        self._initial = initial
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process, or of the last one."""
        if self._process is None:
            raise ConfigError(f"node {self.name} was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def state(self) -> str:
        if self._process is None:
            return "never started"
        code = self._process.poll()
        return f"running as {self._process.pid}" if code is None else f"ended with {code}"

    def spawn(self) -> None:
        """Start the process and return at once. See `wait_until_serving`."""
        assert not self.is_running, f"node {self.name} is running"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "zkv", "serve", "--stop-with-stdin"),
            *("--name", self.name, "--data", str(self.data), "--listen", self.address),
            *("--initial", self._initial, "--cluster-name", "local"),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Nothing happens if it does not run."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT)
            _close(self._process.stdin)

    def terminate(self, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM, wait for the drain, return the exit code."""
        assert self._process is not None, f"node {self.name} was never started"
        self._signal(signal.SIGTERM)
        code = self._process.wait(timeout)
        _close(self._process.stdin)
        return code

    def pause(self) -> None:
        """SIGSTOP: alive for the kernel, silent for everybody else."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self, timeout: float = START_TIMEOUT) -> None:
        """Stop it in order if it runs, start it with the same data and ports, return when it serves."""
        if self.is_running:
            self.resume()
            self.terminate()
        self.spawn()
        self.wait_until_serving(time.monotonic() + timeout)

    def wipe(self) -> None:
        """Kill it if it runs and remove its data, as a lost disk would."""
        self.kill()
        shutil.rmtree(self.data)

    def wait_until_serving(self, deadline: float) -> None:
        self.wait_until(lambda status: status["epoch"] != 0, "serves", deadline)

    def wait_until(self, holds: Callable[[Mapping[str, object]], bool], what: str, deadline: float) -> None:
        """Ask the node for its status until `holds`; NodeStartFailed when the process ends or the deadline (monotonic
        seconds) passes.
        """
        assert self._process is not None, f"node {self.name} was never started"
        trouble = "it was not asked yet"
        while True:
            try:
                # a fresh client each time: nothing of an earlier life of the node may answer for it
                with zkv.connect(self.url, timeout=2.0) as kv:
                    status = kv.admin.status().document
                    if status["node"] == self.name and holds(status):
                        return
                trouble = "it answered, but not so yet"
            except ZkvError as error:
                trouble = str(error)
            if time.monotonic() > deadline:
                raise NodeStartFailed(
                    f"node {self.name} ({self.state}): not reached in time: {what}; last: {trouble}\n{self.log_tail()}"
                )
            try:
                code = self._process.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue
            raise NodeStartFailed(f"node {self.name} ended with {code} before it {what}:\n{self.log_tail()}")

    def log_tail(self, lines: int = _LOG_LINES) -> str:
        """The last lines of all that this node wrote, over all of its lives."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        """To the node's own process group, unless it has ended (its number may belong to somebody else by now)."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)


class NodeStartFailed(ZkvError):
    """A node ended, or did not get as far as asked for in time. The message holds the end of its log."""

    @property
    def port_in_use(self) -> bool:
        return "in use" in str(self)


def _alive(status: Mapping[str, object]) -> set[str]:
    nodes = status.get("nodes")
    assert isinstance(nodes, list)
    return {str(node["name"]) for node in nodes if node["state"] == "alive"}


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Ours without any zkv setting of the user's shell, plus the given ones, plus where this very package is found."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKV_")}
    for field, value in settings.items():
        environment[environment_of(field)] = str(value)
    package_parent = str(Path(zkv.__file__).resolve().parent.parent)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = package_parent + (os.pathsep + inherited if inherited else "")
    return environment


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()
