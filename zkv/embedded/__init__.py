"""The store inside one process: `zkv.open` on local files, no network."""

from zkv.embedded.store import Store
from zkv.embedded.store import open_store as open

__all__ = ["Store", "open"]
