"""Canonical CBOR: bytes of what is kept for long and compared by hash (topology documents, manifests).

Owns: cbor2. Must not know: what the trees mean, except for the topology document, whose plain form core/topology defines.
Invariants: one tree has one encoding (RFC 8949, 4.2.3: shortest forms, map keys by length and then by bytes); `loads` refuses every
other encoding of it, so equal hashes and equal documents are the same thing. Trees are None, bool, int, finite float, str, bytes, list, dict.
"""

from __future__ import annotations

import io
import math
from hashlib import blake2b
from typing import Final

import cbor2

from zkv.core.topology import TopologyDocument, from_tree, to_tree
from zkv.errors import ProtocolError

DEPTH_MAX: Final = 16


def dumps(tree: object) -> bytes:
    """The one encoding of a tree. TypeError or ValueError for what is not a tree."""
    _check(tree, DEPTH_MAX)
    return cbor2.dumps(tree, canonical=True)


def loads(data: bytes) -> object:
    """The tree of canonical bytes; ProtocolError for any other bytes. Work and memory are linear in the input."""
    end = _scan(data, 0, DEPTH_MAX)
    if end != len(data):
        raise ProtocolError(f"CBOR: {len(data) - end} bytes after the end")
    try:
        tree: object = cbor2.CBORDecoder(io.BytesIO(data)).decode()
    except (cbor2.CBORDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"CBOR: {error}") from error
    if cbor2.dumps(tree, canonical=True) != data:
        raise ProtocolError("CBOR: not the canonical encoding")
    return tree


def document_bytes(document: TopologyDocument) -> bytes:
    return dumps(to_tree(document))


def document_from(data: bytes) -> TopologyDocument:
    """ProtocolError if the bytes are not a valid document."""
    return from_tree(loads(data))


def document_hash(data: bytes) -> bytes:
    """32 bytes that name a document: the hash of its bytes."""
    return blake2b(data, digest_size=32, person=b"zkv document").digest()


def _check(tree: object, depth: int) -> None:
    if tree is None or isinstance(tree, bool | str | bytes):
        return
    if isinstance(tree, int):
        if not -(1 << 64) <= tree < 1 << 64:
            raise ValueError(f"{tree} does not fit in 64 bits")
    elif isinstance(tree, float):
        if not math.isfinite(tree):
            raise ValueError(f"{tree} has no canonical form here")
    elif isinstance(tree, list | dict):
        if depth == 0:
            raise ValueError(f"deeper than {DEPTH_MAX} levels")
        for item in tree:
            if isinstance(tree, dict) and not isinstance(item, str | int | bytes):
                raise TypeError(f"a map key is text, bytes or a whole number, not {type(item).__name__}")
            if isinstance(item, bool) and isinstance(tree, dict):
                raise TypeError("a map key is text, bytes or a whole number, not bool")
            _check(item, depth - 1)
        if isinstance(tree, dict):
            for value in tree.values():
                _check(value, depth - 1)
    else:
        raise TypeError(f"{type(tree).__name__} has no canonical form here")


def _scan(data: bytes, at: int, depth: int) -> int:
    """Checks the frame of one item before anything is built from it; answers where it ends."""
    major, argument, at = _head(data, at)
    if major < 2:
        return at
    if major < 4:
        if argument > len(data) - at:
            raise ProtocolError(f"CBOR: text or bytes of {argument} with {len(data) - at} left")
        return at + argument
    if major < 6:
        if depth == 0:
            raise ProtocolError(f"CBOR: deeper than {DEPTH_MAX} levels")
        count = argument * (major - 3)
        if count > len(data) - at:
            raise ProtocolError(f"CBOR: {count} items announced with {len(data) - at} bytes left")
        for position in range(count):
            if major == 5 and position % 2 == 0 and data[at : at + 1] and data[at] >> 5 > 3:
                raise ProtocolError("CBOR: a map key is text, bytes or a whole number")
            at = _scan(data, at, depth - 1)
        return at
    raise ProtocolError("CBOR: tags are not used here")


_SIZES: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type, argument and what follows it. Floats and the simple values pass as major type 0: nothing follows them."""
    if at >= len(data):
        raise ProtocolError("CBOR: ends in the middle of an item")
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    if low < 24:
        argument = low
    elif low in _SIZES:
        if len(data) - at < _SIZES[low]:
            raise ProtocolError("CBOR: ends in the middle of an item")
        argument = int.from_bytes(data[at : at + _SIZES[low]], "big")
        at += _SIZES[low]
    else:
        raise ProtocolError("CBOR: an indefinite length, or a reserved one")
    if major == 7:
        if low not in (20, 21, 22, 25, 26, 27):
            raise ProtocolError("CBOR: a simple value other than false, true and null")
        if low >= 25 and not math.isfinite(cbor2.loads(data[at - _SIZES[low] - 1 : at])):
            raise ProtocolError("CBOR: a float that is not finite")
        return 0, 0, at
    return major, argument, at
