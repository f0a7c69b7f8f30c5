"""Columns as bytes: the second form of a record block, for sets that were minted together.

Owns: the byte form of `Columns`. Must not know: rows (codec/records), sockets, files, who sends or stores a block.

meta is a msgpack array `[2, keys, actor, counters, stamp, checksums, lengths, runs, row versions, fences, expires_ms|nil, voids|nil, pasts|nil]`.
Row versions and fences are one number where all are equal. A run is `[session, sequence, n]` for items 0 to n-1 of a request, or
`[session, sequence, [item, ...]]`. voids and pasts are `[place, ...]` pairs of those that are not the usual. docs/wire.md has the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, Final

from zkv.core.columns import Columns, Run
from zkv.errors import ProtocolError
from zkv.ids import ACTOR_BYTES, BUCKET_BYTES, KEY_BYTES_MAX, Actor

#: first element of the meta of columns; the meta of rows begins with an array
COLUMNS_FORM: Final = 2
RECORDS_MAX: Final = 16_384
#: nobody counts so far: what clients may state ends at half of it (codec/records)
COUNTER_MAX: Final = 1 << 48

_STORED_KEY_MAX: Final = BUCKET_BYTES + KEY_BYTES_MAX
_INT: Final = {int}
_U63: Final = 1 << 63
_U64: Final = 1 << 64


def columns_to_tree(columns: Columns, flat_past: Callable[[Mapping[Actor, int]], list[bytes | int]]) -> list[Any]:
    return [
        COLUMNS_FORM,
        columns.keys,
        columns.actor,
        columns.counters,
        columns.stamp,
        columns.checksums,
        list(map(len, columns.values)),
        [[session, sequence, _items_out(items)] for session, sequence, items in columns.runs],
        _one_or_all(columns.row_versions),
        _one_or_all(columns.fences),
        columns.expires_ms,
        [[i, voids] for i, voids in columns.voids.items()] or None,
        [[i, flat_past(past)] for i, past in columns.pasts.items()] or None,
    ]


def columns_from_tree(tree: Any, values: bytes, past_from_flat: Callable[[Any], dict[Actor, int]]) -> Columns:
    """The columns that `columns_to_tree` made; `tree` is a list whose first element is COLUMNS_FORM.

    Raises: ProtocolError, TypeError or ValueError for a tree that is not one, or whose lengths do not add up.
    """
    _, keys, actor, counters, stamp, checksums, lengths, runs, row_versions, fences, expires, voids, pasts = tree
    n = len(keys) if type(keys) is list else 0
    if not 0 < n <= RECORDS_MAX or set(map(type, keys)) != {bytes} or len(set(keys)) < n:
        raise ProtocolError("columns have 1 to 16,384 distinct keys")
    if min(map(len, keys)) <= BUCKET_BYTES or max(map(len, keys)) > _STORED_KEY_MAX:
        raise ProtocolError("a stored key has 5 to 1,028 bytes")
    if type(actor) is not bytes or len(actor) != ACTOR_BYTES:
        raise ProtocolError("columns have one actor of 12 bytes")
    columns = Columns(
        keys,
        Actor(actor),
        _numbers(counters, n, 1, COUNTER_MAX + 1, "counters"),
        _number(stamp, 0, _U64, "stamp"),
        cut_values(values, _numbers(lengths, n, 0, _U63, "lengths")),
        _numbers(checksums, n, 0, 1 << 32, "checksums"),
        _runs(_list(runs, "runs"), n),
        _all_of(row_versions, n, "row versions"),
        _all_of(fences, n, "fences"),
        None if expires is None else _numbers(expires, n, 0, _U63, "expires_ms"),
        {_number(i, 0, n, "a place"): _voids(given) for i, given in _pairs(voids)},
        {_number(i, 0, n, "a place"): past_from_flat(flat) for i, flat in _pairs(pasts)},
    )
    if any(past.get(columns.actor, 0) < columns.counters[i] for i, past in columns.pasts.items()):
        raise ProtocolError("a set must know its own dots")
    return columns


def cut_values(values: bytes, lengths: list[int]) -> list[bytes]:
    """The joined buffer as one value per length. Raises: ProtocolError when they do not add up."""
    ends = list(accumulate(lengths))
    came = ends[-1] if ends else 0
    if came != len(values) or (lengths and min(lengths) < 0):
        raise ProtocolError(f"the lengths speak of {came} bytes of values, {len(values)} came")
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _items_out(items: list[int]) -> int | list[int]:
    n = len(items)
    return n if items[0] == 0 and items[-1] == n - 1 and items == list(range(n)) else items


def _one_or_all(column: list[int]) -> int | list[int]:
    return column[0] if column.count(column[0]) == len(column) else column


def _list(value: Any, name: str) -> list[Any]:
    if type(value) is not list:
        raise ProtocolError(f"{name} are an array")
    return value


def _pairs(value: Any) -> list[Any]:
    return [] if value is None else _list(value, "exceptions")


def _number(value: Any, low: int, bound: int, name: str) -> int:
    if type(value) is not int or not low <= value < bound:
        raise ProtocolError(f"{name} is not a number in its range")
    return value


def _numbers(column: Any, n: int, low: int, bound: int, name: str) -> list[int]:
    if type(column) is not list or len(column) != n or set(map(type, column)) != _INT:
        raise ProtocolError(f"column {name} does not hold {n} numbers")
    if min(column) < low or max(column) >= bound:
        raise ProtocolError(f"column {name} holds a number out of its range")
    return column


def _all_of(value: Any, n: int, name: str) -> list[int]:
    return [_number(value, 0, _U63, name)] * n if type(value) is int else _numbers(value, n, 0, _U63, name)


def _runs(runs: list[Any], n: int) -> list[Run]:
    """Counts as it goes: a run of thousands is announced in six bytes, and more than there are keys must not be made."""
    made: list[Run] = []
    left = n
    for session, sequence, items in runs:
        if type(items) is int:
            items = list(range(_number(items, 1, left + 1, "a run's length")))
        else:
            items = _numbers(items, len(items), 0, RECORDS_MAX, "items")
            if any(a >= b for a, b in pairwise(items)):
                raise ProtocolError("the items of a run ascend")
        left -= len(items)
        made.append((_number(session, 0, _U64, "a session"), _number(sequence, 0, _U64, "a sequence"), items))
    if left:
        raise ProtocolError("the runs do not add up to the keys that came")
    return made


def _voids(voids: Any) -> tuple[int, ...]:
    return tuple(_number(n, 0, _U64, "a voided sequence") for n in _list(voids, "voids"))
