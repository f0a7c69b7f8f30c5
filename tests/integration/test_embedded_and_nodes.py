"""One directory, a node and a program in turn; and one scenario with the same answers from either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import zkv
from zkv.client.sync import Handle
from zkv.errors import StoreLocked
from zkv.resolve import union
from zkv.testing import LocalCluster
from zkv.testing.ports import free_base_ports

pytestmark = pytest.mark.integration


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(1, directory=tmp_path / "cluster", fsync="interval") as nodes:
        yield nodes


def told(error: BaseException) -> tuple[Any, ...]:
    parts: tuple[Any, ...] = (type(error).__name__,)
    if isinstance(error, zkv.Conflict):
        parts += (sorted(error.values),)
    if isinstance(error, zkv.BatchError):
        parts += (sorted((key, type(e).__name__) for key, e in error.errors.items()),)
    return parts


def scenario(kv: Handle) -> Iterator[Any]:
    """Every call of the surface, with what two stores must agree on."""

    def tried(call: Any) -> Any:
        try:
            return call()
        except zkv.ZkvError as error:
            return told(error)

    first = kv.put("a", b"1")
    yield first.sloppy, first.durable, len(first.acked), first.epoch
    yield kv.put("a", b"2", durable=True).durable
    yield kv.get("a"), kv.get("miss"), kv.get("miss", b"default"), kv.get(b"a", r="all")
    item = kv.get_item("a")
    yield item.found, item.values, item.expires_at, len(item.written_ms), kv.get_item("miss").found
    yield kv.put("a", b"3", context=b"").acked == first.acked
    yield tried(lambda: kv.get("a")), kv.get("a", resolver=max), sorted(kv.get_item("a").values)
    yield kv.update("a", lambda old: (old or b"") + b"!", resolver=max), kv.get("a")
    yield kv.exists("a"), kv.exists("miss"), kv.delete("a").durable, kv.exists("a"), kv.delete("never").sloppy
    yield (
        kv.put("t", b"x", ttl=100).epoch,
        90 < (kv.ttl("t") or 0) <= 100,
        kv.touch("t", None),
        kv.ttl("t"),
        kv.touch("miss", 5),
    )
    yield tried(lambda: kv.ttl("miss"))
    result = kv.put_many({f"k{i}": b"%d" % i for i in range(1_200)})
    yield result.ok, result.errors, result.sloppy, result.durable
    yield len(kv.get_many([f"k{i}" for i in range(1_300)])), kv.put_many({"d": b""}, durable=True).durable
    yield tried(lambda: kv.put_many({"big": bytes(20_000), "small": b"1"})), kv.get("small")
    yield kv.put_many({"big": bytes(20_000)}, errors="return").outcome("big")
    yield kv.delete_many(["k0", "k1"]).ok, kv.get_many(["k0", "k1", "k2"])
    yield sorted(kv.export()) == sorted(kv.export(as_bytes=False)), len(list(kv.export(values=True)))
    strict = kv.bucket("strict", codec="json", resolver=union)
    yield strict.put("j", {"x": 1}).sloppy, strict.get("j"), strict.name
    mapping = kv.bucket(codec="str").mapping()
    mapping["m"] = "text"
    yield mapping["m"], "m" in mapping, "n" in mapping, len(mapping), tried(lambda: mapping["n"]), mapping.pop("m")
    yield kv.admin.status().verdict, kv.admin.ring().partitions, sorted(b.name for b in kv.admin.buckets())
    yield (
        len(kv.admin.explain("a")["replicas"]) if "replicas" in kv.admin.explain("a") else sorted(kv.admin.explain("a"))
    )
    yield kv.ping() >= 0, kv.closed
    for call in (
        lambda: kv.bucket("nowhere").get("k"),
        lambda: kv.get(""),
        lambda: kv.put("k" * 2_000, b""),
        lambda: kv.get("a", r=9),
        lambda: kv.put("a", b"", ttl=-1),
        lambda: kv.put("a", b"", context=b"rubbish"),
        lambda: kv.put("a", bytes(5 << 20)),
        lambda: kv.get("a", timeout=0),
        lambda: kv.put("a", b"", if_absent=True),
        lambda: kv.scan("a"),
        lambda: kv.incr("a"),
        lambda: kv.lock("a"),
        lambda: kv.watch("a"),
        lambda: kv.admin.create_bucket("b"),
    ):
        yield tried(call)
    kv.close()
    yield kv.closed, tried(lambda: kv.get("a"))


def test_embedded_store_answers_as_a_node_does(tmp_path: Path, cluster: LocalCluster) -> None:
    here, there = scenario(zkv.open(tmp_path / "data")), scenario(zkv.connect(cluster.url))
    count = 0
    for ours, theirs in zip(here, there, strict=True):
        assert ours == theirs, f"step {count}"
        count += 1
    assert count > 30


def test_node_and_program_take_turns_with_a_directory(tmp_path: Path) -> None:
    (port,) = free_base_ports(1)
    path = tmp_path / "data"
    with zkv.open(path, name="solo", listen=f"127.0.0.1:{port}") as kv:
        kv.put_many({f"k{i}": b"program" for i in range(300)})
        kv.delete("k0")
    with served(path, port) as pid, zkv.connect(f"zkv://127.0.0.1:{port}") as kv:
        assert len(kv.get_many([f"k{i}" for i in range(300)])) == 299
        kv.put("k1", b"node")
        kv.put("k0", b"back")
        with pytest.raises(StoreLocked, match=f"in use by pid {pid}"):
            zkv.open(path)
    with zkv.open(path) as kv:
        assert (kv.get("k0"), kv.get("k1"), kv.get("k2")) == (b"back", b"node", b"program")
        kv.put("k1", b"program again")
    with served(path, port), zkv.connect(f"zkv://127.0.0.1:{port}") as kv:
        assert kv.get("k1") == b"program again"


@contextmanager
def served(path: Path, port: int) -> Iterator[int]:
    """`zkv serve` on a directory, until it is asked to stop; its pid."""
    command = [sys.executable, "-m", "zkv", "serve", "--data", str(path), "--name", "solo"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKV_")}
    node = subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}"],
        env={**environment, "PYTHONPATH": str(Path(zkv.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert node.stderr is not None
    try:
        said: list[str] = []
        while not said or "serving solo" not in said[-1]:
            said.append(node.stderr.readline())
            assert said[-1], said
        yield node.pid
        node.send_signal(signal.SIGTERM)
        node.communicate(timeout=20)
        assert node.returncode == 0
    finally:
        node.kill()
        node.communicate()


def test_directory_of_a_killed_node_is_opened(tmp_path: Path, cluster: LocalCluster) -> None:
    with zkv.connect(cluster.url) as kv:
        kv.put_many({f"k{i}": b"v" for i in range(100)}, durable=True)
    cluster.nodes[0].kill()
    with zkv.open(cluster.nodes[0].data) as kv:
        assert len(kv.get_many([f"k{i}" for i in range(100)])) == 100
        assert kv.put("k0", b"w").acked == (cluster.nodes[0].name,)
    cluster.nodes[0].restart()
    with zkv.connect(cluster.url) as kv:
        assert kv.get("k0") == b"w"


def test_directory_of_a_node_of_three_is_refused(tmp_path: Path) -> None:
    with LocalCluster(3, directory=tmp_path / "three") as nodes:
        data = nodes.nodes[0].data
    before = sorted(str(p) for p in data.rglob("*"))
    with pytest.raises(zkv.ConfigError, match="cluster of 3 nodes"):
        zkv.open(data)
    assert sorted(str(p) for p in data.rglob("*")) == before
