"""One put or get of a user, from keys to an outcome for each: messages, retries, deadline.

Owns: the progress of one call. Must not know: sockets, clocks, threads, bytes on the wire, what values mean.

A call is cut into parts; a part is what travels in one message and is tried again as one. The driver loops: send what `turn` orders, wait until
`next_wakeup_ns`, report what happened. Replies are matched by (address, sequence); anything else is not ours and changes nothing.

Retries. A get may go anywhere. A put that was certainly not carried out goes elsewhere as a new request. A put whose outcome is unknown keeps
its request id: to the same node unmarked, to any other one marked `again`, and marked for ever after. Marked, it is minted with the context or
base fixed when the call began, so an item without either goes elsewhere only where siblings are the rule (sloppy).

Invariants: each position is settled once. Deadlines hold whatever happens. Nothing is sent after `done`.
Source: 30-replication, requests; counterexamples 6, 7, 12.
"""

from __future__ import annotations

from typing import ClassVar, Final

from zkv.core import messages as m
from zkv.core.client_outcomes import STALE_STATUSES, TRIES_MAX, Failure, Verdict, error_of, failure_of_refusal
from zkv.core.client_parts import Order, Part, Positions, State, take
from zkv.core.client_state import ClientState
from zkv.core.messages import Status
from zkv.core.topology import Bucket
from zkv.errors import ZkvError
from zkv.ids import NodeId

#: messages of one call under way at a time
FLYING_MAX: Final = 4
#: how long a call goes on asking when nobody can be connected to
CONNECT_PATIENCE_NS: Final = 2_000_000_000
#: with less left, a definite refusal is kept rather than risked for one more try that could end unknown
LAST_TRY_NS: Final = 50_000_000


class Call:
    """What puts and gets share. answers: (positions, their columns in the reply or None, reply)."""

    verdicts: ClassVar[dict[Status, Verdict]]
    reply_kind: ClassVar[m.Kind]

    def __init__(self, state: ClientState, bucket: Bucket, keys: list[bytes], now_ns: int, deadline_ns: int) -> None:
        self.keys = keys
        self.deadline_ns = deadline_ns
        self.failures: list[tuple[Positions, Failure, bool]] = []
        self._state = state
        self._bucket = bucket
        self._patience_ns = 0
        self._timeout_ns = deadline_ns - now_ns
        self._left = len(keys)
        self._settled = bytearray(len(keys))
        self._contested = False
        self._now_ns = now_ns
        self._flying = 0
        self._parts: list[Part] = []
        self._inflight: dict[tuple[str, int], Part] = {}

    # --- for the driver ---

    @property
    def done(self) -> bool:
        return not self._left

    def turn(self, now_ns: int) -> list[Order]:
        """What to send now."""
        self._now_ns = now_ns
        if not self._left:
            return []
        if now_ns >= self.deadline_ns:
            self._expire()
            return []
        for part in list(self._parts):
            if part.due_ns and part.due_ns <= now_ns:
                if part.state is State.RESTING:
                    self._wake(part, now_ns)
                elif part.state is State.FLYING:
                    self._overdue(part, now_ns)
        orders: list[Order] = []
        for part in [part for part in self._parts if part.state is State.READY]:
            if self._flying >= FLYING_MAX:
                break
            self._dispatch(part, now_ns, orders)
        return orders

    def next_wakeup_ns(self) -> int:
        """When `turn` has something to do if nothing happens before; 0 = at once."""
        wake_ns = self.deadline_ns
        for part in self._parts:
            if part.due_ns and part.due_ns < wake_ns:
                wake_ns = part.due_ns
            elif part.state is State.READY and self._flying < FLYING_MAX:
                return 0
        return wake_ns

    def on_sent(self, order: Order, now_ns: int) -> None:
        """The link took it: from here on its outcome can be unknown."""
        order.part.state = State.FLYING
        order.part.due_ns = now_ns + self._patience_ns

    def flew(self, address: str, node: NodeId, sequence: int, sent_ns: int) -> None:
        """All of this call, one key, was sent before it was made."""
        (part,) = self._parts
        part.sequence, part.node = sequence, node
        part.state, part.due_ns = State.FLYING, sent_ns + self._patience_ns
        self._inflight[address, sequence] = part
        self._flying = 1

    def on_unsent(self, order: Order, now_ns: int) -> None:
        """The link certainly did not take it."""
        part = order.part
        if self._inflight.get((order.address, part.sequence)) is not part:
            return
        del self._inflight[order.address, part.sequence]
        self._flying -= 1
        part.tries += 1
        part.unsent_ns = part.unsent_ns or now_ns
        if self._move_on(part, now_ns):
            return
        if not part.tainted and now_ns - part.unsent_ns >= CONNECT_PATIENCE_NS:
            self._parts.remove(part)
            self._fail(part.positions, part.failure or self._unreached(), part)

    def on_lost(self, address: str, now_ns: int) -> None:
        """The connection broke: no reply will come for what was sent on it."""
        for key in [key for key in self._inflight if key[0] == address]:
            part = self._inflight[key]
            if part.state is State.QUEUED:
                continue
            del self._inflight[key]
            if part.state is State.FLYING:
                self._flying -= 1
                part.tries += 1
                self._on_unanswered(part, now_ns)

    def on_reply(self, address: str, reply: m.ClientReply, now_ns: int) -> bool:
        """False: not an answer to anything that is open here; dropped."""
        if isinstance(reply, m.Welcome):
            return False
        part = self._inflight.get((address, reply.request[1]))
        if part is None or part.state is State.QUEUED or reply.request[0] != self._state.session:
            return False
        if isinstance(reply, m.Refused):
            self._arrived(address, part)
            self._judge(part, None, failure_of_refusal(reply), now_ns)
            return True
        if not isinstance(reply, m.PutReply | m.GetReply) or reply.kind is not self.reply_kind:
            return False
        count = self._count(reply)
        # the node may still have worked on the whole request when a part of it was asked for again
        columns = part.items if count != len(part.positions) and count == part.width else None
        if columns is None and count != len(part.positions):
            return False
        self._arrived(address, part)
        if reply.statuses is None and not self._contested:
            self._settle(part, part.positions, columns, reply)
        else:
            self._sort_out(part, columns, reply, now_ns)
        return True

    def errors_from(self, start: int) -> list[tuple[Positions, ZkvError]]:
        """What failed from this one of `failures` on, one error for all positions that share a reason."""
        return [(p, error_of(failure, unknown=unknown)) for p, failure, unknown in self.failures[start:]]

    def errors(self) -> dict[int, ZkvError]:
        """Position -> why it is not ok."""
        return {
            p: error_of(failure, unknown=unknown) for positions, failure, unknown in self.failures for p in positions
        }

    # --- sending ---

    def _dispatch(self, part: Part, now_ns: int, orders: list[Order]) -> None:
        if self._contested and not self._strip(part):
            return
        if part.pinned:
            self._order(part, part.node, orders)
            return
        keys = take(self.keys, part.positions)
        assignments = self._state.assign(
            keys, self._bucket.class_id, now_ns, avoid=part.avoid, replicas_only=self._replicas_only(part)
        )
        if len(assignments) == 1:
            self._order(part, assignments[0][0], orders)
            return
        self._parts.remove(part)
        for node, places in assignments:
            piece = part.piece(places)
            self._parts.append(piece)
            self._order(piece, node, orders)

    def _wake(self, part: Part, now_ns: int) -> None:
        part.state, part.due_ns = State.READY, 0
        if part.failure is not None and not part.tainted and self.deadline_ns - now_ns < LAST_TRY_NS:
            self._parts.remove(part)
            self._fail(part.positions, part.failure, part)

    def _strip(self, part: Part) -> bool:
        """Take out what a ghost has settled meanwhile; False: nothing is left."""
        open_places = [i for i, p in enumerate(part.positions) if not self._settled[p]]
        if len(open_places) == len(part.positions):
            return True
        if open_places:
            stripped = part.piece(open_places)
            part.positions, part.items, part.width, part.sequence = (
                stripped.positions,
                stripped.items,
                stripped.width,
                stripped.sequence,
            )
            return True
        self._parts.remove(part)
        return False

    def _order(self, part: Part, node: NodeId, orders: list[Order]) -> None:
        if not part.sequence:
            part.sequence = self._state.next_sequence()
        part.node = node
        address = self._state.addresses[node]
        if (address, part.sequence) in self._inflight:
            # another piece of the same request is there: a node takes a request once at a time, and its answer names only the request
            part.avoid.add(node)
            part.tries += 1
            self._rest(part, self._now_ns)
            return
        part.state, part.due_ns = State.QUEUED, 0
        self._inflight[address, part.sequence] = part
        self._flying += 1
        orders.append(Order(address, self._message(part), part))

    # --- answers ---

    def _arrived(self, address: str, part: Part) -> None:
        del self._inflight[address, part.sequence]
        self._state.answered(address)
        if part.state is State.FLYING:
            self._flying -= 1
            self._parts.remove(part)

    def _sort_out(self, part: Part, columns: list[int] | None, reply: m.PutReply | m.GetReply, now_ns: int) -> None:
        """Item by item: some are ok, some are not, some may be settled already."""
        ok: list[int] = []
        bad: dict[tuple[int, int, int], list[int]] = {}
        for place, position in enumerate(part.positions):
            if self._settled[position]:
                continue
            column = place if columns is None else columns[place]
            status = reply.statuses[column] if reply.statuses else 0
            if status == Status.OK:
                ok.append(place)
                continue
            required = reply.required[column] if reply.required else 0
            got = reply.got[column] if reply.got else 0
            bad.setdefault((status, required, got), []).append(place)
        if ok:
            positions = [part.positions[i] for i in ok]
            self._settle(part, positions, ok if columns is None else [columns[i] for i in ok], reply)
        for (status, required, got), places in bad.items():
            self._judge(part, places, Failure(_status(status), required, got), now_ns)

    def _settle(
        self, part: Part, positions: Positions, columns: list[int] | None, reply: m.PutReply | m.GetReply
    ) -> None:
        self._mark(positions)
        self._on_ok(part, positions, columns, reply)

    def _mark(self, positions: Positions) -> None:
        if isinstance(positions, range):
            self._settled[positions.start : positions.stop] = b"\1" * len(positions)
        else:
            for position in positions:
                self._settled[position] = 1
        self._left -= len(positions)

    def _judge(self, part: Part, places: list[int] | None, failure: Failure, now_ns: int) -> None:
        """These items of a part that was answered are not ok."""
        if part.state is State.GHOST:
            return
        if self._contested:
            places = [
                i
                for i in (range(len(part.positions)) if places is None else places)
                if not self._settled[part.positions[i]]
            ]
            if not places:
                return
        if failure.status in STALE_STATUSES:
            self._state.stale = True
        verdict = Verdict.FINAL if failure.status is None else self.verdicts[failure.status]
        part.failure = failure
        piece = part.piece(places)
        piece.tries += 1
        match verdict:
            case Verdict.FINAL | Verdict.UNKNOWN_FINAL:
                piece.tainted = piece.tainted or verdict is Verdict.UNKNOWN_FINAL
                self._fail(piece.positions, failure, part, unknown=piece.tainted)
            case Verdict.ELSEWHERE if piece.tries >= TRIES_MAX and not part.tainted:
                self._fail(piece.positions, failure, part)
            case Verdict.ELSEWHERE | Verdict.PATIENT:
                piece.pinned = False if piece.again else piece.pinned
                self._parts.append(piece)
                self._move_on(piece, now_ns, rest=True)
            case Verdict.UNKNOWN:
                self._on_unknown_status(part, places, failure, now_ns)

    def _move_on(self, part: Part, now_ns: int, *, rest: bool = False) -> bool:
        """To the next node. False: all were tried; rest, then begin again."""
        part.avoid.add(part.node)
        others = not part.pinned and self._others(part)
        if others and not rest:
            part.state, part.due_ns = State.READY, 0
            return True
        if not others:
            part.avoid.clear()
        self._rest(part, now_ns)
        return others

    def _rest(self, part: Part, now_ns: int) -> None:
        part.state = State.RESTING
        part.due_ns = now_ns + max(1_000_000, self._state.backoff_ns(part.tries))

    def _others(self, part: Part) -> bool:
        key = self.keys[part.positions[0]]
        return self._state.others_to_try(
            key, self._bucket.class_id, part.avoid, replicas_only=self._replicas_only(part)
        )

    def _haunt(self, part: Part) -> Part:
        """Give up waiting for this try without closing the door: an answer that still comes counts."""
        self._parts.remove(part)
        self._flying -= 1
        part.state = State.GHOST
        self._contested = True
        return part.piece()

    # --- endings ---

    def _fail(self, positions: Positions, failure: Failure, part: Part, *, unknown: bool = False) -> None:
        self._mark(positions)
        self.failures.append((positions, failure, unknown))

    def _unreached(self) -> Failure:
        names = ", ".join(sorted(self._state.addresses.values()))
        return Failure(None, code="ConnectFailed", message=f"no node could be reached ({names}); nothing was sent")

    def _expire(self) -> None:
        """The time is up: whatever is open gets its last word."""
        late = f"no answer within {self._timeout_ns / 1e9:.3g} s"
        for part in list(self._parts):
            positions = [p for p in part.positions if not self._settled[p]]
            if not positions:
                continue
            sent = part.tainted or part.state is State.FLYING
            if not sent and part.failure is not None:
                failure = part.failure
            elif not sent and (part.unsent_ns or part.state is State.QUEUED):
                failure = self._unreached()
            else:
                failure = Failure(None, code="DeadlineExceeded", message=late)
            self._fail(positions, failure, part, unknown=sent)
        self._parts.clear()
        self._inflight.clear()
        assert not self._left, "every open position belongs to a part"

    def abandon(self) -> None:
        """The caller was interrupted and will not hear the end: whatever may have left is unknown to it, and remembered as that."""
        failure = Failure(None, code="DeadlineExceeded", message="interrupted")
        for part in list(self._parts):
            positions = [p for p in part.positions if not self._settled[p]]
            maybe_sent = part.tainted or part.state in (State.FLYING, State.QUEUED)
            if positions and maybe_sent:
                self._fail(positions, failure, part, unknown=True)
        self._parts.clear()
        self._inflight.clear()

    # --- what puts and gets do differently ---

    def _message(self, part: Part) -> m.Put | m.Get:
        raise NotImplementedError

    def _count(self, reply: m.PutReply | m.GetReply) -> int:
        raise NotImplementedError

    def _on_ok(
        self, part: Part, positions: Positions, columns: list[int] | None, reply: m.PutReply | m.GetReply
    ) -> None:
        raise NotImplementedError

    def _on_unanswered(self, part: Part, now_ns: int) -> None:
        """The link broke after it took this part."""
        raise NotImplementedError

    def _on_unknown_status(self, part: Part, places: list[int] | None, failure: Failure, now_ns: int) -> None:
        raise NotImplementedError

    def _overdue(self, part: Part, now_ns: int) -> None:
        """No answer for long; the link stands."""
        raise NotImplementedError

    def _replicas_only(self, part: Part) -> bool:
        return False


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        return Status.QUORUM_NOT_MET  # a status of a later version: claim nothing
