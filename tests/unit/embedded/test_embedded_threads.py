"""The embedded store between threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import zkv
from tests.unit.embedded.stores import ended_clean, faulty
from zkv import Closed, Store


def test_threads_share_a_store(kv: Store) -> None:
    def work(number: int) -> None:
        for i in range(60):
            durable = i % 10 == 0
            assert kv.put(f"{number}:{i}", b"%d:%d" % (number, i), durable=durable).durable >= durable
            assert kv.get(f"{number}:{i}") == b"%d:%d" % (number, i)
            kv.update("shared", lambda old: b"%d" % (int(old or b"0") + 1), resolver=max)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(kv.get_many([f"{n}:{i}" for n in range(4) for i in range(60)])) == 240
    assert 60 <= int(kv.get("shared", resolver=max) or b"0") <= 240


def test_durable_puts_of_many_threads_share_syncs(tmp_path: Path) -> None:
    kv, files = faulty(tmp_path / "data", fsync="never")
    gate = threading.Event()
    fdatasync = files.fdatasync

    def slow(fd: int) -> None:
        assert gate.wait(5)
        fdatasync(fd)

    with kv:
        kv.put("warm", b"")
        files.fdatasync = slow  # type: ignore[method-assign]
        files.calls.clear()
        with ThreadPoolExecutor(16) as pool:
            puts = [pool.submit(kv.put, f"k{i}", b"v", durable=True) for i in range(16)]
            for i in range(16):
                while not kv.exists(f"k{i}"):  # written, and waiting for its sync
                    time.sleep(0.001)
            gate.set()
            assert all(put.result(5).durable for put in puts)
        assert files.calls.count("fdatasync") <= 3


def test_close_while_calls_run(tmp_path: Path) -> None:
    kv = zkv.open(tmp_path / "data")
    acked: list[list[int]] = [[], [], [], []]
    started = threading.Barrier(5)

    def work(number: int) -> None:
        started.wait(5)
        i = 0
        while True:
            try:
                kv.put(f"{number}:{i}", b"v", durable=i % 3 == 0)
            except Closed:
                return
            acked[number].append(i)
            i += 1

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(work, number) for number in range(4)]
        started.wait(5)
        while not all(acked):
            time.sleep(0.001)
        kv.close()
        for end in ends:
            end.result(5)
    assert ended_clean(tmp_path / "data")
    with zkv.open(tmp_path / "data") as again:
        keys = [f"{number}:{i}" for number, numbers in enumerate(acked) for i in numbers]
        assert len(again.get_many(keys)) == len(keys)


def test_close_of_two_threads_ends_for_both(tmp_path: Path) -> None:
    for _ in range(20):
        kv = zkv.open(tmp_path / "data", fsync="never")
        kv.put("k", b"v")
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(kv.close) for _ in range(2)]
        assert [end.result() for end in ends] == [None, None]
        zkv.open(tmp_path / "data").close()


def test_forked_child_is_refused_and_keeps_no_lock(tmp_path: Path) -> None:
    kv = zkv.open(tmp_path / "data")
    kv.put("k", b"v")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing was refused"
        try:
            kv.get("k")
        except Closed as error:
            said = str(error).encode()
        kv.close()
        os.write(write, said)
        os.read(read, 0)
        time.sleep(5)  # outlives the parent's close; killed below
        os._exit(0)
    try:
        assert b"after the fork" in os.read(read, 4096)
        kv.put("k", b"w")
        assert kv.get("k") == b"w"
        kv.close()
        with zkv.open(tmp_path / "data") as again:
            assert again.get("k") == b"w"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_store_does_not_travel(kv: Store) -> None:
    with pytest.raises(TypeError, match="one process at a time"):
        pickle.dumps(kv)


def test_spawned_process_may_have_it_next(tmp_path: Path, kv: Store) -> None:
    kv.put("k", b"v")
    kv.close()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (str(tmp_path / "data"),)) == b"v"


def _read(path: str) -> bytes | None:
    with zkv.open(path) as kv:
        return kv.get("k")
