"""The cheapest way from an old table to one where every node holds its share.

Owns: the search for moves. Must not know: where the shares come from (spread), the order of replicas in a row (placement).
Rows and tables are bit masks over `Spread.members`.

A table is a flow: each row sends n units, through its labels, to nodes that take floor(share) to ceil(share) units. A unit that the
row did not hold before costs 1, any other nothing. Successive shortest paths then end in a table of least cost, exactly, because
the first flow is made of free units alone. The graph searched has the nodes as vertices, with an edge u -> v where some row can
hold v instead of u, plus one vertex for what is between floor and ceil. A cheapest path of fewest edges never breaks a row that
it uses twice: such a path would have a shortcut.
Source: the textbook method (Ahuja, Magnanti, Orlin, Network Flows, 9.7), on exchange graphs as in weighted matroid intersection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from zkv.core.spread import Spread, bits_of

#: a row and what it held before: rows with an equal pair are interchangeable
_Pattern = tuple[int, int]


class Rebalance:
    """One run: `rows` are valid, possibly incomplete, subsets of what is free; `before` the old rows that make a unit free."""

    __slots__ = (
        "_before",
        "_bound",
        "_ceil",
        "_edges",
        "_floor",
        "_holes",
        "_load",
        "_patterns",
        "_patterns_of",
        "_slack",
        "_spread",
        "rows",
    )

    def __init__(self, spread: Spread, rows: Sequence[int], before: Sequence[int]) -> None:
        size = len(spread.members)
        self.rows: Final = list(rows)
        self._spread: Final = spread
        self._before: Final = before
        self._floor: Final = [math.floor(share) for share in spread.shares]
        self._ceil: Final = [math.ceil(share) for share in spread.shares]
        self._load: Final = [0] * size
        #: the vertex that takes what is above floor and at most ceil
        self._slack: Final = size
        #: no path to a place that lacks a unit is cheaper than this
        self._bound = 0
        self._patterns: Final[dict[_Pattern, dict[int, None]]] = {}
        self._patterns_of: Final[list[dict[_Pattern, None]]] = [{} for _ in range(size)]
        #: per node, the reachable nodes by cost -1, 0, 1; None when out of date
        self._edges: Final[list[tuple[int, int, int] | None]] = [None] * size
        self._holes: Final = dict.fromkeys(range(len(self.rows)))
        for partition, row in enumerate(self.rows):
            self._enter(partition, row)

    def run(self) -> list[int]:
        """Moves units until every row is complete and every node holds its share."""
        while True:
            sources, sinks = self._sources(), self._sinks()
            if not sources and not self._holes:
                assert not sinks, "loads do not sum to n * partitions"
                return self.rows
            search = _Search(sinks, self._bound)
            cost = self._find_path(search, sources)
            assert search.best >= 0, "no path: the shares do not fit the constraints"
            self._bound = max(self._bound, cost)
            self._apply(search.best, search.parent)

    # --- one path ------------------------------------------------------------------------------------------------------------

    def _find_path(self, search: _Search, sources: int) -> int:
        """Labels nodes in rounds, one edge a round (Bellman and Ford), until a sink at the known bound or nothing improves."""
        search.label(sources, 0, -1, 0)
        for partition in self._holes:
            free = self._before[partition]
            reached = self._spread.candidates(self.rows[partition])
            if search.label(reached & free, 0, -2 - partition, 0) or search.label(
                reached & ~free, 1, -2 - partition, 1
            ):
                return search.best_cost
        while search.improved:
            frontier, search.improved = search.improved, {}
            for vertex, so_far in frontier.items():
                cheaper, same, dearer = self._edges_of(vertex)
                if (
                    (cheaper and search.label(cheaper, so_far - 1, vertex, -1))
                    or search.label(same, so_far, vertex, 0)
                    or (dearer and search.label(dearer, so_far + 1, vertex, 1))
                ):
                    return search.best_cost
        return search.best_cost

    def _apply(self, sink: int, parent: dict[int, tuple[int, int]]) -> None:
        """Moves one unit along the path. All edges are found before any is applied: together they are valid, in steps maybe not."""
        changes: dict[int, int] = {}
        vertex = sink
        while vertex >= 0:
            origin, step = parent[vertex]
            if origin < -1:
                partition = -2 - origin
                changes[partition] = changes.get(partition, 0) | 1 << vertex
            elif origin >= 0 and self._slack not in (origin, vertex):
                partition = self._row_for(origin, vertex, step)
                changes[partition] = changes.get(partition, 0) ^ (1 << origin | 1 << vertex)
            vertex = origin
        for partition, change in changes.items():
            self._leave(partition)
            self._enter(partition, self.rows[partition] ^ change)

    def _row_for(self, old: int, new: int, step: int) -> int:
        """A partition that can hold `new` instead of `old` at that cost."""
        gone = 1 << old
        for pattern in self._patterns_of[old]:
            row, free = pattern
            if (0 if free >> new & 1 else 1) - (0 if free & gone else 1) == step and self._spread.candidates(
                row ^ gone
            ) >> new & 1:
                return next(iter(self._patterns[pattern]))
        raise AssertionError(f"no row can hold member {new} instead of {old}")

    # --- the graph -----------------------------------------------------------------------------------------------------------

    def _edges_of(self, vertex: int) -> tuple[int, int, int]:
        if vertex == self._slack:
            loads = zip(self._load, self._floor, self._ceil, strict=True)
            return 0, sum(1 << i for i, (load, low, high) in enumerate(loads) if min(load, high) > low), 0
        edges = self._edges[vertex]
        if edges is None:
            edges = self._edges[vertex] = self._find_edges(vertex)
        if max(self._load[vertex], self._floor[vertex]) < self._ceil[vertex]:
            return edges[0], edges[1] | 1 << self._slack, edges[2]
        return edges

    def _find_edges(self, vertex: int) -> tuple[int, int, int]:
        bit = 1 << vertex
        cheaper = same = dearer = 0
        candidates = self._spread.candidates
        for row, free in self._patterns_of[vertex]:
            reached = candidates(row ^ bit) & ~bit
            if free & bit:
                same |= reached & free
                dearer |= reached & ~free
            else:
                cheaper |= reached & free
                same |= reached & ~free
        return cheaper, same, dearer

    def _slack_excess(self) -> int:
        taken = sum(
            min(max(load, low), high) for load, low, high in zip(self._load, self._floor, self._ceil, strict=True)
        )
        return taken - self._spread.n * self._spread.partitions

    def _sources(self) -> int:
        found = sum(1 << i for i, (load, high) in enumerate(zip(self._load, self._ceil, strict=True)) if load > high)
        return found | 1 << self._slack if self._slack_excess() > 0 else found

    def _sinks(self) -> int:
        found = sum(1 << i for i, (load, low) in enumerate(zip(self._load, self._floor, strict=True)) if load < low)
        return found | 1 << self._slack if self._slack_excess() < 0 else found

    # --- the table -----------------------------------------------------------------------------------------------------------

    def _enter(self, partition: int, row: int) -> None:
        self.rows[partition] = row
        if row.bit_count() == self._spread.n:
            self._holes.pop(partition, None)
        pattern = (row, self._before[partition])
        rows = self._patterns.setdefault(pattern, {})
        for index in bits_of(row):
            self._load[index] += 1
            if not rows:
                self._patterns_of[index][pattern] = None
                self._edges[index] = None
        rows[partition] = None

    def _leave(self, partition: int) -> None:
        row = self.rows[partition]
        pattern = (row, self._before[partition])
        rows = self._patterns[pattern]
        del rows[partition]
        for index in bits_of(row):
            self._load[index] -= 1
            if not rows:
                del self._patterns_of[index][pattern]
                self._edges[index] = None
        if not rows:
            del self._patterns[pattern]


class _Search:
    """Labels of one search. Origins in `parent`: a node, -1 for a source, -2 - partition for an incomplete row."""

    __slots__ = ("_bound", "_labelled", "_sinks", "best", "best_cost", "improved", "parent")

    def __init__(self, sinks: int, bound: int) -> None:
        self._sinks: Final = sinks
        self._bound: Final = bound
        #: cost -> the nodes whose label it is
        self._labelled: Final[dict[int, int]] = {}
        #: nodes with a better label since the last round, with it
        self.improved: dict[int, int] = {}
        self.parent: Final[dict[int, tuple[int, int]]] = {}
        self.best = -1
        self.best_cost = 0

    def label(self, targets: int, cost: int, origin: int, step: int) -> bool:
        """Gives each target that had none, or a higher one, this label. True at a sink that no path can reach for less.

        Costs of successive paths never fall, so the bound, the cost of the one before, is such a proof.
        """
        labelled = self._labelled
        for known, nodes in labelled.items():
            if known <= cost:
                targets &= ~nodes
        if not targets:
            return False
        for known, nodes in labelled.items():
            labelled[known] = nodes & ~targets
        labelled[cost] = labelled.get(cost, 0) | targets
        for target in bits_of(targets):
            self.parent[target] = (origin, step)
            self.improved[target] = cost
        hit = targets & self._sinks
        if hit and (self.best < 0 or cost < self.best_cost):
            self.best = (hit & -hit).bit_length() - 1
            self.best_cost = cost
            return cost <= self._bound
        return False
