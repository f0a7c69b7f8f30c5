"""Plans a table: which nodes hold each partition, and in which order of preference.

Owns: `plan_rows`. Must not know: epochs, versions, how a change of owner is carried out.
Invariants of a plan: a pure function of its arguments, whatever the order of the members; every row has the same length, on distinct
hosts, spread over racks and data centers as evenly as their hosts allow; each node holds floor(share) or ceil(share) partitions;
no table with these properties is nearer to the previous one; each node comes first in about 1/n of its rows.
Source: Dynamo 4.2 to 4.3 and 6.2 (strategy 3: equal partitions); the walk gives the first table, `rebalance` the rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from zkv.core.members import Member
from zkv.core.rebalance import Rebalance
from zkv.core.spread import PlacementImpossible, Rule, Spread, bits_of
from zkv.errors import ConfigError
from zkv.ids import NodeId

__all__ = ["PlacementImpossible", "Plan", "Rule", "plan_rows"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned table for one rule."""

    #: per partition, in order of preference
    rows: tuple[tuple[NodeId, ...], ...]
    #: replicas that the rule asks for, and that each row has; fewer while there are too few hosts
    wanted: int
    length: int
    #: partitions that each member with a weight should hold, and holds
    shares: Mapping[NodeId, float]
    loads: Mapping[NodeId, int]
    #: (partition, node) that the previous table did not have
    moves: tuple[tuple[int, NodeId], ...]

    @property
    def under_replicated(self) -> bool:
        return self.length < self.wanted


def plan_rows(
    members: Sequence[Member], partitions: int, rule: Rule, previous: Sequence[tuple[NodeId, ...]] | None = None
) -> Plan:
    """The table for these members, as near to `previous` as balance and labels allow. PlacementImpossible says what is wrong."""
    _check(members, partitions, previous)
    spread = Spread(members, partitions, rule)
    index_of = {member.node_id: index for index, member in enumerate(spread.members)}
    if previous is None:
        orders = _walk(spread)
        before = [sum(1 << index for index in order) for order in orders]
        start = before
    else:
        orders = [[index_of[node] for node in row if node in index_of] for row in previous]
        before = [sum(1 << index for index in order) for order in orders]
        start = [spread.largest_valid(order) for order in orders]
    rows = Rebalance(spread, start, before).run()
    kept = [
        previous is not None and row == before[partition] and row.bit_count() == len(previous[partition])
        for partition, row in enumerate(rows)
    ]
    orders = [_replace(order, row) for order, row in zip(orders, rows, strict=True)]
    _balance_first(orders, spread, kept)
    ids = [member.node_id for member in spread.members]
    table = tuple(tuple(ids[index] for index in order) for order in orders)
    loads = dict.fromkeys(ids, 0)
    for row_ids in table:
        for node in row_ids:
            loads[node] += 1
    return Plan(
        rows=table,
        wanted=spread.wanted,
        length=spread.n,
        shares=dict(zip(ids, spread.shares, strict=True)),
        loads=loads,
        moves=tuple(
            (partition, node)
            for partition, row_ids in enumerate(table)
            for node in row_ids
            if previous is None or node not in previous[partition]
        ),
    )


def _check(members: Sequence[Member], partitions: int, previous: Sequence[tuple[NodeId, ...]] | None) -> None:
    if partitions < 1 or partitions & (partitions - 1):
        raise ConfigError(f"partitions must be a power of two, not {partitions}")
    if previous is not None and len(previous) != partitions:
        raise ConfigError(
            f"the previous table has {len(previous)} partitions, the new one {partitions}: the number is fixed at creation"
        )
    if len({member.node_id for member in members}) != len(members):
        raise ConfigError("two members have the same node id")
    for member in members:
        if not (math.isfinite(member.weight) and member.weight >= 0):
            raise ConfigError(
                f"the weight of {member.name!r} must be a finite number of at least 0, not {member.weight}"
            )


def _walk(spread: Spread) -> list[list[int]]:
    """The first table: nodes own vnodes by weight, in turns; a row is the first n clockwise that may stand together."""
    order = _interleaved(spread)
    total = sum(spread.members[index].weight for index in order)
    turns: list[tuple[float, int, int]] = []
    for rank, index in enumerate(order):
        weight = spread.members[index].weight / total
        turns += [((turn + 0.5) / weight, rank, index) for turn in range(int(weight * spread.partitions) + 2)]
    owners = [index for _, _, index in sorted(turns)[: spread.partitions]]
    rows: list[list[int]] = []
    for partition in range(spread.partitions):
        row: list[int] = []
        held = 0
        for index in chain(owners[partition:], owners[:partition], order):
            if spread.candidates(held) >> index & 1:
                row.append(index)
                held |= 1 << index
                if len(row) == spread.n:
                    break
        rows.append(row)
    return rows


def _interleaved(spread: Spread) -> list[int]:
    """All owners so that neighbours differ in data center, then in rack, as long as possible."""
    in_rack: dict[tuple[str, str], int] = {}
    racks_of: dict[str, list[str]] = {}
    ranked: list[tuple[int, int, str, int]] = []
    for index in bits_of(spread.everyone):
        member = spread.members[index]
        racks = racks_of.setdefault(member.dc, [])
        if member.rack not in racks:
            racks.append(member.rack)
        rank = in_rack[member.dc, member.rack] = in_rack.get((member.dc, member.rack), -1) + 1
        ranked.append((rank, racks.index(member.rack), member.dc, index))
    return [index for _, _, _, index in sorted(ranked)]


def _replace(order: Sequence[int], row: int) -> list[int]:
    """The old order with those who left the row replaced in their places; who is left over comes last."""
    new = [index for index in bits_of(row) if index not in order]
    kept = [index if row >> index & 1 else (new.pop(0) if new else -1) for index in order]
    return [index for index in kept if index >= 0] + new


def _balance_first(orders: list[list[int]], spread: Spread, kept: Sequence[bool]) -> None:
    """Rotates rows until each node is first in 1/n of its rows.

    Rows that kept their replicas are rotated only where a node is more than a tenth off: a new order is a new row version.
    """
    loads = [0] * len(spread.members)
    for order in orders:
        for index in order:
            loads[index] += 1
    fair = [load / spread.n for load in loads]
    changed = [partition for partition in range(len(orders)) if not kept[partition]]
    low, high = [math.floor(share) for share in fair], [math.ceil(share) for share in fair]
    _rotate(orders, changed, low, high)
    if len(changed) < len(orders):
        low, high = [math.floor(share * 0.9) for share in fair], [math.ceil(share * 1.1) for share in fair]
        _rotate(orders, range(len(orders)), low, high)


def _rotate(orders: list[list[int]], free: Sequence[int], low: Sequence[int], high: Sequence[int]) -> None:
    """Moves first places along shortest chains of `free` rows, from who has too many to who has fewer, until none is left."""
    firsts = [0] * len(low)
    led: list[dict[int, None]] = [{} for _ in low]
    for order in orders:
        firsts[order[0]] += 1
    for partition in free:
        led[orders[partition][0]][partition] = None
    while True:
        over = [index for index, first in enumerate(firsts) if first > high[index]]
        under = {index for index, first in enumerate(firsts) if first < low[index]}
        spare = [index for index, first in enumerate(firsts) if first > low[index]]
        below = {index for index, first in enumerate(firsts) if first < high[index]}
        chain_found = _shortest_chain(over, under or below, orders, led) if over else []
        if not chain_found and over and under:
            chain_found = _shortest_chain(over, below, orders, led)
        if not chain_found and under:
            chain_found = _shortest_chain(spare, under, orders, led)
        if not chain_found:
            return
        for giver, taker, partition in chain_found:
            order = orders[partition]
            place = order.index(taker)
            orders[partition] = order[place:] + order[:place]
            del led[giver][partition]
            led[taker][partition] = None
            firsts[giver] -= 1
            firsts[taker] += 1


def _shortest_chain(
    starts: Sequence[int], ends: Collection[int], orders: Sequence[Sequence[int]], led: Sequence[Mapping[int, None]]
) -> list[tuple[int, int, int]]:
    """Steps (who gives, who takes, in which row); empty if there is no chain."""
    origin: dict[int, tuple[int, int]] = dict.fromkeys(starts, (-1, -1))
    queue = deque(starts)
    while queue:
        giver = queue.popleft()
        for partition in led[giver]:
            for taker in orders[partition]:
                if taker in origin:
                    continue
                origin[taker] = (giver, partition)
                if taker in ends:
                    steps: list[tuple[int, int, int]] = []
                    while origin[taker][0] >= 0:
                        before, row = origin[taker]
                        steps.append((before, taker, row))
                        taker = before
                    return steps
                queue.append(taker)
    return []
