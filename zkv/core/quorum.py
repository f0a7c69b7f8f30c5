"""What a consistency level asks of a row, and whether it is met.

Owns: the meaning of `one`, `quorum`, `all`, `local_quorum`, `each_quorum` and of numbers. Must not know: what is voted on.
Source: Dynamo (2007) section 4.5; Cassandra's levels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto

from zkv.core.messages import Level
from zkv.ids import NodeId


class Tally(Enum):
    PENDING = auto()
    MET = auto()
    IMPOSSIBLE = auto()


class Requirement:
    """Counts that votes must reach: so many of all replicas, or so many in each of some data centers.

    parts   (replicas that may vote, votes needed); normally one part of all
    """

    __slots__ = ("count", "parts")

    def __init__(self, parts: tuple[tuple[tuple[NodeId, ...], int], ...]) -> None:
        self.parts = parts
        self.count = sum(n for _, n in parts)

    def votes(self, yes: Collection[NodeId]) -> int:
        """Votes that count, capped per part: equals `count` exactly when met."""
        total = 0
        for nodes, n in self.parts:
            votes = 0
            for node in nodes:
                if node in yes:
                    votes += 1
            total += votes if votes < n else n
        return total

    def tally(self, yes: Collection[NodeId], no: Collection[NodeId]) -> Tally:
        if self.votes(yes) >= self.count:
            return Tally.MET
        for nodes, n in self.parts:
            if sum(1 for node in nodes if node not in no) < n:
                return Tally.IMPOSSIBLE
        return Tally.PENDING


def majority(n: int) -> int:
    return n // 2 + 1


def resolve(
    level: Level, default: Level, replicas: tuple[NodeId, ...], dc_of: Mapping[NodeId, str], own_dc: str
) -> Requirement:
    """What `level` (or the bucket's default) asks of a row. Names resolve against the row's length; a number stays what it is.

    Raises: ValueError for a name that is not a level.
    """
    wanted = default if level is None else level
    n = len(replicas)
    if isinstance(wanted, int):
        return Requirement(((replicas, wanted),))
    match wanted:
        case "one":
            return Requirement(((replicas, 1),))
        case "all":
            return Requirement(((replicas, n),))
        case "quorum":
            return Requirement(((replicas, majority(n)),))
        case "local_quorum" | "each_quorum":
            by_dc: dict[str, list[NodeId]] = {}
            for node in replicas:
                by_dc.setdefault(dc_of.get(node, ""), []).append(node)
            if wanted == "local_quorum":
                if own_dc not in by_dc:
                    return Requirement(((replicas, majority(n)),))
                by_dc = {own_dc: by_dc[own_dc]}
            return Requirement(tuple((tuple(nodes), majority(len(nodes))) for _, nodes in sorted(by_dc.items())))
        case _:
            raise ValueError(f"unknown level {wanted!r}")


def overlap(n: int, w: int) -> int:
    """The fewest replicas whose answers must include one that acknowledged a write of W: n - w + 1."""
    return max(1, n - w + 1)
