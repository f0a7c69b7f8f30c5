"""Each rule of the membership core, alone."""

from __future__ import annotations

import copy

import pytest

from tests.unit.core.membership.one import CLUSTER, ROUTE, One, alive, dead, of, profile, sent, suspect
from zkv.core.effects import Note
from zkv.core.membership import happenings as h
from zkv.core.membership import messages as m
from zkv.core.membership.replay import WIDTH, Window
from zkv.core.membership.rumours import QUEUE_MAX, Rumours
from zkv.core.membership.states import State, incarnation_of, wins
from zkv.core.membership.suspicion import Suspicion
from zkv.core.membership.timing import MS, SECOND, Timing
from zkv.ids import NodeId

I1 = incarnation_of(1)


def test_claims_are_ordered_by_incarnation_then_rank() -> None:
    """SWIM 4.2, with left and removed."""
    assert wins(2, State.ALIVE, 1, State.DEAD)
    assert wins(1, State.SUSPECT, 1, State.ALIVE)
    assert wins(1, State.DEAD, 1, State.SUSPECT)
    assert not wins(1, State.ALIVE, 1, State.SUSPECT)
    assert not wins(1, State.SUSPECT, 2, State.ALIVE)
    assert not wins(1, State.JOINING, 1, State.ALIVE)
    assert wins(0, State.REMOVED, 9, State.ALIVE)
    assert not wins(99, State.ALIVE, 1, State.REMOVED)


def test_suspicion_shortens_with_each_independent_accuser() -> None:
    """Lifeguard, LHA-Suspicion: 16 times the shortest alone, the shortest with three more."""
    suspicion = Suspicion("probe", 0, SECOND, 16 * SECOND, 3, [NodeId(1)])
    assert suspicion.deadline_ns == 16 * SECOND
    assert not suspicion.accuse([NodeId(1)])
    assert suspicion.accuse([NodeId(2)]) and suspicion.deadline_ns == pytest.approx(8.5 * SECOND)
    suspicion.accuse([NodeId(3), NodeId(4)])
    assert suspicion.deadline_ns == SECOND and suspicion.settled


@pytest.mark.parametrize(("members", "shortest_s"), [(10, 3), (100, 3), (1_000, 4.5), (10_000, 6)])
def test_suspicion_bounds_grow_with_the_logarithm(members: int, shortest_s: float) -> None:
    assert Timing().suspicion_bounds_ns(members, 1) == (shortest_s * SECOND, 16 * shortest_s * SECOND)


def test_rumours_go_least_told_first_and_a_bounded_number_of_times() -> None:
    rumours = Rumours()
    for node in range(10):
        rumours.add(suspect(node, 1))
    first = rumours.take(3, 8)
    second = rumours.take(3, 8)
    assert {r.node for r in second} >= {0, 1}  # the two that were left out come first
    rumours.add(dead(5, 1, 2))
    assert any(r.state is State.DEAD for r in rumours.take(3, 8))
    told = first + second
    while batch := rumours.take(3, 8):
        told += batch
    assert max(told.count(rumour) for rumour in told) == 3 and len(rumours) == 0


def test_rumours_full_queue_gives_up_what_was_told_most() -> None:
    rumours = Rumours()
    for node in range(QUEUE_MAX):
        rumours.add(suspect(node, 1))
    told = rumours.take(99, 1)[0].node
    rumours.add(suspect(QUEUE_MAX, 1))
    assert len(rumours) == QUEUE_MAX
    assert told not in {r.node for r in rumours.take(99, QUEUE_MAX)}


def test_window_takes_each_number_once_in_any_order() -> None:
    window = Window()
    assert [window.takes(1, n) for n in (5, 3, 4, 5, 3, 6)] == [True, True, True, False, False, True]
    assert window.takes(1, 6 + WIDTH) and not window.takes(1, 6) and window.takes(1, 7 + 1)
    assert window.takes(2, 1) and not window.takes(1, 10**6)


def test_silent_member_is_asked_for_by_three_others_then_suspected() -> None:
    one = One(5)
    effects = one.run_s(1.9, deaf={3})
    asked = sent(effects, m.PingReq)
    assert {request.target for request in asked} == {3}
    assert len(asked) == 3 * len({request.seq for request in asked})
    assert [(c.node, c.after, c.cause) for c in of(effects, h.StateChanged)] == [(3, State.SUSPECT, "probe")]
    assert not one.core.is_up(NodeId(3)) and one.core.accusers_of(NodeId(3)) == (1,)


def test_health_stays_well_when_all_helpers_are_heard_and_worsens_when_not() -> None:
    well, sick = One(10), One(10)
    well.run_s(5, deaf=set(range(2, 11)))
    sick.run_s(5, deaf=set(range(2, 11)), helping=False)
    assert well.core.common.health.score == 0
    assert sick.core.common.health.score > 0


def test_late_ack_by_way_of_a_helper_ends_the_probe() -> None:
    one = One(10)
    one.run_s(0.0)
    while not (asked := sent(one.effects, m.PingReq)):
        one.run_s(0.05, deaf=set(range(2, 11)))
    request = asked[0]
    one.arrives(m.Ack(one.head(4), one.next(), request.seq, request.target, I1, m.Load()), answer=True)
    one.run_s(2, deaf={int(request.target)})
    assert not of(one.effects, h.StateChanged)


def test_helper_pings_and_answers_ack_or_nack_in_time() -> None:
    one = One(4)
    effects = one.arrives(m.PingReq(one.head(2), one.next(), 77, NodeId(3), 500))
    (ping,) = sent(effects, m.Ping)
    effects = one.arrives(m.Ack(one.head(3), one.next(), ping.seq, NodeId(3), I1, m.Load()), answer=True)
    (ack,) = sent(effects, m.Ack)
    assert (ack.seq, ack.subject) == (77, 3)
    one.arrives(m.PingReq(one.head(2), one.next(), 78, NodeId(4), 500))
    effects = one.run_s(0.41, deaf={4})
    assert [nack.seq for nack in sent(effects, m.Nack)] == [78]
    assert sent(one.arrives(m.PingReq(one.head(2), one.next(), 79, NodeId(99), 500)), m.Nack)


def test_ping_that_names_another_is_not_answered() -> None:
    one = One(3)
    assert not sent(one.arrives(m.Ping(one.head(2), one.next(), 1, NodeId(9))), m.Ack)
    assert one.core.common.journal.dropped["ping for another"] == 1


def test_we_refute_with_a_higher_incarnation_and_trust_ourselves_less() -> None:
    one = One(5)
    one.gossip(2, suspect(1, 3))
    me = one.core.common.me
    assert me.incarnation == I1 + 1 and one.core.common.health.score == 1
    assert any(r.node == 1 and r.state is State.ALIVE for g in sent(one.run_s(0.1), m.Gossip) for r in g.rumours)
    one.gossip(2, suspect(1, 3, incarnation=I1 + 9))
    assert me.incarnation == I1 + 10
    one.gossip(2, suspect(1, 3))
    assert me.incarnation == I1 + 10  # an old accusation needs no answer


def test_ack_says_what_is_so_when_the_ping_accused_us() -> None:
    """Lifeguard, buddy."""
    one = One(5)
    effects = one.arrives(m.Ping(one.head(2), one.next(), 1, NodeId(1), [suspect(1, 2)]))
    (ack,) = sent(effects, m.Ack)
    assert [(r.node, r.incarnation, r.state) for r in ack.rumours] == [(1, I1 + 1, State.ALIVE)]
    assert ack.incarnation == I1 + 1


def test_ping_to_a_suspect_carries_the_accusation() -> None:
    one = One(5)
    one.gossip(2, suspect(3, 2))
    pings = [p for p in sent(one.run_s(1.2, deaf={3}), m.Ping) if p.target == 3]
    assert pings and all(any(r.node == 3 and r.state is State.SUSPECT for r in p.rumours) for p in pings)


def test_one_accuser_makes_nobody_dead_two_do() -> None:
    one = One(5)
    one.run_s(11)  # over the start-up grace
    one.gossip(2, dead(3, 2))
    assert one.state(3) is State.SUSPECT
    one.gossip(4, dead(3, 4))
    assert one.state(3) is State.DEAD
    assert one.core.accusers_of(NodeId(3)) == (2, 4)


def test_own_suspicion_alone_never_becomes_a_verdict() -> None:
    one = One(5)
    one.run_s(120, deaf={3})
    assert one.state(3) is State.SUSPECT
    one.gossip(2, suspect(3, 2))
    one.run_s(60, deaf={3})
    assert one.state(3) is State.DEAD


def test_among_three_one_accuser_is_enough() -> None:
    one = One(3)
    one.run_s(15, deaf={3})
    assert one.state(3) is State.DEAD


def test_no_verdict_within_the_grace_of_a_start() -> None:
    one = One(5)
    one.gossip(2, dead(3, 2, 4, 5))
    assert one.state(3) is State.SUSPECT
    one.run_s(9.9, deaf={3})
    assert one.state(3) is State.SUSPECT
    one.run_s(2, deaf={3})
    assert one.state(3) is State.DEAD


def test_stale_alive_resurrects_nobody_and_the_suspect_is_told() -> None:
    """A failure of a higher incarnation counts though the incarnation was not known before."""
    one = One(5)
    one.gossip(2, suspect(3, 2, incarnation=I1 + 5))
    effects = one.gossip(4, alive(3, I1 + 4))
    assert one.state(3) is State.SUSPECT and one.incarnation(3) == I1 + 5
    assert any(p.target == 3 for p in sent(effects, m.Ping))
    one.gossip(3, incarnation=I1 + 6)  # its own word
    assert one.state(3) is State.ALIVE


def test_relayed_refutation_counts_among_few_only_when_the_member_confirms_it() -> None:
    few, many = One(5), One(20)
    for one in (few, many):
        one.gossip(2, suspect(3, 2))
        one.gossip(4, alive(3, I1 + 1))
    assert (few.state(3), many.state(3)) == (State.SUSPECT, State.ALIVE)
    assert any(p.target == 3 for p in sent(few.effects, m.Ping))


def test_suspect_that_speaks_is_told_and_only_a_refutation_clears_it() -> None:
    one = One(5)
    one.gossip(2, suspect(3, 2))
    effects = one.arrives(m.Ping(one.head(3), one.next(), 5, NodeId(1)))
    (ack,) = sent(effects, m.Ack)
    assert [(r.node, r.state) for r in ack.rumours if r.node == 3] == [(3, State.SUSPECT)]
    assert one.state(3) is State.SUSPECT
    one.arrives(m.Ping(one.head(3, I1 + 1), one.next(), 6, NodeId(1)))
    assert one.state(3) is State.ALIVE


def test_sync_carries_no_verdict() -> None:
    one = One(5)
    one.run_s(11)
    stranger = m.Rumour(NodeId(9), I1, State.DEAD, (NodeId(2), NodeId(4)), profile(9))
    one.arrives(m.SyncDelta(one.head(2), one.next(), 0, 0, 0, [dead(3, 2, 4), stranger]), answer=True)
    assert one.state(3) is State.SUSPECT  # not dead, though two accuse
    assert one.state(9) is State.DEAD  # but unverified: it is tried first
    assert any(p.target == 9 for p in sent(one.run_s(2.1, deaf={3, 9}), m.Ping))
    one.gossip(4, alive(9, I1))
    one.gossip(9)
    assert one.state(9) is State.ALIVE  # its own word at the same incarnation counts more


def test_only_an_own_word_adds_a_member() -> None:
    one = One(5)
    one.gossip(2, suspect(9, 2))
    assert one.state(9) is None
    assert sent(one.effects, m.SyncDigest)  # the teller is asked who that is
    one.gossip(2, alive(9, I1))
    assert one.state(9) is State.ALIVE


def test_pause_moves_every_deadline_and_voids_what_was_under_way() -> None:
    one = One(5)
    one.run_s(11)
    one.gossip(2, suspect(3, 2, 4))
    one.now_ns += 30 * SECOND  # stopped
    effects = one.handle(h.Woke())
    effects += one.run_s(0.1)
    assert one.core.common.journal.pauses == 1 and one.core.common.health.score >= 1
    assert not of(effects, h.StateChanged) and one.state(3) is State.SUSPECT


def test_after_a_pause_no_verdict_before_somebody_answered() -> None:
    one = One(5)
    one.run_s(11)
    one.now_ns += 30 * SECOND
    one.handle(h.Woke())
    everybody = {2, 3, 4, 5}
    one.gossip(2, dead(3, 2, 4))
    one.run_s(40, deaf=everybody)
    assert one.state(3) is State.SUSPECT
    one.run_s(30, deaf={3})
    assert one.state(3) is State.DEAD


def test_suspend_of_the_machine_is_a_pause() -> None:
    one = One(5)
    one.handle(h.Suspended(60 * SECOND))
    assert one.core.common.journal.pauses == 1 and one.core.common.health.score == 2


def test_too_many_silent_at_once_freeze_all_verdicts() -> None:
    one = One(10)
    one.run_s(11)
    for node in (3, 4, 5, 6):
        one.gossip(2, suspect(node, 2, 7))
    assert one.core.common.journal.freezes == 1
    assert any(note.event == "mass_suspicion" for note in of(one.effects, Note))
    one.gossip(2, dead(3, 2, 7))
    one.run_s(50, deaf={3, 4, 5, 6})
    assert one.state(3) is State.SUSPECT
    one.run_s(20, deaf={3, 4, 5, 6})
    assert one.state(3) is State.DEAD


def test_member_that_keeps_refuting_gets_more_time_and_an_alert() -> None:
    one = One(20)
    waits = []
    for turn in range(12):
        one.gossip(2, suspect(3, 2, 4, 5, 6, incarnation=I1 + turn))
        record = one.core.common.table.get(NodeId(3))
        assert record is not None and record.suspicion is not None
        waits.append((record.suspicion.deadline_ns - record.suspicion.started_ns) // SECOND)
        one.gossip(4, alive(3, I1 + turn + 1))
    assert waits == [3, 3, 3, 3, 3, 3, 6, 6, 6, 6, 6, 12]
    assert [note.event for note in of(one.effects, Note)].count("flapping") == 1


@pytest.mark.parametrize("event", [h.LinkLost(NodeId(3)), h.HeartbeatsMissed(NodeId(3))])
def test_evidence_of_the_transport_opens_a_suspicion_at_once_and_shortens_none(event: h.Event) -> None:
    one = One(5)
    one.run_s(11)
    one.handle(event)
    effects = one.run_s(0.7, deaf={3})
    assert sent(effects, m.PingReq) and one.state(3) is State.SUSPECT
    one.gossip(2, suspect(3, 2, 4, 5))
    one.run_s(2.2, deaf={3})
    assert one.state(3) is State.SUSPECT
    one.run_s(0.8, deaf={3})
    assert one.state(3) is State.DEAD


def test_evidence_is_acted_on_a_few_times_a_second() -> None:
    one = One(8)
    for node in range(2, 9):
        one.handle(h.LinkLost(NodeId(node)))
    assert (one.core.common.journal.hints, one.core.common.journal.hints_over) == (5, 2)


def test_foreign_cluster_is_refused_with_a_reason() -> None:
    one = One(3)
    before = snapshot(one)
    (reject,) = sent(one.arrives(m.Ping(one.head(2, cluster=8), one.next(), 1, NodeId(1))), m.Reject)
    assert reject.reason is m.Reason.CLUSTER
    assert snapshot(one) == before


def test_foreign_protocol_is_refused_with_a_reason() -> None:
    one = One(3)
    theirs = m.Profile("new", "10.0.0.9:7401", "10.0.0.9:7402", 1, protocol_min=2, protocol_max=5)
    (reject,) = sent(one.arrives(m.Hello(one.head(9), one.next(), theirs)), m.Reject)
    assert reject.reason is m.Reason.PROTOCOL and "2 to 5" in reject.text
    assert one.state(9) is None


def test_removed_member_is_refused_for_ever() -> None:
    one = One(3)
    assert of(one.handle(h.MemberRemoved(NodeId(3))), h.Forget)
    (reject,) = sent(one.arrives(m.Ping(one.head(3, incarnation_of(9)), one.next(), 1, NodeId(1))), m.Reject)
    assert reject.reason is m.Reason.REMOVED and one.state(3) is State.REMOVED
    one.gossip(2, alive(3, incarnation_of(99)))
    assert one.state(3) is State.REMOVED


def test_stranger_is_answered_and_asked_to_introduce_itself() -> None:
    one = One(3)
    effects = one.arrives(m.Ping(one.head(9), one.next(), 4, NodeId(1)))
    assert [ack.seq for ack in sent(effects, m.Ack)] == [4]
    assert [r.reason for r in sent(effects, m.Reject)] == [m.Reason.UNKNOWN]
    effects = one.arrives(m.Hello(one.head(9), one.next(), profile(9)))
    assert one.state(9) is State.ALIVE and sent(effects, m.Welcome)


def test_who_is_not_known_elsewhere_says_hello() -> None:
    one = One(3)
    effects = one.arrives(m.Reject(one.head(2), one.next(), m.Reason.UNKNOWN, "?", 5), answer=True)
    assert [send.node for send in of(effects, h.Send) if isinstance(send.message, m.Hello)] == [2]


def test_twin_that_started_later_stops_us_and_an_earlier_one_hears_so() -> None:
    one = One(3)
    effects = one.arrives(m.Hello(one.head(1, incarnation_of(2)), one.next(), profile(1, instance=5)))
    assert [halt.reason for halt in of(effects, h.Halt)] == ["duplicate-id"]
    other = One(3, generation=3)
    effects = other.arrives(m.Hello(other.head(1, incarnation_of(2)), other.next(), profile(1, instance=5)))
    assert not of(effects, h.Halt)
    assert [r.reason for r in sent(effects, m.Reject)] == [m.Reason.DUPLICATE]
    answered = One(3)
    reject = m.Reject(answered.head(1, incarnation_of(4)), 1, m.Reason.DUPLICATE, "two", 5)
    assert of(answered.arrives(reject, answer=True), h.Halt)


def test_own_hello_by_way_of_a_seed_is_ignored() -> None:
    one = One(3)
    assert not one.arrives(m.Hello(one.head(1), one.next(), profile(1)))


def test_earlier_life_at_our_own_address_raises_the_generation_before_anything_is_said() -> None:
    """The disk was rolled back: generation 1 again, while others know 7."""
    one = One(3)
    effects = one.gossip(2, alive(1, incarnation_of(7, 3), instance=5))
    assert [raised.generation for raised in of(effects, h.RaiseGeneration)] == [8]
    assert not of(one.run_s(2), h.Send)
    effects = one.handle(h.GenerationRaised(8))
    assert one.core.common.me.generation == 8
    assert of(one.run_s(2), h.Send)


def test_earlier_life_elsewhere_is_looked_for_first() -> None:
    one = One(3)
    claim = m.Rumour(NodeId(1), incarnation_of(7), State.ALIVE, (), profile(77, instance=5))
    effects = one.gossip(2, claim)
    assert [s.address for s in of(effects, h.Send) if isinstance(s.message, m.Hello)] == ["10.0.0.77:7401"]
    assert not of(one.run_s(2.5), h.RaiseGeneration)
    assert [raised.generation for raised in of(one.run_s(1), h.RaiseGeneration)] == [8]


def test_leave_is_said_and_stays_until_it_was_heard() -> None:
    one = One(5)
    one.handle(h.LeaveOrdered())
    assert one.own_state() is State.LEAVING
    one.handle(h.Drained())
    effects = one.run_s(0.9)
    assert any(r.node == 1 and r.state is State.LEFT for g in sent(effects, m.Gossip) for r in g.rumours)
    assert not of(effects, h.Departed)
    assert len(of(one.run_s(2), h.Departed)) == 1
    one.gossip(2, suspect(1, 2, incarnation=one.core.common.me.incarnation))
    assert one.own_state() is State.LEFT  # nothing to refute


def test_member_that_left_is_not_called_dead_and_comes_back_with_a_later_start() -> None:
    one = One(5)
    one.gossip(3, m.Rumour(NodeId(3), I1 + 1, State.LEFT), incarnation=I1 + 1)
    assert one.state(3) is State.LEFT
    one.gossip(2, dead(3, 2, 4, incarnation=I1 + 1))
    assert one.state(3) is State.LEFT
    one.arrives(m.Hello(one.head(3, incarnation_of(2)), one.next(), profile(3)))
    assert one.state(3) is State.ALIVE


def test_dead_members_without_data_are_given_up_owners_never() -> None:
    one = One(5, timing=Timing(dead_kept_ns=30 * SECOND, reap_interval_ns=5 * SECOND))
    one.handle(h.TopologyChanged(1, 5, frozenset({NodeId(3)})))
    one.run_s(11)
    for node in (3, 4):
        one.gossip(2, dead(node, 2, 5))
    effects = one.run_s(40, deaf={3, 4})
    assert (one.state(3), one.state(4)) == (State.DEAD, None)
    assert [forget.node for forget in of(effects, h.Forget)] == [4]


def test_dead_are_tried_for_ever() -> None:
    one = One(5)
    one.run_s(11)
    one.gossip(2, dead(3, 2, 4))
    one.run_s(3_600, deaf={3})
    tries = [ping for ping in sent(one.run_s(60, deaf={3}), m.Ping) if ping.target == 3]
    assert len(tries) >= 5


def test_remembered_members_are_sought_and_taken_back_at_their_word() -> None:
    known = [h.Remembered(NodeId(i), I1, State.ALIVE, profile(i)) for i in (2, 3)]
    one = One(1, members=known)
    assert one.state(2) is State.DEAD
    assert len([s for s in of(one.started, h.Send) if isinstance(s.message, m.Hello)]) == 2
    one.arrives(m.Welcome(one.head(2), one.next(), profile(2)), answer=True)
    assert one.state(2) is State.ALIVE and one.state(3) is State.DEAD
    assert {k.node for k in one.core.keeping.snapshot()} == {2, 3}


def test_what_was_only_remembered_is_no_accusation() -> None:
    """A restarted node knows nobody to be up yet. Its SYNC and its pings must not make suspects of all others."""
    one = One(1, members=[h.Remembered(NodeId(i), I1, State.ALIVE, profile(i)) for i in range(2, 10)])
    effects = one.arrives(m.SyncDigest(one.head(2), one.next(), 1, (0,) * m.BUCKETS))
    assert not [r for delta in sent(effects, m.SyncDelta) for r in delta.records if r.state is State.DEAD]
    assert not [r for ping in sent(one.run_s(30, deaf=set(range(2, 10))), m.Ping) for r in ping.rumours if r.node > 2]


def test_remembered_member_that_others_call_dead_is_dead() -> None:
    one = One(1, members=[h.Remembered(NodeId(i), I1, State.ALIVE, profile(i)) for i in range(2, 10)])
    one.gossip(2, dead(3, 2, 4))
    assert one.core.accusers_of(NodeId(3)) == (2, 4)
    one.gossip(3)
    assert one.state(3) is State.DEAD  # now it has to refute
    one.gossip(3, incarnation=I1 + 1)
    assert one.state(3) is State.ALIVE


def test_node_with_seeds_forms_no_cluster_alone() -> None:
    one = One(1, cluster=0, seeds=["10.0.0.2:7401"])
    hellos = [s for s in of(one.started + one.run_s(100), h.Send) if isinstance(s.message, m.Hello)]
    assert 5 <= len(hellos) <= 12  # backs off
    assert one.own_state() is State.JOINING
    assert not one.arrives(m.Hello(one.head(9, cluster=0), one.next(), profile(9)))
    effects = one.arrives(m.Welcome(one.head(2), one.next(), profile(2)), answer=True)
    (digest,) = sent(effects, m.SyncDigest)
    assert digest.head.cluster == CLUSTER
    one.arrives(m.SyncDelta(one.head(2), one.next(), digest.seq, 0, 0, [alive(3, I1)]), answer=True)
    one.run_s(0.1)
    assert one.own_state() is State.ALIVE and one.state(3) is State.ALIVE


def test_topology_of_others_is_reported_once_per_change() -> None:
    one = One(3)
    one.handle(h.TopologyChanged(4, 44, frozenset()))
    seen = []
    for epoch, digest in ((3, 33), (4, 44), (4, 45), (4, 45), (5, 55)):
        effects = one.arrives(m.Ping(one.head(2, epoch=epoch, topology_hash=digest), one.next(), 1, NodeId(1)))
        seen.append([(e.epoch, e.topology_hash) for e in of(effects, h.EpochSeen)])
    assert seen == [[], [], [(4, 45)], [], [(5, 55)]]


def test_load_of_others_is_known_from_their_acks() -> None:
    one = One(3)
    one.handle(h.LoadMeasured(m.Load(operations_s=5)))
    (ack,) = sent(one.arrives(m.Ping(one.head(2), one.next(), 1, NodeId(1))), m.Ack)
    assert ack.load.operations_s == 5
    one.arrives(m.Ack(one.head(2), one.next(), 99, NodeId(2), I1, m.Load(bytes_used=8)), answer=True)
    record = one.core.common.table.get(NodeId(2))
    assert record is not None and record.link is not None and record.link.load.bytes_used == 8


def test_rumours_come_from_whose_socket_it_is() -> None:
    one = One(10)
    one.handle(h.Overheard(NodeId(3), m.Gossip(one.head(2), one.next(), 1, [suspect(4, 2)])))
    assert one.state(4) is State.ALIVE
    one.handle(h.Overheard(NodeId(2), m.Gossip(one.head(2), one.next(), 1, [suspect(4, 2)])))
    assert one.state(4) is State.SUSPECT


def test_gap_in_what_a_neighbour_publishes_is_repaired_by_sync() -> None:
    one = One(10)
    assert not sent(one.handle(h.Overheard(NodeId(2), m.Gossip(one.head(2), one.next(), 1, []))), m.SyncDigest)
    assert not sent(one.handle(h.Overheard(NodeId(2), m.Gossip(one.head(2), one.next(), 2, []))), m.SyncDigest)
    assert sent(one.handle(h.Overheard(NodeId(2), m.Gossip(one.head(2), one.next(), 4, []))), m.SyncDigest)


def test_sync_is_answered_for_a_few_at_a_time() -> None:
    one = One(30)
    kinds = []
    for node in range(2, 22):
        effects = one.arrives(m.SyncDigest(one.head(node), one.next(), 1, (0,) * m.BUCKETS))
        kinds += [type(e.message).__name__ for e in of(effects, h.Answer)]
    assert kinds == ["SyncDelta"] * 16 + ["Busy"] * 4


def snapshot(one: One) -> object:
    common = one.core.common
    records = {
        node: (
            r.state,
            r.incarnation,
            r.profile,
            r.since_ns,
            r.suspicion and (r.suspicion.named, r.suspicion.deadline_ns),
        )
        for node, r in common.table.records.items()
    }
    return records, common.me.incarnation, common.me.state, common.health.score, one.core.neighbours.nodes


MESSAGES = [
    m.Hello(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, profile(2)),
    m.Welcome(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, profile(2)),
    m.Reject(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, m.Reason.PROTOCOL, "no", 1),
    m.Ping(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1, NodeId(1), [suspect(3, 2), suspect(1, 2)]),
    m.Ack(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1, NodeId(2), I1, m.Load(), [dead(3, 2, 4)]),
    m.PingReq(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1, NodeId(3), 500),
    m.Nack(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1),
    m.Gossip(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 0, [alive(9, I1)]),
    m.SyncDigest(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1, (0,) * m.BUCKETS),
    m.SyncDelta(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1, 0, 0, [dead(3, 2, 4)]),
    m.Busy(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, 1),
    m.Neighbour(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, True),
    m.NeighbourReply(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50, False),
    m.Disconnect(m.Head(CLUSTER, NodeId(2), I1, State.ALIVE), 50),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_repeated_message_changes_nothing_and_orders_nothing(message: m.Message) -> None:
    one = One(20)
    one.run_s(11)
    one.arrives(copy.deepcopy(message))
    one.run_s(0.05)
    before = snapshot(one)
    assert not one.handle(h.Arrived(message, ROUTE))
    assert snapshot(one) == before and one.core.common.journal.dropped["repeated"] == 1


def test_old_message_after_a_restart_of_its_sender_changes_nothing() -> None:
    one = One(5)
    one.gossip(2, incarnation=incarnation_of(2))
    before = snapshot(one)
    effects = one.arrives(m.Ping(one.head(2), 10**6, 1, NodeId(1), [suspect(3, 2)]))
    assert snapshot(one) == before
    (ack,) = sent(effects, m.Ack)  # it may be the member itself, whose disk was rolled back: it is told
    assert [(r.node, r.incarnation) for r in ack.rumours] == [(2, incarnation_of(2))]


def test_every_counter_has_a_name() -> None:
    one = One(5)
    one.run_s(30, deaf={3})
    names = {family.name for family in one.core.families()}
    assert {"zkv_membership_health_score", "zkv_membership_suspect_total", "zkv_membership_probe_rtt_seconds"} <= names
    assert all(name.startswith("zkv_membership_") for name in names)
    assert [entry.what for entry in one.core.common.journal.entries] == ["suspect"]


def test_timing_of_a_late_probe_follows_the_round_trips() -> None:
    one = One(5)
    record = one.core.common.table.get(NodeId(3))
    assert record is not None
    for _ in range(20):
        record.linked().measured(200 * MS)
    assert one.core.probing._timeout_ns(record) == pytest.approx(200 * MS, rel=0.05)
