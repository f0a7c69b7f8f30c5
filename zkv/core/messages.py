"""Everything that nodes and clients say to each other, as numbered types. Numbers are append-only.

Owns: the shape of messages. Must not know: their bytes (codec/wire), who sends them when.

A message about many keys is a set of columns: index i of every column speaks of item i; a column that is None says "the usual" for all
items. Keys are stored keys (bucket id and key). Times left are durations in the header; `deadline_ns` is what the receiver made of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from zkv.core.columns import Columns
from zkv.core.versions import Base, Context, VersionSet
from zkv.ids import NodeId, RequestId

#: a consistency level: None = the bucket's, a count, or a name out of LEVELS
Level = int | str | None
LEVELS = ("one", "quorum", "all", "local_quorum", "each_quorum")

#: most items in one message from a client, most bytes of values in it
ITEMS_MAX = 1000
BATCH_VALUES_BYTES_MAX = 4 * 1024 * 1024


class Kind(IntEnum):
    """The number of each message on the wire."""

    HELLO = 1
    WELCOME = 2
    PUT = 3
    PUT_REPLY = 4
    GET = 5
    GET_REPLY = 6
    SCAN = 7
    SCAN_REPLY = 8
    ADMIN = 9
    ADMIN_REPLY = 10
    REFUSED = 11
    PEER_HELLO = 32
    PEER_HELLO_ACK = 33
    REPLICA_PUT = 34
    REPLICA_PUT_ACK = 35
    REPLICA_GET = 36
    REPLICA_GET_REPLY = 37
    HEARTBEAT = 38
    PULL = 39
    PULL_REPLY = 40


class Status(IntEnum):
    """The outcome of one item."""

    OK = 0
    UNAVAILABLE = 1  # definite: refused before anything was written
    QUORUM_NOT_MET = 2  # unknown for a put
    DEADLINE = 3  # unknown for a put once minted
    OVERLOADED = 4
    TOO_LARGE = 5
    INVALID_KEY = 6
    NO_SUCH_BUCKET = 7
    DISK_FULL = 8
    CORRUPT = 9
    ROW_VERSION = 10  # the sender's table is not ours
    UNSYNCED = 11  # the store must not answer reads yet
    NOT_REPLICA = 12
    TOO_OLD = 13  # the request id is older than what is remembered: unknown
    STORE_FAILED = 14
    EXPIRED = 15  # refused: no time was left on arrival, nothing was done


#: put outcomes after which the value may exist somewhere
UNKNOWN_STATUSES = frozenset({Status.QUORUM_NOT_MET, Status.DEADLINE, Status.TOO_OLD, Status.STORE_FAILED})


# --- client <-> node ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Hello:
    """A client asks for the topology. Answered by Welcome."""

    kind: ClassVar[Kind] = Kind.HELLO
    client: str = ""


@dataclass(slots=True)
class Welcome:
    """document: canonical bytes of the topology; empty until the node has an active epoch.

    open_id names this opening of the node's directory: a client that finds another one than before must mark its retries `again`.
    """

    kind: ClassVar[Kind] = Kind.WELCOME
    node: NodeId
    name: str
    document: bytes
    up: list[NodeId]
    open_id: bytes = b""


@dataclass(slots=True)
class Put:
    """Puts and deletes. values[i] None = delete.

    contexts[i]  Context = exactly this is replaced; None = blind overwrite
    bases[i]     for blind items: the dot (or context) of this session's own last write of the key, or None
    voids[i]     sequences of this session on this key whose outcome the client never learnt
    retry        not the first try: a store that may have forgotten requests must not carry it out as if it were
    again        a retry at another store: mint with the given contexts and bases alone
    hop          forwarded once; must not be forwarded again. items then says which items of the client's request these are
    """

    kind: ClassVar[Kind] = Kind.PUT
    request: RequestId
    keys: list[bytes]
    values: list[bytes | None]
    checksums: list[int]
    contexts: list[Context | None] | None = None
    bases: list[Base | None] | None = None
    expires_ms: list[int] | None = None
    voids: list[tuple[int, ...] | None] | None = None
    items: list[int] | None = None
    w: Level = None
    sloppy: bool | None = None
    durable: bool = False
    again: bool = False
    want_context: bool = False
    hop: bool = False
    retry: bool = False
    deadline_ns: int = 0


@dataclass(slots=True)
class Receipt:
    """Which stores held the items when the reply left: nodes, and whether all of them had fsynced."""

    nodes: list[NodeId]
    durable: bool
    sloppy: bool
    epoch: int


@dataclass(slots=True)
class PutReply:
    """Columns per item. actor and counters give the dots minted (counter 0: none). contexts only when asked for, None where it is the
    item's own dot and those before it of its actor; items as in the Put."""

    kind: ClassVar[Kind] = Kind.PUT_REPLY
    request: RequestId
    statuses: list[int] | None
    required: list[int] | None
    got: list[int] | None
    actors: list[bytes]
    actor_of_item: list[int] | None
    counters: list[int]
    receipts: list[Receipt]
    receipt_of_item: list[int] | None
    contexts: list[Context | None] | None = None
    items: list[int] | None = None


@dataclass(slots=True)
class Get:
    """heads: lengths and checksums, no values."""

    kind: ClassVar[Kind] = Kind.GET
    request: RequestId
    keys: list[bytes]
    r: Level = None
    sloppy: bool | None = None
    want_context: bool = False
    heads: bool = False
    deadline_ns: int = 0


@dataclass(slots=True)
class GetReply:
    """counts[i] siblings of item i lie in order in the sibling columns; counts None = one each."""

    kind: ClassVar[Kind] = Kind.GET_REPLY
    request: RequestId
    statuses: list[int] | None
    required: list[int] | None
    got: list[int] | None
    counts: list[int] | None
    checksums: list[int]
    expires_ms: list[int] | None
    stamps: list[int] | None
    values: list[bytes]
    contexts: list[Context | None] | None = None


@dataclass(slots=True)
class Scan:
    """One page of one partition, by key: for export. after: the last key of the page before, b"" to begin."""

    kind: ClassVar[Kind] = Kind.SCAN
    request: RequestId
    bucket_id: int
    partition: int
    after: bytes
    limit: int
    deadline_ns: int = 0


@dataclass(slots=True)
class ScanReply:
    """Keys that this replica holds in the partition, ordered; more: another page follows. row_version names what was covered."""

    kind: ClassVar[Kind] = Kind.SCAN_REPLY
    request: RequestId
    status: int
    row_version: int
    keys: list[bytes]
    more: bool


@dataclass(slots=True)
class Admin:
    """An operation by name (`status`, `explain`, ...) with a tree of arguments."""

    kind: ClassVar[Kind] = Kind.ADMIN
    request: RequestId
    operation: str
    arguments: dict[str, object] = field(default_factory=dict)
    deadline_ns: int = 0


@dataclass(slots=True)
class AdminReply:
    kind: ClassVar[Kind] = Kind.ADMIN_REPLY
    request: RequestId
    status: int
    document: dict[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Refused:
    """A whole message was refused: nothing of it was done. code is the name of an error class."""

    kind: ClassVar[Kind] = Kind.REFUSED
    request: RequestId
    code: str
    message: str
    details: dict[str, int] = field(default_factory=dict)


# --- node <-> node -----------------------------------------------------------------------------------------------------------


class Record:
    """One key's set on its way to a log or a replica. `request` names (session, sequence, item, counter) that minted it, if one did."""

    __slots__ = ("fence", "key", "request", "row_version", "versions")

    def __init__(
        self, key: bytes, row_version: int, fence: int, request: tuple[int, int, int, int] | None, versions: VersionSet
    ) -> None:
        self.key = key
        self.row_version = row_version
        self.fence = fence
        self.request = request
        self.versions = versions


class RecordBlock:
    """Records that travel and are logged together, as rows or, where a batch of plain puts made them, as columns.

    encoded is the codec's cache: (meta, values), made once, used for log and all peers. The rows of columns are only built when somebody asks.
    """

    __slots__ = ("_records", "columns", "encoded")

    def __init__(
        self,
        records: list[Record] | None = None,
        encoded: tuple[bytes, bytes] | None = None,
        columns: Columns | None = None,
    ) -> None:
        self._records = records
        self.columns = columns
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.records if self.columns is None else self.columns)

    @property
    def records(self) -> list[Record]:
        if self._records is None:
            columns = self.columns
            self._records = [] if columns is None else [_record(columns, i) for i in range(len(columns))]
        return self._records

    @property
    def keys(self) -> list[bytes]:
        return [r.key for r in self.records] if self.columns is None else self.columns.keys

    @property
    def row_versions(self) -> list[int]:
        return [r.row_version for r in self.records] if self.columns is None else self.columns.row_versions


def _record(columns: Columns, i: int) -> Record:
    request = (*columns.request(i), columns.counters[i])
    return Record(columns.keys[i], columns.row_versions[i], columns.fences[i], request, columns.versions(i))


@dataclass(slots=True)
class PeerHello:
    """Who I am and how far I am. phase: "new" (nothing adopted yet), "ready" (saw all others new and fsynced that), "active"."""

    kind: ClassVar[Kind] = Kind.PEER_HELLO
    node: NodeId
    name: str
    store: bytes
    open_id: bytes
    initial_hash: bytes
    phase: str
    initial: str
    epoch: int


@dataclass(slots=True)
class PeerHelloAck:
    """The same of the one asked. refusal: why the asker cannot be a peer, or "". stores: of an active node, (node, store) of every
    member as they were when the cluster began."""

    kind: ClassVar[Kind] = Kind.PEER_HELLO_ACK
    node: NodeId
    name: str
    store: bytes
    open_id: bytes
    initial_hash: bytes
    phase: str
    initial: str
    epoch: int
    refusal: str
    stores: list[tuple[NodeId, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class ReplicaPut:
    """Join these sets with yours. group: the sender's number for it, echoed in the ack."""

    kind: ClassVar[Kind] = Kind.REPLICA_PUT
    group: int
    block: RecordBlock
    durable: bool = False
    deadline_ns: int = 0


@dataclass(slots=True)
class ReplicaPutAck:
    """statuses None = all OK. inexact: items whose set here now knows more than what was sent. store names the one that holds them."""

    kind: ClassVar[Kind] = Kind.REPLICA_PUT_ACK
    group: int
    store: bytes
    durable: bool
    statuses: list[int] | None = None
    inexact: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ReplicaGet:
    """pasts_only: siblings without values (for the read before a blind overwrite). durable: answer from synced state only.

    runs: what the keys are read for, (session, sequence, items) in their order. What is known here as carried out is answered as TOO_OLD.
    """

    kind: ClassVar[Kind] = Kind.REPLICA_GET
    group: int
    keys: list[bytes]
    row_versions: list[int]
    pasts_only: bool = False
    durable: bool = False
    deadline_ns: int = 0
    runs: list[tuple[int, int, list[int]]] | None = None


@dataclass(slots=True)
class ReplicaGetReply:
    """block: one record per item that is held; absent: items with nothing. statuses None = all OK."""

    kind: ClassVar[Kind] = Kind.REPLICA_GET_REPLY
    group: int
    store: bytes
    block: RecordBlock
    absent: list[int]
    statuses: list[int] | None = None

    def sets(self, count: int) -> list[VersionSet | None] | None:
        """One per item asked for, or None when this is no answer about so many items."""
        sets: list[VersionSet | None] = [None] * count
        absent = set(self.absent)
        held = [i for i in range(count) if i not in absent]
        if len(held) != len(self.block) or len(held) + len(self.absent) != count:
            return None
        for i, record in zip(held, self.block.records, strict=True):
            sets[i] = record.versions
        return sets


@dataclass(slots=True)
class Pull:
    """An unsynced store asks for whatever rows the two share, from (partition, after) on. Answered also by an unsynced store."""

    kind: ClassVar[Kind] = Kind.PULL
    group: int
    node: NodeId
    partition: int
    after: bytes
    deadline_ns: int = 0


@dataclass(slots=True)
class PullReply:
    """A page of whole sets. Ask again from (partition, after); done: there is nothing beyond this page."""

    kind: ClassVar[Kind] = Kind.PULL_REPLY
    group: int
    store: bytes
    block: RecordBlock
    partition: int
    after: bytes
    done: bool


@dataclass(slots=True)
class Heartbeat:
    """Published every interval. counter grows by one each time."""

    kind: ClassVar[Kind] = Kind.HEARTBEAT
    node: NodeId
    open_id: bytes
    counter: int
    epoch: int


ClientRequest = Hello | Put | Get | Scan | Admin
ClientReply = Welcome | PutReply | GetReply | ScanReply | AdminReply | Refused
PeerRequest = PeerHello | ReplicaPut | ReplicaGet | Put | Pull
PeerReply = PeerHelloAck | ReplicaPutAck | ReplicaGetReply | PutReply | PullReply | Refused
Message = ClientRequest | ClientReply | PeerRequest | PeerReply | Heartbeat
