"""Batches of 100 against peers of the same shape, in alternating rounds of one run; only the ratios mean anything.

    python -m tests.bench.first_look [--rounds 5] [--keys 20000] [--probe path/to/probe_cluster.py]

One node with `fsync=interval` against redis-py mget/mset with AOF everysec; three nodes N=3 W=2 against a bare three-process probe (a module
with `run(label, batch, depth, n, clients, sync, base)` that prints keys/s). A peer that is not installed is NOT RUN, and said so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import zkv
from zkv.testing import LocalCluster
from zkv.testing.ports import free_base_ports

BATCH = 100
VALUE_BYTES = 1_000
Round = Callable[[], float]


def keys_per_second(keys: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return keys / (time.perf_counter() - started)


def batches(keys: list[str]) -> list[list[str]]:
    return [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]


def compare(name: str, ours: Round, peer: Round | None, rounds: int) -> None:
    """Rounds of both in turn; the median ratio with its quartiles."""
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(ours())
        if peer is not None:
            theirs.append(peer())
    line = f"{name:44s} zkv {statistics.median(mine):9,.0f} keys/s"
    if peer is None:
        print(f"{line}   peer NOT RUN", flush=True)
        return
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"{line}   peer {statistics.median(theirs):9,.0f}   ratio {middle:.2f} ({low:.2f} - {high:.2f})", flush=True)


@contextmanager
def redis_server() -> Iterator[Any | None]:
    """A client of a redis-server with AOF everysec, or None."""
    if importlib.util.find_spec("redis") is None or shutil.which("redis-server") is None:
        yield None
        return
    redis = importlib.import_module("redis")
    (port,) = free_base_ports(1)
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", str(port), "--dir", directory, "--save", "", "--appendonly", "yes"]
        process = subprocess.Popen(["redis-server", *options, "--appendfsync", "everysec"], stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            with redis.Redis(port=port) as client:
                yield client
        finally:
            process.kill()
            process.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def one_node(keys: list[str], rounds: int) -> None:
    value = os.urandom(VALUE_BYTES)
    cut = batches(keys)
    with LocalCluster(1, fsync="interval") as cluster, zkv.connect(cluster.url) as kv, redis_server() as peer:

        def put() -> None:
            for batch in cut:
                kv.put_many(dict.fromkeys(batch, value))

        def get() -> None:
            for batch in cut:
                assert len(kv.get_many(batch)) == len(batch)

        def mset() -> None:
            assert peer is not None
            for batch in cut:
                peer.mset(dict.fromkeys(batch, value))

        def mget() -> None:
            assert peer is not None
            for batch in cut:
                assert len(peer.mget(batch)) == len(batch)

        put()
        if peer is not None:
            mset()
        for name, ours, theirs in (
            ("put_many(100) / redis mset", put, mset),
            ("get_many(100) / redis mget", get, mget),
        ):
            compare(
                f"one node, {name}",
                lambda ours=ours: keys_per_second(len(keys), ours),  # type: ignore[misc]
                None if peer is None else lambda theirs=theirs: keys_per_second(len(keys), theirs),  # type: ignore[misc]
                rounds,
            )


def three_nodes(keys: list[str], rounds: int, fsync: str, probe: Any | None) -> None:
    """Four batches outstanding from one client process, as the probe has it."""
    value = os.urandom(VALUE_BYTES)
    cut = [dict.fromkeys(batch, value) for batch in batches(keys)]
    bases = iter(range(21_000, 30_000, 10))

    def peer() -> float:
        assert probe is not None
        out = io.StringIO()
        with redirect_stdout(out):
            probe.run("", BATCH, 4, len(cut), 1, fsync == "group", next(bases))
        return float(re.findall(r"(\d+) keys/s", out.getvalue())[-1])

    with LocalCluster(3, fsync=fsync) as cluster, zkv.connect(cluster.url) as kv, ThreadPoolExecutor(4) as threads:

        def put() -> None:
            for result in threads.map(kv.put_many, cut):
                assert result.ok == BATCH

        put()
        compare(
            f"three nodes W=2, put_many(100) x 4, {fsync}",
            lambda: keys_per_second(len(keys), put),
            None if probe is None else peer,
            rounds,
        )


def load_probe(path: Path | None) -> Any | None:
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--probe", type=Path)
    args = parser.parse_args()
    keys = [f"key{n:08d}" for n in range(args.keys)]
    one_node(keys, args.rounds)
    probe = load_probe(args.probe)
    for fsync in ("never", "group"):
        three_nodes(keys, args.rounds, fsync, probe)


if __name__ == "__main__":
    main()
