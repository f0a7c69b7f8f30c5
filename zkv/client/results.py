"""What calls return.

Owns: PutResult, Item, BatchResult. Must not know: how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zkv.errors import Conflict, ZkvError


@dataclass(frozen=True, slots=True)
class PutResult:
    """A receipt. context: opaque; put with it to replace exactly this. acked: names of the nodes that held the write when they answered.

    durable: all of them had it on disk, synced. sloppy: some stood in for a replica. epoch: of the topology it was written under.
    """

    context: bytes
    acked: tuple[str, ...]
    sloppy: bool
    durable: bool
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One key as it was read. values: every sibling, oldest first; context covers exactly these, so a put with it replaces them.

    resolved: a resolver, or the bucket's rule, made one of several; it is kept in `resolution`.
    """

    found: bool
    values: tuple[Any, ...]
    context: bytes
    expires_at: float | None = None
    #: milliseconds since 1970 by the writers' coordinators, one per value
    written_ms: tuple[int, ...] = ()
    resolved: bool = False
    resolution: Any = None

    @property
    def value(self) -> Any:
        """The one value, or the resolved one; None for a miss. Raises Conflict where several stand unresolved."""
        if self.resolved:
            return self.resolution
        if len(self.values) > 1:
            raise conflict_of(self.values, self.context)
        return self.values[0] if self.values else None


class BatchResult:
    """The outcome of a batch of puts or deletes, key by key."""

    __slots__ = ("durable", "errors", "keys", "sloppy")

    def __init__(self, keys: Sequence[Any], errors: Mapping[Any, ZkvError], *, sloppy: bool, durable: bool) -> None:
        self.keys = keys
        #: the keys that are not ok, and why
        self.errors = errors
        #: of the keys that are ok: whether for any of them a fallback stood in, and whether all were synced on every store that acked
        self.sloppy = sloppy
        self.durable = durable

    @property
    def ok(self) -> int:
        """How many keys are ok."""
        return len(self.keys) - len(self.errors)

    def outcome(self, key: Any) -> str:
        """`ok`, `failed` (certainly not applied) or `unknown`. KeyError for a key that was not in the batch."""
        error = self.errors.get(key)
        if error is not None:
            return "failed" if error.definite else "unknown"
        if key not in self.keys:
            raise KeyError(key)
        return "ok"

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"BatchResult({self.ok} of {len(self.keys)} ok)"


def conflict_of(values: Sequence[Any], context: bytes) -> Conflict:
    text = f"{len(values)} siblings, by writers that did not see each other: give a resolver, or choose one and put it with this context"
    return Conflict(text, values=values, context=context)
