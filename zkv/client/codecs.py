"""Values as bytes: bytes, str, json, msgpack, cbor. Never pickle: reading a value must not run code.

Owns: the codecs by name. Must not know: keys, buckets, requests.
Invariant: what `encode` accepts, `decode` gives back equal (tuples come back as lists).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from zkv.codec import plain, value
from zkv.errors import CodecError, ConfigError, ProtocolError


class Codec:
    """A name and two functions; both raise CodecError."""

    __slots__ = ("_decode", "_encode", "name", "trivial")

    def __init__(self, name: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        self.name = name
        #: stored as given: batches need not call anything per value
        self.trivial = name == "bytes"
        self._encode = encode
        self._decode = decode

    def encode(self, value: Any) -> bytes:
        try:
            return self._encode(value)
        except CodecError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CodecError(f"codec {self.name}: cannot write a {type(value).__name__}: {error}") from error

    def decode(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except (TypeError, ValueError, RecursionError, ProtocolError) as error:
            raise CodecError(f"codec {self.name}: cannot read {len(data)} bytes: {error}") from error


def codec_of(name: str) -> Codec:
    found = _CODECS.get(name)
    if found is None:
        raise ConfigError(f"unknown codec {name!r}; there are {', '.join(sorted(_CODECS))}")
    return found


def _bytes_out(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise CodecError(
        f'this bucket stores bytes and got {type(value).__name__}; for other values open it with bucket(name, codec="json")'
    )


def _str_out(value: Any) -> bytes:
    if not isinstance(value, str):
        raise CodecError(f"codec str: expected text, got {type(value).__name__}")
    return value.encode("utf-8")


def _json_out(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8")


_CODECS: Final = {
    codec.name: codec
    for codec in (
        Codec("bytes", _bytes_out, bytes),
        Codec("str", _str_out, lambda data: data.decode("utf-8")),
        Codec("json", _json_out, json.loads),
        Codec("msgpack", plain.dumps, plain.loads),
        Codec("cbor", value.dumps, value.loads),
    )
}
