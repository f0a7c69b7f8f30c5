"""The topology document: everything that all nodes must agree on, for one epoch.

Owns: the document, its first epoch, its plain form (dicts, lists, numbers, text, bytes) for codecs. Must not know: bytes on disk or wire
(codec/value), who is up, how an epoch is agreed.
Invariants: immutable; a row changes only together with its version; the first epoch is a pure function of the initial list, the cluster
name and the number of partitions; `from_tree` refuses a document that breaks a rule, so holders need not check again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from zkv.core.initial import (
    DEFAULT_PARTITIONS,
    Entry,
    InitialNode,
    derive_cluster_id,
    derive_node_ids,
    derive_seed,
    initial_hash,
    initial_text,
    ordered,
    parse_initial,
)
from zkv.core.members import Member
from zkv.core.placement import Rule, plan_rows
from zkv.core.ring import Ring
from zkv.errors import ConfigError, ProtocolError
from zkv.ids import NodeId

__all__ = [
    "Bucket",
    "InitialNode",
    "TableRow",
    "TopologyDocument",
    "first_epoch",
    "from_tree",
    "initial_hash",
    "initial_text",
    "parse_initial",
    "ring_of",
    "to_tree",
]

FORMAT: Final = 1
DEFAULT_CLASS: Final = 1
DEFAULT_BUCKET: Final = 1
STRICT_BUCKET: Final = 2
_PARTITIONS_MAX: Final = 1 << 16
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A name space with its promises. The class is fixed at creation."""

    bucket_id: int
    name: str
    class_id: int
    #: may fallbacks stand in for primaries
    sloppy: bool
    conflict: str = "siblings"
    #: a number, or the name of a level
    r: int | str = "quorum"
    w: int | str = "quorum"
    value_bytes_max: int = 10240


class TableRow(NamedTuple):
    """One partition of one class: the epoch that last changed it, its fence, its replicas in order of preference."""

    version: int
    fence: int
    replicas: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyDocument:
    """One epoch. `previous_hash` of epoch 1 is the digest of the initial list."""

    epoch: int
    previous_hash: bytes
    cluster_id: bytes
    cluster_name: str
    hash_seed: int
    partitions: int
    #: sorted by node id
    members: tuple[Member, ...]
    classes: Mapping[int, Rule]
    #: sorted by bucket id
    buckets: tuple[Bucket, ...]
    rows: Mapping[int, tuple[TableRow, ...]]


def first_epoch(cluster_name: str, initial: Iterable[Entry], partitions: int = DEFAULT_PARTITIONS) -> TopologyDocument:
    """Epoch 1, the same on every node that was started with this list and name. ConfigError says what is wrong with them."""
    if not cluster_name:
        raise ConfigError("a cluster needs a name: --cluster-name NAME")
    return _first_epoch(cluster_name, tuple(ordered(initial)), partitions)


@lru_cache(maxsize=8)
def _first_epoch(cluster_name: str, nodes: tuple[InitialNode, ...], partitions: int) -> TopologyDocument:
    digest = initial_hash(cluster_name, nodes, partitions)
    members = tuple(
        sorted(
            (
                Member(
                    node_id=node_id,
                    name=node.name,
                    host=node.host_label,
                    rack=node.rack,
                    dc=node.dc,
                    weight=node.weight,
                    address=node.address(),
                    peer_address=node.address(1),
                    gossip_address=node.address(2),
                )
                for node, node_id in zip(nodes, derive_node_ids(digest, [node.name for node in nodes]), strict=True)
            ),
            key=lambda member: member.node_id,
        )
    )
    plan = plan_rows(members, partitions, 3)
    return TopologyDocument(
        epoch=1,
        previous_hash=digest,
        cluster_id=derive_cluster_id(digest),
        cluster_name=cluster_name,
        hash_seed=derive_seed(digest),
        partitions=partitions,
        members=members,
        classes={DEFAULT_CLASS: 3},
        buckets=(
            Bucket(bucket_id=DEFAULT_BUCKET, name="default", class_id=DEFAULT_CLASS, sloppy=True),
            Bucket(bucket_id=STRICT_BUCKET, name="strict", class_id=DEFAULT_CLASS, sloppy=False),
        ),
        rows={DEFAULT_CLASS: tuple(TableRow(1, 0, replicas) for replicas in plan.rows)},
    )


def ring_of(document: TopologyDocument) -> Ring:
    """The ring of a document. A few milliseconds; keep it."""
    hosts = {member.node_id: member.host for member in document.members}
    return Ring(document.partitions, document.hash_seed, document.rows, hosts)


def to_tree(document: TopologyDocument) -> dict[str, object]:
    """Plain form. Replicas are indexes into `members`, which keeps a table of 1,024 rows near 8 KB."""
    index_of = {member.node_id: index for index, member in enumerate(document.members)}
    return {
        "format": FORMAT,
        "epoch": document.epoch,
        "previous_hash": document.previous_hash,
        "cluster_id": document.cluster_id,
        "cluster_name": document.cluster_name,
        "hash_seed": document.hash_seed,
        "partitions": document.partitions,
        "members": [{field: getattr(member, field) for field in _MEMBER_FIELDS} for member in document.members],
        "classes": {
            class_id: rule if isinstance(rule, int) else dict(rule)
            for class_id, rule in sorted(document.classes.items())
        },
        "buckets": [{field: getattr(bucket, field) for field in _BUCKET_FIELDS} for bucket in document.buckets],
        "rows": {
            class_id: [[row.version, row.fence, [index_of[node] for node in row.replicas]] for row in rows]
            for class_id, rows in sorted(document.rows.items())
        },
    }


def from_tree(tree: object) -> TopologyDocument:
    """The document of a plain form, checked. ProtocolError names the field that is wrong."""
    fields = _record(tree, _DOCUMENT_FIELDS, "document")
    if fields["format"] != FORMAT:
        raise ProtocolError(f"topology document: format {fields['format']!r}, this build reads {FORMAT}")
    epoch = _whole(fields["epoch"], "epoch", 1, _U64)
    partitions = _whole(fields["partitions"], "partitions", 1, _PARTITIONS_MAX)
    if partitions & (partitions - 1):
        raise _wrong("partitions", "not a power of two")
    members = tuple(_member_from(entry) for entry in _sequence(fields["members"], "members"))
    classes = {
        _whole(class_id, "class id", 1, _U32): _rule_from(rule)
        for class_id, rule in _mapping(fields["classes"], "classes").items()
    }
    buckets = tuple(_bucket_from(entry, classes) for entry in _sequence(fields["buckets"], "buckets"))
    _ascending([member.node_id for member in members], "members")
    _ascending([bucket.bucket_id for bucket in buckets], "buckets")
    for what, names in (("members", [m.name for m in members]), ("buckets", [b.name for b in buckets])):
        if len(set(names)) != len(names):
            raise _wrong(what, "two have the same name")
    tables = _mapping(fields["rows"], "rows")
    if set(tables) != set(classes):
        raise _wrong("rows", "classes and tables differ")
    return TopologyDocument(
        epoch=epoch,
        previous_hash=_bytes(fields["previous_hash"], "previous_hash", 32),
        cluster_id=_bytes(fields["cluster_id"], "cluster_id", 16),
        cluster_name=_text(fields["cluster_name"], "cluster_name"),
        hash_seed=_whole(fields["hash_seed"], "hash_seed", 0, _U64),
        partitions=partitions,
        members=members,
        classes=classes,
        buckets=buckets,
        rows={class_id: _table_from(tables[class_id], members, partitions, epoch) for class_id in classes},
    )


# --- fields ------------------------------------------------------------------------------------------------------------------

_DOCUMENT_FIELDS: Final = (
    "format",
    "epoch",
    "previous_hash",
    "cluster_id",
    "cluster_name",
    "hash_seed",
    "partitions",
    "members",
    "classes",
    "buckets",
    "rows",
)
_MEMBER_FIELDS: Final = (
    "node_id",
    "name",
    "host",
    "rack",
    "dc",
    "weight",
    "address",
    "peer_address",
    "gossip_address",
)
_LEVELS: Final = ("one", "quorum", "all", "local_quorum", "each_quorum")
_BUCKET_FIELDS: Final = ("bucket_id", "name", "class_id", "sloppy", "conflict", "r", "w", "value_bytes_max")


def _member_from(tree: object) -> Member:
    fields = _record(tree, _MEMBER_FIELDS, "member")
    weight = fields["weight"]
    if not isinstance(weight, float) or not math.isfinite(weight) or weight < 0:
        raise _wrong("weight", "not a finite number of at least 0")
    text = {field: _text(fields[field], field) for field in _MEMBER_FIELDS if field not in ("node_id", "weight")}
    if not text["name"] or not text["host"]:
        raise _wrong("member", "name and host may not be empty")
    return Member(
        node_id=NodeId(_whole(fields["node_id"], "node_id", 1, _U64)),
        name=text["name"],
        host=text["host"],
        rack=text["rack"],
        dc=text["dc"],
        weight=weight,
        address=text["address"],
        peer_address=text["peer_address"],
        gossip_address=text["gossip_address"],
    )


def _bucket_from(tree: object, classes: Mapping[int, Rule]) -> Bucket:
    fields = _record(tree, _BUCKET_FIELDS, "bucket")
    class_id = _whole(fields["class_id"], "class_id", 1, _U32)
    if class_id not in classes:
        raise _wrong("bucket", f"class {class_id} does not exist")
    if not isinstance(fields["sloppy"], bool):
        raise _wrong("sloppy", "not true or false")
    if fields["conflict"] not in ("siblings", "latest"):
        raise _wrong("conflict", "neither siblings nor latest")
    return Bucket(
        bucket_id=_whole(fields["bucket_id"], "bucket_id", 1, _U32),
        name=_text(fields["name"], "bucket name"),
        class_id=class_id,
        sloppy=fields["sloppy"],
        conflict=_text(fields["conflict"], "conflict"),
        r=_level(fields["r"], "r"),
        w=_level(fields["w"], "w"),
        value_bytes_max=_whole(fields["value_bytes_max"], "value_bytes_max", 1, _U32),
    )


def _rule_from(tree: object) -> Rule:
    if isinstance(tree, int):
        return _whole(tree, "rule", 1, 255)
    return {
        _text(dc, "dc"): _whole(count, "rule", 1, 255) for dc, count in sorted(_mapping(tree, "rule").items(), key=str)
    }


def _table_from(tree: object, members: tuple[Member, ...], partitions: int, epoch: int) -> tuple[TableRow, ...]:
    rows: list[TableRow] = []
    for entry in _sequence(tree, "rows"):
        parts = _sequence(entry, "row")
        if len(parts) != 3:
            raise _wrong("row", "not version, fence and replicas")
        replicas = [_whole(index, "replica", 0, len(members) - 1) for index in _sequence(parts[2], "replicas")]
        if not replicas or len({members[index].host for index in replicas}) != len(replicas):
            raise _wrong("row", "no replica, or two on one host")
        nodes = tuple(members[index].node_id for index in replicas)
        rows.append(TableRow(_whole(parts[0], "row version", 1, epoch), _whole(parts[1], "fence", 0, _U64), nodes))
    if len(rows) != partitions:
        raise _wrong("rows", f"{len(rows)} rows for {partitions} partitions")
    return tuple(rows)


def _wrong(field: str, what: str) -> ProtocolError:
    return ProtocolError(f"topology document, {field}: {what}")


def _mapping(tree: object, field: str) -> dict[object, object]:
    if not isinstance(tree, dict):
        raise _wrong(field, "not a map")
    return tree


def _record(tree: object, names: tuple[str, ...], field: str) -> dict[object, object]:
    fields = _mapping(tree, field)
    if set(fields) != set(names):
        odd = sorted(str(name) for name in set(fields) ^ set(names))
        raise _wrong(field, f"missing or unknown: {', '.join(odd)}")
    return fields


def _sequence(tree: object, field: str) -> list[object]:
    if not isinstance(tree, list):
        raise _wrong(field, "not a list")
    return tree


def _whole(value: object, field: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(field, f"not a whole number from {low} to {high}")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "not text")
    return value


def _level(value: object, field: str) -> int | str:
    if value in _LEVELS:
        return _text(value, field)
    return _whole(value, field, 1, 255)


def _bytes(value: object, field: str, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise _wrong(field, f"not {size} bytes")
    return value


def _ascending(numbers: list[int] | list[NodeId], field: str) -> None:
    if any(a >= b for a, b in pairwise(numbers)):
        raise _wrong(field, "not in ascending order of ids, or an id twice")
