"""What can happen to the membership core, and what it can order.

Owns: its inputs and outputs. Must not know: how either is carried.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkv.core.effects import Note
from zkv.core.events import Route
from zkv.core.membership.messages import Gossip, Load, Message, Profile
from zkv.core.membership.states import State
from zkv.ids import NodeId


@dataclass(frozen=True, slots=True)
class Remembered:
    """A member as it outlives a restart of ours."""

    node: NodeId
    incarnation: int
    state: State
    profile: Profile


# --- events ---


@dataclass(slots=True)
class Arrived:
    """A message to us alone. route: where an answer goes; None for what is itself an answer."""

    message: Message
    route: Route | None


@dataclass(slots=True)
class Overheard:
    """Published by a neighbour. neighbour: whose socket it came from, which is all that is known of the sender for certain."""

    neighbour: NodeId
    message: Gossip


@dataclass(slots=True)
class LinkLost:
    """A connection to the member was reset or refused."""

    node: NodeId


@dataclass(slots=True)
class HeartbeatsMissed:
    """The transport heard nothing of a member with which it holds a connection."""

    node: NodeId


@dataclass(slots=True)
class Woke:
    """Time has passed. All that had arrived was handed over before."""


@dataclass(slots=True)
class Suspended:
    """The machine slept: this long is missing from the monotonic clock."""

    gap_ns: int


@dataclass(slots=True)
class PhaseChanged:
    """The owner of data says how far it is: syncing, alive."""

    state: State


@dataclass(slots=True)
class ProfileChanged:
    profile: Profile


@dataclass(slots=True)
class TopologyChanged:
    """owners: members that own data, kept until an operator removes them."""

    epoch: int
    topology_hash: int
    owners: frozenset[NodeId]


@dataclass(slots=True)
class LoadMeasured:
    load: Load


@dataclass(slots=True)
class LeaveOrdered:
    """Say that we are leaving. `Drained` ends it."""


@dataclass(slots=True)
class Drained:
    """Nothing is left to hand over: say that we have left, then depart."""


@dataclass(slots=True)
class MemberRemoved:
    """The operator's word, for ever."""

    node: NodeId


@dataclass(slots=True)
class GenerationRaised:
    """It is on disk."""

    generation: int


Event = (
    Arrived
    | Overheard
    | LinkLost
    | HeartbeatsMissed
    | Woke
    | Suspended
    | PhaseChanged
    | ProfileChanged
    | TopologyChanged
    | LoadMeasured
    | LeaveOrdered
    | Drained
    | MemberRemoved
    | GenerationRaised
)

# --- effects ---


@dataclass(slots=True)
class Send:
    """To a member, or to whoever is at the address (node None)."""

    node: NodeId | None
    address: str
    message: Message


@dataclass(slots=True)
class Answer:
    route: Route
    message: Message


@dataclass(slots=True)
class Publish:
    message: Gossip


@dataclass(slots=True)
class Subscribe:
    node: NodeId
    address: str


@dataclass(slots=True)
class Unsubscribe:
    node: NodeId


@dataclass(slots=True)
class StateChanged:
    """before None: it was not known."""

    node: NodeId
    before: State | None
    after: State
    cause: str


@dataclass(slots=True)
class Persist:
    """Remember these over a restart; nothing waits for it."""

    members: tuple[Remembered, ...]


@dataclass(slots=True)
class RaiseGeneration:
    """Durably, before anything else is said. Answered by GenerationRaised."""

    generation: int


@dataclass(slots=True)
class EpochSeen:
    """A member knows another topology than we do: a later epoch, or the same one with another hash."""

    node: NodeId
    epoch: int
    topology_hash: int


@dataclass(slots=True)
class Forget:
    """Close what is open to this member."""

    node: NodeId


@dataclass(slots=True)
class Halt:
    """This process must not go on under this node id. reason: duplicate-id, removed."""

    reason: str
    text: str


@dataclass(slots=True)
class Departed:
    """We have left and were heard."""


Effect = (
    Send
    | Answer
    | Publish
    | Subscribe
    | Unsubscribe
    | StateChanged
    | Persist
    | RaiseGeneration
    | EpochSeen
    | Forget
    | Halt
    | Departed
    | Note
)
