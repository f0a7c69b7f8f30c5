"""The client: Client, AsyncClient, their buckets and what their calls return. What needs asyncio is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from zkv.client.bucket import Bucket
from zkv.client.results import BatchResult, Item, PutResult
from zkv.client.sync import Client, connect

if TYPE_CHECKING:
    from zkv.client.aio import AsyncClient, aconnect
    from zkv.client.aio_bucket import AsyncBucket

__all__ = ["AsyncBucket", "AsyncClient", "BatchResult", "Bucket", "Client", "Item", "PutResult", "aconnect", "connect"]

_LAZY = {"AsyncBucket": "aio_bucket", "AsyncClient": "aio", "aconnect": "aio"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'zkv.client' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"zkv.client.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
