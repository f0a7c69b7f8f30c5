"""The commands against three real nodes: results, exit codes, import and export with a node killed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zkv
from zkv.errors import ZkvError
from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, fsync="interval", partitions=64) as started:
        yield started


class Done:
    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        assert document["schema"] == 1
        return document


def run(cluster: LocalCluster, *argv: str, stdin: bytes = b"") -> Done:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKV_")}
    environment.update(PYTHONPATH=str(ROOT), ZKV_URL=cluster.url)
    done = subprocess.run(
        [sys.executable, "-m", "zkv", *argv], input=stdin, capture_output=True, env=environment, timeout=60, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def test_put_get_delete_round_trip(cluster: LocalCluster) -> None:
    assert run(cluster, "put", "user:1", "Ada").code == 0
    assert run(cluster, "get", "user:1").out == b"Ada\n"
    assert run(cluster, "get", "user:1", "--raw", "--r", "all").out == b"Ada"
    assert run(cluster, "exists", "user:1").code == 0
    assert run(cluster, "delete", "user:1").code == 0
    assert run(cluster, "exists", "user:1").code == 3
    missing = run(cluster, "get", "user:1")
    assert (missing.code, missing.out) == (3, b"")


def test_bytes_pass_through_stdin_and_stdout(cluster: LocalCluster) -> None:
    value = bytes(range(256)) * 8
    assert run(cluster, "put", "raw", "-", stdin=value).code == 0
    assert run(cluster, "get", "raw", "--raw").out == value
    assert "value_b64" in run(cluster, "get", "raw", "--json").document


def test_json_of_put_and_get(cluster: LocalCluster) -> None:
    put = run(cluster, "put", "j", "1", "--json", "--w", "all").document
    assert sorted(put["acked"]) == ["n1", "n2", "n3"]
    got = run(cluster, "get", "j", "--json").document
    assert (got["value"], got["found"]) == ("1", True)
    assert run(cluster, "put", "j", "2", "--context", got["context"]).code == 0
    assert run(cluster, "get", "j").out == b"2\n"


def test_siblings_exit_9_and_are_settled_with_their_context(cluster: LocalCluster) -> None:
    with zkv.connect(cluster.url) as kv:
        empty = kv.get_item("fork").context
        kv.put("fork", b"one", context=empty)
        kv.put("fork", b"two", context=empty)
    conflict = run(cluster, "get", "fork")
    assert (conflict.code, conflict.out) == (9, b"")
    assert "one" in conflict.err
    assert "two" in conflict.err
    document = run(cluster, "get", "fork", "--json").document
    assert sorted(sibling["value"] for sibling in document["siblings"]) == ["one", "two"]
    exported = run(cluster, "export")
    assert exported.code == 9
    assert any("siblings" in json.loads(line) for line in exported.out.splitlines())
    assert run(cluster, "put", "fork", "both", "--context", document["context"]).code == 0
    assert run(cluster, "get", "fork").out == b"both\n"


def test_time_to_live(cluster: LocalCluster) -> None:
    assert run(cluster, "put", "t", "1", "--ttl", "500").code == 0
    assert 400 < float(run(cluster, "ttl", "t").out) <= 500
    assert run(cluster, "touch", "t", "900").code == 0
    assert 800 < float(run(cluster, "ttl", "t").out) <= 900
    assert run(cluster, "put", "u", "1").code == 0
    assert run(cluster, "ttl", "u").out == b"never\n"
    assert run(cluster, "ttl", "nothing").code == 3
    assert run(cluster, "touch", "nothing", "5").code == 3


def test_too_large_is_refused_and_nothing_is_written(cluster: LocalCluster) -> None:
    done = run(cluster, "put", "large", "-", stdin=b"x" * 20_000)
    assert done.code == 1
    assert "10240" in done.err.replace(",", "")
    assert run(cluster, "exists", "large").code == 3


def test_unknown_bucket(cluster: LocalCluster) -> None:
    done = run(cluster, "get", "a", "--bucket", "nonsense", "--json")
    assert done.code == 1
    assert done.document["error"]["code"] == "NoSuchBucket"
    assert run(cluster, "put", "a", "1", "--bucket", "strict").code == 0
    assert run(cluster, "get", "a", "--bucket", "strict").out == b"1\n"


def test_nobody_there_exits_6(cluster: LocalCluster) -> None:
    done = run(cluster, "get", "a", "--url", "zkv://127.0.0.1:9", "--timeout", "0.5")
    assert done.code == 6


def test_status_ring_explain_version(cluster: LocalCluster) -> None:
    status = run(cluster, "status", "--json").document
    assert status["verdict"].startswith("healthy")
    assert [node["state"] for node in status["nodes"]] == ["alive"] * 3
    text = run(cluster, "status").out.decode()
    assert text.startswith("healthy")
    ring = run(cluster, "ring", "--json").document
    assert [share["held"] for share in ring["shares"]] == [64, 64, 64]
    assert "64 partitions" in run(cluster, "ring").out.decode()
    assert run(cluster, "put", "where", "here", "--w", "all").code == 0
    explained = run(cluster, "explain", "where", "--json").document
    assert [held["held"] for held in explained["replicas"].values()] == ["value"] * 3
    assert "n2" in run(cluster, "explain", "where").out.decode()
    assert "python" in run(cluster, "version", "--json").document


def exported(cluster: LocalCluster, *flags: str) -> dict[str, str]:
    done = run(cluster, "export", *flags)
    assert done.code == 0, done.err
    return {
        entry["key"]: entry.get("value", entry.get("value_b64")) for entry in map(json.loads, done.out.splitlines())
    }


def test_import_with_a_node_killed_meanwhile_then_export_equal(cluster: LocalCluster, tmp_path: Path) -> None:
    records = {f"import:{number}": "v" * (number % 50) + f"\u00fc{number}" for number in range(6000)}
    file = tmp_path / "in.jsonl"
    lines = [json.dumps({"key": key, "value": value}) for key, value in records.items()]
    file.write_text("\n".join([*lines[:10], "nonsense", *lines[10:]]) + "\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZKV_URL": cluster.url}
    loading = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "zkv",
            "import",
            str(file),
            "--json",
            "--batch",
            "100",
            "--resume",
            str(tmp_path / "journal"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    victim = cluster.nodes[2]
    victim.kill()
    try:
        out, err = loading.communicate(timeout=60)
    finally:
        victim.restart()
    assert loading.returncode == 1, err.decode()
    document = json.loads(out)
    assert (document["stored"], document["refused"], document["reasons"]) == (6000, 1, {"not JSON": 1})
    found = exported(cluster)
    assert {key: value for key, value in found.items() if key.startswith("import:")} == records
    again = run(cluster, "import", str(file), "--resume", str(tmp_path / "journal"))
    assert "going on after line 6,001" in again.err


def test_import_twice_changes_nothing_and_csv_round_trips(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(b'key,value\r\ncsv:1,"a,b"\r\ncsv:2,"line\r\nbreak"\r\ncsv:3,\r\n')
    assert run(cluster, "import", str(file)).code == 0
    assert run(cluster, "import", "-", "--format", "csv", stdin=file.read_bytes()).code == 0
    found = exported(cluster)
    assert {key: found[key] for key in ("csv:1", "csv:2", "csv:3")} == {
        "csv:1": "a,b",
        "csv:2": "line\r\nbreak",
        "csv:3": "",
    }
    target = tmp_path / "out.csv"
    assert run(cluster, "export", "--output", str(target)).code == 0
    assert b'"a,b"' in target.read_bytes()


def test_export_into_a_closed_pipe_is_quiet(cluster: LocalCluster) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZKV_URL": cluster.url}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "zkv", "export"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_with_one_node_left_a_put_is_unavailable_and_w_1_is_not(cluster: LocalCluster) -> None:
    first, second = cluster.nodes[0], cluster.nodes[1]
    first.kill()
    second.kill()
    try:
        refused = run(cluster, "put", "lonely", "1", "--timeout", "3", "--json")
        assert refused.code in (4, 5)
        assert refused.document["error"]["code"] in ("Unavailable", "QuorumNotMet", "DeadlineExceeded")
        assert run(cluster, "put", "lonely", "1", "--w", "1").code == 0
        assert run(cluster, "get", "lonely", "--r", "one").out == b"1\n"
        assert run(cluster, "status", "--json").document["node"] == "n3"
    finally:
        first.restart()
        second.restart()
    cluster.wait_until_healthy()
    assert run(cluster, "get", "lonely").out == b"1\n"


def test_paused_node_comes_back(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    node.pause()
    try:
        assert run(cluster, "put", "slow", "1").code == 0
        assert run(cluster, "get", "slow").out == b"1\n"
    finally:
        node.resume()
    cluster.wait_until_healthy()
    with zkv.connect(node.url) as kv:
        assert kv.get("slow") == b"1"


def test_terminate_drains_with_exit_0_and_close_leaves_nothing() -> None:
    with LocalCluster(1, fsync="never") as alone:
        directory = alone.directory
        with zkv.connect(alone.url) as kv:
            kv.put("a", b"1")
        assert alone.nodes[0].terminate() == 0
        alone.nodes[0].restart()
        with zkv.connect(alone.url) as kv:
            assert kv.get("a") == b"1"
        pid = alone.nodes[0].pid
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_cluster_that_cannot_start_says_why() -> None:
    with pytest.raises(ZkvError, match="fsync_interval_ms"):
        LocalCluster(1, fsync_interval_ms=0)


def test_wiped_node_says_nothing_until_it_has_asked_all_others() -> None:
    keys = [f"k{number}" for number in range(200)]
    with LocalCluster(3, fsync="interval", partitions=64) as cluster:
        first, second, _ = cluster.nodes
        with zkv.connect(cluster.url) as kv:
            kv.put_many(((key, b"v") for key in keys), w="all")
        second.kill()
        first.wipe()
        assert not first.data.exists()
        first.restart()
        with zkv.connect(cluster.url, timeout=2.0) as kv:
            with pytest.raises(ZkvError):
                kv.get("k1", r="quorum")
            assert kv.get("k1", r="one") == b"v"
        second.restart()
        first.wait_until(lambda status: not status["unsynced"], "is in sync", time.monotonic() + 20)
        second.kill()
        with zkv.connect(cluster.url) as kv:
            assert len(kv.get_many(keys, r="quorum")) == 200


def test_all_nodes_killed_and_restarted_keep_what_was_acknowledged() -> None:
    with LocalCluster(3, partitions=64) as cluster:
        with zkv.connect(cluster.url) as kv:
            kv.put_many((f"k{number}", b"v%d" % number) for number in range(500))
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.restart()
        cluster.wait_until_healthy()
        with zkv.connect(cluster.url) as kv:
            found = kv.get_many([f"k{number}" for number in range(500)])
        assert found == {f"k{number}": b"v%d" % number for number in range(500)}


def test_failing_block_shows_what_the_nodes_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="mine"), LocalCluster(1, fsync="never"):
        raise ValueError("mine")
    assert "serving n1 on" in capsys.readouterr().err
