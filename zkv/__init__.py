"""zkv, a peer-to-peer key-value store.

    >>> with zkv.connect("zkv://127.0.0.1:7400") as kv:
    ...     kv.put("user:1", b"Ada")
    ...     kv.get("user:1")

    >>> with zkv.open("./data") as kv:  # the same on local files, in this process alone
    ...     kv.put("user:1", b"Ada")

Owns: the public names. The client and the embedded store are imported when they are first used, so `import zkv` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from zkv.errors import (
    AuthFailed,
    BatchError,
    Closed,
    CodecError,
    ConfigError,
    Conflict,
    ConnectFailed,
    CorruptData,
    DeadlineExceeded,
    DiskFull,
    InvalidArgument,
    InvalidKey,
    NoSuchBucket,
    NotFound,
    Overloaded,
    ProtocolError,
    QuorumNotMet,
    RequestError,
    StorageError,
    StorageFailed,
    TooLarge,
    Unavailable,
    Unsupported,
    VersionMismatch,
    ZkvError,
)

if TYPE_CHECKING:
    from zkv import resolve
    from zkv.client import AsyncBucket, AsyncClient, BatchResult, Bucket, Client, Item, PutResult, aconnect, connect
    from zkv.embedded import Store, open

__version__ = "0.1.0"

__all__ = [
    "AsyncBucket",
    "AsyncClient",
    "AuthFailed",
    "BatchError",
    "BatchResult",
    "Bucket",
    "Client",
    "Closed",
    "CodecError",
    "ConfigError",
    "Conflict",
    "ConnectFailed",
    "CorruptData",
    "DeadlineExceeded",
    "DiskFull",
    "InvalidArgument",
    "InvalidKey",
    "Item",
    "NoSuchBucket",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "PutResult",
    "QuorumNotMet",
    "RequestError",
    "StorageError",
    "StorageFailed",
    "Store",
    "TooLarge",
    "Unavailable",
    "Unsupported",
    "VersionMismatch",
    "ZkvError",
    "__version__",
    "aconnect",
    "connect",
    "open",
    "resolve",
]

_LAZY = dict.fromkeys(
    ("AsyncBucket", "AsyncClient", "BatchResult", "Bucket", "Client", "Item", "PutResult", "aconnect", "connect"),
    "zkv.client",
) | dict.fromkeys(("Store", "open"), "zkv.embedded")


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value: object = getattr(importlib.import_module(_LAZY[name]), name)
    elif name == "resolve":
        value = importlib.import_module("zkv.resolve")
    else:
        raise AttributeError(f"module 'zkv' has no attribute {name!r}")
    globals()[name] = value
    return value
