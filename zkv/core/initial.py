"""The list that a cluster is born from: `name@host:port,...`.

Owns: its syntax, its order, its digest, and what is derived from that: cluster id, hash seed, node ids. Must not know: tables.
Invariant: every derived value is a pure function of cluster name, number of partitions and the set of entries; the order in which
they were typed does not matter. What these functions answer for a given list is frozen: it names clusters that exist.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Final, NamedTuple

from zkv.errors import ConfigError
from zkv.ids import NodeId

DEFAULT_PARTITIONS: Final = 1024
#: client, peer and gossip sockets of a node of the list: PORT, PORT+1, PORT+2
PORTS_PER_NODE: Final = 3

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")


class InitialNode(NamedTuple):
    """One entry. An IPv6 host stands without brackets."""

    name: str
    host: str
    port: int
    dc: str = "dc1"
    rack: str = "rack1"
    #: empty: derived from the address, see `host_label`
    label: str = ""
    weight: float = 1.0

    @property
    def host_label(self) -> str:
        """Failure domain: the advertised host, but on loopback, where all nodes share one machine anyway, the node's name."""
        return self.label or (self.name if is_loopback(self.host) else self.host)

    def address(self, offset: int = 0) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port + offset}"


Entry = InitialNode | tuple[str, str, int]


def parse_initial(text: str) -> list[InitialNode]:
    """`a@h1:7400,b@[::1]:7500`, labels as in `a@h1:7400/dc=eu/rack=r1/host=m1/weight=2`. Sorted by name; ConfigError says what is wrong."""
    parts = [part.strip() for part in text.split(",")]
    if parts == [""]:
        raise ConfigError("--initial is empty: expected NAME@HOST:PORT,NAME@HOST:PORT,...")
    return ordered([_parse_entry(part) for part in parts])


def ordered(entries: Iterable[Entry]) -> list[InitialNode]:
    """The entries as `InitialNode`, normalised, checked, sorted by name."""
    nodes = [_normalised(InitialNode(*entry)) for entry in entries]
    if not nodes:
        raise ConfigError("the initial list is empty: a cluster has at least one node")
    nodes.sort(key=lambda node: node.name)
    for first, second in pairwise(nodes):
        if first.name == second.name:
            raise ConfigError(
                f"--initial names {first.name!r} twice, at {first.address()} and {second.address()}: names are unique"
            )
    by_address = sorted(nodes, key=lambda node: (node.host, node.port))
    for first, second in pairwise(by_address):
        if first.host != second.host:
            continue
        if first.port == second.port:
            raise ConfigError(
                f"--initial gives {first.address()} to both {first.name!r} and {second.name!r}: addresses are unique"
            )
        if second.port - first.port < PORTS_PER_NODE:
            raise ConfigError(
                f"--initial: {first.name!r} at {first.address()} uses ports {first.port} to {first.port + PORTS_PER_NODE - 1}, and "
                f"{second.name!r} at {second.address()} is in the way: leave at least {PORTS_PER_NODE} between two nodes of a host"
            )
    return nodes


def initial_text(entries: Iterable[Entry]) -> str:
    """The list in its one normal form; `parse_initial` reads it back."""
    return ",".join(_entry_text(node) for node in ordered(entries))


def initial_hash(cluster_name: str, initial: Iterable[Entry], partitions: int = DEFAULT_PARTITIONS) -> bytes:
    """32 bytes that two nodes have in common exactly if they were started with the same list, name and number of partitions."""
    fields = [cluster_name, str(partitions)]
    for node in ordered(initial):
        fields += [node.name, node.host, str(node.port), node.dc, node.rack, node.host_label, repr(float(node.weight))]
    encoded = [field.encode() for field in fields]
    body = b"".join(len(field).to_bytes(4, "big") + field for field in encoded)
    return blake2b(body, digest_size=32, person=b"zkv initial").digest()


def derive_cluster_id(initial_digest: bytes) -> bytes:
    return blake2b(initial_digest, digest_size=16, person=b"zkv cluster id").digest()


def derive_seed(initial_digest: bytes) -> int:
    return int.from_bytes(blake2b(initial_digest, digest_size=8, person=b"zkv hash seed").digest(), "big")


def derive_node_ids(initial_digest: bytes, names: Sequence[str]) -> list[NodeId]:
    """One per name, none of them 0, all different. ConfigError in the one case of 2**40 or so where two collide."""
    ids = [
        NodeId(
            int.from_bytes(
                blake2b(initial_digest + name.encode(), digest_size=8, person=b"zkv node id").digest(), "big"
            )
        )
        for name in names
    ]
    if len(set(ids)) != len(ids) or 0 in ids:
        raise ConfigError("two names of --initial derive the same node id: change one of the names")
    return ids


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1 and localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_entry(text: str) -> InitialNode:
    place, *labels = text.split("/")
    name, at, address = place.partition("@")
    host, colon, port = address.rpartition(":")
    if not at or not colon or not host or not name:
        raise ConfigError(f"--initial {text!r}: expected NAME@HOST:PORT, as in a@10.0.0.1:7400 or a@[::1]:7400")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ConfigError(f"--initial {text!r}: {host!r} in brackets is not an IPv6 address")
    elif ":" in host:
        raise ConfigError(f"--initial {text!r}: write an IPv6 address in brackets, as in a@[::1]:7400")
    if not (port.isascii() and port.isdigit()):
        raise ConfigError(f"--initial {text!r}: the port {port!r} is not a number")
    given: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or key not in ("dc", "rack", "host", "weight") or key in given:
            raise ConfigError(
                f"--initial {text!r}: {label!r} is not a label: use each of /dc= /rack= /host= /weight= at most once"
            )
        given[key] = value
    try:
        weight = float(given.get("weight", "1"))
    except ValueError:
        raise ConfigError(f"--initial {text!r}: the weight {given['weight']!r} is not a number") from None
    return InitialNode(
        name, host, int(port), given.get("dc", "dc1"), given.get("rack", "rack1"), given.get("host", ""), weight
    )


@lru_cache(maxsize=64)
def _normalised(node: InitialNode) -> InitialNode:
    if not _NAME.fullmatch(node.name):
        raise ConfigError(
            f"--initial: the name {node.name!r} must be 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    for option, value in (("dc", node.dc), ("rack", node.rack)):
        if not _NAME.fullmatch(value):
            raise ConfigError(
                f"--initial {node.name}: {option} {value!r} must be 1 to 63 letters, digits, '.', '_' or '-'"
            )
    if not _HOST.fullmatch(node.host) or (node.label and not _HOST.fullmatch(node.label)):
        raise ConfigError(f"--initial {node.name}: {node.label or node.host!r} is not a host name or address")
    if not 1 <= node.port <= 65536 - PORTS_PER_NODE:
        raise ConfigError(
            f"--initial {node.name}: port {node.port} must be from 1 to {65536 - PORTS_PER_NODE}, the next two are used as well"
        )
    if not 0 < node.weight <= 1000:
        raise ConfigError(f"--initial {node.name}: weight {node.weight} must be above 0 and at most 1000")
    if node.host.lower() == "localhost":
        return node._replace(host="127.0.0.1", weight=float(node.weight))
    host = ipaddress.ip_address(node.host).compressed if _is_ipv6(node.host) else node.host.lower()
    return node._replace(host=host, weight=float(node.weight))


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _entry_text(node: InitialNode) -> str:
    text = f"{node.name}@{node.address()}"
    defaults = InitialNode("", "", 0)
    for option, value, default in (
        ("dc", node.dc, defaults.dc),
        ("rack", node.rack, defaults.rack),
        ("host", node.label, defaults.label),
    ):
        if value != default:
            text += f"/{option}={value}"
    return text + (f"/weight={node.weight!r}" if node.weight != defaults.weight else "")
