"""Who answers: pings, pings by way of others, and evidence of the transport.

Owns: probes in flight, their time-outs, the pings made for others. Must not know: what a suspicion leads to.
Source: SWIM 3.1 and 4.3; Lifeguard, LHA-Probe and NACK.

A probe: (1) Ping; late after srtt + 4 rttvar -> (2) PingReq to three others, who answer Ack or, at four fifths of the wait, Nack; then -> (3) we accuse.
The late Ack of the member itself still counts until then. Evidence of the transport begins at (2): it opens a suspicion sooner, and shortens none.
"""

from __future__ import annotations

from collections.abc import Callable

from zkv.core.events import Route
from zkv.core.membership.common import Common
from zkv.core.membership.messages import Ack, Nack, Ping, PingReq, Rumour
from zkv.core.membership.states import UP_MAX, State
from zkv.core.membership.table import Record
from zkv.core.membership.timing import MS, SECOND
from zkv.core.membership.verdicts import LOOKERS, Verdicts
from zkv.ids import NodeId

#: a wait over helpers, in waits for the member itself: two hops each way, and the Nack at four fifths
INDIRECT_WAITS = 2


class Probe:
    """counts: whether its end says something of our own health. cause: what a failure is called."""

    __slots__ = ("asked", "begun", "cause", "counts", "helpers", "hinted", "nacks", "node", "sent_ns")

    def __init__(self, node: NodeId, sent_ns: int, begun: int, cause: str, counts: bool) -> None:
        self.node = node
        self.sent_ns = sent_ns
        #: number of pauses of ours before it
        self.begun = begun
        self.cause = cause
        self.counts = counts
        self.asked = False
        self.hinted = False
        self.helpers = 0
        self.nacks = 0


class Probing:
    def __init__(self, common: Common, verdicts: Verdicts) -> None:
        self._common = common
        self._verdicts = verdicts
        self._seq = 0
        self._open: dict[int, Probe] = {}
        self._of: dict[NodeId, int] = {}
        #: pings made for others: our seq -> who asked, under which number
        self._relays: dict[int, tuple[Route, int]] = {}
        #: intervals since the last probe: one that is not well probes more rarely
        self._skipped = 0
        self._hint_second = 0
        self._hints = 0
        #: told of each Ack of a member itself
        self.on_life: Callable[[NodeId], None] = lambda node: None

    def start(self) -> None:
        common = self._common
        first_ns = int(common.dice.random() * common.timing.probe_interval_ns)
        common.agenda.at(common.now_ns + first_ns, self._tick)

    # --- our own probes ---

    def _tick(self) -> None:
        common = self._common
        timing = common.timing
        common.agenda.at(common.now_ns + timing.probe_interval_ns, self._tick)  # also tells that we did not stand still
        self._skipped += 1
        if self._skipped < common.health.stretch:
            return
        self._skipped = 0
        if common.table.size <= timing.mesh_max:
            for record in common.table.records.values():
                if record.state <= State.SUSPECT:
                    self._begin(record, "probe", counts=True)
        else:
            target = common.table.next_target()
            if target is not None:
                self._begin(target, "probe", counts=True)

    def look(self, record: Record) -> None:
        """Probe out of turn: somebody suspects it."""
        self._begin(record, "look", counts=False)

    def contact(self, record: Record) -> None:
        """A ping that nothing follows from but the answer: it tells a member what is said of it."""
        self._seq += 1
        self._common.send_to(record, self._ping(self._seq, record))

    def _ping(self, seq: int, record: Record) -> Ping:
        common = self._common
        said = (
            (record.rumour(),) if record.state > UP_MAX and not record.unverified else ()
        )  # Lifeguard, buddy: let it refute at once
        return Ping(common.me.head, common.me.number(), seq, record.node, common.piggyback(*said))

    def _begin(self, record: Record, cause: str, *, counts: bool) -> None:
        common = self._common
        if record.node in self._of or common.muted:
            return
        self._seq += 1
        seq = self._seq
        self._open[seq] = Probe(record.node, common.now_ns, common.journal.pauses, cause, counts)
        self._of[record.node] = seq
        common.send_to(record, self._ping(seq, record))
        common.agenda.at(common.now_ns + self._timeout_ns(record), self._late, seq)

    def _timeout_ns(self, record: Record) -> int:
        timing, link = self._common.timing, record.link
        if link is None or not link.rtt_ns:
            usual_ns = timing.probe_timeout_ns
        else:
            measured_ns = int(link.rtt_ns + 4 * link.rtt_var_ns)
            usual_ns = min(timing.probe_timeout_max_ns, max(timing.probe_timeout_min_ns, measured_ns))
        return usual_ns * self._common.health.stretch

    def _late(self, seq: int) -> None:
        probe = self._open.get(seq)
        if probe is None or probe.asked:
            return
        common = self._common
        record = common.table.get(probe.node)
        if record is None or record.state > State.SUSPECT:
            self._close(seq)
            return
        probe.asked = True
        wait_ns = INDIRECT_WAITS * self._timeout_ns(record)
        if probe.hinted:
            wait_ns = min(wait_ns, common.timing.hint_wait_ns * common.health.stretch)
        for helper in common.table.some(common.timing.indirect, lambda other: other.is_up and other is not record):
            probe.helpers += 1
            request = PingReq(common.me.head, common.me.number(), seq, record.node, wait_ns // MS, common.piggyback())
            common.send_to(helper, request)
        common.agenda.at(common.now_ns + wait_ns, self._failed, seq)

    def _failed(self, seq: int) -> None:
        probe = self._close(seq)
        if probe is None:
            return
        common = self._common
        if probe.counts:
            # All helpers say that they are there: the target is not, and we are well.
            common.health.add(probe.helpers - probe.nacks if probe.helpers else 1)
        record = common.table.get(probe.node)
        if record is not None and record.state <= State.SUSPECT:
            self._verdicts.accuse(record, probe.cause)

    def _close(self, seq: int) -> Probe | None:
        probe = self._open.pop(seq, None)
        if probe is not None:
            del self._of[probe.node]
        return probe

    def void(self) -> None:
        """We stood still: what was under way says nothing."""
        self._open.clear()
        self._of.clear()

    # --- evidence of the transport ---

    def on_evidence(self, record: Record, cause: str, *, near: bool) -> None:
        """A connection broke or fell silent. Others are asked at once, not all at the same moment.

        near: it is a neighbour of ours. Of the many who merely had a connection, some look.
        """
        common = self._common
        if not record.is_up or not (near or common.dice.random() * common.table.size < LOOKERS):
            return
        second = common.now_ns // SECOND
        if second != self._hint_second:
            self._hint_second, self._hints = second, 0
        self._hints += 1
        if self._hints > common.timing.hints_s:
            common.journal.hints_over += 1
            return
        common.journal.hints += 1
        share = min(1.0, common.table.size / 30)  # few members need no long jitter
        wait_ns = int(common.dice.random() * common.timing.hint_jitter_ns * share)
        common.agenda.at(common.now_ns + wait_ns, self._hinted, record.node, cause)

    def _hinted(self, node: NodeId, cause: str) -> None:
        record = self._common.table.get(node)
        if record is None or not record.is_up:
            return
        self._begin(record, cause, counts=False)
        seq = self._of.get(node)
        if seq is not None:
            self._open[seq].hinted = True
            self._late(seq)

    # --- messages ---

    def on_ping(self, route: Route, ping: Ping, about: tuple[Rumour, ...]) -> None:
        """about: what the sender should hear of itself."""
        common = self._common
        me = common.me
        if ping.target != me.node:
            common.journal.dropped["ping for another"] += 1
            return
        said = about
        if any(rumour.node == me.node for rumour in ping.rumours):
            said = (*about, me.rumour())  # it was told of us; the answer says what is so
        ack = Ack(me.head, me.number(), ping.seq, me.node, me.incarnation, me.load, common.piggyback(*said))
        common.answer(route, ack)

    def outdated(self, route: Route, ping: Ping, record: Record) -> None:
        """The sender speaks as an earlier life of a member than the one we know: its disk was rolled back, or it is not that member."""
        me = self._common.me
        said = [record.rumour(whole=True)]
        self._common.answer(route, Ack(me.head, me.number(), ping.seq, me.node, me.incarnation, me.load, said))

    def on_ack(self, ack: Ack) -> None:
        common = self._common
        sender = ack.head.sender
        if ack.subject == sender:
            record = common.table.get(sender)
            if record is not None:
                record.linked().load = ack.load
            self.on_life(sender)
            relay = self._relays.pop(ack.seq, None)
            if relay is not None:
                route, seq = relay
                me = common.me
                answer = Ack(me.head, me.number(), seq, sender, ack.head.incarnation, ack.load, common.piggyback())
                common.answer(route, answer)
                return
        probe = self._open.get(ack.seq)
        if probe is None or probe.node != ack.subject:
            return
        self._close(ack.seq)
        if probe.counts:
            common.health.add(-1)
        if probe.begun == common.journal.pauses:
            common.health.proven()
        if sender == probe.node:
            rtt_ns = common.now_ns - probe.sent_ns
            common.journal.rtt.observe(rtt_ns)
            record = common.table.get(sender)
            if record is not None:
                record.linked().measured(rtt_ns)

    def on_nack(self, nack: Nack) -> None:
        probe = self._open.get(nack.seq)
        if probe is not None and probe.asked:
            probe.nacks = min(probe.helpers, probe.nacks + 1)

    # --- for others ---

    def on_ping_req(self, route: Route, request: PingReq) -> None:
        common = self._common
        record = common.table.get(request.target)
        if record is None or record.state >= State.LEFT:
            common.answer(route, Nack(common.me.head, common.me.number(), request.seq))
            return
        self._seq += 1
        self._relays[self._seq] = (route, request.seq)
        common.send_to(record, self._ping(self._seq, record))
        common.agenda.at(common.now_ns + request.wait_ms * MS * 4 // 5, self._relay_late, self._seq)

    def _relay_late(self, seq: int) -> None:
        relay = self._relays.pop(seq, None)
        if relay is not None:
            route, asked = relay
            self._common.answer(route, Nack(self._common.me.head, self._common.me.number(), asked))
