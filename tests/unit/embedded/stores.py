"""Stores over a file system that fails where it is told to, and what lies in a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.unit.storage.faulty import FaultyFiles
from zkv import Store
from zkv.embedded.store import store_over
from zkv.storage.files import RealFiles
from zkv.storage.manifest import load_manifest


def faulty(path: Path, fsync: str = "interval", **settings: object) -> tuple[Store, FaultyFiles]:
    files = FaultyFiles()
    return store_over(files, path, fsync, None, None, None, settings), files


Mixed = dict[str | bytes, bytes]
Calls = tuple[Callable[[], object], ...]


def ended_clean(path: Path) -> bool:
    return load_manifest(RealFiles(), str(path))[0].clean_shutdown
