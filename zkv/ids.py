"""Vocabulary: the names of things, as types.

Owns: identifier types and the few functions that build them. Must not know: anything else in zkv.

- `NodeId`      u64, a node for life (`--initial` derives it from the list; see core/topology).
- `StoreId`     16 random bytes, one data directory for life; minted when the directory is created.
- `Actor`       12 bytes: open id (8 random bytes, drawn and fsynced at each opening of a directory) then birth (u32, big-endian).
- `StoredKey`   bucket id (u32, big-endian) followed by the user's key.
- `RequestId`   (session, sequence), both u64: a client's session and its counter of request messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Final, NewType

import xxhash

NodeId = NewType("NodeId", int)
StoreId = NewType("StoreId", bytes)
Actor = NewType("Actor", bytes)
StoredKey = NewType("StoredKey", bytes)
RequestId = tuple[int, int]

#: a dot: the one event `counter` of `actor` on one key
Dot = tuple[Actor, int]

OPEN_ID_BYTES: Final = 8
ACTOR_BYTES: Final = 12
BUCKET_BYTES: Final = 4
KEY_BYTES_MAX: Final = 1024


def actor_of(open_id: bytes, birth: int) -> Actor:
    """The actor of one opening and birth. `open_id` is 8 bytes, 0 <= birth < 2**32."""
    assert len(open_id) == OPEN_ID_BYTES
    return Actor(open_id + birth.to_bytes(4, "big"))


def stored_key(bucket_id: int, key: bytes) -> StoredKey:
    return StoredKey(bucket_id.to_bytes(BUCKET_BYTES, "big") + key)


def bucket_prefix(bucket_id: int) -> bytes:
    """The four bytes that every stored key of a bucket starts with."""
    return bucket_id.to_bytes(BUCKET_BYTES, "big")


def bucket_of(key: bytes) -> int:
    return int.from_bytes(key[:BUCKET_BYTES], "big")


def checksum_of(value: bytes) -> int:
    """The end-to-end checksum of a value: low 32 bits of xxh3_64. Set by the client that writes, checked by the one that reads."""
    return xxhash.xxh3_64_intdigest(value) & 0xFFFFFFFF


def checksums_of(values: Iterable[bytes]) -> list[int]:
    """`checksum_of` each."""
    digest = xxhash.xxh3_64_intdigest
    return [digest(value) & 0xFFFFFFFF for value in values]


def one_bucket_of(keys: Iterable[bytes]) -> int | None:
    """The bucket of stored keys that are all of one; None where they are of several, or none are given."""
    prefixes = set(map(_prefix_of, keys))
    return int.from_bytes(prefixes.pop(), "big") if len(prefixes) == 1 else None


_prefix_of: Final = itemgetter(slice(0, BUCKET_BYTES))
