"""What the driver needs from the world, as protocols. Production and simulation each bring their own.

Owns: the shape of clock, transport and log. Must not know: any implementation, and what a frame or record means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zkv.ids import NodeId

#: one message on the wire: header, body, values; a missing part is b""
Frames = Sequence[bytes]


@dataclass(slots=True)
class Inbox:
    """All that a transport held at the start of a turn. Client and peer routes are the transport's names of connections."""

    clients: list[tuple[bytes, Frames]] = field(default_factory=list)
    peers: list[tuple[bytes, Frames]] = field(default_factory=list)
    replies: list[tuple[NodeId, Frames]] = field(default_factory=list)
    gossip: list[tuple[NodeId, Frames]] = field(default_factory=list)
    #: (node, whether a connection to it now stands), in order of change
    links: list[tuple[NodeId, bool]] = field(default_factory=list)

    def clear(self) -> None:
        """As new, for the next turn."""
        self.clients.clear()
        self.peers.clear()
        self.replies.clear()
        self.gossip.clear()
        self.links.clear()


class Clock(Protocol):
    def monotonic_ns(self) -> int:
        """Time that never goes back and never jumps; deadlines are counted on it."""

    def wall_ns(self) -> int:
        """Unix time; may jump. Only stamps and expiry use it."""


class Transport(Protocol):
    """Moves frames. `send_*` never blocks; False means certainly not handed over."""

    def send_peer(self, node: NodeId, frames: Frames) -> bool: ...

    def send_client(self, route: bytes, frames: Frames) -> bool: ...

    def answer_peer(self, route: bytes, frames: Frames) -> bool: ...

    def publish(self, frames: Frames) -> None: ...


class Log(Protocol):
    """The write-ahead log. See storage/log_store for what each call promises."""

    @property
    def written_seq(self) -> int: ...

    @property
    def durable_seq(self) -> int: ...

    @property
    def closed_seq(self) -> int:
        """The last position before the file that is written now."""

    def append(self, blocks: Sequence[tuple[int, int, Sequence[bytes]]], *, allow_reserve: bool = False) -> int: ...

    def drain_completions(self) -> int | None:
        """Take in finished syncs; the new `durable_seq` if it grew."""

    def turn_done(self, now_ns: int, durable_wanted: bool) -> None:
        """The turn's writes are in: sync now or later, by policy; now if somebody waits for durability."""

    def next_sync_due_ns(self, now_ns: int) -> int | None:
        """When `turn_done` is wanted although nothing happened."""


class Upkeep(Protocol):
    """What a store does beside its requests: sealing, compaction. See storage/upkeep."""

    @property
    def behind(self) -> bool:
        """So much waits to be sealed that nothing more should be taken in."""

    def turn(self, now_ns: int) -> None:
        """Take in what ended, begin what is due, do a bounded share of what is left."""

    def next_due_ns(self, now_ns: int) -> int | None:
        """When `turn` is wanted although nothing happened."""
