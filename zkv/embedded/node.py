"""A node without sockets: the production core, driver, table and log of one directory, turned by whoever calls.

Owns: what of a node is different inside one process: messages stay objects, nobody else is there, the directory says who it is.
Must not know: threads, locks, clients' calls (engine).

What `zkv.node.Node` decides about a directory is decided by that very code, so that either opens what the other left behind.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, Final, NamedTuple

from zkv import counters
from zkv.config import NodeSettings
from zkv.core import effects as fx
from zkv.core import events as ev
from zkv.core import messages as m
from zkv.core.events import Route
from zkv.core.initial import parse_initial
from zkv.core.topology import TopologyDocument
from zkv.driver import Driver
from zkv.errors import ConfigError, DiskFull
from zkv.health import Health
from zkv.ids import NodeId, RequestId, checksum_of
from zkv.node import Node
from zkv.ports import Frames, Inbox
from zkv.storage.files import FileSystem
from zkv.storage.log_store import LogStore
from zkv.storage.manifest import Manifest

#: turns until a new directory is a cluster of one: it hears of time, adopts, and is there
_FOUNDING_TURNS_MAX: Final = 10


class Unsure(Enum):
    """Neither a value nor a miss."""

    UNSURE = auto()


UNSURE: Final = Unsure.UNSURE


@dataclass(slots=True)
class Requests(Inbox):
    """An inbox whose requests were never bytes."""

    messages: list[tuple[Route, Any]] = field(default_factory=list)


class Written(NamedTuple):
    """One step: its records, whether they are on disk, the items that are not among them."""

    block: m.RecordBlock
    durable: bool
    failed: list[int]


class EmbeddedDriver(Driver):
    """Hands messages in and out as they are; their times are on our own clock already."""

    #: where replies go
    answer: Callable[[Route, m.ClientReply], None]

    def _decode(self, inbox: Inbox, now_ns: int) -> None:
        assert isinstance(inbox, Requests)
        if inbox.messages:
            self._events.append(ev.RequestsArrived(inbox.messages))

    def _flush(self) -> None:
        out, self._out[:] = self._out[:], []
        for effect in out:
            if isinstance(effect, fx.Reply):
                self.answer(effect.route, effect.message)  # type: ignore[arg-type]  # peers, whom other replies are for, do not exist
            else:
                assert isinstance(effect, fx.Publish), f"{effect} has nowhere to go in a cluster of one"

    def write(
        self, keys: list[bytes], values: list[bytes | None], checksums: list[int], request: RequestId
    ) -> Written | None:
        """Blind puts and deletes of distinct keys that are new and wait for nothing, without the way through the rules: what they would order is
        this one step.

        None: the log refused it, nothing of it is kept, and the rules are to say how.
        """
        assert not self._events and not self._steps, "between turns"
        if self._upkeep is not None and self._upkeep.behind:
            return None
        view = self._state.view
        now_ns = view.now_ns = self._clock.monotonic_ns()
        view.wall_ms = self._clock.wall_ns() // 1_000_000
        rows = view.rows_of(keys)
        mint = fx.Mint(
            0,
            False,
            keys,
            values,
            checksums,
            [(request, list(range(len(keys))))],
            replace_held=True,
            covered=None,
            expires_ms=None,
            voids=None,
            row_versions=[row.version for row in rows],  # type: ignore[union-attr]  # the bucket exists
            fences=[row.fence for row in rows],  # type: ignore[union-attr]
            stamp=view.clock.stamp(view.wall_ms),
        )
        try:
            self._step([mint], allow_reserve=False)
        except DiskFull:
            self._table.roll_back()
            return None
        minted, persisted = self._events
        self._events.clear()
        assert isinstance(minted, ev.Minted) and isinstance(persisted, ev.Persisted)
        self._log.turn_done(now_ns, False)
        if self._upkeep is not None:
            self._upkeep.turn(now_ns)
        statuses = minted.statuses
        failed = [i for i, status in enumerate(statuses) if status != m.Status.OK] if statuses else []
        self._state.coordinator.counts.at_once("put", len(keys) - len(failed))
        return Written(minted.block, persisted.durable, failed)


class _Nowhere:
    """The transport of a node that is alone. The log's wake-up is the one thing it carries."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def connect(self, peers: dict[NodeId, tuple[str, str]]) -> None:
        assert not peers, "a cluster of one"

    def send_peer(self, node: NodeId, frames: Frames) -> bool:
        raise AssertionError("messages of an embedded store are never frames")

    send_client = answer_peer = publish = send_peer


class EmbeddedNode(Node):
    """One directory, open. Raises what opening a node raises; nothing stays open then."""

    driver_type: ClassVar[type[Driver]] = EmbeddedDriver

    def __init__(
        self,
        settings: NodeSettings,
        given: Collection[str],
        wake: Callable[[], None],
        files: FileSystem,
    ) -> None:
        """given: the settings that the caller named. wake: called from the log's thread when a turn has something to collect."""
        self.settings = settings
        self._given: Final = frozenset(given)
        self._files = files
        self._health = Health(time.monotonic_ns)
        self._turn_durations = counters.Histogram()
        self._log = None
        self._sealed = None
        self._helpers = []
        self._transport = _Nowhere(wake)  # type: ignore[assignment]
        collecting = gc.isenabled()
        try:
            self._open()
            self._found()
        except BaseException:
            self._let_go()
            if self._log is not None:
                self._log.close()
            raise
        finally:
            if not collecting:
                gc.disable()

    def _spare_collector(self) -> None:
        """The collector belongs to the program that we are part of."""

    # --- opening ---

    def _check_directory(self, manifest: Manifest | None) -> None:
        """A directory that somebody founded says who it is; what was told beside that must agree."""
        initial = manifest.extra.get("initial") if manifest is not None else None
        if initial:
            listed = parse_initial(initial)
            if len(listed) > 1:
                raise ConfigError(
                    f"{self.settings.data} belongs to a cluster of {len(listed)} nodes, {initial}; zkv.open is for directories of one node: "
                    f"start its node with `zkv serve` and use zkv.connect()"
                )
            if "name" not in self._given:
                self.settings.name = listed[0].name
            if not self._given & {"listen", "advertise"}:
                self.settings.advertise = listed[0].address()
        super()._check_directory(manifest)

    def _found(self) -> None:
        """A cluster of one forms by itself, as it does in a node's first turns."""
        self.driver.answer = _nobody_asked
        for _ in range(_FOUNDING_TURNS_MAX):
            self.driver.turn(Requests())
            if self._state.view.document is not None:
                return
        raise AssertionError("a cluster of one did not form")

    # --- for the engine ---

    @property
    def driver(self) -> EmbeddedDriver:
        assert isinstance(self._driver, EmbeddedDriver)
        return self._driver

    @property
    def log(self) -> LogStore:
        assert self._log is not None
        return self._log

    @property
    def document(self) -> TopologyDocument:
        return self._document

    def look(self, keys: list[bytes]) -> list[bytes | None] | Unsure:
        """The value of each key that has one and for ever, None for a miss; UNSURE where there is more to say of any."""
        found: list[bytes | None] = []
        everything, unreadable = self._table.find(keys)
        if unreadable:
            return UNSURE
        for held in everything:
            if held is None:
                found.append(None)
            elif type(held) is tuple:
                columns, place = held
                value = columns.values[place]
                if columns.expires_ms or checksum_of(value) != columns.checksums[place]:
                    return UNSURE
                found.append(value)
            else:
                siblings = held.siblings  # type: ignore[union-attr]
                if len(siblings) > 1 or any(s.expires_ms or checksum_of(s.value) != s.checksum for s in siblings):
                    return UNSURE
                found.append(siblings[0].value if siblings else None)
        self._state.coordinator.counts.at_once("get", len(keys))
        return found

    @property
    def lost(self) -> bool:
        """Whether records are known to be damaged or gone, so that a miss would be no answer."""
        return self._state.view.unsynced

    def give_up(self) -> None:
        """Let go of everything. After a failure this is all that is left to do."""
        self._let_go()
        self.log.close()

    def close(self) -> None:
        """Sync and mark the end as clean. Raises: StorageFailed, DiskFull (it was not; the log is read again at the next opening)."""
        try:
            self.log.update_manifest(high_water_stamp=self._state.view.clock.high)
        finally:
            self.give_up()


def _nobody_asked(route: Route, reply: m.ClientReply) -> None:
    raise AssertionError(f"an answer to nobody: {reply}")
