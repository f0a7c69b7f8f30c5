"""Keys as users give them, as they are stored.

Owns: text to bytes and back, the bounds of a key. Must not know: routing.
Invariant: any bytes come back as text that goes in again as the same bytes (surrogateescape).
"""

from __future__ import annotations

from collections.abc import Sequence

from zkv.errors import InvalidKey
from zkv.ids import BUCKET_BYTES, KEY_BYTES_MAX, bucket_prefix

Key = str | bytes

_STORED_MAX = BUCKET_BYTES + KEY_BYTES_MAX


def stored_keys(bucket_id: int, keys: Sequence[Key]) -> list[bytes]:
    """Raises: InvalidKey naming the first that is none."""
    prefix = bucket_prefix(bucket_id)
    try:
        stored = [prefix + key.encode() for key in keys]  # type: ignore[union-attr]
    except (AttributeError, UnicodeEncodeError):
        stored = [prefix + key_bytes(key) for key in keys]
    if stored and not (min(map(len, stored)) > BUCKET_BYTES and max(map(len, stored)) <= _STORED_MAX):
        for key in stored:
            _check_length(len(key) - BUCKET_BYTES)
    return stored


def key_bytes(key: Key) -> bytes:
    if isinstance(key, bytes):
        return key
    if not isinstance(key, str):
        raise InvalidKey(f"a key is str or bytes, not {type(key).__name__}")
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidKey(f"{key!r} cannot be written as UTF-8: {error.reason}") from error


def key_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _check_length(length: int) -> None:
    if not 1 <= length <= KEY_BYTES_MAX:
        raise InvalidKey(f"a key has 1 to {KEY_BYTES_MAX:,} bytes (text counts as UTF-8), this one has {length:,}")
