"""The offset journal of an import: how far an input is in for certain.

Owns: the journal file. Must not know: formats, clients.

The journal is replaced as a whole and synced, after the records before its offset were acknowledged; so it may lag,
and never leads.
It carries a fingerprint of the input's beginning: an offset into another file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from zkv.errors import ConfigError

_SCHEMA: Final = 1
_HEAD_BYTES: Final = 4096


@dataclass(slots=True)
class Position:
    """Bytes and lines of the input that are done, and what came of them."""

    offset: int = 0
    line: int = 0
    stored: int = 0
    refused: int = 0


class Journal:
    """`path` None keeps nothing."""

    __slots__ = ("_head", "_path", "position")

    def __init__(self, path: Path | None, head: bytes) -> None:
        self._path = path
        self._head = fingerprint(head)
        self.position = Position()
        if path is not None and path.exists():
            self.position = self._load(path)

    def save(self, position: Position) -> None:
        self.position = position
        if self._path is None:
            return
        draft = self._path.with_name(self._path.name + ".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"schema": _SCHEMA, "head": self._head, **asdict(position)}, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self._path)

    def _load(self, path: Path) -> Position:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["schema"] != _SCHEMA:
                raise ConfigError(f"{path}: a journal of schema {fields['schema']}; this version reads {_SCHEMA}")
            head = fields["head"]
            position = Position(*(int(fields[name]) for name in ("offset", "line", "stored", "refused")))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path}: not a journal of an import: {error!r}") from error
        if head != self._head:
            raise ConfigError(f"{path}: belongs to another input; remove it to start over")
        return position


def head_of(stream: BinaryIO) -> bytes:
    """The first bytes of an input, left in place for its reader. The stream must be buffered (files and stdin are)."""
    peek = getattr(stream, "peek", None)
    assert peek is not None, "an unbuffered stream"
    return bytes(peek(_HEAD_BYTES)[:_HEAD_BYTES])


def fingerprint(head: bytes) -> str:
    """Of the first line (or of what is there of it): a pipe may deliver fewer bytes at first than a file."""
    return hashlib.sha256(head.partition(b"\n")[0]).hexdigest()
