"""Planted bugs: one switch for each rule that carries the load, so that it can be measured whether the gates find what breaks it.

Owns: the switches, and for each the trial, members and seed that find it. Each patches a seam of the product in the tests only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from zkv.core.membership.claims import Claims
from zkv.core.membership.common import Common
from zkv.core.membership.health import Health
from zkv.core.membership.identity import Identity
from zkv.core.membership.joining import Joining
from zkv.core.membership.keeping import Keeping
from zkv.core.membership.membership import Membership
from zkv.core.membership.probing import Probing
from zkv.core.membership.rumours import Rumours
from zkv.core.membership.suspicion import Suspicion
from zkv.core.membership.syncing import Syncing
from zkv.core.membership.verdicts import Verdicts

Patch = pytest.MonkeyPatch


class Plant(NamedTuple):
    patch: Callable[[Patch], None]
    trial: str
    members: int
    gates: frozenset[str]


PLANTED: dict[str, Plant] = {}


def planted(trial: str, members: int, *gates: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """The trial that finds it at so many members, and the gates of which at least one breaks."""

    def keep(patch: Callable[[Patch], None]) -> Callable[[Patch], None]:
        PLANTED[patch.__name__] = Plant(patch, trial, members, frozenset(gates))
        return patch

    return keep


@planted("loss of 30 %", 12, "loss_30")
def no_refutation(patch: Patch) -> None:
    patch.setattr(Identity, "accused", lambda self, rumour: None)


@planted("isolated 30 s", 30, "accused")
def no_local_health(patch: Patch) -> None:
    patch.setattr(Health, "add", lambda self, points: None)


@planted("isolated 60 s", 100, "isolated_60")
def one_accuser_is_enough(patch: Patch) -> None:
    patch.setattr(Verdicts, "enough", lambda self, accusers: True)


@planted("stopped 8 s", 40, "returned")
def no_pause_guard(patch: Patch) -> None:
    patch.setattr(Health, "gap_ns", lambda self, now_ns: 0)


@planted("returns", 8, "return")
def generation_forgotten(patch: Patch) -> None:
    before = Membership.__init__

    def begin(self: Any, **options: Any) -> None:
        before(self, **(options | {"generation": 1}))

    patch.setattr(Membership, "__init__", begin)


@planted("long partition", 20, "heal_long", "stuck")
def no_rejoin(patch: Patch) -> None:
    patch.setattr(Joining, "_rejoin_tick", lambda self: None)


@planted("crashes", 10, "dead_all", "dead_worst")
def what_is_remembered_is_told(patch: Patch) -> None:
    before = Keeping.take_over

    def take_over(self: Any, members: Any, *, up: bool) -> None:
        before(self, members, up=up)
        for record in self._common.table.records.values():
            record.unverified = False

    patch.setattr(Keeping, "take_over", take_over)


@planted("crashes", 100, "dead_all", "dead_worst")
def accusers_do_not_add_up(patch: Patch) -> None:
    patch.setattr(Verdicts, "confirm", lambda self, record, suspicion, accusers: False)


@planted("loss of 30 %", 30, "loss_30")
def suspicion_waits_for_nobody(patch: Patch) -> None:
    patch.setattr(Suspicion, "_timeout_ns", lambda self: 0)
    patch.setattr(Verdicts, "enough", lambda self, accusers: True)


@planted("crashes with resets", 30, "reset_suspect", "reset_dead")
def evidence_of_the_transport_ignored(patch: Patch) -> None:
    patch.setattr(Probing, "on_evidence", lambda self, record, cause, near: None)


@planted("costs", 50, "spread")
def neighbours_do_not_repeat(patch: Patch) -> None:
    patch.setattr(Common, "tell", lambda self, rumour: self.rumours.add(rumour))


@planted("costs", 50, "update", "idle")
def rumours_told_without_end(patch: Patch) -> None:
    before = Rumours.take
    patch.setattr(Rumours, "take", lambda self, limit, count=8: before(self, 10**9, count))


@planted("returns", 8, "return")
def address_of_a_member_never_changes(patch: Patch) -> None:
    patch.setattr(Claims, "_take_profile", lambda self, record, rumour: None)


@planted("returns", 8, "return")
def hello_not_answered(patch: Patch) -> None:
    patch.setattr(Joining, "on_hello", lambda self, route, hello: None)


@planted("returns", 12, "return")
def nothing_is_synced(patch: Patch) -> None:
    patch.setattr(Syncing, "on_delta", lambda self, record, delta: [])


@planted("crashes", 100, "suspect_first", "suspect_all", "dead_all", "dead_worst")
def one_member_is_never_probed(patch: Patch) -> None:
    """Of all that are there, every third."""
    before = Probing._begin

    def begin(self: Any, record: Any, cause: str, *, counts: bool) -> None:
        if record.node % 3:
            before(self, record, cause, counts=counts)

    patch.setattr(Probing, "_begin", begin)
    patch.setattr(Probing, "on_evidence", lambda self, record, cause, near: None)
