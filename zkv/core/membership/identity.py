"""What is said of this node, and what it says to that.

Owns: our incarnation, phase and profile; refutation; the end of a leave; two processes with one node id. Must not know: other members.

A claim about us that we never made has three explanations, told apart here:
1. It accuses our incarnation: we are there, so the incarnation grows past it. Source: SWIM 4.2.
2. It speaks of a generation we have not reached, from an address where nobody answers as us, or our own: an earlier life whose disk was rolled back
   since. The generation is raised past it, durably, before anything else is said.
3. Another process answers at that address as us: the one with the lower (generation, instance) stops.
"""

from __future__ import annotations

from typing import Final

from zkv.core.events import Route
from zkv.core.membership.common import Common
from zkv.core.membership.happenings import Departed, Halt, RaiseGeneration
from zkv.core.membership.messages import Hello, Message, Profile, Reason, Reject, Rumour, Welcome
from zkv.core.membership.states import UP_MAX, State, generation_of, incarnation_of
from zkv.core.membership.timing import SECOND

#: hellos to the address of a claim that may be a twin's, before it is taken for an earlier life of ours
EXAMINATIONS: Final = 3


class Identity:
    def __init__(self, common: Common) -> None:
        self._common = common
        self._examined: str | None = None
        self._left_ns = 0
        self._acks = 0
        self._gone = False

    # --- what we say ---

    def announce(self, state: State) -> None:
        """A new phase, or left; with a new incarnation, so that it wins over whatever was said of the last one."""
        me = self._common.me
        me.state = state
        self._outbid(me.incarnation)

    def describe(self, profile: Profile) -> None:
        me = self._common.me
        me.profile = profile
        self._outbid(me.incarnation)

    def _outbid(self, incarnation: int) -> None:
        common = self._common
        me = common.me
        me.incarnation = max(me.incarnation, incarnation) + 1
        me.changed()
        common.tell(me.rumour())

    # --- what is said of us ---

    def accused(self, rumour: Rumour) -> None:
        common = self._common
        me = common.me
        if rumour.state is State.REMOVED:
            self._halt("removed", f"node {me.profile.name!r} was removed from the cluster by an operator")
        elif rumour.incarnation < me.incarnation:
            common.journal.duplicates += 1
        elif rumour.state <= UP_MAX:
            self._echoed(rumour)
        elif me.state is not State.LEFT:
            self._refute(rumour)

    def _refute(self, rumour: Rumour) -> None:
        common = self._common
        me = common.me
        common.journal.self_refutations += 1
        common.health.add(1)
        by = ", ".join(str(node) for node in rumour.accusers) or "?"
        common.journal.note(common.now_ns, me.node, "refuted", f"we were called {rumour.state.word}, by {by}")
        if generation_of(rumour.incarnation) > me.generation:
            self._raise(rumour.incarnation)
        else:
            self._outbid(rumour.incarnation)

    def _echoed(self, rumour: Rumour) -> None:
        """Up, in our incarnation or a later one."""
        common = self._common
        me, profile = common.me, rumour.profile
        if profile is None or profile.instance == me.profile.instance:
            common.journal.duplicates += 1
        elif profile.peer_address == me.profile.peer_address:
            self._raise(rumour.incarnation)
        elif self._examined is None:
            common.journal.note(
                common.now_ns, me.node, "twin", f"{profile.peer_address} may be another process with our id"
            )
            self._examined = profile.peer_address
            self._examine(rumour.incarnation, EXAMINATIONS)

    def _examine(self, incarnation: int, left: int) -> None:
        common = self._common
        if self._examined is None:
            return
        if left == 0:
            self._examined = None
            self._raise(incarnation)
            return
        me = common.me
        common.send(None, self._examined, Hello(me.head, me.number(), me.profile))
        common.agenda.at(common.now_ns + SECOND, self._examine, incarnation, left - 1)

    def _raise(self, incarnation: int) -> None:
        """Past an earlier life of ours that got further than the disk remembers."""
        common = self._common
        if incarnation < common.me.incarnation or common.muted:
            return
        generation = generation_of(incarnation)
        if generation == common.me.generation:
            self._outbid(incarnation)
            return
        common.muted = True
        common.journal.note(common.now_ns, common.me.node, "generation", f"raised to {generation + 1}")
        common.effects.append(RaiseGeneration(generation + 1))

    def on_raised(self, generation: int) -> None:
        common = self._common
        common.muted = False
        if generation > common.me.generation:
            self._outbid(incarnation_of(generation))

    # --- two with one id ---

    def on_twin(self, route: Route | None, message: Message) -> None:
        """A message that names us as its sender: from ourselves, by way of our own address among the seeds; or from a twin."""
        common = self._common
        me = common.me
        match message:
            case Hello(profile=profile) | Welcome(profile=profile):
                instance = profile.instance
            case Reject(reason=Reason.DUPLICATE, instance=instance):
                pass
            case _:
                common.journal.dropped["own id"] += 1
                return
        if instance == me.profile.instance:
            common.journal.dropped["our own"] += 1
            return
        self._examined = None
        if isinstance(message, Hello) and route is not None:
            text = f"two processes run as node {me.profile.name!r}: at {me.profile.peer_address} and {message.profile.peer_address}"
            common.answer(route, Reject(me.head, me.number(), Reason.DUPLICATE, text, me.profile.instance))
        common.journal.refused[Reason.DUPLICATE.word] += 1
        if (message.head.incarnation, instance) > (me.incarnation, me.profile.instance):
            self._halt(Reason.DUPLICATE.word, f"another process runs as node {me.profile.name!r} and was started later")
        else:
            common.note("error", "duplicate_id", f"another process runs as node {me.profile.name!r}; it has to stop")

    def on_reject(self, reject: Reject) -> None:
        """Another member refuses us."""
        common = self._common
        common.journal.refused[reject.reason.word] += 1
        if reject.reason is Reason.REMOVED:
            self._halt(reject.reason.word, reject.text)
        else:
            common.note("error", "refused", reject.text)

    def _halt(self, reason: str, text: str) -> None:
        common = self._common
        common.journal.note(common.now_ns, common.me.node, reason, text)
        common.effects.append(Halt(reason, text))
        common.muted = True

    # --- leaving ---

    def leave(self) -> None:
        if self._common.me.state < State.LEAVING:
            self.announce(State.LEAVING)

    def drained(self) -> None:
        common = self._common
        if common.me.state is State.LEFT:
            return
        self.announce(State.LEFT)
        self._left_ns = common.now_ns
        common.agenda.at(common.now_ns + common.timing.leave_stay_ns, self._depart)

    def heard_by_another(self) -> None:
        """An Ack came: what rode on the ping has arrived."""
        if self._left_ns:
            self._acks += 1

    def _depart(self) -> None:
        common = self._common
        if self._gone:
            return
        timing = common.timing
        stayed_ns = common.now_ns - self._left_ns
        if self._acks >= min(timing.leave_acks, common.table.up) or stayed_ns >= timing.leave_max_ns:
            self._gone = True
            common.effects.append(Departed())
        else:
            common.agenda.at(common.now_ns + timing.view_interval_ns, self._depart)
