"""msgpack of protocol bodies, within bounds that hold before anything large is built.

Owns: packer options, what a body may cost. Must not know: what a body means. (Users' values are codec/plain, with other bounds.)

What a few bytes can cost: an empty array or map is one byte and 64 of memory, an array that only announces its elements is 5 bytes and 64 KiB.
So bodies above `_WALKED_FROM` are walked once without building anything, which finds what is announced and never comes, and while large ones are
built their containers and elements are counted. Together 4 MiB of anything cost less than 64 MiB (tests/unit/codec/test_packed). Honest bodies
pay 10 ns a key for the walk and nothing for the counting, which is one call per container.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from zkv.errors import ProtocolError

#: longest array anywhere in a message: items of a batch, actors and siblings of a set
ARRAY_MAX: Final = 65_536
MAP_MAX: Final = 4_096
#: arrays and maps in one body, and all that is in them
CONTAINERS_MAX: Final = 131_072
ELEMENTS_MAX: Final = 524_288

#: below, all that can be announced in vain is 3 MiB
_WALKED_FROM: Final = 1_024
#: below, all containers that fit in are 5 MiB
_COUNTED_FROM: Final = 65_536

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(tree: Any) -> bytes:
    """Plain msgpack of lists, ints, strings, bytes, None and booleans."""
    packed: bytes = _packer.pack(tree)
    return packed


def unpack(data: bytes) -> Any:
    """Raises: ProtocolError for anything that is not exactly one well-formed value within bounds."""
    size = len(data)
    try:
        if size <= _WALKED_FROM:
            return msgpack.unpackb(
                data,
                use_list=True,
                raw=False,
                strict_map_key=True,
                max_array_len=size,
                max_map_len=size,
                max_ext_len=0,
            )
        walker = msgpack.Unpacker(max_buffer_size=size)
        walker.feed(data)
        walker.skip()
        count = _Count() if size > _COUNTED_FROM else None
        return msgpack.unpackb(
            data,
            use_list=True,
            raw=False,
            strict_map_key=True,
            max_array_len=min(ARRAY_MAX, size),
            max_map_len=min(MAP_MAX, size),
            max_ext_len=0,
            list_hook=count and count.array,
            object_hook=count and count.map,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not a msgpack body: {error}") from error


class _Count:
    """Called at the end of each container, innermost first."""

    __slots__ = ("_containers", "_elements")

    def __init__(self) -> None:
        self._containers = 0
        self._elements = 0

    def array(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items

    def map(self, entries: dict[Any, Any]) -> dict[Any, Any]:
        self._take(2 * len(entries))
        return entries

    def _take(self, elements: int) -> None:
        self._containers += 1
        self._elements += elements
        if self._containers > CONTAINERS_MAX or self._elements > ELEMENTS_MAX:
            raise ProtocolError(f"a body of more than {CONTAINERS_MAX:,} containers or {ELEMENTS_MAX:,} elements")
