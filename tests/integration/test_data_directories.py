"""Directories that a node must not serve from, as real `zkv serve` processes: a clear sentence, the exit code, and not a byte changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

import zkv
from tests.integration.test_cli_serve import Serving, run_serve
from zkv.testing.ports import HOST, free_base_ports

pytestmark = pytest.mark.integration


def tree_of(directory: Path) -> dict[str, str]:
    """Every name below, with what it holds."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture(scope="module")
def port() -> int:
    return free_base_ports(1)[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """The directory of node `solo`, stopped in order, with one key in it."""
    home = tmp_path_factory.mktemp("original")
    node = Serving(home, "--name", "solo", "--listen", f"{HOST}:{port}", "--data", "d")
    try:
        node.wait_for("is active")
        with zkv.connect(f"zkv://{HOST}:{port}") as kv:
            kv.put("kept", b"value")
    finally:
        node.process.terminate()
        assert node.end() == 0
    return home / "d"


@pytest.fixture
def home(tmp_path: Path, original: Path) -> Path:
    shutil.copytree(original, tmp_path / "d")
    return tmp_path


def restamp(path: Path, header: str, crc_at: int, covered: Callable[[bytes], bytes]) -> None:
    """Raises the version (u16 at 4) of a file and makes its checksum right again."""
    data = bytearray(path.read_bytes())
    struct.pack_into(header, data, 4, 3)
    struct.pack_into("<I", data, crc_at, crc32(covered(bytes(data))))
    path.write_bytes(data)


def newer_manifest(data: Path) -> None:
    for name in ("MANIFEST", "MANIFEST.prev"):
        restamp(data / name, "<H", 12, lambda whole: whole[:12] + whole[16:])


def newer_log(data: Path) -> None:
    for path in (data / "wal").iterdir():
        restamp(path, "<H", 60, lambda whole: whole[:60])


def no_manifest(data: Path) -> None:
    for name in ("MANIFEST", "MANIFEST.prev"):
        (data / name).unlink()


def damaged_manifest(data: Path) -> None:
    for name in ("MANIFEST", "MANIFEST.prev"):
        (data / name).write_bytes(b"rust")


def file_for_the_log(data: Path) -> None:
    shutil.rmtree(data / "wal")
    (data / "wal").write_text("not a directory")


def directory_for_the_lock(data: Path) -> None:
    (data / "LOCK").unlink()
    (data / "LOCK").mkdir()


def nothing(data: Path) -> None:
    """The directory is as it should be; the flags are not."""


def file_for_the_directory(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("not a directory")


def link_to_nothing(data: Path) -> None:
    shutil.rmtree(data)
    data.symlink_to("/nonexistent/place")


@pytest.mark.parametrize(
    ("change", "flags", "code", "says"),
    [
        (nothing, ("--name", "other"), 78, "belongs to node 'solo', not 'other'"),
        (nothing, ("--cluster-name", "b", "--initial", "solo@{here}"), 78, "cannot be started as a member of 'b'"),
        (nothing, ("--initial", "a@{here}", "--cluster-name", "zkv"), 78, "cannot be started as a member"),
        (nothing, ("--rack", "elsewhere"), 78, "--rack elsewhere"),
        (nothing, ("--advertise", "127.0.0.1:9"), 78, "this node is to be reached at 127.0.0.1:9"),
        (newer_manifest, (), 1, "d/MANIFEST: manifest version 3; this build reads versions 1 to 2"),
        (newer_log, (), 1, ".wal: log version 3; this build reads version 1"),
        (no_manifest, (), 1, "log files but no MANIFEST"),
        (damaged_manifest, (), 1, "zkv repair"),
        (file_for_the_log, (), 78, "d/wal is not a directory"),
        (directory_for_the_lock, (), 78, "d/LOCK is a directory"),
        (file_for_the_directory, (), 78, "is not a directory"),
        (link_to_nothing, (), 78, "is not a directory"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused_and_left_as_it_was(
    home: Path, port: int, change: Callable[[Path], None], flags: tuple[str, ...], code: int, says: str
) -> None:
    change(home / "d")
    before = tree_of(home)
    here = f"{HOST}:{port}"
    given = [flag.format(here=here) for flag in flags]
    name = () if "--name" in given else ("--name", "solo")
    done, err = run_serve(home, *name, "--listen", here, "--data", "d", *given)
    assert done == code, err
    assert says in err
    assert "Traceback" not in err
    assert tree_of(home) == before


def test_what_was_refused_still_opens_with_the_right_flags(home: Path, port: int) -> None:
    here = f"{HOST}:{port}"
    assert run_serve(home, "--name", "other", "--listen", here, "--data", "d")[0] == 78
    node = Serving(home, "--name", "solo", "--listen", here, "--data", "d")
    try:
        node.wait_for("recovered 1 keys")
        node.wait_for("serving solo")
        with zkv.connect(f"zkv://{here}") as kv:
            assert kv.get("kept") == b"value"
    finally:
        node.process.terminate()
        assert node.end() == 0


def test_directory_in_use_names_the_pid_and_is_left_to_its_owner(home: Path, port: int) -> None:
    node = Serving(home, "--name", "solo", "--listen", f"{HOST}:{port}", "--data", "d")
    try:
        node.wait_for("serving solo")
        lock = (home / "d" / "LOCK").read_bytes()
        code, err = run_serve(home, "--name", "solo", "--listen", f"{HOST}:{free_base_ports(1)[0]}", "--data", "d")
        assert code == 1
        assert f"in use by pid {node.process.pid}" in err
        assert (home / "d" / "LOCK").read_bytes() == lock
        with zkv.connect(f"zkv://{HOST}:{port}") as kv:
            assert kv.get("kept") == b"value"
    finally:
        node.process.terminate()
        assert node.end() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="file modes do not bind root; tests/unit/storage/test_refused has them")
@pytest.mark.parametrize("name", ["d", "d/MANIFEST", "d/wal"])
def test_what_may_not_be_read_is_named(home: Path, port: int, name: str) -> None:
    before = tree_of(home)
    (home / name).chmod(0)
    try:
        code, err = run_serve(home, "--name", "solo", "--listen", f"{HOST}:{port}", "--data", "d")
    finally:
        (home / name).chmod(0o700)
    assert code == 1
    assert "Permission denied" in err
    assert tree_of(home) == before


@pytest.mark.parametrize("exists", [True, False])
def test_with_a_configuration_file_an_empty_or_missing_directory_stays_so(
    tmp_path: Path, port: int, exists: bool
) -> None:
    (tmp_path / "zkv.toml").write_text(f'[node]\nname = "solo"\ndata = "d"\n[network]\nlisten = "{HOST}:{port}"\n')
    if exists:
        (tmp_path / "d").mkdir()
    before = tree_of(tmp_path)
    code, err = run_serve(tmp_path, "--config", "zkv.toml")
    assert code == 78
    assert "unmounted disk" in err
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--name", "a b"), "name 'a b'"),
        (("--name", "x" * 64), "1 to 63"),
        (("--listen", "nowhere"), "expected HOST:PORT"),
        (("--listen", "127.0.0.1:0"), "from 1 to 65535"),
        (("--listen", "127.0.0.1:65535"), "end at 65535"),
        (("--listen", "0.0.0.0:7400"), "not encrypted"),
        (("--peer-listen", "{here}"), "must differ"),
        (("--initial", "b@{here}", "--cluster-name", "c"), "does not list this node"),
        (("--initial", "a@127.0.0.1:9,", "--cluster-name", "c"), "--initial"),
        (("--initial", "a@127.0.0.1:9", "--cluster-name", "c"), "is to be reached at"),
        (("--initial", "a@{here}"), "--cluster-name"),
        (("--weight", "0"), "weight"),
        (("--config", "absent.toml"), "no such configuration file"),
    ],
)
def test_settings_that_cannot_work_create_nothing(tmp_path: Path, port: int, flags: tuple[str, ...], says: str) -> None:
    here = f"{HOST}:{port}"
    given = [flag.format(here=here) for flag in flags]
    usual = [*(() if "--name" in given else ("--name", "a")), *(() if "--listen" in given else ("--listen", here))]
    code, err = run_serve(tmp_path, *usual, *given)
    assert code == 78, err
    assert says in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
