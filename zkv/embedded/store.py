"""`zkv.open`: a store on local files, with the surface of the client and no network.

Owns: Store, its settings, its life as a user sees it. Must not know: calls (client/requests), how they are carried out (engine).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

from zkv.client.bucket import Bucket
from zkv.client.codecs import codec_of
from zkv.client.sync import Handle
from zkv.client.url import DEFAULT_URL, Target, target_of
from zkv.config import environment_of, load
from zkv.embedded.bell import Bell
from zkv.embedded.bucket import EmbeddedBucket
from zkv.embedded.engine import EmbeddedEngine
from zkv.embedded.node import EmbeddedNode
from zkv.resolve import Resolver
from zkv.storage.files import FileSystem, RealFiles

#: nobody is there to hear of us
_NO_HEARTBEATS_MS: Final = 1 << 40


class Store(EmbeddedBucket[bytes], Handle):
    """A directory that this process has to itself, and its default bucket. Use it in a `with` block or call close().

    Thread-safe. Not for forked children: they open a store of their own, after this one was closed.
    """

    _bucket_type: ClassVar[type[Bucket[Any]]] = EmbeddedBucket

    def __init__(self, engine: EmbeddedEngine, bucket: str, resolver: Resolver | None) -> None:
        super().__init__(engine, bucket, codec_of("bytes"), resolver)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a store is open in one process at a time; give others its path, or run `zkv serve` and give them a URL"
        )

    def __del__(self, warn: Any = warnings.warn) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and not engine.closed:
            warn(f"store {engine.target.url} was not closed", ResourceWarning, stacklevel=2, source=self)
            engine.close_unwatched()


def open_store(
    path: str | os.PathLike[str],
    *,
    fsync: str = "interval",
    bucket: str | None = None,
    timeout: float | None = None,
    resolver: Resolver | None = None,
    **settings: object,
) -> Store:
    """The store in a directory, which is made if it is not there. No network: the same methods as connect(), on local files.

    fsync: `interval` puts what was written on disk within `fsync_interval_ms` (100); `group` before each call returns; `never` leaves it to
    the system. durable=True on a put waits whatever it says. settings: those of a node, by the names of its configuration file.
    Raises: StoreLocked when another process has the directory (a node, too), ConfigError, CorruptData, VersionMismatch, DiskFull, StorageError.
    """
    return store_over(RealFiles(), path, fsync, bucket, timeout, resolver, settings)


def store_over(
    files: FileSystem,
    path: str | os.PathLike[str],
    fsync: str,
    bucket: str | None,
    timeout: float | None,
    resolver: Resolver | None,
    settings: Mapping[str, object],
) -> Store:
    """As open_store, over any file system."""
    for name in settings:
        environment_of(name)  # or it says what there is
    target = target_of(DEFAULT_URL, bucket, timeout)
    directory = Path(path).absolute()
    ours = {
        "data": directory,
        "fsync": fsync,
        "heartbeat_interval_ms": _NO_HEARTBEATS_MS,
        "heartbeat_timeout_ms": 2 * _NO_HEARTBEATS_MS,
    }
    node_settings = load({**settings, **ours}, {})
    node_settings.validate()
    bell = Bell()
    node = EmbeddedNode(node_settings, settings, bell.ring, files)
    (member,) = node.document.members
    place = _Place((member.address,), target.bucket, target.timeout, directory)
    return Store(EmbeddedEngine(node, bell, place), place.bucket, resolver)


@dataclass(frozen=True, slots=True)
class _Place(Target):
    """Where a store is: addresses is what its one node is called in the topology."""

    directory: Path = Path()

    @property
    def url(self) -> str:
        return self.directory.as_uri()
