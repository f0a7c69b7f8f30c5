"""A put call and a get call: what each sends, and where each may be tried again.

Owns: the columns of one call, the rules by which its items move on. Must not know: sockets, clocks, values' meaning.
Invariant: contexts, bases and voids of a put are fixed when it begins; a retry never carries newer ones.
Source: as client_calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from zkv.core import messages as m
from zkv.core.client_calls import Call
from zkv.core.client_outcomes import GET_VERDICTS, PUT_VERDICTS, Failure, Verdict
from zkv.core.client_parts import Part, Positions, State, runs, take, take_optional
from zkv.core.client_state import ClientState
from zkv.core.messages import BATCH_VALUES_BYTES_MAX, ITEMS_MAX, Status
from zkv.core.topology import Bucket
from zkv.core.versions import Context
from zkv.ids import Dot, NodeId


class PutCall(Call):
    """values[i] None = delete; contexts[i] None = blind."""

    verdicts: ClassVar[dict[Status, Verdict]] = PUT_VERDICTS
    reply_kind: ClassVar[m.Kind] = m.Kind.PUT_REPLY

    def __init__(
        self,
        state: ClientState,
        bucket: Bucket,
        keys: list[bytes],
        values: Sequence[bytes | None],
        checksums: list[int],
        now_ns: int,
        deadline_ns: int,
        *,
        contexts: list[Context | None] | None = None,
        expires_ms: list[int] | None = None,
        w: m.Level = None,
        sloppy: bool | None = None,
        durable: bool = False,
        want_context: bool = False,
    ) -> None:
        state.check_level(bucket, "w", w)
        super().__init__(state, bucket, keys, now_ns, deadline_ns)
        self.answers: list[tuple[Positions, list[int] | None, m.PutReply]] = []
        self._values = values
        self._checksums = checksums
        self._contexts = contexts
        self._remembers = not state.single_copies
        self._bases = state.memory.bases(keys) if contexts is None and self._remembers else None
        self._voids = state.memory.voids(keys, blind=contexts is None)
        self._expires_ms = expires_ms
        self._w = w
        self._sloppy = sloppy
        self._durable = durable
        self._want_context = want_context
        #: siblings are the rule here, so any item may be tried elsewhere
        self._free = bucket.sloppy if sloppy is None else sloppy
        self._patience_ns = self._timeout_ns // 2
        sizes = [0 if value is None else len(value) for value in values]
        short = len(keys) <= ITEMS_MAX and sum(sizes) <= BATCH_VALUES_BYTES_MAX
        self._parts = [
            Part(run) for run in runs(len(keys), ITEMS_MAX, None if short else sizes, BATCH_VALUES_BYTES_MAX)
        ]

    def flew_following(self, base: Dot | None, address: str, node: NodeId, sequence: int, sent_ns: int) -> None:
        """As `flew`; base: what was said then, whatever has become known since."""
        self._bases = None if base is None else [base]
        self._voids = None
        self.flew(address, node, sequence, sent_ns)

    def _message(self, part: Part) -> m.Put:
        positions = part.positions
        return m.Put(
            (self._state.session, part.sequence),
            take(self.keys, positions),
            take(self._values, positions),
            take(self._checksums, positions),
            take_optional(self._contexts, positions),
            take_optional(self._bases, positions),
            take_optional(self._expires_ms, positions),
            take_optional(self._voids, positions),
            part.items,
            self._w,
            self._sloppy,
            self._durable,
            part.again,
            self._want_context,
            retry=part.tainted,
            deadline_ns=self.deadline_ns,
        )

    def _count(self, reply: m.PutReply | m.GetReply) -> int:
        return len(reply.counters) if isinstance(reply, m.PutReply) else -1

    def _on_ok(
        self, part: Part, positions: Positions, columns: list[int] | None, reply: m.PutReply | m.GetReply
    ) -> None:
        assert isinstance(reply, m.PutReply)
        self.answers.append((positions, columns, reply))
        keys = take(self.keys, positions)
        if self._remembers:
            self._state.memory.note_acked(keys, reply, columns)
        if part.again or part.state is State.GHOST:
            self._state.memory.note_doubled(keys, part.sequence)

    def _fail(self, positions: Positions, failure: Failure, part: Part, *, unknown: bool = False) -> None:
        super()._fail(positions, failure, part, unknown=unknown)
        if unknown:
            keys = [self.keys[p] for p in positions if self._values[p] is not None]
            self._state.memory.note_unknown(keys, part.sequence)

    # --- moving on ---

    def _divide(self, part: Part, places: list[int] | None = None) -> tuple[list[int], list[int]]:
        """Places of the items that may go elsewhere marked `again`, and of those that may not."""
        chosen = list(range(len(part.positions))) if places is None else places
        if self._free:
            return chosen, []
        known = self._contexts or self._bases
        if known is None:
            return [], chosen
        free = [i for i in chosen if known[part.positions[i]] is not None]
        return free, [i for i in chosen if known[part.positions[i]] is None]

    def _replicas_only(self, part: Part) -> bool:
        """A node that forwards would leave open which store may be asked again, which matters to items that may not go elsewhere."""
        return bool(self._divide(part)[1])

    def _on_unanswered(self, part: Part, now_ns: int) -> None:
        part.tainted = True
        self._parts.remove(part)
        free, bound = self._divide(part)
        if free:
            piece = part.piece(free if bound else None)
            piece.avoid.add(part.node)
            self._parts.append(piece)
            if self._others(piece):
                piece.again, piece.pinned = True, False
            else:
                piece.avoid.clear()
                piece.pinned = not piece.again
                self._rest(piece, now_ns)
        if bound:
            piece = part.piece(bound if free else None)
            piece.pinned = True
            self._parts.append(piece)
            self._rest(piece, now_ns)

    def _on_unknown_status(self, part: Part, places: list[int] | None, failure: Failure, now_ns: int) -> None:
        part.tainted = True
        free, bound = self._divide(part, places)
        if free:
            piece = part.piece(free)
            piece.tries += 1
            piece.avoid.add(part.node)
            if self._others(piece):
                piece.again, piece.pinned = True, False
                self._parts.append(piece)
                self._rest(piece, now_ns)
            else:
                self._fail(piece.positions, failure, part, unknown=True)
        if bound:
            self._fail([part.positions[i] for i in bound], failure, part, unknown=True)

    def _overdue(self, part: Part, now_ns: int) -> None:
        part.due_ns = 0
        if part.node in part.avoid or self._divide(part)[1]:
            return
        part.avoid.add(part.node)
        if self._others(part):
            part.tainted = True
            piece = self._haunt(part)
            piece.again, piece.pinned = True, False
            piece.tries += 1
            self._parts.append(piece)


class GetCall(Call):
    """Changes nothing, so it may go anywhere, any time."""

    verdicts: ClassVar[dict[Status, Verdict]] = GET_VERDICTS
    reply_kind: ClassVar[m.Kind] = m.Kind.GET_REPLY

    def __init__(
        self,
        state: ClientState,
        bucket: Bucket,
        keys: list[bytes],
        now_ns: int,
        deadline_ns: int,
        *,
        r: m.Level = None,
        sloppy: bool | None = None,
        want_context: bool = False,
        heads: bool = False,
    ) -> None:
        state.check_level(bucket, "r", r)
        super().__init__(state, bucket, keys, now_ns, deadline_ns)
        self.answers: list[tuple[Positions, list[int] | None, m.GetReply]] = []
        self._r = r
        self._sloppy = sloppy
        self._want_context = want_context
        self._heads = heads
        self._patience_ns = self._timeout_ns * 3 // 10
        self._parts = [Part(run) for run in runs(len(keys), ITEMS_MAX, None, 0)]

    def _message(self, part: Part) -> m.Get:
        return m.Get(
            (self._state.session, part.sequence),
            take(self.keys, part.positions),
            self._r,
            self._sloppy,
            self._want_context,
            self._heads,
            deadline_ns=self.deadline_ns,
        )

    def _count(self, reply: m.PutReply | m.GetReply) -> int:
        if not isinstance(reply, m.GetReply):
            return -1
        return len(reply.checksums) if reply.counts is None else len(reply.counts)

    def _on_ok(
        self, part: Part, positions: Positions, columns: list[int] | None, reply: m.PutReply | m.GetReply
    ) -> None:
        assert isinstance(reply, m.GetReply)
        self.answers.append((positions, columns, reply))

    def _on_unanswered(self, part: Part, now_ns: int) -> None:
        self._parts.remove(part)
        piece = part.piece()
        self._parts.append(piece)
        self._move_on(piece, now_ns)

    def _on_unknown_status(self, part: Part, places: list[int] | None, failure: Failure, now_ns: int) -> None:
        raise AssertionError(f"nothing about a get is unknown: {failure.status}")

    def _overdue(self, part: Part, now_ns: int) -> None:
        part.due_ns = 0
        part.avoid.add(part.node)
        if self._others(part):
            piece = self._haunt(part)
            piece.tries += 1
            self._parts.append(piece)
