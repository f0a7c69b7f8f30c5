"""Gets at the node that coordinates them, from grouped items to settled answers, and the repair they cause.

Owns: read groups: whom to ask, the join of answers, the strict rule, read repair. Must not know: connections, bytes.

Plain reads return the join of R answers and repair who was behind afterwards. Strict reads return a join only when enough primaries
reported exactly it, else they write it back and ask again: so a get covers every put acknowledged before it began and whatever an
earlier get returned. A refusal (row version, unsynced, corrupt) is no answer, and never "absent".
Source: 30-replication, requests; Dynamo (2007) section 4.5; counterexample 13.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from heapq import heappop, heappush
from typing import Final

from zkv.core.columns import Held
from zkv.core.effects import Effect, Join, Note, Read, Send
from zkv.core.events import Joined, ReadDone
from zkv.core.messages import Record, RecordBlock, ReplicaGet, ReplicaGetReply, ReplicaPut, ReplicaPutAck, Status
from zkv.core.quorum import Requirement, Tally
from zkv.core.requests import OpenGet
from zkv.core.ring import Row
from zkv.core.versions import DotCollision, VersionSet, sync
from zkv.core.view import Owner, View
from zkv.core.writes import ANSWER_MARGIN_NS
from zkv.ids import NodeId

#: when those asked first have not answered by then, the others are asked too
HEDGE_NS: Final = 60_000_000
#: between further rounds of a strict read, doubled each time
ROUND_PAUSE_NS: Final = 1_000_000
ROUND_PAUSE_NS_MAX: Final = 100_000_000


class ReadState(Enum):
    WAITING = auto()  # a further round begins in a moment
    ASKING = auto()
    WRITING_BACK = auto()  # strict, answers differed: those behind get the join, then count if they hold exactly it
    SETTLED = auto()


class ReadGroup:
    """Items that share replicas and requirement. agree > 0: the strict rule, so many must report exactly the join."""

    __slots__ = (
        "agree",
        "answers",
        "asked",
        "deadline_ns",
        "exact",
        "failed",
        "hedge_ns",
        "joins",
        "number",
        "open",
        "outstanding",
        "replicas",
        "requirement",
        "round",
        "rows",
        "segments",
        "state",
        "taken",
        "unreadable",
    )

    def __init__(
        self, number: int, replicas: tuple[NodeId, ...], requirement: Requirement, agree: int, deadline_ns: int
    ) -> None:
        self.number = number
        self.replicas = replicas
        self.requirement = requirement
        self.agree = agree
        self.deadline_ns = deadline_ns
        self.hedge_ns = 0  # when the others are asked too, or those that were asked to take a join are given up
        self.round = 0
        self.state = ReadState.ASKING
        self.segments: list[tuple[OpenGet, list[int]]] = []
        self.rows: list[Row] = []
        self.asked: set[NodeId] = set()
        self.failed: set[NodeId] = set()
        self.unreadable = False  # somebody holds a record here that cannot be read
        self.answers: dict[NodeId, list[VersionSet | None]] = {}
        self.joins: list[VersionSet | None] = []
        self.open: list[int] = []  # positions that are being written back
        self.exact: dict[NodeId, frozenset[int]] = {}  # node -> places in `open` where it holds exactly the join
        self.outstanding: set[NodeId] = set()
        self.taken: frozenset[int] = frozenset()  # what our own copy took exactly; it counts once it is persisted

    @property
    def keys(self) -> list[bytes]:
        if len(self.segments) == 1 and len(self.segments[0][1]) == len(self.segments[0][0].message.keys):
            return self.segments[0][0].message.keys
        return [open_get.message.keys[i] for open_get, items in self.segments for i in items]


class Reads:
    """All read groups of one node."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._groups: dict[int, ReadGroup] = {}
        self._wakeups: list[tuple[int, int]] = []
        self.repairs = 0

    def __len__(self) -> int:
        return len(self._groups)

    def new_group(
        self, replicas: tuple[NodeId, ...], requirement: Requirement, agree: int, deadline_ns: int
    ) -> ReadGroup:
        return ReadGroup(self._view.number(Owner.READS), replicas, requirement, agree, deadline_ns)

    # --- ask ---

    def begin(self, group: ReadGroup) -> list[Effect]:
        order = [n for n in self._view.ask_order(group.replicas) if n != self._view.node or not self._view.unsynced]
        needed = max(group.requirement.count, group.agree)
        willing = [n for n in order if n not in group.failed]
        if len(willing) >= needed:
            order = willing
        else:
            group.failed.clear()
        unreachable = [n for n in group.replicas if n not in order]
        if len(order) < needed or group.requirement.tally((), unreachable) is Tally.IMPOSSIBLE:
            for open_get, items in group.segments:
                open_get.settle_failed(items, Status.UNAVAILABLE, needed, len(order))
            return []
        self._groups[group.number] = group
        left = max(0, group.deadline_ns - self._view.now_ns)
        answer_by = group.deadline_ns - min(ANSWER_MARGIN_NS, left // 10)
        heappush(self._wakeups, (answer_by, group.number))
        if len(order) > needed:
            group.hedge_ns = self._view.now_ns + HEDGE_NS
            heappush(self._wakeups, (group.hedge_ns, group.number))
        first = order if group.round or len(group.requirement.parts) > 1 else order[:needed]
        return self._ask(group, first)

    def _ask(self, group: ReadGroup, nodes: list[NodeId]) -> list[Effect]:
        keys = group.keys
        effects: list[Effect] = []
        message: ReplicaGet | None = None
        for node in nodes:
            if node in group.asked:
                continue
            group.asked.add(node)
            if node == self._view.node:
                effects.append(Read(group.number, keys, durable=group.agree > 0))
                continue
            if message is None:
                versions = [row.version for row in group.rows]
                message = ReplicaGet(
                    group.number, keys, versions, durable=group.agree > 0, deadline_ns=group.deadline_ns
                )
            effects.append(Send(node, message))
        return effects

    def _others(self, group: ReadGroup) -> list[NodeId]:
        order = self._view.ask_order(group.replicas)
        unable = self._view.node if self._view.unsynced else None
        return [n for n in order if n not in group.asked and n not in group.failed and n != unable]

    # --- answers ---

    def on_read(self, event: ReadDone) -> list[Effect]:
        group = self._groups.get(event.cause)
        if group is None:
            return []
        if event.statuses is not None and any(event.statuses):
            return self._on_refusal(group, self._view.node, event.statuses)
        alone = group.requirement.count == 1 and group.agree <= 1 and not group.answers
        if alone and group.state is ReadState.ASKING and group.requirement.votes((self._view.node,)) == 1:
            self._settle(group, event.held)  # nothing to join with: as it is held
            return []
        return self._on_answer(group, self._view.node, event.sets)

    def on_reply(self, node: NodeId, reply: ReplicaGetReply) -> list[Effect]:
        group = self._groups.get(reply.group)
        if group is None or node not in group.asked:
            return []
        if reply.statuses is not None and any(reply.statuses):
            return self._on_refusal(group, node, reply.statuses)
        sets = reply.sets(len(group.rows))
        return self.on_no_answer(node, reply.group) if sets is None else self._on_answer(group, node, sets)

    def _on_refusal(self, group: ReadGroup, node: NodeId, statuses: list[int]) -> list[Effect]:
        """No answer about at least one item. An unreadable record is never an absent one, and must not cost its neighbours their answers."""
        bad = {p for p, status in enumerate(statuses[: len(group.rows)]) if status == Status.CORRUPT}
        if len(group.rows) > 1 and group.state is ReadState.ASKING:
            if Status.OVERLOADED in statuses:
                return self._halve(group)
            if 0 < len(bad) < len(group.rows):
                del self._groups[group.number]
                rest = [p for p in range(len(group.rows)) if p not in bad]
                return self.begin(self._part(group, sorted(bad))) + self.begin(self._part(group, rest))
        group.unreadable = group.unreadable or bool(bad)
        return self.on_no_answer(node, group.number)

    def on_no_answer(self, node: NodeId, number: int) -> list[Effect]:
        """`node` refused or cannot be reached: ask somebody else, or give up when nobody is left."""
        group = self._groups.get(number)
        if group is None:
            return []
        group.failed.add(node)
        if group.state is ReadState.WRITING_BACK:
            group.outstanding.discard(node)
            return self._judge_write_back(group) if not group.outstanding else []
        others = self._others(group)
        if others:
            return self._ask(group, others[:1])
        possible = [n for n in group.replicas if n not in group.failed]
        if len(possible) < max(group.requirement.count, group.agree):
            self._fail(group, Status.CORRUPT if group.unreadable else Status.QUORUM_NOT_MET)
        return []

    def _on_answer(self, group: ReadGroup, node: NodeId, sets: list[VersionSet | None]) -> list[Effect]:
        if group.state is not ReadState.ASKING:
            return []
        group.answers[node] = sets
        answers = group.answers
        if len(answers) < group.agree or group.requirement.votes(answers) < group.requirement.count:
            return []
        if len(answers) == 1:
            self._settle(group, sets)
            return []
        joins, differing, collided = _join_all(list(answers.values()))
        group.joins = joins
        if collided:
            return self._settle_collided(group, collided)
        if not differing:
            self._settle(group, joins)
            return []
        if group.agree == 0:
            self._settle(group, joins)
            return self._repair(group, differing)
        return self._write_back(group, differing)

    def _settle_collided(self, group: ReadGroup, collided: list[int]) -> list[Effect]:
        """One dot with two values: corrupt, said so, and nothing is written back; the others are read again without it."""
        bad = set(collided)
        start = 0
        for open_get, items in group.segments:
            open_get.settle_failed([item for p, item in enumerate(items, start) if p in bad], Status.CORRUPT)
            start += len(items)
        del self._groups[group.number]
        note = Note(
            "error", "dot_collision", f"{len(bad)} keys have one dot with two values on different replicas: corrupt"
        )
        rest = [p for p in range(len(group.rows)) if p not in bad]
        return [note, *(self.begin(self._part(group, rest)) if rest else [])]

    def _halve(self, group: ReadGroup) -> list[Effect]:
        """The answer would not fit into a message: ask for half of it at a time."""
        del self._groups[group.number]
        middle = len(group.rows) // 2
        first, second = range(middle), range(middle, len(group.rows))
        return self.begin(self._part(group, first)) + self.begin(self._part(group, second))

    def _part(self, group: ReadGroup, positions: Iterable[int]) -> ReadGroup:
        """These positions of a group as a new one that has asked nobody."""
        part = self.new_group(group.replicas, group.requirement, group.agree, group.deadline_ns)
        chosen = list(positions)
        wanted = set(chosen)
        start = 0
        for open_get, items in group.segments:
            taken = [item for place, item in enumerate(items, start) if place in wanted]
            if taken:
                part.segments.append((open_get, taken))
            start += len(items)
        part.rows = [group.rows[p] for p in chosen]
        return part

    def _behind(self, group: ReadGroup, positions: list[int]) -> dict[NodeId, list[int]]:
        """node -> places in `positions` where its answer is not the join."""
        behind: dict[NodeId, list[int]] = {}
        for node, sets in group.answers.items():
            places = [
                place for place, position in enumerate(positions) if not _same(group.joins[position], sets[position])
            ]
            if places:
                behind[node] = places
        return behind

    def _repair(self, group: ReadGroup, positions: list[int]) -> list[Effect]:
        """After the reply: exactly those behind get exactly what they miss. Nobody waits for it."""
        effects: list[Effect] = []
        for node, places in self._behind(group, positions).items():
            self.repairs += len(places)
            block = self._block(group, [positions[place] for place in places])
            effects.append(self._give(node, self._view.number(Owner.READS), block, group.deadline_ns))
        return effects

    def _give(self, node: NodeId, number: int, block: RecordBlock, deadline_ns: int) -> Effect:
        if node == self._view.node:
            return Join(number, block, durable=True)
        return Send(node, ReplicaPut(number, block, durable=True, deadline_ns=deadline_ns))

    def _block(self, group: ReadGroup, positions: list[int]) -> RecordBlock:
        keys = group.keys
        records = []
        for position in positions:
            versions = group.joins[position]
            assert versions is not None, "only a set that somebody holds is ever given"
            row = group.rows[position]
            records.append(Record(keys[position], row.version, row.fence, None, versions))
        return RecordBlock(records)

    # --- strict: write back, then count exact holders ---

    def _write_back(self, group: ReadGroup, differing: list[int]) -> list[Effect]:
        settled = [p for p in range(len(group.rows)) if p not in set(differing)]
        self._settle_positions(group, settled)
        group.state = ReadState.WRITING_BACK
        group.open = differing
        behind = self._behind(group, differing)
        everything = frozenset(range(len(differing)))
        group.exact = {n: everything - frozenset(behind.get(n, ())) for n in group.answers}
        group.outstanding = set(behind)
        group.hedge_ns = self._view.now_ns + HEDGE_NS
        heappush(self._wakeups, (group.hedge_ns, group.number))
        block = self._block(group, differing)  # the same to all behind, so that places mean the same in every ack
        self.repairs += len(differing)
        return [self._give(node, group.number, block, group.deadline_ns) for node in behind]

    def on_joined(self, event: Joined) -> list[Effect]:
        """Our own copy took the join; it counts once it is persisted."""
        group = self._groups.get(event.cause)
        if group is not None and group.state is ReadState.WRITING_BACK:
            group.taken = exact = _exact(len(group.open), event.statuses, event.inexact)
            if event.statuses is not None and any(event.statuses):
                group.failed.add(self._view.node)
            if event.statuses is not None and not exact:
                return self._on_written_back(event.cause, self._view.node)  # nothing was written: nothing to wait for
        return []

    def on_persisted(self, causes: list[int]) -> list[Effect]:
        effects: list[Effect] = []
        for cause in causes:
            group = self._groups.get(cause)
            if group is not None and group.state is ReadState.WRITING_BACK:
                group.exact[self._view.node] = group.taken
                effects.extend(self._on_written_back(cause, self._view.node))
        return effects

    def on_ack(self, node: NodeId, ack: ReplicaPutAck) -> list[Effect]:
        group = self._groups.get(ack.group)
        if group is None or group.state is not ReadState.WRITING_BACK:
            return []
        group.exact[node] = _exact(len(group.open), ack.statuses, ack.inexact)
        if ack.statuses is not None and any(ack.statuses):
            group.failed.add(node)
        return self._on_written_back(ack.group, node)

    def _on_written_back(self, number: int, node: NodeId) -> list[Effect]:
        group = self._groups.get(number)
        if group is None or group.state is not ReadState.WRITING_BACK or node not in group.outstanding:
            return []
        group.outstanding.discard(node)
        return self._judge_write_back(group) if not group.outstanding else []

    def _judge_write_back(self, group: ReadGroup) -> list[Effect]:
        """All that were behind have answered: settle what enough now hold exactly, ask again for the rest."""
        agreed = []
        for place, position in enumerate(group.open):
            if sum(1 for places in group.exact.values() if place in places) >= group.agree:
                agreed.append(position)
        self._settle_positions(group, agreed)
        del self._groups[group.number]
        rest = [p for p in group.open if p not in set(agreed)]
        if not rest:
            group.state = ReadState.SETTLED
            return []
        again = self._part(group, rest)
        again.failed = set(group.failed)
        again.round = group.round + 1
        if not group.round:
            return self.begin(again)
        # somebody keeps writing this key, or a replica keeps refusing: not at the speed of the network
        again.state = ReadState.WAITING
        self._groups[again.number] = again
        again.hedge_ns = self._view.now_ns + min(ROUND_PAUSE_NS_MAX, ROUND_PAUSE_NS << group.round)
        heappush(self._wakeups, (min(again.hedge_ns, again.deadline_ns), again.number))
        return []

    # --- endings ---

    def _settle(self, group: ReadGroup, sets: Sequence[Held | None]) -> None:
        group.state = ReadState.SETTLED
        start = 0
        for open_get, items in group.segments:
            open_get.settle_ok(items, sets[start : start + len(items)])
            start += len(items)
        self._groups.pop(group.number, None)

    def _settle_positions(self, group: ReadGroup, positions: list[int]) -> None:
        wanted = set(positions)
        start = 0
        for open_get, items in group.segments:
            chosen = [(item, group.joins[p]) for p, item in enumerate(items, start) if p in wanted]
            if chosen:
                open_get.settle_ok([item for item, _ in chosen], [s for _, s in chosen])
            start += len(items)

    def _fail(self, group: ReadGroup, status: int) -> None:
        required = max(group.requirement.count, group.agree)
        for open_get, items in group.segments:
            open_get.settle_failed(items, status, required, len(group.answers))
        group.state = ReadState.SETTLED
        self._groups.pop(group.number, None)

    def on_lost(self, node: NodeId) -> list[Effect]:
        """A connection broke: whoever waits for that node asks another now."""
        effects: list[Effect] = []
        for number, group in list(self._groups.items()):
            waiting = node in group.outstanding or (node in group.asked and node not in group.answers)
            if waiting and node not in group.failed:
                effects.extend(self.on_no_answer(node, number))
        return effects

    def _on_patience_ended(self, group: ReadGroup) -> list[Effect]:
        match group.state:
            case ReadState.WAITING:
                del self._groups[group.number]
                group.state = ReadState.ASKING
                return self.begin(group)
            case ReadState.ASKING:
                return self._ask(group, self._others(group))
            case ReadState.WRITING_BACK:
                group.failed |= group.outstanding
                group.outstanding.clear()
                return self._judge_write_back(group)
            case _:
                return []

    def next_wakeup_ns(self) -> int | None:
        while self._wakeups and self._wakeups[0][1] not in self._groups:
            heappop(self._wakeups)
        return self._wakeups[0][0] if self._wakeups else None

    def on_time(self) -> list[Effect]:
        effects: list[Effect] = []
        while (due := self.next_wakeup_ns()) is not None and due <= self._view.now_ns:
            at_ns, number = heappop(self._wakeups)
            group = self._groups[number]
            if at_ns == group.hedge_ns and at_ns < group.deadline_ns:
                effects.extend(self._on_patience_ended(group))
            else:
                self._fail(group, Status.DEADLINE if group.state is ReadState.WRITING_BACK else Status.QUORUM_NOT_MET)
        return effects


def _join_all(answers: list[list[VersionSet | None]]) -> tuple[list[VersionSet | None], list[int], list[int]]:
    """The join of every item; the positions where not all answers were equal; those where one dot has two values."""
    joins = list(answers[0])
    collided: dict[int, None] = {}
    differing: dict[int, None] = {}
    for sets in answers[1:]:
        for i, theirs in enumerate(sets):
            mine = joins[i]
            if mine is theirs or _same(mine, theirs):
                continue
            differing[i] = None
            try:
                joins[i] = theirs if mine is None else mine if theirs is None else sync(mine, theirs)
            except DotCollision:
                collided[i] = None
    return joins, sorted(differing), sorted(collided)


def _same(a: VersionSet | None, b: VersionSet | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.same_as(b)


def _exact(count: int, statuses: list[int] | None, inexact: list[int]) -> frozenset[int]:
    wrong = set(inexact)
    if statuses is not None:
        wrong.update(i for i, status in enumerate(statuses) if status != Status.OK)
    return frozenset(range(count)) - wrong
