"""Everything that the core can order.

Owns: the outputs of `NodeState.handle`. Must not know: how an order is carried out. `cause` comes back in the event that answers it.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkv.core.events import Route
from zkv.core.messages import ClientReply, Heartbeat, PeerReply, PeerRequest, RecordBlock
from zkv.core.versions import Base
from zkv.ids import NodeId, RequestId


@dataclass(slots=True)
class Mint:
    """Read, merge, mint and log these items as one step. Answered by Minted, then Persisted. One row per item in every column.

    replace_held     all that is held is replaced, besides what `covered` says
    covered[i]       what item i replaces; None = nothing further
    values[i]        None = delete
    segments         the clients' requests that the items come from, in order, each with the numbers of its items
    expires_ms, voids   None = nothing expires, nothing is voided
    """

    cause: int
    durable: bool
    keys: list[bytes]
    values: list[bytes | None]
    checksums: list[int]
    segments: list[tuple[RequestId, list[int]]]
    replace_held: bool
    covered: list[Base] | None
    expires_ms: list[int] | None
    voids: list[tuple[int, ...]] | None
    row_versions: list[int]
    fences: list[int]
    stamp: int = 0


@dataclass(slots=True)
class Join:
    """Join these sets with ours and log what changed, as one step. Answered by Joined, then Persisted.

    restores: what came takes the place of a set of ours that cannot be read; else such an item is answered as corrupt.
    """

    cause: int
    block: RecordBlock
    durable: bool
    restores: bool = False


@dataclass(slots=True)
class Read:
    """Answered by ReadDone; with `durable` only once what was read is synced, where every ack is; with `synced` whatever the policy."""

    cause: int
    keys: list[bytes]
    durable: bool
    synced: bool = False


@dataclass(slots=True)
class Scan:
    """A page of the keys held in a partition. Answered by Scanned."""

    cause: int
    bucket_id: int
    partition: int
    after: bytes
    limit: int


@dataclass(slots=True)
class ReadPage:
    """Whole sets, by partition and key, from (partition, after) on, of the partitions wanted. Answered by Pulled."""

    cause: int
    partitions: list[int]
    after: bytes
    bytes_max: int


@dataclass(slots=True)
class MarkSynced:
    """Note durably that this store may answer reads. Answered by Synced."""


@dataclass(slots=True)
class Send:
    node: NodeId
    message: PeerRequest


@dataclass(slots=True)
class Reply:
    route: Route
    message: ClientReply | PeerReply


@dataclass(slots=True)
class Publish:
    message: Heartbeat


@dataclass(slots=True)
class Adopt:
    """Make the first epoch ours, durably, before anything else is said. unsynced: this directory lost what it held."""

    unsynced: bool
    stores: dict[NodeId, bytes]


@dataclass(slots=True)
class Note:
    """Something for the operator's log. level: "info", "warning", "error". event: its name, which does not change."""

    level: str
    event: str
    text: str


Effect = Mint | Join | Read | ReadPage | Scan | MarkSynced | Send | Reply | Publish | Adopt | Note
