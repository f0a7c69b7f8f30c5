"""The client: Client, its buckets and what their calls return."""

from __future__ import annotations

from zkv.client.bucket import Bucket
from zkv.client.results import BatchResult, Item, PutResult
from zkv.client.sync import Client, connect

__all__ = ["BatchResult", "Bucket", "Client", "Item", "PutResult", "connect"]
