"""Whole clusters of real cores over virtual time: what they agree on after each kind of trouble."""

from __future__ import annotations

import pytest

from zkv.core.membership import happenings as h
from zkv.core.membership.states import State
from zkv.testing.members.world import World


def settled(count: int, **options: object) -> World:
    world = World(count, 1, **options)  # type: ignore[arg-type]
    world.found()
    assert world.run_s(30, lambda: world.disagreements() == 0)
    world.run_s(12)  # over the start-up grace
    return world


def states_of(world: World, index: int) -> set[State | None]:
    return {world.state(viewer, world.members[index]) for viewer in world.running if viewer.index != index}


@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 20, 100])
def test_quiet_cluster_suspects_nobody(count: int) -> None:
    world = settled(count)
    changes: list[h.StateChanged] = []
    world.watch.append(lambda member, change: changes.append(change))
    world.run_s(60)
    assert not changes


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 50])
def test_killed_member_is_routed_around_then_called_dead_by_all_that_can_be_sure(count: int) -> None:
    world = settled(count, resets=True)
    world.crash(world.members[1])
    assert world.run_s(1.0, lambda: states_of(world, 1) == {State.SUSPECT})
    # of four, two accusers are wanted and there are three; of two or three one is enough
    assert world.run_s(60, lambda: states_of(world, 1) == {State.DEAD})


def test_member_that_comes_back_is_up_everywhere_within_seconds() -> None:
    world = settled(5, resets=True)
    victim = world.members[1]
    world.crash(victim)
    world.run_s(20)
    assert states_of(world, 1) == {State.DEAD}
    world.restart(victim)
    assert world.run_s(2, lambda: world.disagreements() == 0)


@pytest.mark.parametrize("wiped", [False, True])
def test_member_that_comes_back_elsewhere_is_found_at_its_new_address(wiped: bool) -> None:
    world = settled(5, resets=True)
    victim = world.members[1]
    world.crash(victim)
    world.run_s(5)
    seeds = {"seeds": [world.members[0].address]}
    world.restart(victim, moved=True, wiped=wiped, **seeds)
    assert world.run_s(5, lambda: world.disagreements() == 0)
    for viewer in world.running:
        record = viewer.core and viewer.core.common.table.get(victim.node)
        assert viewer is victim or (record and record.profile.peer_address == victim.address)


def test_member_that_comes_back_before_anybody_noticed_is_a_new_life() -> None:
    world = settled(5)
    victim = world.members[1]
    world.crash(victim)
    world.restart(victim)
    assert world.run_s(2, lambda: world.disagreements() == 0)
    assert victim.core is not None and victim.core.common.me.generation == 2


def test_new_members_join_by_one_seed() -> None:
    world = World(30, 1)
    known = [h.Remembered(m.node, 1 << 32, State.ALIVE, m.profile()) for m in world.members[:3]]
    for member in world.members[:3]:
        world.start(member, assumed=known)
    world.run_s(2)
    for member in world.members[3:]:
        world.start(member, cluster=0, seeds=[world.members[0].address])
    assert world.run_s(20, lambda: world.disagreements() == 0)
    world.run_s(5)
    assert {m.core.common.me.state for m in world.running if m.core} == {State.ALIVE}


def test_member_of_another_cluster_stays_outside() -> None:
    world = World(4, 1)
    known = [h.Remembered(m.node, 1 << 32, State.ALIVE, m.profile()) for m in world.members[:3]]
    for member in world.members[:3]:
        world.start(member, assumed=known)
    stranger = world.members[3]
    world.start(stranger, cluster=9, seeds=[world.members[0].address])
    world.run_s(20)
    assert all(world.state(viewer, stranger) is None for viewer in world.members[:3])
    assert stranger.core is not None and stranger.core.common.journal.refused["cluster"] > 0


def test_whole_cluster_stopped_and_started_finds_itself_without_seeds() -> None:
    world = settled(10)
    world.run_s(2)
    for member in world.members:
        world.crash(member)
    for member in world.members:
        world.restart(member)
    assert world.run_s(30, lambda: world.disagreements() == 0)


def test_members_remembered_at_addresses_that_all_changed_are_found_by_a_seed() -> None:
    world = settled(6)
    for member in world.members:
        world.crash(member)
    for member in world.members:
        world.restart(member, moved=True, seeds=["10.0.0.0:7411"])
    assert world.run_s(60, lambda: world.disagreements() == 0)


def test_leaving_member_is_never_suspected_and_gone_everywhere() -> None:
    world = settled(10, resets=True)
    seen: set[State] = set()
    leaver = world.members[4]
    world.watch.append(lambda member, change: seen.add(change.after) if change.node == leaver.node else None)
    world.handle(leaver, h.LeaveOrdered())
    world.run_s(3)
    assert states_of(world, 4) == {State.LEAVING}
    world.handle(leaver, h.Drained())
    world.run_s(10)
    assert leaver.departed and states_of(world, 4) == {State.LEFT}
    assert seen == {State.LEAVING, State.LEFT}


def test_removed_member_is_told_and_stops() -> None:
    world = settled(5)
    world.handle(world.members[0], h.MemberRemoved(world.members[3].node))
    world.run_s(5)
    assert world.members[3].halted == "removed"
    assert states_of(world, 3) == {State.REMOVED}


@pytest.mark.parametrize("seconds", [5, 60, 200])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_partition_heals_whatever_it_lasted(seconds: int, share: float) -> None:
    world = settled(20)
    for member in world.members[: int(20 * share)]:
        world.isolate(member, 1)
    world.run_s(seconds)
    world.heal()
    assert world.run_s(20, lambda: world.disagreements() == 0)


def test_disk_that_was_rolled_back_does_not_keep_its_node_out() -> None:
    world = settled(5)
    victim = world.members[2]
    for _ in range(4):
        world.crash(victim)
        world.restart(victim)
        world.run_s(3)
    world.crash(victim)
    world.run_s(5)
    victim.generation = 1  # and 2 after the start: others know 5
    world.restart(victim)
    assert world.run_s(30, lambda: world.disagreements() == 0)
    assert victim.core is not None and victim.core.common.me.generation > 5


@pytest.mark.parametrize("later", [False, True])
def test_of_two_processes_with_one_id_the_earlier_generation_stops(later: bool) -> None:
    world = World(6, 1)
    known = [h.Remembered(m.node, 1 << 32, State.ALIVE, m.profile()) for m in world.members[:5]]
    for member in world.members[:5]:
        member.generation = 2
        world.start(member, assumed=known)
    world.run_s(15)
    first, twin = world.members[2], world.members[5]
    twin.node, twin.generation = first.node, 3 if later else 1
    world.start(twin, members=known)
    world.run_s(30)
    assert (first.halted, twin.halted) == (("duplicate-id", "") if later else ("", "duplicate-id"))


@pytest.mark.parametrize("count", [5, 30])
def test_without_pubsub_everything_is_found_out_only_slower(count: int) -> None:
    world = settled(count, pubsub=False)
    world.crash(world.members[1])
    assert world.run_s(15, lambda: states_of(world, 1) <= {State.SUSPECT, State.DEAD})
    assert world.run_s(60, lambda: states_of(world, 1) == {State.DEAD})
    world.restart(world.members[1])
    assert world.run_s(30, lambda: world.disagreements() == 0)


def test_one_way_cut_makes_nobody_dead() -> None:
    """Whom one cannot reach the others can: it is suspected at most, and is up again when the cut ends."""
    world = settled(8)
    changes: set[State] = set()
    world.watch.append(lambda member, change: changes.add(change.after))
    world.one_way.add((0, 1))
    world.run_s(60)
    assert State.DEAD not in changes
    world.heal()
    assert world.run_s(10, lambda: world.disagreements() == 0)


def test_views_of_many_are_small_and_symmetric() -> None:
    world = settled(100)
    views = {m.node: set(m.core.neighbours.nodes) for m in world.running if m.core}
    assert all(4 <= len(view) <= 9 for view in views.values())
    one_sided = sum(node not in views[other] for node, view in views.items() for other in view)
    assert one_sided <= 5
    reached, edge = {world.members[0].node}, [world.members[0].node]
    while edge:
        new = views[edge.pop()] - reached
        reached |= new
        edge += new
    assert len(reached) == 100


def test_same_seed_is_the_same_run() -> None:
    def run() -> list[tuple[int, int, str]]:
        world = World(20, 5, loss=0.1, resets=True)
        world.found()
        changes: list[tuple[int, int, str]] = []
        world.watch.append(lambda member, change: changes.append((world.now_ns, member.index, change.after.word)))
        world.run_s(5)
        world.crash(world.members[3])
        world.run_s(20)
        return changes

    assert run() == run() != []
