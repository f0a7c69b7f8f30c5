"""The reserve: puts stop before the disk is full.

Owns: when to ask for free space, and the answer. Must not know: files, what is written.

Source: storage reference, 6.5 and row 11 of section 7.
"""

from __future__ import annotations

from zkv.errors import DiskFull
from zkv.storage.files import FileSystem


class SpaceGuard:
    """Asks once in `every` appends, or after half a reserve of bytes. While space is low each put asks again, for it
    does nothing else: writing resumes by itself."""

    __slots__ = ("_bytes", "_every", "_files", "_low", "_path", "_reserve_bytes", "_rest")

    def __init__(self, files: FileSystem, path: str, reserve_bytes: int, every: int) -> None:
        self._files = files
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._every = every
        self._rest = 0
        self._bytes = 0
        self._low = False

    def check(self, allow_reserve: bool) -> None:
        """Before an append. Raises: DiskFull when it is a put and space is low, OSError."""
        self._rest -= 1
        if self._low:
            if allow_reserve:
                return
        elif self._rest >= 0 and self._bytes <= self._reserve_bytes // 2:
            return
        self._rest = self._every - 1
        self._bytes = 0
        free_bytes = self._files.free_bytes(self._path)
        self._low = free_bytes < self._reserve_bytes
        if self._low and not allow_reserve:
            raise DiskFull(
                f"{self._path}: puts are refused: {free_bytes} bytes are free, {self._reserve_bytes} are kept in reserve"
            )

    def written(self, written_bytes: int) -> None:
        self._bytes += written_bytes

    def ask_soon(self) -> None:
        """Something took a lot of space, or found none."""
        self._rest = 0
