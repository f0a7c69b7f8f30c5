"""etcd, three members on loopback, under its own load generator (`etcdctl check perf`, a Go client).

Owns: the members and the generator as a side. The generator runs for a minute; a round runs it for as long as the round is and counts puts
by the members' own counter. Its values have 1,024 bytes, its keys 256.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from zkv.testing.bench.rounds import NotRun, Sample, WrongAnswer
from zkv.testing.bench.servers import scratch, served
from zkv.testing.ports import HOST, free_base_ports

MEMBERS: Final = 3
#: clients of each load of the generator, one put outstanding each
LOADS: Final = {500: "l", 1000: "xl"}
_COUNTER: Final = re.compile(rb"^etcd_(?:debugging_)?mvcc_put_total (\S+)$", re.MULTILINE)
_PREFIX: Final = "/zkv-bench/"
_WARM_UP_S: Final = 5.0
_RAMP_S: Final = 1.0
_START_TIMEOUT: Final = 30.0


def missing() -> NotRun | None:
    for program, package in (("etcd", "etcd-server"), ("etcdctl", "etcd-client")):
        if shutil.which(program) is None:
            return NotRun(f"{program} is not installed (on Debian: apt install {package})")
    return None


class Etcd:
    """A side that puts."""

    def __init__(self, endpoints: Sequence[str], outstanding: int, processes: Mapping[str, int]) -> None:
        self.processes = processes
        self._endpoints = endpoints
        self._load = LOADS[outstanding]
        self._rounds = 0

    def run(self, seconds: float) -> Sample:
        """The count starts a second after the first put, when all clients are connected, and the members are at rest again at the end."""
        self._rounds += 1
        # the generator refuses a prefix that has keys
        command = self._command("check", "perf", f"--load={self._load}", f"--prefix={_PREFIX}{self._rounds}/")
        generator = subprocess.Popen(
            command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            first = self._puts()
            deadline = time.perf_counter() + _WARM_UP_S
            while self._puts() == first:
                if time.perf_counter() > deadline or generator.poll() is not None:
                    raise WrongAnswer("etcd's load generator puts nothing")
                time.sleep(0.05)  # there is no event to wait for: the counter is all it shows
            time.sleep(_RAMP_S)
            before, started = self._puts(), time.perf_counter()
            time.sleep(seconds)  # the round itself
            after, ended = self._puts(), time.perf_counter()
        finally:
            generator.kill()
            generator.communicate()
        self._rest()
        return Sample(after - before, ended - started)

    def check(self) -> str:
        """Every put has a key of its own: as many keys must be there as puts were counted."""
        puts = self._puts()
        # --limit 1 still counts all
        out = self._tool("get", _PREFIX, "--prefix", "--limit=1", "--keys-only", "--write-out=json")
        keys = int(json.loads(out).get("count", 0))
        if keys < puts:
            raise WrongAnswer(f"etcd holds {keys} keys of {puts} puts")
        return f"{keys} keys counted"

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self._tool("endpoint", "health")
                return
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    raise WrongAnswer(f"etcd's members found no leader: {error.stderr}") from error

    def _rest(self) -> None:
        """Until what the generator left behind is done: it must not cost the other side's round, or a key of the count."""
        deadline = time.perf_counter() + _START_TIMEOUT
        last = -1
        while (puts := self._puts()) != last:
            if time.perf_counter() > deadline:
                raise WrongAnswer(f"etcd goes on putting without a client: {puts} puts")
            last = puts
            time.sleep(0.2)  # a counter has no event to wait for

    def _puts(self) -> int:
        """As the first member counts them; it applies the puts of all."""
        with urllib.request.urlopen(f"http://{self._endpoints[0]}/metrics", timeout=10) as answer:
            found = _COUNTER.search(answer.read())
        assert found is not None, "etcd has no counter of puts"
        return int(float(found[1]))

    def _tool(self, *words: str) -> str:
        return subprocess.run(
            self._command(*words), env=_environment(), capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def _command(self, *words: str) -> list[str]:
        return ["etcdctl", "--endpoints=" + ",".join(self._endpoints), *words]


@contextmanager
def etcd(outstanding: int) -> Iterator[Etcd]:
    ports = free_base_ports(MEMBERS)
    cluster = ",".join(f"m{i}=http://{HOST}:{port + 1}" for i, port in enumerate(ports))
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        pids = {}
        for i, port in enumerate(ports):
            client, peer = f"http://{HOST}:{port}", f"http://{HOST}:{port + 1}"
            words = ["etcd", "--name", f"m{i}", "--data-dir", str(directory / f"m{i}"), "--log-level", "error"]
            words += ["--listen-client-urls", client, "--advertise-client-urls", client]
            words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            words += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
            # the client port opens when there is a leader, that is, when all are started: await the peer port here
            pids[f"etcd{i + 1}"] = stack.enter_context(served(words, [port + 1]))
        side = Etcd([f"{HOST}:{port}" for port in ports], outstanding, pids)
        side.wait_until_healthy()
        yield side


def _environment() -> dict[str, str]:
    return {**os.environ, "ETCDCTL_API": "3"}
