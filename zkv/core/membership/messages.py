"""What members say to each other about members.

Owns: the nouns of gossip. Must not know: their bytes (codec/gossip), when they are sent.

Every message carries a head: cluster, sender, its incarnation and phase, and what it knows of the topology. `number` grows with every message of
one life of a sender, so that a frame which comes twice is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from zkv.core.membership.states import State
from zkv.ids import NodeId

#: what this build speaks, and the oldest it understands
PROTOCOL: Final = 1
PROTOCOL_MIN: Final = 1
BUCKETS: Final = 64
RUMOURS_MAX: Final = 64
RECORDS_MAX: Final = 512
ACCUSERS_MAX: Final = 8


class Kind(IntEnum):
    """Numbers are append-only."""

    HELLO = 1
    WELCOME = 2
    REJECT = 3
    PING = 4
    ACK = 5
    PING_REQ = 6
    NACK = 7
    GOSSIP = 8
    SYNC_DIGEST = 9
    SYNC_DELTA = 10
    BUSY = 11
    NEIGHBOUR = 12
    NEIGHBOUR_REPLY = 13
    DISCONNECT = 14


class Reason(IntEnum):
    """Why a member is not taken in."""

    CLUSTER = 1
    PROTOCOL = 2
    DUPLICATE = 3
    REMOVED = 4
    #: not a refusal: say hello first, we do not know you
    UNKNOWN = 5

    @property
    def word(self) -> str:
        return {Reason.DUPLICATE: "duplicate-id"}.get(self, self.name.lower())


@dataclass(frozen=True, slots=True)
class Profile:
    """What a member says of itself; a change comes with a new incarnation. Addresses are numeric `host:port`."""

    name: str
    peer_address: str
    gossip_address: str
    #: drawn at each start: tells two processes with one node id apart
    instance: int
    address: str = ""
    host: str = ""
    rack: str = ""
    dc: str = ""
    weight: float = 1.0
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Load:
    """What a member carries, as it says with each ACK."""

    operations_s: int = 0
    bytes_used: int = 0
    bytes_max: int = 0
    lag_ms: int = 0


@dataclass(frozen=True, slots=True)
class Rumour:
    """One claim. accusers: who found it silent, for suspect and dead. profile: with every claim that it is up, and with every one in a SYNC."""

    node: NodeId
    incarnation: int
    state: State
    accusers: tuple[NodeId, ...] = ()
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Who speaks. cluster 0: does not know yet which cluster it will belong to (HELLO alone)."""

    cluster: int
    sender: NodeId
    incarnation: int
    state: State
    epoch: int = 0
    topology_hash: int = 0


@dataclass(slots=True)
class Hello:
    head: Head
    number: int
    profile: Profile


@dataclass(slots=True)
class Welcome:
    head: Head
    number: int
    profile: Profile


@dataclass(slots=True)
class Reject:
    """instance: of the refusing process, for a duplicate id."""

    head: Head
    number: int
    reason: Reason
    text: str
    instance: int


@dataclass(slots=True)
class Ping:
    """Names its target: a new node on an old address does not answer for the one that is gone."""

    head: Head
    number: int
    seq: int
    target: NodeId
    rumours: list[Rumour] = field(default_factory=list)


@dataclass(slots=True)
class Ack:
    """seq: of the Ping or PingReq it answers. subject: who is alive; another than the sender when it was asked for by PingReq."""

    head: Head
    number: int
    seq: int
    subject: NodeId
    incarnation: int
    load: Load
    rumours: list[Rumour] = field(default_factory=list)


@dataclass(slots=True)
class PingReq:
    """wait_ms: how long the asker waits; a Nack comes after four fifths of it."""

    head: Head
    number: int
    seq: int
    target: NodeId
    wait_ms: int
    rumours: list[Rumour] = field(default_factory=list)


@dataclass(slots=True)
class Nack:
    """I am here, the target did not answer me."""

    head: Head
    number: int
    seq: int


@dataclass(slots=True)
class Gossip:
    """sequence: of what this sender publishes, without gaps; 0 when sent to one member alone."""

    head: Head
    number: int
    sequence: int
    rumours: list[Rumour]


@dataclass(slots=True)
class SyncDigest:
    """One hash per bucket of node ids."""

    head: Head
    number: int
    seq: int
    buckets: tuple[int, ...]


@dataclass(slots=True)
class SyncDelta:
    """All records of the buckets that differ. wanted: bit i = send me yours of bucket i. left: further messages of this answer."""

    head: Head
    number: int
    seq: int
    wanted: int
    left: int
    records: list[Rumour]


@dataclass(slots=True)
class Busy:
    """Too many ask for a SYNC; later."""

    head: Head
    number: int
    seq: int


@dataclass(slots=True)
class Neighbour:
    """Let us subscribe to each other. urgent: I have next to nobody."""

    head: Head
    number: int
    urgent: bool


@dataclass(slots=True)
class NeighbourReply:
    head: Head
    number: int
    accepted: bool


@dataclass(slots=True)
class Disconnect:
    """We are neighbours no more."""

    head: Head
    number: int


Message = (
    Hello
    | Welcome
    | Reject
    | Ping
    | Ack
    | PingReq
    | Nack
    | Gossip
    | SyncDigest
    | SyncDelta
    | Busy
    | Neighbour
    | NeighbourReply
    | Disconnect
)
