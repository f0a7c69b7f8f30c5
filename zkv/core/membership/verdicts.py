"""From silence to a verdict and back: suspect, dead, up again.

Owns: who may be called dead, when, and what a refutation ends. Must not know: how silence was found (probing), what was heard (claims).
Source: SWIM 4.2, Lifeguard; two accusers, freeze and flap damping: docs/membership.md.

| held    | accused by enough, in time | accused            | refuted with a higher incarnation |
|---------|----------------------------|--------------------|-----------------------------------|
| up      |                            | suspect            | up                                |
| suspect | dead                       | suspect, sooner    | up                                |
| dead    | dead                       | dead               | up                                |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zkv.core.membership.common import Common
from zkv.core.membership.states import State
from zkv.core.membership.suspicion import Suspicion
from zkv.core.membership.table import Record
from zkv.ids import NodeId

#: members that look for themselves at once when they hear of a suspicion: enough to confirm it or to see that it is wrong
LOOKERS = 5


class Verdicts:
    def __init__(self, common: Common) -> None:
        self._common = common
        #: node -> when it refuted, within the window of flap damping
        self._refuted_ns: dict[NodeId, list[int]] = {}
        self.look: Callable[[Record], None] = lambda record: None

    # --- down ---

    def accuse(self, record: Record, cause: str) -> None:
        """We ourselves found it silent."""
        common = self._common
        if record.is_up:
            self.suspect(record, record.incarnation, (common.me.node,), cause)
        elif record.suspicion is not None and self.confirm(record, record.suspicion, (common.me.node,)):
            common.tell(record.rumour())

    def suspect(self, record: Record, incarnation: int, accusers: Iterable[NodeId], cause: str) -> None:
        """Begin a suspicion of this incarnation, and tell it."""
        common = self._common
        timing, members = common.timing, common.table.size
        shortest_ns, longest_ns = timing.suspicion_bounds_ns(members, self._damping(record.node))
        confirmations = timing.confirmations if members >= timing.confirmations_from else 0
        suspicion = Suspicion(cause, common.now_ns, shortest_ns, longest_ns, confirmations, accusers)
        record.suspicion = suspicion
        record.incarnation = incarnation
        record.unverified = False
        common.journal.suspected[cause] += 1
        if common.health.suspected(record.node, common.now_ns, members):
            common.journal.freezes += 1
            common.note(
                "warning", "mass_suspicion", "too many members fell silent at once: none is called dead for a while"
            )
        common.agenda.at(suspicion.deadline_ns, self._expire, record, suspicion)
        common.change(record, State.SUSPECT, cause)
        common.tell(record.rumour())
        if not suspicion.names(common.me.node) and common.dice.random() * members < LOOKERS:
            self.look(record)

    def confirm(self, record: Record, suspicion: Suspicion, accusers: Iterable[NodeId]) -> bool:
        """Whether this was news: another accuser, and the verdict is sooner."""
        if suspicion.settled or not suspicion.accuse(accusers):
            return False
        self._common.agenda.at(suspicion.deadline_ns, self._expire, record, suspicion)
        return True

    def enough(self, accusers: int) -> bool:
        """One alone may be the one that is cut off."""
        common = self._common
        return accusers >= (2 if common.table.size >= common.timing.accusers_from else 1)

    def may_convict(self, accusers: int) -> bool:
        return self.enough(accusers) and self._common.health.may_convict(self._common.now_ns)

    def _expire(self, record: Record, suspicion: Suspicion) -> None:
        common = self._common
        if record.suspicion is not suspicion:
            return
        if common.now_ns < suspicion.deadline_ns:  # time stood still in between
            common.agenda.at(suspicion.deadline_ns, self._expire, record, suspicion)
        elif not self.may_convict(suspicion.accusers):
            common.agenda.at(common.health.convict_at_ns(common.now_ns), self._expire, record, suspicion)
        else:
            self.convict(record, suspicion, suspicion.cause)

    def convict(self, record: Record, suspicion: Suspicion, cause: str) -> None:
        common = self._common
        record.suspicion = None
        record.accusers = suspicion.named
        common.journal.verdict(cause, suspicion.accusers)
        common.change(record, State.DEAD, cause)
        common.tell(record.rumour())

    def shift(self, gap_ns: int) -> None:
        """We stood still: nobody's time to refute ran in the meantime."""
        for record in self._common.table.in_state(State.SUSPECT):
            if record.suspicion is not None:
                record.suspicion.shift(gap_ns)

    # --- up ---

    def revive(self, record: Record, incarnation: int, state: State, cause: str) -> None:
        """It is up, by a claim that wins. Not told from here."""
        common = self._common
        if record.state in (State.SUSPECT, State.DEAD) and not record.unverified:
            common.journal.refuted[record.state.word] += 1
            if record.state is State.SUSPECT or not _restarted(record.incarnation, incarnation):
                self._flapped(record)
        common.health.revived(record.node)
        record.incarnation = incarnation
        record.suspicion = None
        record.accusers = ()
        record.unverified = False
        common.change(record, state, cause)

    def _flapped(self, record: Record) -> None:
        common = self._common
        oldest_ns = common.now_ns - common.timing.flap_window_ns
        times = [at_ns for at_ns in self._refuted_ns.get(record.node, ()) if at_ns > oldest_ns]
        times.append(common.now_ns)
        self._refuted_ns[record.node] = times[-2 * common.timing.flap_limit - 1 :]
        if len(times) == common.timing.flap_limit + 1:
            text = f"{record.profile.name} was suspected and refuted {len(times)} times in ten minutes"
            common.journal.note(common.now_ns, record.node, "flapping", text)
            common.note("warning", "flapping", text)

    def _damping(self, node: NodeId) -> int:
        """A member that keeps refuting is there: it gets more time."""
        timing = self._common.timing
        times = self._refuted_ns.get(node)
        if times is None:
            return 1
        recent = sum(at_ns > self._common.now_ns - timing.flap_window_ns for at_ns in times)
        return 4 if recent > 2 * timing.flap_limit else 2 if recent > timing.flap_limit else 1

    def forget(self, node: NodeId) -> None:
        self._refuted_ns.pop(node, None)


def _restarted(held: int, incarnation: int) -> bool:
    return incarnation >> 32 > held >> 32
