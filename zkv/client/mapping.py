"""A bucket as a MutableMapping.

Owns: the translation of misses into KeyError. Must not know: how calls work.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, TypeVar

from zkv.client.keys import Key
from zkv.errors import NotFound

if TYPE_CHECKING:
    from zkv.client.bucket import Bucket

V = TypeVar("V")

_MISSING = object()


class BucketMapping(MutableMapping[Key, V]):
    """Each operation is a call of the bucket, with its errors. Iteration and `len` go through the whole bucket over the network."""

    def __init__(self, bucket: Bucket[V]) -> None:
        self._bucket = bucket

    def __getitem__(self, key: Key) -> V:
        value = self._bucket.get(key, _MISSING)
        if value is _MISSING:
            raise NotFound(key)
        return value  # type: ignore[return-value]

    def __setitem__(self, key: Key, value: V) -> None:
        self._bucket.put(key, value)

    def __delitem__(self, key: Key) -> None:
        """A delete of what is not there raises KeyError; a writer in between the look and the delete is not noticed."""
        if not self._bucket.exists(key):
            raise NotFound(key)
        self._bucket.delete(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and self._bucket.exists(key)

    def __iter__(self) -> Iterator[Key]:
        return (key for key, _ in self._bucket.export())

    def __len__(self) -> int:
        return sum(1 for _ in self)
