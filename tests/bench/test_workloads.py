"""Every benchmark at a size that takes a moment, so that none rots. Nothing here judges a time."""

from __future__ import annotations

import json

import pytest

import zkv
from zkv.cli.main import main
from zkv.testing import LocalCluster
from zkv.testing.bench import catalog, etcd_peer, redis_peer, servers
from zkv.testing.bench.catalog import CATALOG, Scale
from zkv.testing.bench.ledger import Ledger
from zkv.testing.bench.probe import probe
from zkv.testing.bench.rounds import SIZE, NotRun, compare
from zkv.testing.ports import free_base_ports

TINY = Scale(
    keys=600, single_keys=6, outstanding=(6,), etcd_outstanding=(500,), tasks=6, connections=(2, 3), index_keys=1_000
)


@pytest.mark.integration
@pytest.mark.parametrize("name", CATALOG)
def test_benchmark_runs_at_a_tiny_size(name: str) -> None:
    results = [compare(case, rounds=1, seconds=0.02) for case in CATALOG[name](TINY)]
    assert len(results) == {"P1": 3, "P2": 2, "P3": 2, "P4": 2, "P5": 4, "P7": 2}[name]
    for result in results:
        assert result.ours is not None
        assert result.ours.digest.partition(" ")[0] != "0"
        if result.case.unit != SIZE:
            assert result.ours.cpu_us_per_key().keys() > {"client"}, "the nodes' CPU must be known"
        if result.peer is None:
            assert "install" in result.not_run
        else:
            assert result.ratio is not None and result.ratio.median > 0


@pytest.mark.integration
def test_probe_round_lasts_and_all_three_hold_what_was_put() -> None:
    with probe(Ledger("t", 6, 10), outstanding=4, entries=1, synced=True) as side:
        sample = side.run(0.2)
        assert sample.seconds >= 0.2
        assert sample.keys % 10 == 0
        assert side.check().startswith("60 keys ")


@pytest.mark.parametrize(
    ("module", "lacking", "advice"),
    [
        (redis_peer, "which", "apt install redis-server"),
        (redis_peer, "find_spec", r"pip install 'zkv\[bench\]'"),
        (etcd_peer, "which", "apt install etcd-server"),
    ],
)
def test_missing_peer_says_how_to_get_it(
    module: object, lacking: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if lacking == "which" else name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = module.missing()  # type: ignore[attr-defined]
    assert isinstance(missing, NotRun)
    assert advice.replace("\\", "") in missing.why


@pytest.mark.integration
def test_case_without_its_peer_is_not_run_and_ours_still_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_peer, "missing", lambda: NotRun("redis-server is not installed"))
    results = [compare(case, rounds=1, seconds=0.02) for case in catalog.p2(TINY)]
    assert all(r.ours is not None and r.peer is None and "redis-server" in r.not_run for r in results)


def test_server_that_ends_is_a_clear_error() -> None:
    (port,) = free_base_ports(1)
    command = ["sh", "-c", "echo no such luck; exit 3"]
    with pytest.raises(servers.PeerStartFailed, match="no such luck"), servers.served(command, [port]):
        raise AssertionError("must not be entered")


@pytest.mark.integration
def test_cli_on_a_running_cluster_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    with LocalCluster(1, fsync="never") as cluster, zkv.connect(cluster.url) as kv:
        kv.put("mine", b"1")
        words = ["bench", "--rounds", "1", "--seconds", "0.02", "--json", "--url", cluster.url]
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert [case["name"] for case in document["cases"]] == ["get", "put", "get_many(100)", "put_many(100)"]
        assert all(case["ours"]["median"] > 0 for case in document["cases"])
        assert [key for key, _ in kv.export()] == ["mine"]


@pytest.mark.integration
def test_cli_prints_table_machine_and_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "p2", "--rounds", "1", "--seconds", "0.02", "--profile"]) == 0
    out = capsys.readouterr().out
    assert f"zkv {zkv.__version__}" in out and "cores" in out
    assert "P2 get_many(100)" in out and "P2 put_many(100)" in out
    assert "n1 " in out.split("CPU MICROSECONDS")[1]


def test_cli_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}  " in out for name in CATALOG)


@pytest.mark.parametrize("words", [["P99"], ["P1", "--url", "zkv://127.0.0.1:1"]])
def test_cli_refuses_what_it_cannot_run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2


def test_cli_on_a_cluster_that_is_not_there() -> None:
    (port,) = free_base_ports(1)
    assert main(["bench", "--url", f"zkv://127.0.0.1:{port}", "--timeout", "0.3"]) == 6
