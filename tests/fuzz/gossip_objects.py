"""Arbitrary valid gossip."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.objects import node_ids, short, u32, u64
from zkv.core.membership import messages as m
from zkv.core.membership.happenings import Remembered
from zkv.core.membership.states import PHASES, State

_weights = st.integers(0, 1_000).map(float) | st.floats(0, 1_000)
profiles = st.builds(m.Profile, short, short, short, u64, short, short, short, short, _weights, u32, u32)
_accusers = st.lists(node_ids, max_size=m.ACCUSERS_MAX).map(tuple)
_rumours = st.lists(
    st.builds(m.Rumour, node_ids, u64, st.sampled_from(State), _accusers, st.none() | profiles), max_size=3
)
_heads = st.builds(m.Head, u64, node_ids, u64, st.sampled_from([*sorted(PHASES), State.LEFT]), u64, u64)
_loads = st.builds(m.Load, u64, u64, u64, u64)
_digests = st.lists(u64, min_size=m.BUCKETS, max_size=m.BUCKETS).map(tuple)

MESSAGES: dict[m.Kind, st.SearchStrategy[Any]] = {
    m.Kind.HELLO: st.builds(m.Hello, _heads, u64, profiles),
    m.Kind.WELCOME: st.builds(m.Welcome, _heads, u64, profiles),
    m.Kind.REJECT: st.builds(m.Reject, _heads, u64, st.sampled_from(m.Reason), short, u64),
    m.Kind.PING: st.builds(m.Ping, _heads, u64, u64, node_ids, _rumours),
    m.Kind.ACK: st.builds(m.Ack, _heads, u64, u64, node_ids, u64, _loads, _rumours),
    m.Kind.PING_REQ: st.builds(m.PingReq, _heads, u64, u64, node_ids, u32, _rumours),
    m.Kind.NACK: st.builds(m.Nack, _heads, u64, u64),
    m.Kind.GOSSIP: st.builds(m.Gossip, _heads, u64, u64, _rumours),
    m.Kind.SYNC_DIGEST: st.builds(m.SyncDigest, _heads, u64, u64, _digests),
    m.Kind.SYNC_DELTA: st.builds(m.SyncDelta, _heads, u64, u64, u64, u32, _rumours),
    m.Kind.BUSY: st.builds(m.Busy, _heads, u64, u64),
    m.Kind.NEIGHBOUR: st.builds(m.Neighbour, _heads, u64, st.booleans()),
    m.Kind.NEIGHBOUR_REPLY: st.builds(m.NeighbourReply, _heads, u64, st.booleans()),
    m.Kind.DISCONNECT: st.builds(m.Disconnect, _heads, u64),
}
messages = st.one_of(*MESSAGES.values())
remembered = st.lists(st.builds(Remembered, node_ids, u64, st.sampled_from(State), profiles), max_size=3)
