"""Users' values as msgpack: anything that msgpack itself can say, and nothing that would run code when it is read.

Owns: the options of that msgpack. Must not know: buckets, keys. (Protocol bodies are codec/records, with tighter bounds.)
"""

from __future__ import annotations

from typing import Any

import msgpack


def dumps(value: object) -> bytes:
    """TypeError, ValueError or OverflowError for what msgpack cannot say. A tuple is written as an array."""
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def loads(data: bytes) -> Any:
    """ValueError for bytes that are not exactly one value."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, max_ext_len=0)
    except (msgpack.UnpackException, TypeError, RecursionError) as error:
        raise ValueError(f"not msgpack: {error}") from error
