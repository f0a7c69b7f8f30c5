from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from zkv.storage import files as module
from zkv.storage.files import FileSystem, RealFiles, read_whole, write_whole


@pytest.fixture
def files() -> FileSystem:
    return RealFiles()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_directories_belong_to_their_owner_alone(files: FileSystem, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.mkdir(f"{tmp_path}/d")
        files.close(files.open(f"{tmp_path}/d/f", write=True, create=True))
    finally:
        os.umask(before)
    assert mode(tmp_path / "d") == 0o700
    assert mode(tmp_path / "d" / "f") == 0o600
    assert files.is_directory(f"{tmp_path}/d")
    assert not files.is_directory(f"{tmp_path}/d/f")


def test_open_refuses_links_and_does_not_survive_exec(files: FileSystem, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        files.open(f"{tmp_path}/link")
    fd = files.open(f"{tmp_path}/target")
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.writev(fd, [b"y"], 0)
    files.close(fd)
    with pytest.raises(FileExistsError):
        files.open(f"{tmp_path}/target", write=True, create=True, exclusive=True)
    with pytest.raises(FileNotFoundError):
        files.open(f"{tmp_path}/absent", write=True)


def test_write_and_read_at_offsets(files: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = files.open(f"{tmp_path}/f", write=True, create=True)
    assert files.writev(fd, [b"ab", b"", b"cde"], 3) == 5
    assert files.size(fd) == 8
    assert files.pread(fd, 100, 0) == b"\0\0\0abcde"
    monkeypatch.setattr(module, "_READ_BYTES_MAX", 3)
    assert files.pread(fd, 100, 1) == b"\0\0abcde"
    assert files.pread(fd, 4, 2) == b"\0abc"
    assert files.pread(fd, 4, 100) == b""
    files.ftruncate(fd, 4)
    files.fsync(fd)
    files.fdatasync(fd)
    files.posix_fallocate(fd, 0, 10)
    files.close(fd)
    assert read_whole(files, f"{tmp_path}/f") == b"\0\0\0a" + bytes(6)


def test_names(files: FileSystem, tmp_path: Path) -> None:
    for name in ("b", "a"):
        files.close(files.open(f"{tmp_path}/{name}", write=True, create=True))
    files.rename(f"{tmp_path}/b", f"{tmp_path}/c")
    files.link(f"{tmp_path}/c", f"{tmp_path}/d")
    files.unlink(f"{tmp_path}/a")
    files.fsync_dir(str(tmp_path))
    assert files.listdir(str(tmp_path)) == ["c", "d"]
    assert (tmp_path / "c").samefile(tmp_path / "d")
    with pytest.raises(FileNotFoundError):
        files.fsync_dir(f"{tmp_path}/absent")
    assert 0 < files.free_bytes(str(tmp_path)) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_flock_is_exclusive_until_closed(files: FileSystem, tmp_path: Path) -> None:
    one, two = (files.open(f"{tmp_path}/LOCK", write=True, create=True) for _ in range(2))
    assert files.flock(one)
    assert not files.flock(two)
    files.close(one)
    assert files.flock(two)
    files.close(two)


def test_write_whole_goes_on_after_short_writes(tmp_path: Path) -> None:
    class Slow(RealFiles):
        def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
            return super().writev(fd, [b"".join(parts)[:2]], offset)

    class Stuck(RealFiles):
        def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
            return 0

    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    write_whole(Slow(), fd, b"abcdefg", 1)
    assert os.pread(fd, 100, 0) == b"\0abcdefg"
    with pytest.raises(OSError, match="wrote 0 of 3 bytes"):
        write_whole(Stuck(), fd, b"abc")
    os.close(fd)
