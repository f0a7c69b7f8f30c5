"""What goes through the pipe between a store and its helper process.

Owns: framing, how a result or an error is written. Must not know: processes, how jobs are carried out. Both ends are the same code on one machine.
Bytes: `length u32 | canonical CBOR`, little-endian. A request is {kind, job}, a reply {result} or {error, text, errno}.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from zkv import errors
from zkv.codec.value import dumps, loads

_LENGTH = struct.Struct("<I")


class PipeEnded(Exception):
    """The other end is gone, or never finished what it began to say."""


def write_message(write: Callable[[bytes], Any], tree: dict[str, Any]) -> None:
    body = dumps(tree)
    write(_LENGTH.pack(len(body)) + body)


def read_message(read: Callable[[int], bytes]) -> dict[str, Any]:
    """`read` returns fewer bytes than asked for only at the end. Raises: PipeEnded, ProtocolError, OSError."""
    front = read(_LENGTH.size)
    if len(front) < _LENGTH.size:
        raise PipeEnded
    (size,) = _LENGTH.unpack(front)
    body = read(size)
    if len(body) < size:
        raise PipeEnded
    tree = loads(body)
    if not isinstance(tree, dict):
        raise errors.ProtocolError("a message of a helper is a map")
    return tree


def error_to_tree(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError) and not isinstance(error, errors.ZkvError):
        return {
            "error": "OSError",
            "text": error.strerror or str(error),
            "errno": error.errno or 0,
            "file": error.filename,
        }
    return {"error": type(error).__name__, "text": str(error)}


def error_of_tree(tree: dict[str, Any]) -> Exception:
    """The error of a job as it would have been raised here; what is not an operating error becomes StorageError."""
    name, text = tree["error"], tree["text"]
    if name == "OSError":
        return OSError(tree["errno"], text, tree["file"])
    kind: Final = _KINDS.get(name)
    return kind(text) if kind is not None else errors.StorageError(f"a helper's job failed: {name}: {text}")


_KINDS: Final[dict[str, type[errors.ZkvError]]] = {
    kind.__name__: kind
    for kind in (
        *(errors.CorruptData, errors.DiskFull, errors.ProtocolError),
        *(errors.StorageError, errors.StorageFailed, errors.VersionMismatch),
    )
}
