"""Who is kept and for how long: remembered over a restart, reaped, removed.

Owns: what is persisted and when, the age at which a record is given up. Must not know: why somebody is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from zkv.core.membership.claims import Claims
from zkv.core.membership.common import Common
from zkv.core.membership.happenings import Forget, Persist, Remembered
from zkv.core.membership.states import State
from zkv.core.membership.table import Record
from zkv.ids import NodeId


class Keeping:
    def __init__(self, common: Common, claims: Claims) -> None:
        self._common = common
        self._claims = claims
        #: members that own data: kept, dead or not, until an operator removes them
        self.owners: frozenset[NodeId] = frozenset()
        self._due = False
        common.remember = self._remember

    def start(self) -> None:
        self._common.agenda.at(self._common.now_ns + self._common.timing.reap_interval_ns, self._reap)
        self._remember()

    def take_over(self, members: Iterable[Remembered], *, up: bool) -> None:
        """Those that an earlier life knew, or a list names. Not up: to be tried first, and nothing is said of them until they were heard."""
        common = self._common
        for known in members:
            if known.node == common.me.node or common.table.get(known.node) is not None:
                continue
            state = known.state
            if state <= State.DEAD:
                state = State.ALIVE if up else State.DEAD
            record = Record(known.node, known.incarnation, state, known.profile, common.now_ns)
            record.unverified = state is State.DEAD
            common.table.add(record)

    def snapshot(self) -> tuple[Remembered, ...]:
        return tuple(
            Remembered(record.node, record.incarnation, record.state, record.profile)
            for record in self._common.table.records.values()
        )

    def _remember(self) -> None:
        if not self._due:
            self._due = True
            self._common.agenda.at(self._common.now_ns + self._common.timing.persist_delay_ns, self._persist)

    def _persist(self) -> None:
        self._due = False
        self._common.effects.append(Persist(self.snapshot()))

    def remove(self, node: NodeId) -> None:
        """The operator's word. A member that is not known cannot be removed: there is nothing that could come back."""
        record = self._common.table.get(node)
        if record is not None and record.state is not State.REMOVED:
            self._claims.gone(record, record.incarnation, State.REMOVED, "operator")

    def _reap(self) -> None:
        common = self._common
        timing = common.timing
        common.agenda.at(common.now_ns + timing.reap_interval_ns, self._reap)
        kept_ns = {State.DEAD: timing.dead_kept_ns, State.LEFT: timing.left_kept_ns}
        over = [
            record.node
            for record in common.table.in_state(State.DEAD, State.LEFT)
            if record.node not in self.owners and common.now_ns - record.since_ns >= kept_ns[record.state]
        ]
        for node in over:
            common.table.drop(node)
            common.rumours.drop(node)
            common.effects.append(Forget(node))
        if over:
            self._remember()
