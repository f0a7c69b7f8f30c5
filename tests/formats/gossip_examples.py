"""One message of every kind of gossip, as docs/wire.md shows it."""

from __future__ import annotations

from zkv.core.membership import messages as m
from zkv.core.membership.happenings import Remembered
from zkv.core.membership.states import State, incarnation_of
from zkv.ids import NodeId

ME, HIM, HER = NodeId(0x1111), NodeId(0x2222), NodeId(0x3333)
HEAD = m.Head(0x1122334455667788, ME, incarnation_of(3, 1), State.ALIVE, 5, 0xABCD)
PROFILE = m.Profile("a", "10.0.0.1:7401", "10.0.0.1:7402", 77, "10.0.0.1:7400", "h1", "r1", "eu", 1.5)
UP = m.Rumour(ME, incarnation_of(3, 1), State.ALIVE, (), PROFILE)
SUSPECT = m.Rumour(HIM, incarnation_of(2), State.SUSPECT, (ME,))
DEAD = m.Rumour(HIM, incarnation_of(2), State.DEAD, (ME, HER))


def messages() -> dict[str, m.Message]:
    return {
        "hello": m.Hello(HEAD, 1, PROFILE),
        "welcome": m.Welcome(HEAD, 2, PROFILE),
        "reject": m.Reject(HEAD, 3, m.Reason.PROTOCOL, "no", 77),
        "ping": m.Ping(HEAD, 4, 9, HIM, [SUSPECT]),
        "ack": m.Ack(HEAD, 5, 9, ME, incarnation_of(3, 1), m.Load(100, 2**30, 2**31, 3), [UP]),
        "ping_req": m.PingReq(HEAD, 6, 10, HIM, 600, []),
        "nack": m.Nack(HEAD, 7, 10),
        "gossip": m.Gossip(HEAD, 8, 2, [DEAD]),
        "sync_digest": m.SyncDigest(HEAD, 9, 11, tuple(range(m.BUCKETS))),
        "sync_delta": m.SyncDelta(HEAD, 10, 11, 6, 0, [UP, m.Rumour(HIM, 7, State.DEAD, (ME, HER), PROFILE)]),
        "busy": m.Busy(HEAD, 11, 11),
        "neighbour": m.Neighbour(HEAD, 12, True),
        "neighbour_reply": m.NeighbourReply(HEAD, 13, False),
        "disconnect": m.Disconnect(HEAD, 14),
    }


MEMBERS = [Remembered(HIM, incarnation_of(2), State.ALIVE, PROFILE)]
