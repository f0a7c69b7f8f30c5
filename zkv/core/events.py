"""Everything that can happen to a node, as the core is told it.

Owns: the inputs of `NodeState.handle`. Must not know: how an event came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zkv.core.columns import Held, versions_of
from zkv.core.messages import ClientRequest, PeerReply, PeerRequest, RecordBlock
from zkv.core.topology import TopologyDocument
from zkv.core.versions import VersionSet
from zkv.ids import Actor, NodeId


@dataclass(slots=True, frozen=True)
class Route:
    """Where an answer goes: a client's or a peer's connection, as the transport names it."""

    id: bytes
    peer: bool


@dataclass(slots=True)
class RequestsArrived:
    """All that the sockets held for us to answer, in order of arrival."""

    requests: list[tuple[Route, ClientRequest | PeerRequest]]


@dataclass(slots=True)
class RepliesArrived:
    """Answers of peers to what we sent them."""

    replies: list[tuple[NodeId, PeerReply]]


@dataclass(slots=True)
class Minted:
    """A Mint was carried out. block holds the records of the items that went well, in order.

    actor: what the dots were minted under. statuses None = all OK.
    """

    cause: int
    block: RecordBlock
    actor: Actor
    counters: list[int]
    statuses: list[int] | None


@dataclass(slots=True)
class Joined:
    """A Join was carried out. inexact: items whose set here now knows more than what came."""

    cause: int
    statuses: list[int] | None
    inexact: list[int]


@dataclass(slots=True)
class Persisted:
    """What these causes wrote is on disk (durable) or in the operating system's hands (not durable)."""

    causes: list[int]
    durable: bool


class ReadDone:
    """Our own copies, one per key asked for, None where nothing is held. statuses None = all OK. durable: all of them are synced.

    `held` is how the table has them, `sets` the same as sets of their own.
    """

    __slots__ = ("_sets", "cause", "durable", "held", "statuses")

    def __init__(
        self, cause: int, held: Sequence[Held | None], statuses: list[int] | None = None, durable: bool = False
    ) -> None:
        self.cause = cause
        self.held = held
        self.statuses = statuses
        self.durable = durable
        self._sets: list[VersionSet | None] | None = None

    @property
    def sets(self) -> list[VersionSet | None]:
        if self._sets is None:
            self._sets = [versions_of(held) for held in self.held]
        return self._sets


@dataclass(slots=True)
class Scanned:
    """One page of keys of one partition, ordered. corrupt: some record there cannot be read, so there is no page."""

    cause: int
    keys: list[bytes]
    more: bool
    corrupt: bool = False


@dataclass(slots=True)
class Pulled:
    """A page of our own sets for an unsynced peer: it ends before (partition, after), or nothing follows.

    corrupt: some record there cannot be read, so there is no page.
    """

    cause: int
    keys: list[bytes]
    sets: list[VersionSet]
    partition: int
    after: bytes
    done: bool
    corrupt: bool = False


@dataclass(slots=True)
class Synced:
    """It is on disk that this store may answer reads again."""


@dataclass(slots=True)
class Adopted:
    """The first epoch is durably ours."""

    document: TopologyDocument
    document_bytes: bytes
    unsynced: bool


@dataclass(slots=True)
class Undeliverable:
    """Certainly not handed to the node: there is no connection."""

    node: NodeId
    message: PeerRequest


@dataclass(slots=True)
class PeerConnected:
    node: NodeId


@dataclass(slots=True)
class PeerLost:
    """The connection broke; what was in flight may or may not have arrived."""

    node: NodeId


@dataclass(slots=True)
class HeartbeatsHeard:
    nodes: list[NodeId]


@dataclass(slots=True)
class Woke:
    """Time has passed: `next_wakeup_ns` was reached, or a turn ended."""


Event = (
    RequestsArrived
    | RepliesArrived
    | Minted
    | Joined
    | Persisted
    | ReadDone
    | Scanned
    | Pulled
    | Synced
    | Adopted
    | Undeliverable
    | PeerConnected
    | PeerLost
    | HeartbeatsHeard
    | Woke
)
