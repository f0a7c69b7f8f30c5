"""What the topology says of a node: identity, labels, weight, addresses.

Owns: `Member`. Must not know: whether the node is up (gossip), what it owns (placement).
"""

from __future__ import annotations

from dataclasses import dataclass

from zkv.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node for life. Addresses are `host:port`, IPv6 in brackets."""

    node_id: NodeId
    name: str
    #: failure domain of a machine: no two replicas of a row share it
    host: str
    #: failure domains that replicas are spread over as far as they exist; a rack belongs to its data center
    rack: str = ""
    dc: str = ""
    #: capacity relative to the others; 0 owns nothing
    weight: float = 1.0
    address: str = ""
    peer_address: str = ""
    gossip_address: str = ""
