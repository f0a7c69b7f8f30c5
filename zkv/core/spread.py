"""Who may stand together in a row, and how many rows each node should hold.

Owns: the label constraints (hosts, racks, data centers) as bounds per row, and the fair shares under them. Must not know: any
table, old or new (rebalance, placement).
Sets of nodes are bit masks over `members`, which are sorted by node id.
Invariants: a set built by adding nodes out of `candidates`, one after the other, can always be completed to n nodes; the shares sum
to n * partitions, and holding each node in share/partitions of the rows meets every bound, so a table with loads of floor(share)
or ceil(share) exists (bipartite flows with integer bounds have integer solutions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from zkv.core.members import Member
from zkv.errors import ConfigError

#: a number of replicas, or a number for each data center
Rule = int | Mapping[str, int]

_BISECTIONS: Final = 100
_SNAP: Final = 1e-6


class PlacementImpossible(ConfigError):
    """No table can satisfy the rule. The message says which constraint and what would satisfy it."""


class Zone:
    """A rack, or a data center with its racks: how many replicas of one row it holds at least and at most."""

    __slots__ = ("high", "hosts", "low", "mask", "name", "zones")

    def __init__(self, name: str) -> None:
        self.name = name
        self.mask = 0
        self.low = 0
        self.high = 0
        #: in a rack: a mask per host
        self.hosts: dict[str, int] = {}
        #: in a data center: its racks
        self.zones: dict[str, Zone] = {}

    @property
    def host_count(self) -> int:
        return len(self.hosts) + sum(zone.host_count for zone in self.zones.values())


class Spread:
    """Constraints and shares for one rule. `n` is the length of a row: as long as the rule, or as the hosts allow."""

    __slots__ = (
        "_candidates",
        "_flat",
        "_host_masks",
        "_zones",
        "everyone",
        "members",
        "n",
        "partitions",
        "shares",
        "wanted",
    )

    def __init__(self, members: Sequence[Member], partitions: int, rule: Rule) -> None:
        self.members: Final = tuple(sorted((m for m in members if m.weight > 0), key=lambda member: member.node_id))
        self.partitions: Final = partitions
        self._zones: Final = _zones_of(self.members)
        self.n: Final = self._bound(rule)
        owners = 0
        for dc in self._zones.values():
            owners |= dc.mask if dc.high else 0
        self.everyone: Final = owners
        self.wanted: Final = rule if isinstance(rule, int) else sum(rule.values())
        masks = [0] * len(self.members)
        for dc in self._zones.values():
            for rack in dc.zones.values():
                for mask in rack.hosts.values():
                    for index in bits_of(mask):
                        masks[index] = mask
        self._host_masks: Final = masks
        self._flat: Final = all(len(dc.zones) == 1 for dc in self._zones.values()) and len(self._zones) == 1
        self._candidates: Final[dict[int, int]] = {}
        #: rows that each member should hold
        self.shares: Final = self._fair_shares()

    def candidates(self, row: int) -> int:
        """The nodes that may be added to a valid set so that it can still be completed to n."""
        found = self._candidates.get(row)
        if found is None:
            found = self._candidates[row] = self._find_candidates(row)
        return found

    def largest_valid(self, order: Sequence[int]) -> int:
        """As many of the given nodes as may stand together, the first ones first."""
        row = 0
        for index in order:
            bit = 1 << index
            if not row & bit and self.candidates(row) & bit:
                row |= bit
        return row

    def _find_candidates(self, row: int) -> int:
        room = self.n - row.bit_count()
        if room <= 0:
            return 0
        allowed = self.everyone
        for index in bits_of(row):
            allowed &= ~self._host_masks[index]
        if self._flat:
            return allowed
        needed, useful = 0, 0
        for dc in self._zones.values():
            held = (row & dc.mask).bit_count()
            owed, needy = 0, 0
            for rack in dc.zones.values():
                in_rack = (row & rack.mask).bit_count()
                if in_rack >= rack.high:
                    allowed &= ~rack.mask
                if in_rack < rack.low:
                    owed += rack.low - in_rack
                    needy |= rack.mask
            if held + owed >= dc.high:
                allowed &= ~dc.mask | needy
            needed += max(dc.low - held, owed)
            useful |= dc.mask if dc.low - held > owed else needy
        return allowed & useful if needed >= room else allowed

    def _bound(self, rule: Rule) -> int:
        """Sets the bounds of each zone; answers the length of a row."""
        if isinstance(rule, int):
            if rule < 1:
                raise PlacementImpossible(f"a rule of {rule} replicas cannot be placed: ask for at least 1")
            if not self._zones:
                raise PlacementImpossible("no member has a weight above 0: give at least one a weight of 1")
            bounds = _balanced(rule, [dc.host_count for dc in self._zones.values()])
            for dc, (low, high) in zip(self._zones.values(), bounds, strict=True):
                dc.low, dc.high = low, high
        else:
            self._bound_by_dc(rule)
        for dc in self._zones.values():
            capacities = [rack.host_count for rack in dc.zones.values()]
            lows = [low for low, _ in _balanced(dc.low, capacities)]
            highs = [high for _, high in _balanced(dc.high, capacities)]
            for rack, low, high in zip(dc.zones.values(), lows, highs, strict=True):
                rack.low, rack.high = low, high
        hosts = sum(dc.host_count for dc in self._zones.values())
        return min(rule, hosts) if isinstance(rule, int) else sum(dc.low for dc in self._zones.values())

    def _bound_by_dc(self, rule: Mapping[str, int]) -> None:
        if not rule or any(count < 1 for count in rule.values()):
            raise PlacementImpossible(
                f"the rule {dict(rule)} cannot be placed: name data centers with at least 1 replica each"
            )
        for name, count in sorted(rule.items()):
            if name not in self._zones:
                there = ", ".join(repr(dc) for dc in self._zones) or "none"
                raise PlacementImpossible(
                    f"the rule wants {count} replicas in data center {name!r}, but no member with a weight above 0 is there "
                    f"(data centers with members: {there}); add a member with --dc {name}, or change the rule"
                )
            dc = self._zones[name]
            dc.low = dc.high = min(count, dc.host_count)

    def _fair_shares(self) -> list[float]:
        """In proportion to weight, within the bounds; what a bound cuts off goes to the others.

        Water filling over the tree of labels: each zone holds what its hosts would take at a common level, clipped to its bounds; a
        clipped zone has a level of its own.
        """
        shares = [0.0] * len(self.members)
        cap = float(self.partitions)
        weights = [member.weight for member in self.members]
        dcs = [dc for dc in self._zones.values() if dc.high]
        amounts = _fill([self._demand_of_dc(dc, weights) for dc in dcs], self.n * cap)
        for dc, in_dc in zip(dcs, amounts, strict=True):
            racks = list(dc.zones.values())
            in_racks = _fill([self._demand_of_rack(rack, weights) for rack in racks], in_dc)
            for rack, in_rack in zip(racks, in_racks, strict=True):
                hosts = list(rack.hosts.values())
                for mask, in_host in zip(
                    hosts, _fill([_demand(mask, weights, cap) for mask in hosts], in_rack), strict=True
                ):
                    total = sum(weights[index] for index in bits_of(mask))
                    for index in bits_of(mask):
                        share = in_host * weights[index] / total
                        shares[index] = float(round(share)) if abs(share - round(share)) < _SNAP else share
        return shares

    def _demand_of_rack(self, rack: Zone, weights: Sequence[float]) -> Callable[[float], float]:
        cap = float(self.partitions)
        hosts = [_demand(mask, weights, cap) for mask in rack.hosts.values()]
        return lambda level: _clip(sum(host(level) for host in hosts), rack.low * cap, rack.high * cap)

    def _demand_of_dc(self, dc: Zone, weights: Sequence[float]) -> Callable[[float], float]:
        cap = float(self.partitions)
        racks = [self._demand_of_rack(rack, weights) for rack in dc.zones.values()]
        return lambda level: _clip(sum(rack(level) for rack in racks), dc.low * cap, dc.high * cap)


def bits_of(mask: int) -> Iterator[int]:
    """The members of a set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _zones_of(members: Sequence[Member]) -> dict[str, Zone]:
    """data center -> rack -> host, each sorted by name."""
    dcs: dict[str, Zone] = {}
    where: dict[str, tuple[str, str]] = {}
    for index, member in sorted(enumerate(members), key=lambda item: (item[1].dc, item[1].rack, item[1].host)):
        place = where.setdefault(member.host, (member.dc, member.rack))
        if place != (member.dc, member.rack):
            raise PlacementImpossible(
                f"host {member.host!r} is labelled both dc={place[0]!r} rack={place[1]!r} and dc={member.dc!r} rack={member.rack!r}; "
                f"one machine is in one rack: correct the labels of {member.name!r}, or give it another --host"
            )
        dc = dcs.setdefault(member.dc, Zone(member.dc))
        rack = dc.zones.setdefault(member.rack, Zone(member.rack))
        rack.hosts[member.host] = rack.hosts.get(member.host, 0) | 1 << index
        rack.mask |= 1 << index
        dc.mask |= 1 << index
    return dcs


def _balanced(count: int, capacities: Sequence[int]) -> list[tuple[int, int]]:
    """Bounds (least, most) per zone that spread `count` as evenly as the capacities allow; less if they sum to less."""
    count = min(count, sum(capacities))
    level = 0
    while sum(min(level, capacity) for capacity in capacities) < count:
        level += 1
    if sum(min(level, capacity) for capacity in capacities) == count:
        return [(min(level, capacity), min(level, capacity)) for capacity in capacities]
    return [(min(level - 1, capacity), min(level, capacity)) for capacity in capacities]


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _demand(mask: int, weights: Sequence[float], cap: float) -> Callable[[float], float]:
    weight = sum(weights[index] for index in bits_of(mask))
    return lambda level: min(level * weight, cap)


def _fill(demands: Sequence[Callable[[float], float]], amount: float) -> list[float]:
    """What each takes at the level where all together take `amount`."""
    low, high = 0.0, 1.0
    while sum(demand(high) for demand in demands) < amount - _SNAP and high < 1e300:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if sum(demand(middle) for demand in demands) < amount:
            low = middle
        else:
            high = middle
    return [demand(high) for demand in demands]
