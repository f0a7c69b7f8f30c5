"""Ready-made resolvers: what to make of several siblings of one key.

A resolver is any function from the list of values, oldest first, to one value. It must not depend on anything else, or two clients will
settle the same conflict differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ["Resolver", "maximum", "minimum", "newest", "oldest", "union"]

Resolver = Callable[[Sequence[Any]], Any]


def newest(values: Sequence[Any]) -> Any:
    """The one with the latest stamp; the others are given up."""
    return values[-1]


def oldest(values: Sequence[Any]) -> Any:
    return values[0]


def maximum(values: Sequence[Any]) -> Any:
    return max(values)


def minimum(values: Sequence[Any]) -> Any:
    return min(values)


def union(values: Sequence[Any]) -> Any:
    """All that any sibling holds: sets and lists joined (a list keeps first appearances in order), maps with the newest value of a key.

    What one writer removed and another kept comes back; the original Dynamo cart has the same property.
    TypeError for values that are neither all sets, all lists nor all maps.
    """
    if all(isinstance(value, AbstractSet) for value in values):
        return set().union(*values)
    if all(isinstance(value, Mapping) for value in values):
        return {key: item for value in values for key, item in value.items()}
    if all(isinstance(value, list | tuple) for value in values):
        joined: list[Any] = []
        for value in values:
            joined.extend(item for item in value if item not in joined)
        return joined
    raise TypeError(
        "union joins sets, lists or maps; these are " + ", ".join(sorted({type(value).__name__ for value in values}))
    )
