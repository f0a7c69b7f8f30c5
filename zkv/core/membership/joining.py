"""How a node finds the others: at its start, after a partition, for ever.

Owns: hellos to seeds and remembered addresses, tries to reach the dead, who is taken in. Must not know: what is synced.

A node with seeds never forms a cluster alone: until another has welcomed it, it belongs to none. Members that are called dead are tried for ever:
a partition may have lasted longer than any patience. Source: serf's reconnect; memberlist issue 222 is what happens without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zkv.core.events import Route
from zkv.core.membership.claims import Claims
from zkv.core.membership.common import Common
from zkv.core.membership.messages import PROTOCOL, PROTOCOL_MIN, Hello, Reason, Reject, Rumour, Welcome
from zkv.core.membership.states import State
from zkv.core.membership.table import Record
from zkv.ids import NodeId

#: addresses that hear one hello
HELLOS: Final = 3


class Joining:
    def __init__(self, common: Common, claims: Claims, seeds: Sequence[str]) -> None:
        self._common = common
        self._claims = claims
        self._seeds = tuple(seeds)
        #: what we knew when we last stopped has been compared with another member
        self.joined = False
        self._wait_ns = common.timing.hello_min_ns
        self._rejoined_ns = common.now_ns
        self._last_dead = 0
        self._rejoining = False
        self.wish_sync: Callable[[NodeId], None] = lambda node: None
        self.contact: Callable[[Record], None] = lambda record: None
        self.on_joined: Callable[[], None] = lambda: None
        common.listeners.append(self._on_change)

    def start(self) -> None:
        common = self._common
        # Whoever takes others for up, or is alone without a seed, has nobody to ask.
        self.joined = bool(common.me.cluster) and (common.table.up > 0 or not self._addresses())
        self._try()
        if common.table.counts[State.DEAD]:
            self._arm_rejoin()
        if self._seeds:
            common.agenda.at(
                common.now_ns + int(common.dice.random() * common.timing.seed_interval_ns), self._seed_tick
            )

    def _addresses(self) -> list[str]:
        """Where somebody may be: seeds, and members that were remembered or are known."""
        me = self._common.me.profile
        known = (r.profile.peer_address for r in self._common.table.records.values() if r.state <= State.DEAD)
        return [address for address in dict.fromkeys((*self._seeds, *known)) if address != me.peer_address]

    def _try(self) -> None:
        """At once, then after 1 s, doubling to 30 s, with jitter."""
        if self.joined:
            return
        common = self._common
        addresses = self._addresses()
        for address in common.dice.sample(addresses, min(HELLOS, len(addresses))):
            self.greet(address)
        common.agenda.at(common.now_ns + int((0.75 + common.dice.random() / 2) * self._wait_ns), self._try)
        self._wait_ns = min(2 * self._wait_ns, common.timing.hello_max_ns)

    def greet(self, address: str, node: NodeId | None = None) -> None:
        me = self._common.me
        self._common.send(node, address, Hello(me.head, me.number(), me.profile))

    def hello(self, record: Record) -> None:
        """To a member that does not know us."""
        self.greet(record.profile.peer_address, record.node)

    def synced(self) -> None:
        if not self.joined:
            self.joined = True
            self.on_joined()

    # --- for ever ---

    def _arm_rejoin(self) -> None:
        if not self._rejoining:
            self._rejoining = True
            wait_ns = int(self._common.dice.random() * self._common.timing.rejoin_interval_ns)
            self._common.agenda.at(self._common.now_ns + wait_ns, self._rejoin_tick)

    def _rejoin_tick(self) -> None:
        common = self._common
        timing, table = common.timing, common.table
        dead = sorted(table.in_state(State.DEAD), key=lambda record: (not record.unverified, record.node))
        self._rejoining = bool(dead)
        if not dead:
            return
        common.agenda.at(common.now_ns + timing.rejoin_interval_ns, self._rejoin_tick)
        due = common.now_ns - self._rejoined_ns >= timing.rejoin_floor_ns
        if not (due or dead[0].unverified or common.dice.random() * (table.up + 1) < len(dead)):
            return
        self._rejoined_ns = common.now_ns
        common.journal.rejoins += 1
        self._last_dead += 1
        self.contact(dead[0] if dead[0].unverified else dead[self._last_dead % len(dead)])

    def _seed_tick(self) -> None:
        common = self._common
        common.agenda.at(common.now_ns + common.timing.seed_interval_ns, self._seed_tick)
        if not self.joined:
            return
        up = {record.profile.peer_address for record in common.table.records.values() if record.is_up}
        if not any(seed in up or seed == common.me.profile.peer_address for seed in self._seeds):
            self.greet(common.dice.choice(self._seeds))

    def _on_change(self, record: Record, before: State | None) -> None:
        """Somebody is dead: try for ever. Somebody who was called dead is back: either side may know what the other does not."""
        if record.state is State.DEAD:
            self._arm_rejoin()
        link = record.link
        if before is State.DEAD and record.is_up and link is not None and link.heard_ns == self._common.now_ns:
            self.wish_sync(record.node)

    # --- messages ---

    def on_hello(self, route: Route, hello: Hello) -> None:
        common = self._common
        me, head, profile = common.me, hello.head, hello.profile
        if not me.cluster:
            common.journal.dropped["hello before we belong"] += 1
            return
        if profile.protocol_min > PROTOCOL or profile.protocol_max < PROTOCOL_MIN:
            theirs, ours = f"{profile.protocol_min} to {profile.protocol_max}", f"{PROTOCOL_MIN} to {PROTOCOL}"
            text = f"node {profile.name!r} speaks gossip {theirs}, node {me.profile.name!r} {ours}"
            self._refuse(route, Reason.PROTOCOL, text)
            return
        self._claims.hear(Rumour(head.sender, head.incarnation, head.state, (), profile), head.sender)
        common.answer(route, Welcome(me.head, me.number(), me.profile))

    def _refuse(self, route: Route, reason: Reason, text: str) -> None:
        common = self._common
        common.journal.refused[reason.word] += 1
        common.note("warning", "peer_refused", text)
        common.answer(route, Reject(common.me.head, common.me.number(), reason, text, common.me.profile.instance))

    def on_welcome(self, welcome: Welcome) -> None:
        common = self._common
        head = welcome.head
        if not common.me.cluster:
            common.me.cluster = head.cluster
            common.me.changed()
        self._claims.hear(Rumour(head.sender, head.incarnation, head.state, (), welcome.profile), head.sender)
        if not self.joined:
            self.wish_sync(head.sender)
