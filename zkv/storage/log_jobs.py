"""The two slow jobs of a log: one sync, and making the next file.

Owns: what must be synced before a seq is durable, and in which order. Must not know: policies, who waits.
"""

from __future__ import annotations

from typing import Final

from zkv.storage.files import FileSystem
from zkv.storage.manifest import TMP
from zkv.storage.opening import LogOptions, allocate
from zkv.storage.worker import Job

#: the file that the next rotation takes, in tmp/
NEXT: Final = "next"


class SyncJob(Job):
    """Everything up to `seq` is on disk when it ends without error. `full_fds` holds the filled files that it has not
    closed yet."""

    __slots__ = ("_directory", "_fd", "_files", "full_fds", "seq")

    def __init__(self, files: FileSystem, seq: int, full_fds: list[int], directory: str | None, fd: int) -> None:
        super().__init__()
        self._files = files
        self._directory = directory
        self._fd = fd
        self.full_fds = full_fds
        self.seq = seq

    def run(self) -> None:
        while self.full_fds:
            self._files.fdatasync(self.full_fds[0])
            self._files.close(self.full_fds.pop(0))
        if self._directory is not None:
            self._files.fsync_dir(self._directory)
        self._files.fdatasync(self._fd)


class PrepareJob(Job):
    """Makes and preallocates tmp/next; `fd` is -1 until it did."""

    __slots__ = ("_files", "_options", "_path", "fd")

    def __init__(self, files: FileSystem, path: str, options: LogOptions) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._options = options
        self.fd = -1

    def run(self) -> None:
        fd = self._files.open(f"{self._path}/{TMP}/{NEXT}", write=True, create=True)
        try:
            self._files.ftruncate(fd, 0)
            allocate(self._files, self._path, fd, self._options)
        except BaseException:
            self._files.close(fd)
            raise
        self.fd = fd
