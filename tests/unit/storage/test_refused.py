"""A directory that may not be read, whoever asks: file modes do not bind root, so the file system says no."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from zkv.errors import ConfigError, StorageError
from zkv.storage.files import RealFiles
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import Manifest


class Unreadable(RealFiles):
    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        if path.endswith(self.name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return super().open(path, write=write, create=create, exclusive=exclusive)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["LOCK", "MANIFEST", ".wal"])
def test_a_file_that_may_not_be_read_is_named_and_nothing_is_changed(tmp_path: Path, name: str) -> None:
    LogStore.open(tmp_path, RealFiles(), create=True)[0].close()
    before = content(tmp_path)
    with pytest.raises(StorageError, match=f"Permission denied.*{name}"):
        LogStore.open(tmp_path, Unreadable(name), create=True)
    assert content(tmp_path) == before


def test_refused_by_its_caller_a_store_is_not_created_or_changed(tmp_path: Path) -> None:
    seen: list[Manifest | None] = []

    def refuse(manifest: Manifest | None) -> None:
        seen.append(manifest)
        raise ConfigError("not this one")

    with pytest.raises(ConfigError, match="not this one"):
        LogStore.open(tmp_path / "d", RealFiles(), create=True, accept=refuse)
    assert seen == [None] and list(tmp_path.iterdir()) == []
    store, _ = LogStore.open(tmp_path / "d", RealFiles(), create=True)
    store_id = store.manifest.store_id
    store.close()
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="not this one"):
        LogStore.open(tmp_path / "d", RealFiles(), create=True, accept=refuse)
    assert seen[1] is not None and seen[1].store_id == store_id
    assert content(tmp_path) == before
