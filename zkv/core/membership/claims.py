"""What is heard of members: which claim wins, what is told on, who is told that it is wrong.

Owns: the rules for a claim about another member, and for the word of the member itself. Must not know: how it came.

- Only a member's own word (with its profile) adds it to the table; stored incarnations only grow, over all evidence that is admitted.
- A verdict is believed with two accusers; with fewer, or by SYNC, it is one more suspicion.
- A claim that a suspect is up, not newer than the suspicion, is answered with the accusation to the suspect itself: so it can refute.
- Among few members a refutation that was relayed counts only when the member itself confirms it; among many, n pings at one member for each
  refutation would cost more than the lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkv.core.membership.common import Common
from zkv.core.membership.happenings import EpochSeen, Forget
from zkv.core.membership.messages import Head, Rumour
from zkv.core.membership.states import PHASES, UP_MAX, State, rank, wins
from zkv.core.membership.table import Record
from zkv.core.membership.timing import MS
from zkv.core.membership.verdicts import Verdicts
from zkv.ids import NodeId

#: a suspect is told what is said of it at most so often
TELL_NS: Final = 500 * MS
#: claims about members that are not known, which are passed on once
STRANGERS_MAX: Final = 1_024
_TELLERS: Final = 8


class Claims:
    def __init__(self, common: Common, verdicts: Verdicts) -> None:
        self._common = common
        self._verdicts = verdicts
        self._strangers: dict[NodeId, tuple[int, int]] = {}
        #: pings a member so that it hears what is said of it, and answers
        self.contact: Callable[[Record], None] = lambda record: None
        #: says hello at an address: the answer is the member's own word, with its profile
        self.greet: Callable[[str], None] = lambda address: None
        #: asks a member for all it knows
        self.wish_sync: Callable[[NodeId], None] = lambda node: None

    def hear(self, rumour: Rumour, teller: NodeId, *, synced: bool = False) -> None:
        """A claim about somebody else."""
        self._common.journal.rumours += 1
        record = self._common.table.records.get(rumour.node)
        if record is None:
            self._introduce(rumour, teller, synced)
        elif rumour.state <= UP_MAX:
            self._hear_up(record, rumour, teller)
        elif rumour.state <= State.DEAD:
            self._hear_down(record, rumour, teller, synced)
        else:
            self._hear_gone(record, rumour)

    # --- members that are known ---

    def _hear_up(self, record: Record, rumour: Rumour, teller: NodeId) -> None:
        common = self._common
        ahead = rumour.incarnation - record.incarnation
        down = record.state in (State.SUSPECT, State.DEAD)
        if record.state is State.REMOVED:
            common.journal.dropped["removed"] += 1
        elif ahead > 0 or (ahead == 0 and down and record.unverified):
            if down and teller != record.node and common.table.size <= common.timing.mesh_max:
                self._confirm(record, rumour)
                return
            self._take_profile(record, rumour)
            self._verdicts.revive(record, rumour.incarnation, rumour.state, "rumour")
            common.tell(record.rumour())
        elif ahead == 0 and record.is_up and rumour.profile and record.profile_incarnation < rumour.incarnation:
            # Its own message was faster than its profile.
            self._take_profile(record, rumour)
            common.change(record, record.state, "profile")
            common.tell(record.rumour())
        else:
            common.journal.duplicates += 1
            if down and common.dice.random() * common.table.size < _TELLERS:
                self.ask(record)

    def _take_profile(self, record: Record, rumour: Rumour) -> None:
        if rumour.profile is not None and rumour.incarnation >= record.profile_incarnation:
            if record.profile != rumour.profile:
                record.profile = rumour.profile
                self._common.remember()
            record.profile_incarnation = rumour.incarnation

    def _confirm(self, record: Record, rumour: Rumour) -> None:
        """Whether it is so, from its own mouth; where it says it is, if that is elsewhere or a later start."""
        said = rumour.profile
        if said is None or (said.peer_address, said.instance) == (record.profile.peer_address, record.profile.instance):
            self.ask(record)
        elif self._may_tell(record):
            self.greet(said.peer_address)

    def ask(self, record: Record) -> None:
        """Tell it what is said of it; if it is there it says otherwise."""
        if self._may_tell(record):
            self.contact(record)

    def _may_tell(self, record: Record) -> bool:
        link = record.linked()
        if link.told_ns and self._common.now_ns - link.told_ns < TELL_NS:
            return False
        link.told_ns = self._common.now_ns
        return True

    def _hear_down(self, record: Record, rumour: Rumour, teller: NodeId, synced: bool) -> None:
        common, verdicts = self._common, self._verdicts
        ahead = rumour.incarnation - record.incarnation
        if record.unverified and rumour.state is State.DEAD and ahead >= 0:
            # Others say what we merely assumed.
            record.incarnation, record.accusers, record.unverified = rumour.incarnation, rumour.accusers, False
            common.change(record, State.DEAD, "sync" if synced else "rumour")
            return
        if ahead < 0 or record.state is State.REMOVED or (ahead == 0 and record.state >= State.DEAD):
            common.journal.duplicates += 1
            return
        accusers = rumour.accusers or (teller,)
        suspicion = record.suspicion
        if ahead == 0 and suspicion is not None:
            news = verdicts.confirm(record, suspicion, accusers)
        else:
            verdicts.suspect(record, rumour.incarnation, accusers, "sync" if synced else "rumour")
            suspicion = record.suspicion
            news = False  # told already
        assert suspicion is not None
        if rumour.state is State.DEAD and not synced and verdicts.may_convict(suspicion.accusers):
            verdicts.convict(record, suspicion, "rumour")
        elif news:
            common.tell(record.rumour())
        else:
            common.journal.duplicates += 1

    def _hear_gone(self, record: Record, rumour: Rumour) -> None:
        common = self._common
        if not wins(rumour.incarnation, rumour.state, record.incarnation, record.state):
            common.journal.duplicates += 1
            return
        self.gone(record, max(rumour.incarnation, record.incarnation), rumour.state, "rumour")

    def gone(self, record: Record, incarnation: int, state: State, cause: str) -> None:
        """Left, by its own word; or removed, by an operator's."""
        record.incarnation = incarnation
        record.suspicion = None
        record.accusers = ()
        record.unverified = False
        self._verdicts.forget(record.node)
        self._common.change(record, state, cause)
        self._common.tell(record.rumour())
        self._common.remember()
        if state is State.REMOVED:
            self._common.effects.append(Forget(record.node))

    # --- members that are not ---

    def _introduce(self, rumour: Rumour, teller: NodeId, synced: bool) -> None:
        common = self._common
        if rumour.profile is None:
            self._pass_on(rumour, teller)
            return
        up = rumour.state in PHASES
        if not up and not synced:
            common.journal.dropped["verdict on a stranger"] += 1
            return
        state = State.ALIVE if rumour.state is State.SUSPECT else rumour.state
        record = Record(rumour.node, rumour.incarnation, state, rumour.profile, common.now_ns)
        if not up:
            record.profile_incarnation = 0  # it may have said something else since
        if state is State.DEAD:
            record.unverified = True
            record.accusers = rumour.accusers
        self._strangers.pop(rumour.node, None)
        common.introduce(record, "sync" if synced else "rumour")
        if rumour.state is State.SUSPECT:
            self._verdicts.suspect(record, rumour.incarnation, rumour.accusers or (teller,), "sync")
        elif up:
            common.tell(record.rumour())

    def _pass_on(self, rumour: Rumour, teller: NodeId) -> None:
        """It may concern others. We ask the teller who that is."""
        common = self._common
        claim = (rumour.incarnation, rank(rumour.state))
        if self._strangers.get(rumour.node, (0, -1)) >= claim:
            common.journal.duplicates += 1
            return
        if len(self._strangers) >= STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[rumour.node] = claim
        common.rumours.add(rumour)
        self.wish_sync(teller)

    # --- its own word ---

    def direct(self, record: Record, head: Head) -> None:
        """Any message of the member itself says that it is there, in which incarnation and phase."""
        common = self._common
        link = record.linked()
        link.heard_ns = common.now_ns
        ahead = head.incarnation - record.incarnation
        if record.state is not State.REMOVED and (ahead > 0 or (ahead == 0 and record.unverified)):
            was_up = record.is_up
            if head.state is State.LEFT:
                self.gone(record, head.incarnation, State.LEFT, "its own word")
            else:
                self._verdicts.revive(record, head.incarnation, head.state, "its own word")
                # Who was up tells its new incarnation itself, with the profile that belongs to it. Who was down may reach nobody but us.
                (common.rumours.add if was_up else common.tell)(record.rumour())
        if link.topology != (head.epoch, head.topology_hash):
            link.topology = (head.epoch, head.topology_hash)
            me = common.me
            if head.epoch > me.epoch or (head.epoch == me.epoch and head.topology_hash != me.topology_hash):
                common.effects.append(EpochSeen(record.node, head.epoch, head.topology_hash))

    def about(self, record: Record | None, head: Head) -> tuple[Rumour, ...]:
        """What the sender of a message should be told of itself: an accusation, or a later life of it."""
        if record is None:
            return ()
        if record.state > UP_MAX or head.incarnation < record.incarnation:
            return (record.rumour(),)
        return ()
