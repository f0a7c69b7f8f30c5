"""A file system in memory that loses what was not synced, tears writes, fills up and fails syncs.

Owns: the bytes of one machine's disk, what of them survives a power loss, faults that are armed. Must not know: what a file means, time.

Model: a file's writes reach the disk in any order and in sectors of 64 bytes; `fsync` and `fdatasync` put all of one file there. A failed sync
leaves its pages clean in the cache and absent from the disk. Names are journalled: after a power loss a prefix of all name changes is there,
at least up to the last one that a directory sync covered. A killed process loses nothing. Source: reliability reference, 2.1 (fsync study).
"""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Sequence
from typing import Final

SECTOR: Final = 64
_ROOM: Final = 1 << 40
Names = dict[str, "Inode | None"]


class Inode:
    __slots__ = ("data", "disk", "pending")

    def __init__(self) -> None:
        self.data = bytearray()
        self.disk = bytearray()
        #: (offset, bytes), or (length, None) for a new length
        self.pending: list[tuple[int, bytes | None]] = []

    def change(self, at: int, data: bytes | None) -> None:
        _apply(self.data, at, data)
        self.pending.append((at, data))

    def sync(self) -> None:
        for at, data in self.pending:
            _apply(self.disk, at, data)
        self.pending.clear()


class SimFiles:
    """The disk of one node. `armed` holds faults that strike once: "eio" at the next data sync, "short" at the next write."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._names: Names = {"/": None}  # None: a directory
        self._disk_names: Names = dict(self._names)
        self._journal: list[Names] = []
        self._fds: dict[int, Inode] = {}
        self._locked: set[int] = set()
        self._next_fd = 100
        self.full = False
        self.armed: set[str] = set()
        self.struck: dict[str, int] = {}

    # --- the outside world ---

    def kill(self) -> None:
        """The process is gone: what it wrote is still in the page cache, and still not on the disk."""
        self._fds.clear()
        self._locked.clear()
        self.armed.clear()

    def lose_power(self, kept: float | None = None) -> None:
        """kept: the share of unsynced sectors that reached the disk; drawn for each file if it is not said."""
        dice = self._dice
        keep = dice.randint(0, len(self._journal))
        if keep:
            self._disk_names = self._journal[keep - 1]
        self._names = dict(self._disk_names)
        self._journal = []
        for inode in {id(inode): inode for inode in self._names.values() if inode is not None}.values():
            lucky = dice.choice((0.0, 0.0, 0.5, 0.9, 1.0)) if kept is None else kept
            for at, data in inode.pending:
                if data is None:
                    if dice.random() < lucky:
                        _apply(inode.disk, at, None)
                    continue
                for begin in range(0, len(data), SECTOR):
                    if dice.random() < lucky:
                        _apply(inode.disk, at + begin, data[begin : begin + SECTOR])
            inode.pending = []
            inode.data = bytearray(inode.disk)
        self.kill()

    def wipe(self) -> None:
        self._names = {"/": None}
        self._disk_names = dict(self._names)
        self._journal = []
        self.full = False
        self.kill()

    def snapshot(self) -> Names:
        """A copy of everything, as `cp -a` makes it."""
        return copy.deepcopy(self._names)

    def restore(self, names: Names) -> None:
        self.wipe()
        self._names = copy.deepcopy(names)
        for inode in self._names.values():
            if inode is not None:
                inode.disk = bytearray(inode.data)
                inode.pending = []
        self._disk_names = dict(self._names)

    def _strike(self, fault: str) -> bool:
        if fault not in self.armed:
            return False
        self.armed.discard(fault)
        self.struck[fault] = self.struck.get(fault, 0) + 1
        return True

    # --- the protocol ---

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        if create and path not in self._names:
            self._rename({**self._names, path: Inode()})
        elif exclusive:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self._next_fd += 1
        self._fds[self._next_fd] = self._found(path)
        return self._next_fd

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        self._locked.discard(fd)

    def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        data = b"".join(parts)
        if self._strike("short"):
            data = data[: len(data) // 2]
        elif self.full and len(data) > SECTOR:
            self.struck["full"] = self.struck.get("full", 0) + 1
            raise OSError(errno.ENOSPC, "no space left on the simulated device")
        self._fds[fd].change(offset, data)
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._fds[fd].data[offset : offset + length])

    def size(self, fd: int) -> int:
        return len(self._fds[fd].data)

    def fsync(self, fd: int) -> None:
        self._fds[fd].sync()

    def fdatasync(self, fd: int) -> None:
        if self._strike("eio"):
            self._fds[fd].pending.clear()  # clean in the cache, never written
            raise OSError(errno.EIO, "the simulated device failed a sync")
        self._fds[fd].sync()

    def ftruncate(self, fd: int, length: int) -> None:
        self._fds[fd].change(length, None)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        if len(self._fds[fd].data) < offset + length:
            self._fds[fd].change(offset + length, None)

    def rename(self, source: str, target: str) -> None:
        names = dict(self._names)
        names[target] = names.pop(source)
        self._rename(names)

    def link(self, source: str, target: str) -> None:
        self._rename({**self._names, target: self._found(source)})

    def unlink(self, path: str) -> None:
        names = dict(self._names)
        del names[path]
        self._rename(names)

    def listdir(self, path: str) -> list[str]:
        below = path.rstrip("/") + "/"
        start = len(below)
        return sorted(name[start:] for name in self._names if name.startswith(below) and "/" not in name[start:])

    def is_directory(self, path: str) -> bool:
        return path in self._names and self._names[path] is None

    def mkdir(self, path: str) -> None:
        self._rename({**self._names, path: None})

    def fsync_dir(self, path: str) -> None:
        below = path.rstrip("/") + "/"
        states = [self._disk_names, *self._journal]
        covered = 0
        for number in range(1, len(states)):
            before, after = states[number - 1], states[number]
            changed = [name for name in {**before, **after} if before.get(name, 0) is not after.get(name, 0)]
            if any(name.startswith(below) and "/" not in name[len(below) :] for name in changed):
                covered = number
        self._disk_names = states[covered]
        self._journal = states[covered + 1 :]

    def flock(self, fd: int) -> bool:
        if any(self._fds[other] is self._fds[fd] for other in sorted(self._locked)):
            return False
        self._locked.add(fd)
        return True

    def free_bytes(self, path: str) -> int:
        return 0 if self.full else _ROOM

    def _rename(self, names: Names) -> None:
        self._names = names
        self._journal.append(names)

    def _found(self, path: str) -> Inode:
        inode = self._names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return inode


def _apply(target: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        target[:] = target[:at] + bytes(max(0, at - len(target)))
        return
    if len(target) < at:
        target.extend(bytes(at - len(target)))
    target[at : at + len(data)] = data
