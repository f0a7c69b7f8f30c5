"""What was written to each key, what every store minted, and what gave way to what: the history that the judge asks.

Owns: issued values, mints, the question whether a value is gone by right. Must not know: promises, who lost what, what a violation is.

A value is gone by right if a write that replaced it is there, or was itself replaced by the same rule. A write replaces what its client was
shown with the context, or, blind, what the store was told and held when it minted. What gave way for good is remembered, and acknowledged
values that gave way to the same one are kept together, so that a read costs what is new since the last and not the whole history.
Source: 35-counterexamples, last part.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Final

from zkv.core.versions import Context
from zkv.ids import Dot, RequestId

if TYPE_CHECKING:
    from zkv.testing.sim.clients import Done

#: stands for the values that a delete put in place of others
DELETED: Final = b""
#: a write, and the place of the key in it
Item = tuple["Done", int]


class Minted:
    """One execution of one item. `order`: how many there were before it, anywhere; `begun`: the `order` of the first one of its request
    that somebody may have learnt of before this one: its author was told ok, or its value was shown. An unknown put may take effect at any later
    moment, once; at its own store, that is: a try elsewhere has to reckon with an earlier one in any case.

    late: a sloppy first try that its own store takes up after another try was carried out. Nobody tells that store, so what it holds is
    replaced: known, and said in docs/consistency.md.
    """

    __slots__ = ("begun", "covered", "dot", "held", "late", "order", "request", "value")

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
        self.late = False

    def replaces(self, old: Minted) -> bool:
        """Whether that one's value is gone by right. What was written since a request was first carried out may follow from what it
        wrote: a later try of it must leave that alone (counterexample 6)."""
        dot = old.dot
        return (
            dot is not None
            and (dot in self.held or self.covered.covers(*dot))
            and (self.order == self.begun or old.order < self.begun or (self.late and dot in self.held))
        )


class KeyHistory:
    """All about one key."""

    __slots__ = (
        "acked",
        "blind",
        "deletes",
        "dots",
        "groups",
        "heirs",
        "issued",
        "minted",
        "replaced",
        "runs",
        "shown",
        "writes",
    )

    def __init__(self) -> None:
        #: in order of beginning
        self.writes: list[Item] = []
        self.issued: dict[bytes, Item] = {}
        self.minted: dict[bytes, list[Minted]] = {}
        self.dots: dict[Dot, Minted] = {}
        self.deletes: list[Minted] = []
        #: request -> `order` of each time that it was carried out
        self.runs: dict[RequestId, list[int]] = {}
        #: values that any read has shown
        self.shown: set[bytes | None] = set()
        #: acknowledged values that no group holds yet, in order of acknowledgement
        self.acked: list[Item] = []
        #: value -> acknowledged values that are gone by right if this one is
        self.groups: dict[bytes, list[Item]] = {}
        #: value -> what it gave way to for good, at some distance
        self.heirs: dict[bytes, bytes] = {}
        #: acknowledged writes without contexts, in order of acknowledgement
        self.blind: list[Item] = []
        #: value -> acknowledged writes whose context held it
        self.replaced: dict[bytes, list[Item]] = {}

    # --- what happened ---

    def begin(self, write: Done, place: int) -> None:
        self.writes.append((write, place))
        value = write.values[place]
        if value is not None:
            self.issued[value] = (write, place)

    def acknowledge(self, write: Done, place: int) -> None:
        item = (write, place)
        if write.values[place] is not None:
            self.acked.append(item)
        if write.contexts is None:
            self.blind.append(item)
            return
        for gone in write.replaces[place]:
            self.replaced.setdefault(gone, []).append(item)

    def mint(
        self,
        dot: Dot | None,
        value: bytes | None,
        covered: Context,
        held: frozenset[Dot],
        request: RequestId,
        order: int,
        *,
        learnt: bool,
    ) -> Minted:
        """dot None: a delete. learnt: its author has been told ok."""
        runs = self.runs.setdefault(request, [])
        runs.append(order)
        minted = Minted(dot, value, covered, held, request, order, runs[0] if learnt or value in self.shown else order)
        if dot is None or value is None:
            self.deletes.append(minted)
        else:
            self.dots[dot] = minted
            self.minted.setdefault(value, []).append(minted)
        return minted

    def forget(self, minted: Minted) -> None:
        """It was undone."""
        self.runs[minted.request].remove(minted.order)
        if minted.dot is None or minted.value is None:
            self.deletes.remove(minted)
        else:
            del self.dots[minted.dot]
            self.minted[minted.value].remove(minted)

    # --- what gave way to what ---

    def missing(self, shown: set[bytes], until_ns: int) -> Iterator[Item]:
        """Values acknowledged by `until_ns` that are neither shown nor gone by right."""
        groups = self.groups
        taken = 0
        for write, place in self.acked:
            if write.done_ns > until_ns:
                break
            taken += 1
            value = write.values[place]
            assert value is not None
            groups.setdefault(value, []).append((write, place))
        del self.acked[:taken]
        for last in list(groups):
            if last in shown:
                continue
            if self.accounted(last, shown):
                heir = self.heirs.get(last)
                if heir is not None:
                    members = groups.pop(last)
                    if heir != DELETED:
                        groups.setdefault(heir, []).extend(members)
                continue
            for write, place in groups[last]:
                value = write.values[place]
                assert value is not None
                if write.done_ns <= until_ns and value not in shown and not self.accounted(value, shown):
                    yield write, place

    def accounted(self, value: bytes, shown: Container[bytes]) -> bool:
        """Shown, or obsolete by a write that is shown, or obsolete itself."""
        heirs = self.heirs
        last, passed = value, []
        while last in heirs and last not in passed:
            passed.append(last)
            last = heirs[last]
        if not (last == DELETED or last in shown or self._search(last, shown)):
            return bool(passed) and (value in shown or self._search(value, shown))
        last = heirs.get(last, last)
        for gone in passed:
            heirs[gone] = last
        return True

    def _search(self, value: bytes, shown: Container[bytes]) -> bool:
        certain = {value: True}
        waiting = [value]
        for gone in waiting:
            for newer, sure in self._replaced_by(gone):
                sure = sure and certain[gone]
                if newer == DELETED or newer in shown:
                    if sure:
                        self.heirs[value] = newer
                    return True
                if newer not in certain:
                    certain[newer] = sure
                    waiting.append(newer)
        return False

    def _replaced_by(self, gone: bytes) -> Iterator[tuple[bytes, bool]]:
        """(value, for good): what each write that replaced `gone` put in its place, the latest first."""
        lost = self.minted.get(gone, ())
        for deleted in self.deletes:
            for mint in lost:
                if deleted.replaces(mint):
                    yield DELETED, True
                    return
        author, author_place = self.issued[gone]
        # what its writer never learnt the fate of, it hides with whatever it writes next (decision 003)
        given_up = not author.outcomes or author.outcomes[author_place] == "unknown"
        ended = bool(author.outcomes)
        for write, place in reversed(self.writes):
            newer = write.values[place]
            blind = write.contexts is None
            own = write.session == author.session and write.number > author.number and (blind or given_up)
            if newer is None:
                if own and write.done_ns and write.outcomes[place] != "failed":
                    yield DELETED, ended
                continue
            mints = self.minted.get(newer)
            if not mints:
                continue
            if own:
                yield newer, ended
            elif not blind:
                if gone in write.replaces[place]:
                    yield newer, True
            elif any(mint.replaces(old) for mint in mints for old in lost):
                yield newer, True
