"""What must hold, judged from outside: by values that clients wrote and were shown, and by every dot that a store minted.

Owns: the oracle's own history, the verdicts, the story of a key. Must not know: how nodes reach their answers.

A value may be gone only if a write that replaced it is there, or was itself replaced by the same rule. A write replaces what its client was
shown with the context, or, blind, what the store was told and held when it minted. Excused is only what every store of its receipt lost:
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

if TYPE_CHECKING:
    from zkv.testing.sim.plan import Plan
    from zkv.testing.sim.world import SimNode


class Violation(Exception):
    """A promise was broken. `key` names whose story tells of it."""

    def __init__(self, rule: str, text: str, key: bytes = b"") -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.key = key


#: what stands for the values that a delete put in place of others
_DELETED: Final = b""


class _Minted:
    """One execution of one item. `order`: how many there were before it, anywhere; `begun`: the `order` of the first one of its request."""

    __slots__ = ("begun", "covered", "dot", "held", "order", "request", "value")

    def __init__(
        self,
        dot: Dot | None,
        value: bytes | None,
        covered: Context,
        held: frozenset[Dot],
        request: RequestId,
        order: int,
        begun: int,
    ) -> None:
        self.dot = dot
        self.value = value
        self.covered = covered
        self.held = held
        self.request = request
        self.order = order
        self.begun = begun

    def replaces(self, old: _Minted) -> bool:
        """Whether that one's value is gone by right. What was written since a request was first carried out may follow from what it
        wrote: a later try of it must leave that alone (counterexample 6)."""
        dot = old.dot
        return (
            dot is not None
            and (self.covered.covers(*dot) or dot in self.held)
            and (self.order == self.begun or old.order < self.begun)
        )


class Judge:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.story: list[tuple[int, bytes, str]] = []
        self.now_ns: Callable[[], int] = int
        self._minted: dict[bytes, dict[Dot, _Minted]] = {}
        self._deletes: dict[bytes, list[_Minted]] = {}
        self._by_value: dict[bytes, list[_Minted]] = {}
        self._mints = 0
        #: (request, key) -> `order` of each time that it was carried out
        self._runs: dict[tuple[RequestId, bytes], list[int]] = {}
        self._issued: dict[bytes, dict[bytes, tuple[Done, int]]] = {}
        self._writes: dict[bytes, list[tuple[Done, int]]] = {}
        self._floors: dict[bytes, Context] = {}
        self._replaced: dict[bytes, dict[bytes, tuple[int, Done]]] = {}
        #: key -> value -> what it gave way to for good, at some distance
        self._heirs: dict[bytes, dict[bytes, bytes]] = {}
        #: node -> (moment at which it may have lost records that it had acknowledged, whether also those on its disk)
        self.losses: dict[int, list[tuple[int, bool]]] = {}
        #: (node, request) -> when the time that it came with has run out there
        self._due: dict[tuple[int, RequestId], int] = {}
        #: from here on reads may miss what an acknowledged write put there: a store answers that does not know what it lost
        self.weak = False

    def tell(self, key: bytes, text: str) -> None:
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
        for key, writes in self._writes.items():
            held, _ = node.table.read([key])
            for write, place in writes:
                value = write.values[place]
                if not write.done_ns or value is None or write.outcomes[place] != "ok" or write.invoked_ns <= gone_ns:
                    continue
                if node.node not in write.nodes[place] or not (write.durable or self.plan.fsync == "group"):
                    continue
                dots = [mint.dot for mint in self._by_value.get(value, ()) if mint.dot is not None]
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
        fresh: list[tuple[bytes, _Minted]] = []

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
                if minted.dot is not None:
                    earlier.setdefault(key, []).append(minted.dot)
                fresh.append((key, minted))
            return answer

        def rolling_back() -> None:
            for key, minted in fresh:
                self._forget(key, minted)
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
    ) -> _Minted:
        key, value = order.keys[i], order.values[i]
        covered = context_of_base(order.covered[i] if order.covered else None)
        dots: frozenset[Dot] = frozenset()
        if order.replace_held:
            dots = frozenset([*earlier, *(s.dot for s in (held.siblings if held is not None else ()))])
        self._mints += 1
        runs = self._runs.setdefault((request, key), [])
        runs.append(self._mints)
        if not counter:
            minted = _Minted(None, None, covered, dots, request, self._mints, runs[0])
            self._deletes.setdefault(key, []).append(minted)
            self.tell(key, f"{node.name} deletes")
            return minted
        dot = (node.table.actor, counter)
        minted = _Minted(dot, value, covered, dots, request, self._mints, runs[0])
        known = self._minted.setdefault(key, {})
        if dot in known:
            raise Violation("dots", f"{node.name} mints {_name(dot)} for {value!r} a second time", key)
        known[dot] = minted
        assert value is not None
        self._by_value.setdefault(value, []).append(minted)
        self.tell(key, f"{node.name} mints {_name(dot)} = {value!r}")
        if sum(m.dot is not None and m.dot[0][:8] == dot[0][:8] for m in self._by_value[value]) > 1:
            raise Violation("idempotence", f"{node.name} carries out one request twice: {value!r}", key)
        return minted

    def _forget(self, key: bytes, minted: _Minted) -> None:
        self._runs[minted.request, key].remove(minted.order)
        if minted.dot is None or minted.value is None:
            self._deletes[key].remove(minted)
        else:
            del self._minted[key][minted.dot]
            self._by_value[minted.value].remove(minted)

    # --- clients ---

    def on_begin(self, done: Done) -> None:
        if done.is_get:
            done.floors = {key: self._floors.get(key, EMPTY) for key in done.keys}
            return
        for i, key in enumerate(done.keys):
            self._writes.setdefault(key, []).append((done, i))
            value = done.values[i]
            if value is not None:
                self._issued.setdefault(key, {})[value] = (done, i)

    def on_done(self, done: Done) -> None:
        for i, key in enumerate(done.keys):
            if done.is_get:
                if i in done.shown:
                    self.tell(key, f"client {done.client} is shown {done.shown[i]} (operation {done.number})")
                    self.check_read(done, i)
                continue
            names = ",".join(sorted(f"{n:x}"[:4] for n in done.nodes[i]))
            why = f" {done.errors[i]}" if i in done.errors else f" by {names}"
            self.tell(key, f"client {done.client} {done.kind} {done.values[i]!r}: {done.outcomes[i]}{why}")
            self._check_write(done, i, key)

    def _check_write(self, done: Done, i: int, key: bytes) -> None:
        value, outcome = done.values[i], done.outcomes[i]
        if outcome == "failed" and value is not None and self._by_value.get(value):
            raise Violation("outcomes", f"{value!r} was minted and its writer told: failed ({done.errors[i]})", key)
        if outcome != "ok":
            return
        needed = 3 if done.level == "all" else 1 if done.level == 1 else 2
        if len(set(done.nodes[i])) < needed:
            raise Violation("receipts", f"{value!r} is acknowledged by {len(set(done.nodes[i]))} of {needed}", key)
        if done.contexts is not None:
            for gone in done.replaces[i]:
                self._replaced.setdefault(key, {}).setdefault(gone, (done.done_ns, done))

    def _overlaps(self, write: Done, read: Done) -> bool:
        """Whether any R answers include one of W acks."""
        counts = {None: 2, 1: 1, "all": 3}
        return counts[write.level] + counts[read.level] > 3

    def check_read(self, done: Done, i: int) -> None:
        key, shown = done.keys[i], done.shown[i]
        where = f"client {done.client} is shown {shown}"
        issued = self._issued.get(key, {})
        for value in shown:
            if value not in issued:
                raise Violation("invention", f"{where}: nobody wrote {value!r}", key)
            write, place = issued[value]
            if write.done_ns and write.outcomes[place] == "failed":
                raise Violation("outcomes", f"{where}: the writer of {value!r} was told that nothing was written", key)
        if len(set(shown)) < len(shown):
            raise Violation("idempotence", f"{where}: one value twice", key)
        if len(shown) > len(self._writes.get(key, ())):
            raise Violation("siblings", f"{where}: more siblings than writes", key)
        strict = done.bucket == STRICT and done.level in (None, "all")
        if self.weak:
            return
        if strict and key[4:5] == b"s" and len(shown) > 1:
            levels = {write.level for write, _ in self._writes.get(key, ())}
            if 1 not in levels:
                raise Violation("sequential writer", f"{where}: a conflict on a key with one writer", key)
        if strict:
            floor = done.floors[key]
            if floor.joined(done.read[i]) != done.read[i]:
                raise Violation("monotonic", f"{where}: went back from {floor} to {done.read[i]}", key)
            self._floors[key] = self._floors.get(key, EMPTY).joined(done.read[i])
        for write, place in self._writes.get(key, ()):
            acked = write.values[place]
            if not write.done_ns or write.done_ns > done.invoked_ns or write.outcomes[place] != "ok":
                continue
            if not self._overlaps(write, done) or self._excused(write, place):
                continue
            if acked is not None and acked not in shown and not self._accounted(key, acked, set(shown)):
                raise Violation("durability", f"{where}: {acked!r} was acknowledged and nothing replaced it", key)
            if write.contexts is None and strict and write.bucket == STRICT and not write.retried:
                self._check_overwritten(write, place, shown, where)
            if write.contexts is not None:
                for gone in write.replaces[place]:
                    if gone in shown and len(self._by_value.get(gone, ())) == 1:
                        raise Violation("resurrection", f"{where}: {gone!r} was replaced by {acked!r}", key)

    def _check_overwritten(self, write: Done, place: int, shown: list[bytes], where: str) -> None:
        """A blind put or delete of a strict bucket replaces all that was acknowledged before it began."""
        key = write.keys[place]
        for gone in shown:
            before, i = self._issued[key][gone]
            if before is write or not before.done_ns or before.done_ns > write.invoked_ns:
                continue
            if before.outcomes[i] != "ok" or before.level == 1 or write.level == 1 or before.retried:
                continue
            if len(self._by_value.get(gone, ())) == 1 and not self._excused(before, i):
                raise Violation(
                    "overwrite", f"{where}: {gone!r} was there before the blind write {write.values[place]!r}", key
                )

    def _excused(self, write: Done, place: int) -> bool:
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

    def _accounted(self, key: bytes, value: bytes, shown: set[bytes]) -> bool:
        """Shown, or obsolete by a write that is shown, or obsolete itself.

        What a value gave way to for good is remembered, so that a long history is not searched again at every read.
        """
        heirs = self._heirs.setdefault(key, {})
        last, passed = value, []
        while last in heirs and last not in passed:
            passed.append(last)
            last = heirs[last]
        if not (last == _DELETED or last in shown or self._search(key, last, shown)):
            return bool(passed) and self._search(key, value, shown)
        for gone in passed:
            heirs[gone] = last
        return True

    def _search(self, key: bytes, value: bytes, shown: set[bytes]) -> bool:
        certain = {value: True}
        open_values = [value]
        while open_values:
            gone = open_values.pop()
            if gone == _DELETED or gone in shown:
                if certain[gone] and gone != value:
                    self._heirs[key][value] = gone
                return True
            for newer, sure in self._replaced_by(key, gone):
                if newer not in certain:
                    certain[newer] = certain[gone] and sure
                    open_values.append(newer)
        return False

    def _replaced_by(self, key: bytes, gone: bytes) -> list[tuple[bytes, bool]]:
        """(value, for good): what each write that replaced `gone` put in its place."""
        lost = self._by_value.get(gone, ())
        for deleted in self._deletes.get(key, ()):
            for mint in lost:
                if deleted.replaces(mint):
                    return [(_DELETED, True)]
        author, author_place = self._issued[key][gone]
        # what its writer never learnt the fate of, it hides with whatever it writes next (decision 003)
        given_up = not author.outcomes or author.outcomes[author_place] == "unknown"
        found: list[tuple[bytes, bool]] = []
        for write, place in self._writes[key]:
            newer = write.values[place]
            own = (
                write.session == author.session
                and write.number > author.number
                and (write.contexts is None or given_up)
            )
            if newer is None:
                if own and write.done_ns and write.outcomes[place] != "failed":
                    return [(_DELETED, bool(author.outcomes))]
                continue
            mints = self._by_value.get(newer)
            if not mints:
                continue
            if own:
                found.append((newer, bool(author.outcomes)))
            elif write.contexts is not None:
                if gone in write.replaces[place]:
                    found.append((newer, True))
            elif any(mint.replaces(old) for mint in mints for old in lost):
                found.append((newer, True))
        return found

    def tell_story(self, key: bytes, lines_max: int = 80) -> list[str]:
        """Who wrote, who acked, who crashed, in order of time."""
        lines = [f"{at_ns / 1e9 - 1000:9.4f}s {text}" for at_ns, of, text in self.story if of in (key, b"")]
        return lines[-lines_max:]


def _name(dot: Dot) -> str:
    return f"{dot[0].hex()[:8]}/{int.from_bytes(dot[0][8:], 'big')}:{dot[1]}"
