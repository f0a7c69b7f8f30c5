"""One key, one node, one answer: what most calls of the synchronous client are, without a call object unless something about them is not usual.

Owns: what is usual before and after such a request is sent. Must not know: values' codecs, retries, what is done when it is not usual.

Before it is sent, anything unusual (no topology, nobody linked, somebody that failed lately, something to say of earlier puts) means that nothing
was done: the general way begins from nothing. After it is sent the general way takes over where this one stands, as `Flight` says: the same
request, the same link, the answer that has come. So nothing is ever asked twice that the general way would ask once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zkv.client.keys import Key
from zkv.client.lanes import Lane
from zkv.client.session import Flight
from zkv.codec.wire import REMAINING_MS_MAX
from zkv.codec.wire_single import KEY_BYTES_SHORT, SingleCodec
from zkv.core.client_state import ClientState
from zkv.core.topology import Bucket
from zkv.errors import NoSuchBucket
from zkv.ids import BUCKET_BYTES, Dot, NodeId, bucket_prefix, checksum_of

if TYPE_CHECKING:
    from zkv.client.engine import Engine

#: dot, nodes, durable, sloppy, epoch
Stored = tuple[Dot, list[int], bool, bool, int]


class LaneFlight(Flight):
    """A request that was sent on a lane, and what has come since. written: the key of a put."""

    __slots__ = ("frames", "lane", "written")

    def __init__(
        self,
        lane: Lane,
        frames: list[bytes],
        written: bytes | None,
        entry: Bucket,
        began_ns: int,
        node: NodeId,
        address: str,
        sequence: int,
        base: Dot | None,
    ) -> None:
        super().__init__(entry, began_ns, node, address, sequence, base)
        self.lane = lane
        self.frames = frames
        self.written = written


class NoSingles:
    """Of an engine without sockets: every request is a call."""

    def get(self, name: str, key: Key) -> None:
        """Nothing was sent."""

    def put(self, name: str, key: Key, value: bytes) -> None:
        """Nothing was sent."""

    def abandon(self, flight: LaneFlight) -> None:
        raise AssertionError("there are no flights without sockets")


class Singles:
    """One per engine. Each method gives the answer; or the flight for the general way to go on from; or None: nothing was sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._codec = SingleCodec(0)
        self._cluster = 0
        self._remaining_ms = max(1, min(REMAINING_MS_MAX, int(engine.target.timeout * 1000)))

    def get(self, name: str, key: Key) -> tuple[bytes | None] | LaneFlight | None:
        """(value or None for a miss,)."""
        engine = self._engine
        state = engine.state
        place = self._place(state, name, key)
        if place is None:
            return None
        stored, entry, node, address = place
        began_ns = time.monotonic_ns()
        taken = engine.take_lane()
        if taken is None:
            return None
        lane, sequence = taken
        session, codec = state.session, self._codec
        try:
            frames = lane.ask(address, [codec.get(session, sequence, self._remaining_ms, stored)])
            answer = codec.read_found(frames, session, sequence) if frames else None
        except BaseException:
            engine.discard(lane)
            raise
        if frames is not None and answer is None:
            return LaneFlight(lane, frames, None, entry, began_ns, node, address, sequence, None)
        engine.give_back(lane)
        return answer

    def put(self, name: str, key: Key, value: bytes) -> Stored | LaneFlight | None:
        engine = self._engine
        state = engine.state
        place = self._place(state, name, key)
        if place is None:
            return None
        stored, entry, node, address = place
        began_ns = time.monotonic_ns()
        remembers = not state.single_copies
        with engine.lock:
            base, usual = state.memory.follows(stored, remembers=remembers)
        taken = engine.take_lane() if usual else None
        if taken is None:
            return None
        lane, sequence = taken
        session, codec = state.session, self._codec
        try:
            request = codec.put(session, sequence, self._remaining_ms, stored, value, checksum_of(value), base)
            frames = lane.ask(address, request)
            answer = codec.read_stored(frames, session, sequence) if frames else None
        except BaseException:  # it may have left
            self._forsake(state, lane, stored, sequence)
            raise
        if frames is not None and answer is None:
            return LaneFlight(lane, frames, stored, entry, began_ns, node, address, sequence, base)
        if answer is not None and remembers:
            with engine.lock:
                state.memory.note_dot(stored, answer[0])
        engine.give_back(lane)
        return answer

    def abandon(self, flight: LaneFlight) -> None:
        """The caller was interrupted before the general way took over."""
        self._forsake(self._engine.state, flight.lane, flight.written, flight.sequence)

    def _forsake(self, state: ClientState, lane: Lane, written: bytes | None, sequence: int) -> None:
        if written is not None:
            with self._engine.lock:
                state.memory.note_unknown([written], sequence)
        self._engine.discard(lane)

    def _place(self, state: ClientState, name: str, key: Key) -> tuple[bytes, Bucket, NodeId, str] | None:
        """(stored key, its bucket, who is asked, where); None where anything is to be done or decided first."""
        ring = state.ring
        if ring is None or not state.untroubled:
            return None
        if state.cluster != self._cluster:
            self._cluster = state.cluster
            self._codec = SingleCodec(state.cluster)
        try:
            entry = state.bucket(name)
            given = key.encode() if type(key) is str else key
        except (NoSuchBucket, UnicodeEncodeError):
            return None
        if type(given) is not bytes or not 0 < len(given) <= KEY_BYTES_SHORT - BUCKET_BYTES:
            return None
        stored = bucket_prefix(entry.bucket_id) + given
        node = ring.row_of(stored, entry.class_id).replicas[0]
        return stored, entry, node, state.addresses[node]
