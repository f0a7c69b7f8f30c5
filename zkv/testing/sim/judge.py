"""What must hold, judged from outside: by values that clients wrote and were shown, and by every dot that a store minted.

Owns: the verdicts, who lost what, the story of a key. Must not know: how nodes reach their answers, what gave way to what (lineage).

A value may be gone only if a write that replaced it is there, or was itself replaced by the same rule. Excused is only what every store of its receipt lost:
wiped, put back to an old copy, or without power while the policy does not sync each ack. Source: 35-counterexamples, last part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zkv.codec import wire
from zkv.core.effects import Mint
from zkv.core.messages import Kind
from zkv.core.versions import EMPTY, Context, VersionSet, context_of_base
from zkv.ids import Dot, RequestId
from zkv.storage.record_table import RecordTable
from zkv.testing.sim.clients import STRICT, Done
from zkv.testing.sim.lineage import KeyHistory, Minted

if TYPE_CHECKING:
    from zkv.testing.sim.plan import Plan
    from zkv.testing.sim.world import SimNode


class Violation(Exception):
    """A promise was broken. `key` names whose story tells of it."""

    def __init__(self, rule: str, text: str, key: bytes = b"") -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.key = key


#: how many stores a level asks, of three
_ASKED: Final[dict[object, int]] = {None: 2, 1: 1, "all": 3}


class Judge:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        #: (time, key, what happened or how to say it)
        self.story: list[tuple[int, bytes, str | Callable[[], str]]] = []
        self.now_ns: Callable[[], int] = int
        self.keys: dict[bytes, KeyHistory] = {}
        self._mints = 0
        self._floors: dict[bytes, Context] = {}
        #: node -> (moment at which it may have lost records that it had acknowledged, whether also those on its disk)
        self.losses: dict[int, list[tuple[int, bool]]] = {}
        #: (node, request) -> when the time that it came with has run out there
        self._due: dict[tuple[int, RequestId], int] = {}
        #: (node, request) that were sent there as a first try; request -> what it is for
        self._first_tries: set[tuple[int, RequestId]] = set()
        self._asked: dict[RequestId, Done] = {}
        #: from here on reads may miss what an acknowledged write put there: a store answers that does not know what it lost
        self.weak = False

    def tell(self, key: bytes, text: str | Callable[[], str]) -> None:
        self.story.append((self.now_ns(), key, text))

    def lost(self, node: SimNode, *, unnoticed: bool = False, synced_too: bool = True) -> None:
        """synced_too: even what was on the disk."""
        self.losses.setdefault(node.node, []).append((self.now_ns(), synced_too))
        self.weak = self.weak or unnoticed

    # --- stores ---

    def on_start(self, node: SimNode) -> None:
        self.tell(b"", f"{node.name} starts, life {node.life}{', unsynced' if node.view.unsynced else ''}")
        self._check_kept(node)

    def _check_kept(self, node: SimNode) -> None:
        """What this store vouched for as durable is there after any restart that left its disk alone."""
        gone_ns = max([at_ns for at_ns, synced_too in self.losses.get(node.node, ()) if synced_too], default=-1)
        for key, history in self.keys.items():
            held, _ = node.table.read([key])
            for write, place in history.writes:
                value = write.values[place]
                if not write.done_ns or value is None or write.outcomes[place] != "ok" or write.invoked_ns <= gone_ns:
                    continue
                if node.node not in write.nodes[place] or not (write.durable or self.plan.fsync == "group"):
                    continue
                dots = [mint.dot for mint in history.minted.get(value, ()) if mint.dot is not None]
                if held[0] is None or not any(held[0].context.covers(*dot) for dot in dots):
                    raise Violation("kept", f"{node.name} acknowledged {value!r} and has lost it at a restart", key)

    def on_turn(self, node: SimNode) -> None:
        """What this turn takes in, before it does: the time of a put counts from here."""
        for lane in (node.inbox.clients, node.inbox.peers):
            for _, frames in lane:
                if frames[0][3] == Kind.PUT:
                    header = wire.decode_header(frames)
                    key = node.index, (header.session, header.sequence)
                    due_ns = self.now_ns() + header.remaining_ms * 1_000_000
                    self._due[key] = max(due_ns, self._due.get(key, 0))

    def on_try(self, node: SimNode, request: RequestId, done: Done, *, first: bool) -> None:
        self._asked[request] = done
        if first:
            self._first_tries.add((node.index, request))

    def _check_time(self, node: SimNode, order: Mint) -> None:
        for request, _ in order.segments:
            late_ns = self.now_ns() - self._due.get((node.index, request), 0)
            if late_ns > 0:
                raise Violation(
                    "deadlines", f"{node.name} mints {late_ns / 1e6:.1f} ms after the time of the put", order.keys[0]
                )

    def on_table(self, node: SimNode) -> None:
        """Hear of every mint of this table, and of those that are undone."""
        table: RecordTable = node.table
        mint, roll_back, commit = table.mint, table.roll_back, table.commit
        fresh: list[tuple[bytes, Minted]] = []

        def minting(order: Mint) -> Any:
            self._check_time(node, order)
            before, _ = table.read(list(order.keys))
            answer = mint(order)
            block = answer[0]
            places = [i for i in range(len(order.keys)) if answer[2] is None or answer[2][i] == 0]
            earlier: dict[
                bytes, list[Dot]
            ] = {}  # minted by this very order: held when the next of the same key is minted
            requests = [request for request, items in order.segments for _ in items]
            for i, record, counter in zip(places, block.records, answer[1], strict=True):
                key = record.key
                minted = self._note_mint(node, order, i, requests[i], before[i], earlier.get(key, []), counter)
                minted.late = order.replace_held and (node.index, requests[i]) in self._first_tries
                if minted.dot is not None:
                    earlier.setdefault(key, []).append(minted.dot)
                fresh.append((key, minted))
            return answer

        def rolling_back() -> None:
            for key, minted in fresh:
                self.keys[key].forget(minted)
            fresh.clear()
            roll_back()

        def committing(log_seq: int) -> None:
            fresh.clear()
            commit(log_seq)

        table.mint, table.roll_back, table.commit = minting, rolling_back, committing  # type: ignore[method-assign,assignment]

    def _note_mint(
        self,
        node: SimNode,
        order: Mint,
        i: int,
        request: RequestId,
        held: VersionSet | None,
        earlier: list[Dot],
        counter: int,
    ) -> Minted:
        key, value = order.keys[i], order.values[i]
        covered = context_of_base(order.covered[i] if order.covered else None)
        dots: frozenset[Dot] = frozenset()
        if order.replace_held:
            dots = frozenset([*earlier, *(s.dot for s in (held.siblings if held is not None else ()))])
        self._mints += 1
        history = self.keys[key]
        asked = self._asked[request]
        # a try at another store than the first never replaces more than was stated, whoever has learnt of what
        elsewhere = (node.index, request) not in self._first_tries
        learnt = elsewhere or (bool(asked.done_ns) and asked.outcomes[asked.keys.index(key)] == "ok")
        if not counter:
            self.tell(key, f"{node.name} deletes")
            return history.mint(None, None, covered, dots, request, self._mints, learnt=learnt)
        dot = (node.table.actor, counter)
        if dot in history.dots:
            raise Violation("dots", f"{node.name} mints {_name(dot)} for {value!r} a second time", key)
        assert value is not None
        minted = history.mint(dot, value, covered, dots, request, self._mints, learnt=learnt)
        self.tell(key, lambda: f"{node.name} mints {_name(dot)} = {value!r}")
        if sum([m.dot is not None and m.dot[0][:8] == dot[0][:8] for m in history.minted[value]]) > 1:
            raise Violation("idempotence", f"{node.name} carries out one request twice: {value!r}", key)
        return minted

    # --- clients ---

    def on_begin(self, done: Done) -> None:
        if done.is_get:
            done.floors = {key: self._floors.get(key, EMPTY) for key in done.keys}
            return
        for i, key in enumerate(done.keys):
            self.keys.setdefault(key, KeyHistory()).begin(done, i)

    def on_done(self, done: Done) -> None:
        for i, key in enumerate(done.keys):
            if done.is_get:
                if i in done.shown:
                    self._tell_read(done, i)
                    self.check_read(done, i)
                continue
            self._tell_write(done, i)
            self._check_write(done, i, key)

    def _tell_read(self, done: Done, i: int) -> None:
        self.tell(done.keys[i], lambda: f"client {done.client} is shown {done.shown[i]} (operation {done.number})")

    def _tell_write(self, done: Done, i: int) -> None:
        def text() -> str:
            names = ",".join(sorted(f"{n:x}"[:4] for n in done.nodes[i]))
            why = f" {done.errors[i]}" if i in done.errors else f" by {names}"
            return f"client {done.client} {done.kind} {done.values[i]!r}: {done.outcomes[i]}{why}"

        self.tell(done.keys[i], text)

    def _check_write(self, done: Done, i: int, key: bytes) -> None:
        value, outcome = done.values[i], done.outcomes[i]
        history = self.keys[key]
        if outcome == "failed" and value is not None and history.minted.get(value):
            raise Violation("outcomes", f"{value!r} was minted and its writer told: failed ({done.errors[i]})", key)
        if outcome != "ok":
            return
        needed = _ASKED[done.level]
        if len(set(done.nodes[i])) < needed:
            raise Violation("receipts", f"{value!r} is acknowledged by {len(set(done.nodes[i]))} of {needed}", key)
        history.acknowledge(done, i)

    def _binds(self, write: Done, place: int, read: Done) -> bool:
        """Whether any R answers include one of W acks, and none of these was lost."""
        return _ASKED[write.level] + _ASKED[read.level] > 3 and not self.excused(write, place)

    def check_read(self, done: Done, i: int) -> None:
        key, shown = done.keys[i], done.shown[i]
        where = f"client {done.client} is shown {shown}"
        history = self.keys.get(key) or KeyHistory()
        history.shown.update(shown)
        for value in shown:
            if value not in history.issued:
                raise Violation("invention", f"{where}: nobody wrote {value!r}", key)
            write, place = history.issued[value]
            if write.done_ns and write.outcomes[place] == "failed":
                raise Violation("outcomes", f"{where}: the writer of {value!r} was told that nothing was written", key)
        if len(set(shown)) < len(shown):
            raise Violation("idempotence", f"{where}: one value twice", key)
        if len(shown) > len(history.writes):
            raise Violation("siblings", f"{where}: more siblings than writes", key)
        if self.weak:
            return
        if done.bucket == STRICT and done.level in (None, "all"):
            self._check_strict(done, i, history, where)
        for write, place in history.missing(set(shown), done.invoked_ns):
            if self._binds(write, place, done):
                acked = write.values[place]
                raise Violation("durability", f"{where}: {acked!r} was acknowledged and nothing replaced it", key)
        for gone in shown:
            for write, place in history.replaced.get(gone, ()):
                if (
                    write.done_ns <= done.invoked_ns
                    and len(history.minted.get(gone, ())) == 1
                    and self._binds(write, place, done)
                ):
                    by = write.values[place]
                    raise Violation("resurrection", f"{where}: {gone!r} was replaced by {by!r}", key)

    def _check_strict(self, done: Done, i: int, history: KeyHistory, where: str) -> None:
        key, shown = done.keys[i], done.shown[i]
        if key[4:5] == b"s" and len(shown) > 1 and not any(write.level == 1 for write, _ in history.writes):
            raise Violation("sequential writer", f"{where}: a conflict on a key with one writer", key)
        floor, read = done.floors[key], done.read[i]
        if floor.joined(read) != read:
            raise Violation("monotonic", f"{where}: went back from {floor} to {read}", key)
        self._floors[key] = self._floors.get(key, EMPTY).joined(read)
        for gone in shown:
            self._check_overwritten(done, gone, history, where)

    def _check_overwritten(self, done: Done, gone: bytes, history: KeyHistory, where: str) -> None:
        """A blind put or delete of a strict bucket replaces all that was acknowledged before it began."""
        before, i = history.issued[gone]
        if not before.done_ns or before.outcomes[i] != "ok" or before.level == 1 or before.retried:
            return
        if len(history.minted.get(gone, ())) != 1 or self.excused(before, i):
            return
        for write, place in reversed(history.blind):
            if write.done_ns < before.done_ns:
                return  # nor did any that ended before this one begin after it
            if write.invoked_ns < before.done_ns or write.done_ns > done.invoked_ns or write is before:
                continue
            if write.level != 1 and write.bucket == STRICT and not write.retried and self._binds(write, place, done):
                text = f"{gone!r} was there before the blind write {write.values[place]!r}"
                raise Violation("overwrite", f"{where}: {text}", write.keys[place])

    def excused(self, write: Done, place: int) -> bool:
        """Whether every store that vouched for this write may have lost it since."""
        if not self.losses:
            return False
        return all(
            any(
                at_ns >= write.invoked_ns and (synced_too or not write.durable)
                for at_ns, synced_too in self.losses.get(node, ())
            )
            for node in write.nodes[place]
        )

    def tell_story(self, key: bytes, lines_max: int = 80) -> list[str]:
        """Who wrote, who acked, who crashed, in order of time."""
        told = [(at_ns, text) for at_ns, of, text in self.story if of in (key, b"")]
        return [
            f"{at_ns / 1e9 - 1000:9.4f}s {text if isinstance(text, str) else text()}"
            for at_ns, text in told[-lines_max:]
        ]


def _name(dot: Dot) -> str:
    return f"{dot[0].hex()[:8]}/{int.from_bytes(dot[0][8:], 'big')}:{dot[1]}"
