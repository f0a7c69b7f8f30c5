"""Puts and deletes at the node that coordinates them, from grouped items to settled outcomes.

Owns: write groups: reading pasts, minting, replicating, votes, the moment an item is settled.
Must not know: clients' connections, bytes, how a message came.

A group is all items of one turn that share replicas, requirement and manner, whatever requests they came with: one log record batch, one
frame per replica, one tally. Three outcomes: ok; failed (no dot was minted); unknown (everything after the mint that missed W).

Invariants: what an item covers is fixed before its dot is minted. Votes are sets of nodes, never counters. A vote counts only once what it
vouches for has the durability that was asked. Source: 30-replication, versions and requests; Dynamo (2007) section 4.5.
"""

from __future__ import annotations

from enum import Enum, auto
from heapq import heappop, heappush
from typing import Final

from zkv.core.effects import Effect, Mint, Read, Send
from zkv.core.events import Minted, ReadDone
from zkv.core.messages import (
    Receipt,
    Record,
    RecordBlock,
    ReplicaGet,
    ReplicaGetReply,
    ReplicaPut,
    ReplicaPutAck,
    Status,
)
from zkv.core.quorum import Requirement, Tally
from zkv.core.request_memory import Outcome
from zkv.core.requests import OpenPut
from zkv.core.ring import Row
from zkv.core.versions import EMPTY, Base, Context, VersionSet, context_of_base
from zkv.core.view import Owner, View
from zkv.ids import Actor, NodeId

#: settled groups, and bytes of values in them, kept to be sent again to a replica that comes back before their deadline
STRAGGLERS_MAX: Final = 1_000
STRAGGLER_BYTES_MAX: Final = 64 * 1024 * 1024
#: an answer must leave this long before the client stops waiting, or its numbers never arrive
ANSWER_MARGIN_NS: Final = 50_000_000


class Manner(Enum):
    """How the items of a group find out what they replace."""

    STATED = auto()  # contexts given, or a retry elsewhere: exactly what was stated
    HELD = auto()  # blind, sloppy: all that is held here, and the client's own last write
    READ_FIRST = auto()  # blind, strict: the pasts that enough primaries report
    REPEATED = auto()  # carried out before: replicate what is held, mint nothing


class State(Enum):
    READING = auto()  # asking for pasts, or for our own copies of a repeated request; nothing minted
    MINTING = auto()  # our own copy is being written
    REPLICATING = auto()  # dots exist and are on their way; from here a failure is unknown
    SETTLED = auto()  # the clients have their answer


_TRANSITIONS: Final = {
    (State.READING, State.MINTING),
    (State.READING, State.REPLICATING),  # repeated: nothing to mint
    (State.READING, State.SETTLED),
    (State.MINTING, State.REPLICATING),
    (State.MINTING, State.SETTLED),
    (State.REPLICATING, State.SETTLED),
}


class WriteGroup:
    """Items that go the same way together. `segments` says whose they are: (request, its item numbers), in group order."""

    __slots__ = (
        "acked",
        "actor",
        "actors",
        "block",
        "bytes",
        "counters",
        "covered",
        "deadline_ns",
        "durable",
        "live",
        "manner",
        "meta_bytes",
        "number",
        "outcomes",
        "pasts",
        "pasts_needed",
        "refused",
        "replicas",
        "requirement",
        "rows",
        "segments",
        "state",
        "stated",
    )

    def __init__(
        self,
        number: int,
        replicas: tuple[NodeId, ...],
        requirement: Requirement,
        manner: Manner,
        durable: bool,
        deadline_ns: int,
    ) -> None:
        self.number = number
        self.replicas = replicas
        self.requirement = requirement
        self.manner = manner
        self.durable = durable
        self.deadline_ns = deadline_ns
        self.state = State.READING
        self.segments: list[tuple[OpenPut, list[int]]] = []
        self.rows: list[Row] = []
        self.outcomes: list[Outcome] = []  # of repeated requests, one per segment
        self.covered: list[Context] = []  # READ_FIRST: the join of the pasts read so far
        self.stated: list[Base] = []  # what each item was told to replace; empty = nothing, for all
        self.pasts: dict[NodeId, list[Context]] = {}
        self.pasts_needed = 1  # READ_FIRST: the bucket's R
        self.refused: dict[NodeId, frozenset[int]] = {}  # node -> positions in `live` it refused
        self.acked: dict[NodeId, bool] = {}  # node -> whether its copy is durable
        self.block = RecordBlock([])
        self.bytes = 0
        self.meta_bytes = 0  # about what all but the values takes as a message
        self.actor = Actor(b"")
        self.actors: list[Actor] = []  # REPEATED: who minted each item
        self.counters: list[int] = []
        self.live: list[int] = []  # group positions that were minted; the block's records in order

    @property
    def keys(self) -> list[bytes]:
        return [open_put.message.keys[i] for open_put, items in self.segments for i in items]

    def become(self, state: State) -> None:
        assert (self.state, state) in _TRANSITIONS, f"group {self.number}: {self.state} -> {state}"
        self.state = state


class Writes:
    """All write groups of one node."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._groups: dict[int, WriteGroup] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._settled = 0
        self._settled_bytes = 0

    def __len__(self) -> int:
        return len(self._groups)

    # --- begin ---

    def begin(self, group: WriteGroup) -> list[Effect]:
        """Start a group whose items are complete."""
        view = self._view
        unreachable = view.unreachable(group.replicas)
        if group.requirement.tally((), unreachable) is Tally.IMPOSSIBLE:
            alive = [n for n in group.replicas if n not in unreachable]
            self._settle_failed(
                group, _failure_before_mint(group), group.requirement.count, group.requirement.votes(alive)
            )
            return []
        if group.manner is Manner.READ_FIRST and len(group.replicas) - len(unreachable) < group.pasts_needed:
            self._settle_failed(group, Status.UNAVAILABLE, group.pasts_needed, len(group.replicas) - len(unreachable))
            return []
        self._groups[group.number] = group
        heappush(self._deadlines, (answer_by(group.deadline_ns, view.now_ns), group.number))
        if group.manner is Manner.REPEATED:
            return [Read(group.number, group.keys, durable=True, synced=group.durable)]
        if group.manner is Manner.READ_FIRST:
            return self._read_pasts(group)
        return self._mint(group)

    def _read_pasts(self, group: WriteGroup) -> list[Effect]:
        keys = group.keys
        effects: list[Effect] = [Read(group.number, keys, durable=False)]
        if group.pasts_needed > 1 or self._view.unsynced:
            ask = _ask_pasts(group)
            effects.extend(Send(n, ask) for n in self._view.ask_order(group.replicas) if n != self._view.node)
        return effects

    def on_read(self, event: ReadDone) -> list[Effect]:
        group = self._groups.get(event.cause)
        if group is None or group.state is not State.READING:
            return []
        if group.manner is Manner.REPEATED:
            return self._replicate_again(group, event)
        contexts = [EMPTY if s is None else s.context for s in event.sets]
        group.covered = contexts  # always part of what is covered, also where it is no answer
        if not self._view.unsynced and event.statuses is None:
            group.pasts[self._view.node] = contexts
        return self._mint_if_read(group)

    def on_pasts(self, node: NodeId, reply: ReplicaGetReply) -> list[Effect]:
        group = self._groups.get(reply.group)
        if group is None or group.state is not State.READING or node not in group.replicas:
            return []
        if reply.statuses is not None:
            if Status.TOO_OLD in reply.statuses:
                self._give_up(group, reply.statuses)
            return []
        sets = reply.sets(len(group.rows))
        if sets is None:
            return []
        group.pasts[node] = [EMPTY if s is None else s.context for s in sets]
        return self._mint_if_read(group)

    def _give_up(self, group: WriteGroup, statuses: list[int]) -> None:
        """Some items were carried out elsewhere while this try waited for its pasts (1. a try waits here, cut off; 2. its author tries
        elsewhere, ok; 3. somebody replaces that; 4. the pasts come): minted now, it would replace what step 3 wrote. These are unknown
        here, and their author knows better; the others fail with nothing written."""
        places = range(len(group.rows))
        known = [i for i in places if i < len(statuses) and statuses[i] == Status.TOO_OLD]
        self._fail_positions(group, known, Status.TOO_OLD, 0)
        self._fail_positions(group, sorted(set(places) - set(known)), Status.UNAVAILABLE, len(group.pasts))
        group.become(State.SETTLED)
        self._settled += 1
        self._drop(group)

    def _mint_if_read(self, group: WriteGroup) -> list[Effect]:
        if len(group.pasts) < group.pasts_needed or not group.covered:
            return []
        if group.deadline_ns <= self._view.now_ns:
            return []  # the last past and the end of the time came in one turn, after a pause: nothing is begun any more
        for contexts in group.pasts.values():
            if contexts is not group.covered:
                group.covered = [
                    mine if theirs is EMPTY else mine.joined(theirs)
                    for mine, theirs in zip(group.covered, contexts, strict=True)
                ]
        return self._mint(group)

    # --- mint ---

    def _mint(self, group: WriteGroup) -> list[Effect]:
        group.become(State.MINTING)
        mint = Mint(
            group.number,
            group.durable,
            keys=[],
            values=[],
            checksums=[],
            segments=[],
            replace_held=group.manner is Manner.HELD,
            covered=self._covered(group),
            expires_ms=None,
            voids=None,
            row_versions=[row.version for row in group.rows],
            fences=[row.fence for row in group.rows],
            stamp=self._view.clock.stamp(self._view.wall_ms),
        )
        for open_put, items in group.segments:
            message = open_put.message
            count = len(items)
            before = len(mint.keys)
            if count == len(message.keys):  # all of it, in order: columns go on as they came
                keys, values, checksums = message.keys, message.values, message.checksums
                expires, voids, numbers = message.expires_ms, message.voids, message.items or items
            else:
                keys, values = [message.keys[i] for i in items], [message.values[i] for i in items]
                checksums = [message.checksums[i] for i in items]
                expires = [message.expires_ms[i] for i in items] if message.expires_ms else None
                voids = [message.voids[i] for i in items] if message.voids else None
                numbers = [message.items[i] for i in items] if message.items else items
            mint.keys += keys
            mint.values += values
            mint.checksums += checksums
            mint.segments.append((message.request, numbers))
            if expires is not None or mint.expires_ms is not None:
                mint.expires_ms = (mint.expires_ms or [0] * before) + (expires or [0] * count)
            if voids is not None or mint.voids is not None:
                said = [given_up or () for given_up in voids] if voids else [()] * count
                mint.voids = (mint.voids or [()] * before) + said
        return [mint]

    def _covered(self, group: WriteGroup) -> list[Base] | None:
        """What each item replaces: the pasts read, what its author states, or both. None: nothing is stated of any."""
        if not group.covered and not any(p.message.contexts or p.message.bases for p, _ in group.segments):
            return None
        covered: list[Base] = []
        for open_put, items in group.segments:
            message = open_put.message
            read = group.covered[len(covered) : len(covered) + len(items)]
            if not read:
                covered += _stated(message.contexts, message.bases, items)
            elif message.bases:
                bases = [context_of_base(message.bases[i]) for i in items]
                covered += [
                    mine if base is EMPTY else mine.joined(base) for mine, base in zip(read, bases, strict=True)
                ]
            else:
                covered += read
        group.stated = covered
        return covered

    def on_minted(self, event: Minted) -> list[Effect]:
        group = self._groups[event.cause]
        statuses = event.statuses
        if statuses is None:
            group.live = list(range(len(group.rows)))
        else:
            group.live = [i for i, status in enumerate(statuses) if status == Status.OK]
            for status in sorted(set(statuses) - {Status.OK}):
                self._fail_positions(group, [i for i, s in enumerate(statuses) if s == status], status, 0)
        group.block = event.block
        group.actor = event.actor
        group.counters = event.counters
        return self._replicate(group)

    def _replicate_again(self, group: WriteGroup, event: ReadDone) -> list[Effect]:
        """A request that was carried out before: bring its outcome to W again, as our copies stand now."""
        lost: list[int] = []
        for (open_put, items), outcome in zip(group.segments, group.outcomes, strict=True):
            numbers = open_put.message.items
            for i in items:
                position = len(group.counters)
                dot = outcome.dot_of(numbers[i] if numbers else i)
                held = event.sets[position]
                if dot is None or (dot[1] and not (held is not None and held.context.covers(*dot))):
                    # not ours to vouch for, whatever was remembered
                    lost.append(position)
                else:
                    group.live.append(position)
                group.actors.append(dot[0] if dot else Actor(b""))
                group.counters.append(dot[1] if dot else 0)
        self._fail_positions(group, lost, Status.TOO_OLD, 0)
        empty = VersionSet((), {})
        keys = group.keys
        group.block = RecordBlock(
            [
                Record(keys[i], group.rows[i].version, group.rows[i].fence, None, event.sets[i] or empty)
                for i in group.live
            ]
        )
        effects = self._replicate(group)
        return effects + self.on_vote(group.number, self._view.node, durable=event.durable)

    # --- replicate and count ---

    def _replicate(self, group: WriteGroup) -> list[Effect]:
        if not group.live:
            self._drop(group)
            return []
        group.become(State.REPLICATING)
        message = self._message(group)
        return [Send(n, message) for n in group.replicas if n != self._view.node and self._view.linked(n)]

    def _message(self, group: WriteGroup) -> ReplicaPut:
        return ReplicaPut(group.number, group.block, group.durable, group.deadline_ns)

    def on_persisted(self, causes: list[int], durable: bool) -> list[Effect]:
        effects: list[Effect] = []
        for cause in causes:
            effects.extend(self.on_vote(cause, self._view.node, durable=durable))
        return effects

    def on_ack(self, node: NodeId, ack: ReplicaPutAck) -> list[Effect]:
        group = self._groups.get(ack.group)
        if group is None or node not in group.replicas:
            return []
        group.refused.pop(node, None)
        if ack.statuses is not None:
            refused = frozenset(i for i, status in enumerate(ack.statuses) if status != Status.OK)
            if refused:
                group.refused[node] = refused
        return self.on_vote(ack.group, node, durable=ack.durable)

    def on_vote(self, number: int, node: NodeId, *, durable: bool) -> list[Effect]:
        """`node` holds the group's block, except what it refused."""
        group = self._groups.get(number)
        if group is None or group.state not in (State.REPLICATING, State.SETTLED):
            return []
        group.acked[node] = durable
        if group.state is State.SETTLED:
            if len(group.acked) == len(group.replicas):
                self._drop(group)
            return []
        if group.refused:
            self._settle_each(group)
        elif group.requirement.votes(group.acked) >= group.requirement.count:
            self._settle_ok(group, group.live, list(group.acked))
            self._close(group)
        return []

    def _settle_each(self, group: WriteGroup) -> None:
        """Some replica refused some items: count each item by itself."""
        left: list[int] = []
        for place, position in enumerate(group.live):
            held_by = [n for n in group.acked if place not in group.refused.get(n, frozenset())]
            if group.requirement.votes(held_by) >= group.requirement.count:
                self._settle_ok(group, [position], held_by)
            else:
                left.append(position)
        if not left:
            self._close(group)
        elif len(group.acked) == len(group.replicas):
            for position in left:
                place = group.live.index(position)
                got = [n for n in group.acked if place not in group.refused.get(n, frozenset())]
                self._fail_positions(group, [position], Status.QUORUM_NOT_MET, group.requirement.votes(got))
            self._close(group)

    def _settle_ok(self, group: WriteGroup, positions: list[int], nodes: list[NodeId]) -> None:
        receipt = Receipt(nodes, all(group.acked[n] for n in nodes), False, self._view.epoch)
        whole = len(positions) == len(group.rows)
        wanted = frozenset() if whole else frozenset(positions)
        start = 0
        for open_put, items in group.segments:
            if whole and not group.actors:
                end = start + len(items)
                wants = open_put.message.want_context
                contexts = self._contexts(group, list(range(start, end)), group.actor) if wants else None
                open_put.settle_ok(items, group.counters[start:end], group.actor, receipt, contexts)
                start = end
                continue
            by_actor: dict[Actor, list[int]] = {}
            for place in range(start, start + len(items)):
                if whole or place in wanted:
                    by_actor.setdefault(group.actors[place] if group.actors else group.actor, []).append(place)
            for actor, places in by_actor.items():
                contexts = self._contexts(group, places, actor) if open_put.message.want_context else None
                counters = [self._counter(group, p) for p in places]
                open_put.settle_ok([items[p - start] for p in places], counters, actor, receipt, contexts)
            start += len(items)

    def _counter(self, group: WriteGroup, position: int) -> int:
        if group.outcomes or len(group.live) == len(group.rows):
            return group.counters[position]
        return group.counters[group.live.index(position)]

    def _contexts(self, group: WriteGroup, positions: list[int], actor: Actor) -> list[Context | None] | None:
        """What each put's author may replace next time: what it covered and its own dot, and no sibling it was never shown.

        None in place of what is no more than the dot itself and the dots of its actor before it.
        """
        columns = group.block.columns
        if columns is not None and group.manner is not Manner.REPEATED:
            if not columns.pasts:  # columns are minted whole: a position is a place
                return None
            pasts = [columns.pasts.get(position) for position in positions]
            return [None if past is None else Context(past) for past in pasts]
        contexts: list[Context | None] = []
        for position in positions:
            versions = group.block.records[group.live.index(position)].versions
            counter = self._counter(group, position)
            own = 1 if counter else 0
            if group.manner is not Manner.REPEATED and len(versions.siblings) == own:
                alone = counter and len(versions.past) == 1 and not versions.cloud
                contexts.append(None if alone else versions.context)
            elif counter:
                contexts.append(_stated_context(group, position).with_dot((actor, counter)))
            else:
                contexts.append(_stated_context(group, position))
        return contexts

    # --- endings ---

    def _settle_failed(self, group: WriteGroup, status: int, required: int, got: int) -> None:
        for open_put, items in group.segments:
            open_put.settle_failed(items, status, required, got)

    def _fail_positions(self, group: WriteGroup, positions: list[int], status: int, got: int) -> None:
        wanted = frozenset(positions)
        start = 0
        for open_put, items in group.segments:
            chosen = [item for place, item in enumerate(items, start) if place in wanted]
            if chosen:
                open_put.settle_failed(chosen, status, group.requirement.count, got)
            start += len(items)

    def _close(self, group: WriteGroup) -> None:
        """Answered. It stays until its deadline for a replica that comes back, unless too many wait like that."""
        group.become(State.SETTLED)
        self._settled += 1
        group.bytes = len(group.block.encoded[1]) if group.block.encoded else 0
        self._settled_bytes += group.bytes
        full = self._settled > STRAGGLERS_MAX or self._settled_bytes > STRAGGLER_BYTES_MAX
        if len(group.acked) == len(group.replicas) or full:
            self._drop(group)

    def _drop(self, group: WriteGroup) -> None:
        if self._groups.pop(group.number, None) is not None and group.state is State.SETTLED:
            self._settled -= 1
            self._settled_bytes -= group.bytes

    def on_connected(self, node: NodeId) -> list[Effect]:
        """A replica is back: it gets what it may have missed and still can take in time."""
        effects: list[Effect] = []
        for group in self._groups.values():
            taken = node in group.acked and node not in group.refused
            if node not in group.replicas or taken or group.deadline_ns <= self._view.now_ns:
                continue
            if group.state in (State.REPLICATING, State.SETTLED):
                effects.append(Send(node, self._message(group)))
            elif group.state is State.READING and group.manner is Manner.READ_FIRST and node not in group.pasts:
                effects.append(Send(node, _ask_pasts(group)))
        return effects

    def next_wakeup_ns(self) -> int | None:
        while self._deadlines and self._deadlines[0][1] not in self._groups:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def on_time(self) -> None:
        """Settle what has run out of time: failed if nothing was minted, unknown if it was."""
        while (due := self.next_wakeup_ns()) is not None and due <= self._view.now_ns:
            _, number = heappop(self._deadlines)
            group = self._groups[number]
            if group.state is State.MINTING:  # its order is on its way in this very turn
                heappush(self._deadlines, (self._view.now_ns + 1, number))
                break
            if group.state is State.READING:
                self._settle_failed(group, _failure_before_mint(group), group.pasts_needed, len(group.pasts))
                group.become(State.SETTLED)
                self._settled += 1
            elif group.state is State.REPLICATING:
                refused = group.refused
                for place, position in enumerate(group.live):
                    got = [n for n in group.acked if place not in refused.get(n, frozenset())]
                    self._fail_positions(group, [position], Status.QUORUM_NOT_MET, group.requirement.votes(got))
                group.become(State.SETTLED)
                self._settled += 1
            self._drop(group)

    def new_group(
        self, replicas: tuple[NodeId, ...], requirement: Requirement, manner: Manner, durable: bool, deadline_ns: int
    ) -> WriteGroup:
        return WriteGroup(self._view.number(Owner.WRITES), replicas, requirement, manner, durable, deadline_ns)


def _ask_pasts(group: WriteGroup) -> ReplicaGet:
    runs = [
        (*p.message.request, [p.message.items[i] for i in items] if p.message.items else items)
        for p, items in group.segments
    ]
    versions = [row.version for row in group.rows]
    return ReplicaGet(group.number, group.keys, versions, pasts_only=True, runs=runs, deadline_ns=group.deadline_ns)


def answer_by(deadline_ns: int, now_ns: int) -> int:
    """When a put that came now is given up, so that its author hears of it in time."""
    left = max(0, deadline_ns - now_ns)
    return deadline_ns - min(ANSWER_MARGIN_NS, left // 10)


def _failure_before_mint(group: WriteGroup) -> Status:
    """What became of a group that minted nothing: failed, unless an earlier try of the same requests had minted."""
    return Status.QUORUM_NOT_MET if group.manner is Manner.REPEATED else Status.UNAVAILABLE


def _stated_context(group: WriteGroup, position: int) -> Context:
    return context_of_base(group.stated[position]) if group.stated else EMPTY


def _stated(contexts: list[Context | None] | None, bases: list[Base | None] | None, items: list[int]) -> list[Base]:
    """What the client itself says each item replaces."""
    if contexts is None and bases is None:
        return [EMPTY] * len(items)
    if contexts is None and bases is not None and len(items) == len(bases) and None not in bases:
        return bases  # type: ignore[return-value]  # all of them, in order
    stated: list[Base] = []
    for i in items:
        said: Base | None = contexts[i] if contexts else None
        if said is None and bases:
            said = bases[i]
        stated.append(EMPTY if said is None else said)
    return stated
