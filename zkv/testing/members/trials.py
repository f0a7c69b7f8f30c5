"""What is done to a simulated membership, and what is measured of it.

Owns: one function per kind of trouble; each makes its world, and returns plain figures. Must not know: what is good enough (gates).

False positive (FP): a member that was never disturbed is called dead by anybody. FP-: the same, by a member that was not disturbed either.
Source: Lifeguard, section V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from statistics import median
from typing import Any, Final, NamedTuple

from zkv.core.membership import happenings as h
from zkv.core.membership.states import State
from zkv.core.membership.timing import SECOND
from zkv.testing.members.world import SimMember, World

Make = Callable[..., World]
#: share of the members that has to know
KNOW = 0.99
#: after so long it has heard of a suspicion, refuted it, and the others know
BACK_NS: Final = 2 * SECOND
#: members that are disturbed, of all
DISTURBED = 0.05


class Detection(NamedTuple):
    """Seconds after the crash."""

    first: float
    suspect: float
    dead: float


class Crashes(NamedTuple):
    detections: list[Detection]
    false_deaths: int

    def p50(self) -> Detection:
        return Detection(*(median(column) for column in zip(*self.detections, strict=True)))

    def worst(self) -> Detection:
        return Detection(*(max(column) for column in zip(*self.detections, strict=True)))


class _Watch:
    """When how many came to know of one crash."""

    def __init__(self, world: World, victims: set[int]) -> None:
        """victims: all that are killed in this run at some time, who are not asked."""
        self.at_ns = world.now_ns
        self.asked = len(world.members) - len(victims)
        self._victims = victims
        self.suspect: dict[int, float] = {}
        self.dead: dict[int, float] = {}

    def take(self, viewer: SimMember, seconds: float, after: State) -> None:
        if viewer.index in self._victims:
            return
        if after is State.SUSPECT:
            self.suspect.setdefault(viewer.index, seconds)
        elif after is State.DEAD:
            self.dead.setdefault(viewer.index, seconds)

    @property
    def done(self) -> bool:
        return len(self.dead) >= KNOW * self.asked

    def detection(self) -> Detection:
        never = float("inf")
        at = max(0, ceil(KNOW * self.asked) - 1)
        suspect, dead = sorted(self.suspect.values()), sorted(self.dead.values())
        return Detection(
            suspect[0] if suspect else never,
            suspect[at] if len(suspect) > at else never,
            dead[at] if len(dead) > at else never,
        )


def crashes(count: int, seed: int, *, make: Make = World, crashed: int = 10, **options: Any) -> Crashes:
    """Kill one after the other: many members overlapping, few one at a time, each back before the next."""
    world = make(count, seed, **options)
    world.found()
    world.run_s(12)
    watches: dict[int, _Watch] = {}
    false_deaths = 0

    def watch(viewer: SimMember, change: h.StateChanged) -> None:
        nonlocal false_deaths
        current = watches.get(change.node)
        if current is not None:
            current.take(viewer, (world.now_ns - current.at_ns) / SECOND, change.after)
        elif change.after is State.DEAD:
            false_deaths += 1

    world.watch.append(watch)
    victims = world.dice.sample(world.members, min(crashed, count))
    overlapping = count >= 10 * crashed
    detections: list[Detection] = []
    for victim in victims:
        current = _Watch(world, {v.index for v in victims} if overlapping else {victim.index})
        watches[victim.node] = current
        world.crash(victim)
        if overlapping:
            world.run_s(2)
            continue
        world.run_s(80, lambda: current.done)  # noqa: B023 (called before the next turn)
        detections.append(current.detection())
        del watches[victim.node]
        world.restart(victim)
        world.run_s(5)
    if not detections:
        world.run_s(80, lambda: all(current.done for current in watches.values()))
        detections = [current.detection() for current in watches.values()]
    return Crashes(detections, false_deaths)


class Costs(NamedTuple):
    idle_bytes_s: float
    idle_messages_s: float
    #: seconds until all know of an update
    spread: float
    update_bytes: float


def costs(count: int, seed: int, *, make: Make = World, updates: int = 5, **options: Any) -> Costs:
    """What a quiet cluster sends, and what one change of a member's profile adds. Bytes are those of the codec."""
    world = make(count, seed, coded=True, **options)
    world.found()
    world.run_s(15)
    began, messages = world.bytes, world.messages
    world.run_s(30)
    idle_s = (world.bytes - began) / 30
    messages_s = (world.messages - messages) / 30 / count
    began_ns, began = world.now_ns, world.bytes
    spread = 0.0
    for member in world.dice.sample(world.members, min(updates, count)):
        spread = max(spread, _spread(world, member))
        world.run_s(5)
    seconds = (world.now_ns - began_ns) / SECOND
    added = (world.bytes - began - idle_s * seconds) / min(updates, count) / count
    return Costs(idle_s / count, messages_s, spread, added)


def _spread(world: World, member: SimMember) -> float:
    core = member.core
    assert core is not None
    at_ns = world.now_ns
    world.handle(member, h.ProfileChanged(replace(core.common.me.profile, weight=2.0)))
    wanted = core.common.me.incarnation

    def known() -> bool:
        return all(
            (record := other.core.common.table.get(member.node)) is not None and record.profile_incarnation >= wanted
            for other in world.running
            if other is not member and other.core is not None
        )

    world.run_s(60, known, ask_every_ms=1)
    return (world.now_ns - at_ns) / SECOND


class Falsehoods(NamedTuple):
    everywhere: int
    among_healthy: int
    #: disturbed members that were called dead though they had been back for a while
    returned: int
    #: suspicions of healthy members that reached a healthy one, per disturbed member and minute
    suspicions: float


def disturbed(
    count: int, seed: int, seconds: float, *, isolated: bool, total_s: float = 120, make: Make = World, **options: Any
) -> Falsehoods:
    """Some members stand still (or are cut off while their timers run) again and again; the others must not suffer for it."""
    world = make(count, seed, **options)
    world.found()
    world.run_s(12)
    chosen = world.dice.sample(world.members, max(1, int(DISTURBED * count)))
    sick = {member.node for member in chosen}
    everywhere = among_healthy = returned = 0
    back_ns: dict[int, int] = {}
    suspected: set[tuple[int, int]] = set()

    def watch(viewer: SimMember, change: h.StateChanged) -> None:
        nonlocal everywhere, among_healthy, returned
        if change.node in sick:
            returned += change.after is State.DEAD and world.now_ns - back_ns.get(change.node, world.now_ns) > BACK_NS
            return
        if change.after is State.DEAD:
            everywhere += 1
            among_healthy += viewer.node not in sick
        elif change.after is State.SUSPECT and viewer.node not in sick:
            assert viewer.core is not None
            suspected.add((change.node, viewer.core.common.table.records[change.node].incarnation))

    def strike(member: SimMember) -> None:
        if isolated:
            world.isolate(member, 1 + member.index)
        else:
            world.pause(member)
        back_ns.pop(member.node, None)
        world.after_s(seconds * (0.5 + world.dice.random()), relieve, member)

    def relieve(member: SimMember) -> None:
        if isolated:
            world.isolate(member, 0)
        else:
            world.resume(member)
        back_ns[member.node] = world.now_ns
        world.after_s(0.5 + 4 * world.dice.random(), strike, member)

    world.watch.append(watch)
    for member in chosen:
        world.after_s(4 * world.dice.random(), strike, member)
    lasted_s = max(total_s, 2 * seconds)
    world.run_s(lasted_s)
    return Falsehoods(everywhere, among_healthy, returned, len(suspected) / len(sick) / lasted_s * 60)


class Healing(NamedTuple):
    #: seconds after the heal until everybody sees everybody up
    seconds: float
    #: pairs that disagree after a quiet minute
    stuck: int


def partition(
    count: int, seed: int, share: float, *, cut_s: float = 60, quiet_s: float = 60, make: Make = World, **options: Any
) -> Healing:
    world = make(count, seed, **options)
    world.found()
    world.run_s(12)
    for member in world.dice.sample(world.members, max(1, int(share * count))):
        world.isolate(member, 1)
    world.run_s(cut_s)
    world.heal()
    at_ns = world.now_ns
    healed = world.run_s(120, lambda: world.disagreements() == 0, ask_every_ms=250)
    seconds = (world.now_ns - at_ns) / SECOND if healed else float("inf")
    world.run_s(quiet_s)
    return Healing(seconds, world.disagreements())


def returns(count: int, seed: int, *, make: Make = World, **options: Any) -> float:
    """Restart members: at once and after they were called dead, at their address and at another, with and without what they remembered.

    Returns the longest time until everybody sees all up again, and where.
    """
    world = make(count, seed, resets=True, **options)
    world.found()
    world.run_s(12)
    longest = 0.0
    for away_s in (0.1, 2, 20):
        for moved in (False, True):
            for wiped in (False, True):
                victim = world.dice.choice(world.members)
                seed_of = world.members[victim.index - 1].address
                world.crash(victim)
                world.run_s(away_s)
                world.restart(victim, moved=moved, wiped=wiped, seeds=[seed_of])
                at_ns = world.now_ns
                found = world.run_s(60, lambda: world.disagreements() == 0 and world.lost() == 0)
                if not found:
                    return float("inf")
                longest = max(longest, (world.now_ns - at_ns) / SECOND)
    return longest
