"""What the cheapest bodies of 4 MiB cost to refuse. Without bounds, 4 MiB of empty arrays are 283 MiB and a second of work."""

from __future__ import annotations

import tracemalloc

import pytest

from zkv.codec import packed, records
from zkv.codec.wire import BODY_BYTES_MAX
from zkv.errors import ProtocolError

PEAK_BYTES_MAX = 64 * 1024 * 1024


def filled(leaf: bytes, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """An array of arrays of 65,000 leaves, as large as is allowed."""
    row = b"\xdd" + (65_000).to_bytes(4, "big") + leaf * 65_000
    count = max(1, (bytes_max - 5) // len(row))
    return b"\xdd" + count.to_bytes(4, "big") + row * count


def announced(length: int, depth: int) -> bytes:
    """Arrays in arrays, of which only the first element ever comes."""
    return (b"\xdc" + length.to_bytes(2, "big")) * depth


BOMBS = {
    "empty arrays": filled(b"\x90"),
    "empty maps": filled(b"\x80"),
    "maps of one": filled(b"\x81\xa1a\x01"),
    "maps in maps": filled(b"\x81\xa0\x80"),
    "nested arrays": filled(b"\x91\x90"),
    "nothing": filled(b"\xc0"),
    "numbers": filled(b"\xcd\x10\x00"),
    "long numbers": filled(b"\xcb" + bytes(8)),
    "medium bytes": filled(b"\xc4\x08abcdefgh"),
    "text beyond ASCII": filled(b"\xa4\xf0\x9f\x98\x80"),
    "short text": filled(b"\xa2ab"),
    "short bytes": filled(b"\xc4\x02ab"),
    "hundreds deep": filled(b"\x91" * 500 + b"\xc0", 32 * 1024 * 1024),
    "announced in vain": announced(65_535, 1_000),
    "announced in vain by little": announced(packed._WALKED_FROM, packed._WALKED_FROM // 3),
    "one long array": b"\xdd" + (4_000_000).to_bytes(4, "big") + bytes(4_000_000),
    "a length beyond the end": b"\xdd\xff\xff\xff\xff" + bytes(2_000),
    "bytes beyond the end": b"\xc6\xff\xff\xff\xff" + bytes(2_000),
}
#: few and long enough to be read, and cheap enough for that
WITHIN_BOUNDS = {"long numbers", "medium bytes"}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_body_costs_more_than_64_mib(bomb: str) -> None:
    body = BOMBS[bomb]
    tracemalloc.start()
    try:
        if bomb in WITHIN_BOUNDS:
            packed.unpack(body)
        else:
            with pytest.raises(ProtocolError):
                packed.unpack(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES_MAX, f"{bomb}: {peak:,} bytes"


@pytest.mark.parametrize("size", [10, 1_500, 16_384])
def test_honest_columns_of_any_size_are_read_back(size: int) -> None:
    """Also the widest that a node sends: 16,384 items with a context each and a handful of columns."""
    context = [[b"a" * 12, 7], None]
    tree = [[b"k" * 20] * size, list(range(size)), [context] * size, None, True, {"a": 1}]
    assert packed.unpack(packed.pack(tree)) == tree


def test_count_of_containers_and_of_elements_is_bounded() -> None:
    leaves: tuple[object, ...] = ([], 1)
    for leaf in leaves:
        tree = [[leaf] * 60_000 for _ in range(10)]
        with pytest.raises(ProtocolError, match="more than 131,072 containers or 524,288 elements"):
            packed.unpack(packed.pack(tree))
    assert packed.unpack(packed.pack([[[]] * 60_000] * 2))


def test_deep_nesting_is_refused_without_recursion() -> None:
    for depth in (2_000, 100_000):
        with pytest.raises(ProtocolError):
            packed.unpack(b"\x91" * depth + b"\xc0")


def test_runs_longer_than_the_keys_that_came_are_never_made() -> None:
    """18 KB of runs that say 16,384 items each, for one key: 1.9 GB if they are added up afterwards."""
    runs = [[1, 1, 16_384]] * 3_000
    meta = packed.pack([2, [b"\0\0\0\1k"], b"a" * 12, [1], 0, [0], [0], runs, 1, 0, None, None, None])
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="a run's length"):
            records.decode_block(meta, b"")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024 * 1024
