"""The embedded store: what a user sees of its life, and whose directory it is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zkv
from tests.unit.embedded.stores import ended_clean
from zkv import Closed, ConfigError, Store
from zkv.embedded.node import EmbeddedNode
from zkv.errors import StoreLocked

# --- life ---


def test_three_lines(tmp_path: Path) -> None:
    db = zkv.open(tmp_path / "data")
    db.put("user:1", b"Ada")
    assert db.get("user:1") == b"Ada"
    db.close()


def test_reopened_store_has_everything_but_what_was_deleted(tmp_path: Path) -> None:
    with zkv.open(tmp_path / "data") as kv:
        assert kv.put_many({f"k{i}": b"%d" % i for i in range(2_500)}).ok == 2_500
        kv.delete_many([f"k{i}" for i in range(0, 2_500, 2)])
        kv.bucket("strict", codec="json").put("carts", {"7": [1, 2]})
        before = kv.get_item("k1").context
    with zkv.open(tmp_path / "data") as kv:
        assert {key for key, _ in kv.export()} == {f"k{i}" for i in range(1, 2_500, 2)}
        assert kv.bucket("strict", codec="json").get("carts") == {"7": [1, 2]}
        kv.put("k1", b"new", context=before)
        assert kv.get_item("k1").values == (b"new",), "a context of an earlier opening replaces what it covers"


def test_closed_store_refuses_and_close_is_idempotent(tmp_path: Path) -> None:
    kv = zkv.open(tmp_path / "data")
    strict = kv.bucket("strict")
    kv.close()
    kv.close()
    assert kv.closed
    for call in (
        lambda: kv.get("k"),
        lambda: strict.put("k", b""),
        kv.ping,
        kv.admin.status,
        lambda: list(kv.export()),
    ):
        with pytest.raises(Closed, match="was closed"):
            call()


def test_forgotten_store_warns_and_lets_the_directory_go(tmp_path: Path) -> None:
    forgotten = [zkv.open(tmp_path / "data")]
    forgotten[0].put("k", b"v")
    with pytest.warns(ResourceWarning, match="was not closed"):
        forgotten.clear()
    with zkv.open(tmp_path / "data") as kv:
        assert kv.get("k") == b"v"


def test_script_that_never_closes_ends_clean(tmp_path: Path) -> None:
    script = f"import zkv; db = zkv.open({str(tmp_path / 'data')!r}); db.put('k', b'v')"
    ended = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended_clean(tmp_path / "data")
    with zkv.open(tmp_path / "data") as kv:
        assert kv.get("k") == b"v"


def test_import_loads_nothing_heavy() -> None:
    script = (
        "import sys, zkv\n"
        "assert not {'zmq', 'zkv.embedded', 'zkv.storage'} & set(sys.modules)\n"
        "zkv.open\n"
        "assert not {'blosc2', 'numpy', 'rich', 'asyncio', 'waitress', 'prometheus_client'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_host_program_keeps_its_collector(tmp_path: Path) -> None:
    before = gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()
    zkv.open(tmp_path / "data").close()
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == before
    gc.disable()
    try:
        zkv.open(tmp_path / "data").close()
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- whose directory it is ---


def test_directory_in_use_names_the_process(tmp_path: Path, kv: Store) -> None:
    with pytest.raises(StoreLocked, match=f"in use by pid {os.getpid()}"):
        zkv.open(tmp_path / "data")
    kv.put("k", b"v")
    assert kv.get("k") == b"v", "whoever has it is not disturbed"


def test_wrong_settings_create_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for settings, says in (
        ({"fsync": "sometimes"}, "group, interval, never"),
        ({"fsync_intervall_ms": 5}, "did you mean"),
        ({"wal_bytes": 10}, "at least"),
        ({"timeout": 0}, "timeout"),
        ({"bucket": "a/b"}, "slashes"),
    ):
        with pytest.raises(ConfigError, match=says):
            zkv.open(path, **settings)
    assert not path.exists()


def test_opening_that_fails_late_leaves_the_directory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zkv.open(tmp_path / "data").close()

    def broken(node: EmbeddedNode, recovery: object) -> None:
        raise ConfigError("a batch of a later version")

    monkeypatch.setattr(EmbeddedNode, "_load", broken)
    with pytest.raises(ConfigError, match="later version"):
        zkv.open(tmp_path / "data")
    monkeypatch.undo()
    assert ended_clean(tmp_path / "data")
    zkv.open(tmp_path / "data").close()


def test_directory_of_another_name_is_refused(tmp_path: Path) -> None:
    zkv.open(tmp_path / "data", name="a").close()
    with pytest.raises(ConfigError, match="belongs to node 'a'"):
        zkv.open(tmp_path / "data", name="b")
    with zkv.open(tmp_path / "data") as kv:
        assert kv.put("k", b"v").acked == ("a",), "the directory says who it is"
