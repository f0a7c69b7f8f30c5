"""Going through all keys of a bucket, partition by partition.

Owns: which pages to ask of whom, when an answer is complete. Must not know: sockets, how values are read.

Each page of a partition is asked of all its replicas from the same key on. What an acknowledged put wrote is on at least one of any n-W+1 of
them, so that many must answer; their keys are joined up to the last key that every one of them has spoken of.

Invariant: a key that was acknowledged before the export began and not deleted since is there, or the export fails.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from zkv.client.decode import found_items, item_of
from zkv.client.keys import key_text
from zkv.client.requests import Requests
from zkv.client.results import Item
from zkv.client.session import Pause, Steps
from zkv.core import messages as m
from zkv.core.client_outcomes import error_of, failure_of_refusal
from zkv.core.messages import Status
from zkv.core.quorum import overlap, resolve
from zkv.core.ring import Row
from zkv.errors import Unavailable
from zkv.ids import BUCKET_BYTES, NodeId

if TYPE_CHECKING:
    from zkv.core.topology import Bucket as BucketEntry

PAGE_KEYS: Final = 1_000
#: partitions asked at a time, each of all its replicas
WINDOW: Final = 128
_PAUSE_S: Final = 0.05

#: where a partition goes on: the last key covered, or b""
Cursor = tuple[Row, bytes]


class Export:
    """A walk through one bucket, page by page."""

    def __init__(self, bucket: Requests[Any], *, values: bool, as_bytes: bool, timeout: float | None) -> None:
        self._bucket = bucket
        self._values = values
        self._as_bytes = as_bytes
        self._timeout = timeout
        self._entry: BucketEntry | None = None
        self._todo: list[Cursor] = []
        self._keys: list[bytes] = []

    def next_page(self) -> Steps[list[tuple[Any, Any]] | None]:
        """The next keys with what is wanted of them; None at the end."""
        if self._entry is None:
            engine = self._bucket._engine
            self._entry = yield from engine.bucket(
                self._bucket.name, engine.deadline_ns(self._timeout, time.monotonic_ns())
            )
            ring = engine.state.ring
            assert ring is not None
            self._todo = [(row, b"") for row in reversed(ring.rows[self._entry.class_id])]
        while not self._keys:
            if not self._todo:
                return None
            window = [self._todo.pop() for _ in range(min(WINDOW, len(self._todo)))]
            self._keys, unfinished = yield from _pages(self._bucket, self._entry, window, self._timeout)
            self._todo.extend(unfinished)
        given = [key[BUCKET_BYTES:] for key in self._keys[: PAGE_KEYS * 4]]
        del self._keys[: PAGE_KEYS * 4]
        items = yield from _items(self._bucket, given, self._timeout)
        return [(key if self._as_bytes else key_text(key), item.value if self._values else item) for key, item in items]


def _items(bucket: Requests[Any], keys: list[bytes], timeout: float | None) -> Steps[list[tuple[bytes, Item]]]:
    call, entry = yield from bucket._read(keys, None, None, timeout, want_context=True, whole=False)
    if call.failures:
        raise next(iter(call.errors().values()))
    rule = bucket._rule(None, entry)
    items = []
    for found in sorted(found_items(call), key=lambda found: found[0]):
        key = keys[found[0]]
        item = item_of(found, bucket._codec, rule, key)
        if item.found:
            items.append((key, item))
    return items


def _pages(
    bucket: Requests[Any], entry: BucketEntry, window: list[Cursor], timeout: float | None
) -> Steps[tuple[list[bytes], list[Cursor]]]:
    """The next keys of each partition of the window, and those that are not through yet.

    Raises: Unavailable when too few replicas of a partition answer until the deadline.
    """
    engine = bucket._engine
    deadline_ns = engine.deadline_ns(timeout, time.monotonic_ns())
    keys: list[bytes] = []
    unfinished: list[Cursor] = []
    left = window
    answers: dict[int, dict[int, m.ScanReply]] = {}
    while left:
        yield from _ask(bucket, entry, left, answers, deadline_ns)
        short: list[Cursor] = []
        for row, after in left:
            got = answers.get(row.partition, {})
            if len(got) < _required(bucket, entry, row):
                short.append((row, after))
                continue
            covered, last = _join(list(got.values()))
            keys.extend(covered)
            if last:
                unfinished.append((row, last))
        if short and time.monotonic_ns() >= deadline_ns:
            row = short[0][0]
            required, alive = _required(bucket, entry, row), len(answers.get(row.partition, {}))
            text = f"{alive} of {required} required replicas of partition {row.partition} answered the export"
            raise Unavailable(text, required=required, alive=alive)
        if short:
            yield Pause(_PAUSE_S)
        left = short
    return keys, unfinished


def _required(bucket: Requests[Any], entry: BucketEntry, row: Row) -> int:
    """How many replicas must answer so that one of them took part in any put of the bucket's own W."""
    document = bucket._engine.state.document
    assert document is not None
    dc_of = {member.node_id: member.dc for member in document.members}
    n = len(row.replicas)
    return overlap(n, min(n, resolve(None, entry.w, row.replicas, dc_of, "").count))


def _ask(
    bucket: Requests[Any],
    entry: BucketEntry,
    cursors: list[Cursor],
    answers: dict[int, dict[int, m.ScanReply]],
    deadline_ns: int,
) -> Steps[None]:
    """Ask every replica that has not answered; those that failed lately only where the others are too few."""
    engine = bucket._engine
    state = engine.state
    addresses = state.addresses
    now_ns = time.monotonic_ns()
    targets: list[tuple[Row, bytes, NodeId]] = []
    for row, after in cursors:
        got = answers.get(row.partition, {})
        silent = [node for node in row.replicas if node not in got]
        live = [node for node in silent if not state.is_cooling(node, now_ns)]
        enough = len(got) + len(live) >= _required(bucket, entry, row)
        targets.extend((row, after, node) for node in (live if enough else silent))
    requests = engine.new_requests(len(targets))
    asks = [
        (addresses[node], m.Scan(request, entry.bucket_id, row.partition, after, PAGE_KEYS, deadline_ns=deadline_ns))
        for (row, after, node), request in zip(targets, requests, strict=True)
    ]
    replies = yield from engine.ask(asks, deadline_ns)
    for (row, _, node), reply in zip(targets, replies, strict=True):
        if isinstance(reply, m.ScanReply) and reply.status == Status.OK:
            answers.setdefault(row.partition, {})[node] = reply
        elif isinstance(reply, m.Refused):
            error = error_of(failure_of_refusal(reply))
            if not error.retryable:
                raise error


def _join(replies: list[m.ScanReply]) -> tuple[list[bytes], bytes]:
    """Keys that every replica has spoken of, in order, and the last of them if there are more."""
    ends = [reply.keys[-1] for reply in replies if reply.more and reply.keys]
    joined = sorted({key for reply in replies for key in reply.keys})
    if not ends:
        return joined, b""
    last = min(ends)
    return [key for key in joined if key <= last], last
