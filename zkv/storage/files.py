"""The file system, as a port and as the real thing.

Owns: every system call of the storage layer; open flags and modes. Must not know: what a file means.

Invariants: files are 0600 and directories 0700; the last part of a path is never a symbolic link; descriptors do not
survive exec; errors are plain OSError with their errno (the callers tell full from broken); no call retries. A
simulated file system has the same methods.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Final, Protocol

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
#: Linux: at most this many parts go out in one writev
IOV_MAX: Final = 1024
_READ_BYTES_MAX: Final = 1 << 30


class FileSystem(Protocol):
    """Descriptors are small ints; paths are text; offsets and lengths are bytes. Everything raises OSError."""

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int: ...

    def close(self, fd: int) -> None: ...

    def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        """Write at `offset`; returns how many bytes went out, which may be fewer than given. At most IOV_MAX parts."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Shorter than `length` only at the end of the file."""

    def size(self, fd: int) -> int: ...

    def fsync(self, fd: int) -> None: ...

    def fdatasync(self, fd: int) -> None: ...

    def ftruncate(self, fd: int, length: int) -> None: ...

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def link(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]:
        """Sorted."""

    def is_directory(self, path: str) -> bool: ...

    def mkdir(self, path: str) -> None: ...

    def fsync_dir(self, path: str) -> None: ...

    def flock(self, fd: int) -> bool:
        """Exclusive, without waiting; False when another open file holds it. Ends with the descriptor."""

    def free_bytes(self, path: str) -> int:
        """Space that an ordinary user can still fill (statvfs)."""


class RealFiles:
    """The operating system's. Stateless; safe from any thread."""

    __slots__ = ()

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        return os.open(path, flags, FILE_MODE)

    def close(self, fd: int) -> None:
        os.close(fd)

    def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        return os.pwritev(fd, parts, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        # One call reads 2 GiB at most; nearly always the first one is all.
        data = os.pread(fd, min(length, _READ_BYTES_MAX), offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length and (data := os.pread(fd, min(length - got, _READ_BYTES_MAX), offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        os.posix_fallocate(fd, offset, length)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def flock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def free_bytes(self, path: str) -> int:
        state = os.statvfs(path)
        return state.f_bavail * state.f_frsize


def write_whole(files: FileSystem, fd: int, data: bytes, offset: int = 0) -> None:
    """Write all or raise OSError; for small files outside the log's hot path."""
    while data:
        written = files.writev(fd, [data], offset)
        if written <= 0:
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes")
        data = data[written:]
        offset += written


def read_whole(files: FileSystem, path: str) -> bytes:
    fd = files.open(path)
    try:
        return files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)
