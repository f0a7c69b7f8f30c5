"""A file system in memory that loses power: what was not synced is kept, lost or torn, as the dice say.

Model: a file's writes reach the disk in any order and in sectors of 64 bytes; `fsync` and `fdatasync` put all of one file there. Names are
journalled: after a crash a prefix of all name changes is there, at least up to the last one that a directory sync covered.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

SECTOR = 64


class PowerCut(BaseException):
    """The machine is gone; nothing after this call happened."""


class Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.disk = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, bytes), or (length, None) for a new length

    def apply(self, target: bytearray, at: int, data: bytes | None) -> None:
        if data is None:
            target[:] = target[:at] + bytes(max(0, at - len(target)))
            return
        if len(target) < at:
            target.extend(bytes(at - len(target)))
        target[at : at + len(data)] = data

    def change(self, at: int, data: bytes | None) -> None:
        self.apply(self.data, at, data)
        if data is None:
            self.pending.append((at, None))
        for begin in range(0, len(data or b""), SECTOR):
            self.pending.append((at + begin, (data or b"")[begin : begin + SECTOR]))

    def sync(self) -> None:
        self.disk[:] = self.data
        self.pending.clear()


class PowerlessFiles:
    """`cut_after`: the call after so many raises PowerCut. `crash` is then the machine coming back."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.names: dict[str, Inode | None] = {"/": None}  # None: a directory
        self.disk_names = dict(self.names)
        self.journal: list[dict[str, Inode | None]] = []
        self.fds: dict[int, Inode] = {}
        self.locked: set[int] = set()
        self.next_fd = 100
        self.cut_after: int | None = None
        self.full_after: int | None = None

    def _call(self) -> None:
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                raise PowerCut

    def kill(self) -> None:
        """The process alone is gone: what it wrote is still in the page cache, and still not on the disk."""
        self.fds.clear()
        self.locked.clear()
        self.cut_after = self.full_after = None

    def crash(self) -> None:
        keep = self.dice.randint(0, len(self.journal))
        if keep:
            self.disk_names = self.journal[keep - 1]
        self.names = dict(self.disk_names)
        self.journal = []
        for inode in {id(inode): inode for inode in self.names.values() if inode is not None}.values():
            lucky = self.dice.choice([0.0, 0.5, 0.9, 1.0])
            for at, data in inode.pending:
                if self.dice.random() < lucky:
                    inode.apply(inode.disk, at, data)
            inode.pending = []
            inode.data = bytearray(inode.disk)
        self.kill()

    def _renamed(self, names: dict[str, Inode | None]) -> None:
        self.names = names
        self.journal.append(names)

    def _found(self, path: str) -> Inode:
        inode = self.names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return inode

    # --- the protocol ---

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        self._call()
        if create and path not in self.names:
            self._renamed({**self.names, path: Inode()})
        elif exclusive:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self.next_fd += 1
        self.fds[self.next_fd] = self._found(path)
        return self.next_fd

    def close(self, fd: int) -> None:
        self.fds.pop(fd, None)
        self.locked.discard(fd)

    def writev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        self._call()
        data = b"".join(parts)
        if self.full_after is not None:
            data, self.full_after = data[: self.full_after], None
        self.fds[fd].change(offset, data)
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self.fds[fd].data[offset : offset + length])

    def size(self, fd: int) -> int:
        return len(self.fds[fd].data)

    def fsync(self, fd: int) -> None:
        self._call()
        self.fds[fd].sync()

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        self._call()
        self.fds[fd].change(length, None)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._call()
        if len(self.fds[fd].data) < offset + length:
            self.fds[fd].change(offset + length, None)

    def rename(self, source: str, target: str) -> None:
        self._call()
        names = dict(self.names)
        names[target] = names.pop(source)
        self._renamed(names)

    def link(self, source: str, target: str) -> None:
        self._call()
        self._renamed({**self.names, target: self._found(source)})

    def unlink(self, path: str) -> None:
        self._call()
        names = dict(self.names)
        del names[path]
        self._renamed(names)

    def listdir(self, path: str) -> list[str]:
        below = path.rstrip("/") + "/"
        return sorted(
            name[len(below) :] for name in self.names if name.startswith(below) and "/" not in name[len(below) :]
        )

    def is_directory(self, path: str) -> bool:
        return path in self.names and self.names[path] is None

    def mkdir(self, path: str) -> None:
        self._call()
        self._renamed({**self.names, path: None})

    def fsync_dir(self, path: str) -> None:
        self._call()
        below = path.rstrip("/") + "/"
        states = [self.disk_names, *self.journal]
        covered = 0
        for number in range(1, len(states)):
            before, after = states[number - 1], states[number]
            changed = {name for name in {*before, *after} if before.get(name, 0) is not after.get(name, 0)}
            if any(name.startswith(below) and "/" not in name[len(below) :] for name in changed):
                covered = number
        self.disk_names = states[covered]
        self.journal = states[covered + 1 :]

    def flock(self, fd: int) -> bool:
        if any(self.fds[other] is self.fds[fd] for other in self.locked):
            return False
        self.locked.add(fd)
        return True

    def free_bytes(self, path: str) -> int:
        return 1 << 40
