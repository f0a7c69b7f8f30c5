"""The engine of an embedded store: calls of any thread over one node, turned under one lock.

Owns: the lock, who waits for which answer, the thread that syncs when nobody calls, life and death, fork.
Must not know: values, codecs; how a node is put together, what a step is (node).

A call hands its messages to the driver and turns it until its answers are there; most are after one turn. Who waits for a sync waits for the
bell, which the log's thread rings when one has ended; the first to be there turns for all. The bell has a lock of its own, so that the log's
thread never waits for a turn.

Invariants: node and calls under way are touched under `lock` alone, which is taken by `with` alone: an interrupt cannot come between having
it and giving it back. A turn that did not come to its end leaves a store that takes nothing more: what it did is found out by reading the
log again.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from zkv.client.engine import ThreadEngine
from zkv.client.keys import Key, stored_keys
from zkv.client.links import Exchange
from zkv.client.single import LaneFlight
from zkv.client.url import Target
from zkv.core import messages as m
from zkv.core.events import Route
from zkv.embedded.bell import Bell
from zkv.embedded.node import UNSURE, EmbeddedNode, Requests, Unsure, Written
from zkv.errors import Closed, CorruptData, InvalidKey, StorageFailed
from zkv.ids import BUCKET_BYTES, KEY_BYTES_MAX, bucket_prefix, checksum_of

#: the longest that a thread sleeps which is woken by the bell
_NAP_NS_MAX: Final = 3_600_000_000_000
_NOTHING: Final = (0, 0)


class EmbeddedEngine(ThreadEngine):
    """Shared by a store and its buckets."""

    lock: threading.Lock

    def __init__(self, node: EmbeddedNode, bell: Bell, target: Target) -> None:
        """node: open; its wake-up rings `bell`. Owned by this engine from here on."""
        super().__init__(target)
        self.lock = threading.Lock()
        self._bell = bell
        self._node = node
        node.driver.answer = self._answer
        (member,) = node.document.members
        self.state.adopt(node.document, member.node_id, target.addresses[0])
        self.acked: Final = (member.name,)
        self.epoch: Final = node.document.epoch
        every_put_durable = node.settings.fsync == "group"
        #: buckets where a look needs no call: where every put is synced, readers of a strict one wait for that
        self._look_in: Final = {e.name: e for e in node.document.buckets if e.sloppy or not every_put_durable}
        #: and where a write does not
        self._write_to: Final = {} if every_put_durable else self._look_in
        #: open, whole and ours; else every call goes the long way and is told there
        self._well = not node.lost
        self._inbox = Requests()
        self._number = 0
        #: how often the bell had rung when the last turn began
        self._heard = 0
        #: route -> the call that waits for what comes there, the address that it thinks it asked, its request
        self._open: dict[bytes, tuple[Exchange[Any], str, tuple[int, int]]] = {}
        self._failure: StorageFailed | None = None
        self._forked = False
        #: nothing is open any more: the directory is somebody else's
        self._ended = False
        #: when the thread that syncs wakes unasked, or knows that it has to
        self._nap_until_ns = 0
        self._syncer = threading.Thread(target=self._keep_interval, name="zkv-interval", daemon=True)
        _ENGINES.add(self)
        atexit.register(self.close)  # a script that ends without it ends clean all the same
        self._syncer.start()

    # --- calls ---

    def deadline_ns(self, timeout: float | None, now_ns: int) -> int:
        if self.closed or self._forked:
            self._refuse()
        return super().deadline_ns(timeout, now_ns)

    def _refuse(self) -> NoReturn:
        if self._forked:
            raise Closed(
                f"{self.target.url} was opened by the process that this one was forked from, and one process at a time has a directory: "
                f"open the store after the fork, or run `zkv serve` and use zkv.connect()"
            )
        raise Closed(f"the store {self.target.url} was closed")

    def run(self, call: Exchange[Any], flight: LaneFlight | None = None) -> None:
        """Drive a call to its end in this thread. Raises: Closed, CorruptData, and what interrupts it."""
        assert flight is None, "there are no flights without sockets"
        try:
            while True:
                with self.lock:
                    if self._advance(call):
                        return
                    seen, wake_ns = self._heard, call.next_wakeup_ns()
                self._bell.wait(seen, wake_ns - time.monotonic_ns())
        except BaseException:
            with self.lock:
                call.abandon()
                for route in [route for route, (waiting, _, _) in self._open.items() if waiting is call]:
                    del self._open[route]
            raise

    def _advance(self, call: Exchange[Any]) -> bool:
        """Send what the call orders, and turn. Whether it is done; else nothing more happens to it before the bell rings or its time comes."""
        if call.done:
            return True
        if self._ended:
            self._refuse()
        if self._bell.count != self._heard:
            self._turn()
        now_ns = time.monotonic_ns()
        while orders := call.turn(now_ns):
            if self.closed:
                self._refuse()
            for order in orders:
                self._hand_over(call, order, now_ns)
            self._turn()
        return call.done

    def _hand_over(self, call: Exchange[Any], order: Any, now_ns: int) -> None:
        message = order.message
        if self._node.lost and isinstance(message, m.Get | m.Scan):
            raise CorruptData(
                f"{self.target.url} lost records (what was logged when it was opened says which), so a miss would be no answer; "
                f"`zkv repair` ends that"
            )
        self._number += 1
        route = Route(self._number.to_bytes(8, "big"), False)
        self._open[route.id] = call, order.address, getattr(message, "request", _NOTHING)
        self._inbox.messages.append((route, message))
        call.on_sent(order, now_ns)

    # --- straight: without a call, where that comes to the same ---

    def look(self, bucket: str, key: Key) -> bytes | Unsure | None:
        """The value of a key, None for a miss. UNSURE: only a call can tell, or say what is wrong."""
        entry = self._look_in.get(bucket)
        if entry is None:
            return UNSURE
        prefix = bucket_prefix(entry.bucket_id)
        if type(key) is bytes:
            stored = prefix + key
        elif type(key) is str:
            try:
                stored = prefix + key.encode()
            except UnicodeEncodeError:
                return UNSURE
        else:
            return UNSURE
        if not BUCKET_BYTES < len(stored) <= BUCKET_BYTES + KEY_BYTES_MAX:
            return UNSURE
        with self.lock:
            found = self._node.look([stored]) if self._well else UNSURE
        return UNSURE if found is UNSURE else found[0]

    def look_many(self, bucket: str, keys: Sequence[Key]) -> list[bytes | None] | Unsure:
        """As `look`, for all or none."""
        entry = self._look_in.get(bucket)
        if entry is None:
            return UNSURE
        try:
            stored = stored_keys(entry.bucket_id, keys)
        except InvalidKey:
            return UNSURE
        with self.lock:
            return self._node.look(stored) if self._well else UNSURE

    def write(self, bucket: str, keys: Sequence[Key], values: list[bytes | None]) -> Written | None:
        """Put or delete what is new, blind and waits for nothing. None: it is not that, or was refused; nothing was written."""
        entry = self._write_to.get(bucket)
        if entry is None or not 0 < len(keys) <= m.ITEMS_MAX:
            return None
        try:
            stored = stored_keys(entry.bucket_id, keys)
        except InvalidKey:
            return None
        if None in values:
            checksums = [0 if value is None else checksum_of(value) for value in values]
            sizes = [0 if value is None else len(value) for value in values]
        else:
            checksums = list(map(checksum_of, values))  # type: ignore[arg-type]
            sizes = list(map(len, values))  # type: ignore[arg-type]
        if max(sizes) > entry.value_bytes_max or sum(sizes) > m.BATCH_VALUES_BYTES_MAX:
            return None
        if len(stored) > 1 and len(set(stored)) < len(stored):
            return None
        with self.lock:
            if self._bell.count != self._heard:
                self._turn()  # a sync has ended, most likely: the log goes on when somebody takes note
            if not self._well:
                return None
            request = self.state.session, self.state.next_sequence()
            try:
                written = self._node.driver.write(stored, values, checksums, request)
            except BaseException as error:
                self._break_off(error)
                raise
            self._wake_syncer()
        return written

    # --- turns ---

    def _turn(self) -> None:
        """One turn of the driver, for all. Who waits is woken by the bell that was the reason for it."""
        inbox, self._inbox = self._inbox, Requests()
        self._heard = self._bell.count
        if self._failure is not None:
            self._fail(self._failure)
            return
        try:
            self._node.driver.turn(inbox)
        except StorageFailed as error:
            self._fail(error)
            return
        except BaseException as error:
            self._break_off(error)
            raise
        self._wake_syncer()

    def _answer(self, route: Route, reply: m.ClientReply) -> None:
        call, address, _ = self._open.pop(route.id, _NOBODY)
        if call is not None:
            call.on_reply(address, reply, time.monotonic_ns())

    def _break_off(self, error: BaseException) -> None:
        """A turn did not come to its end: an interrupt, most likely. Half a step may be in the table and not in the log, or the other way round."""
        if not isinstance(error, StorageFailed):
            why = f"{self.target.url}: a step was broken off by {error!r}; close the store and open it again"
            self._node.log.abandon(why)
            error = StorageFailed(why)
        self._fail(error)

    def _fail(self, error: StorageFailed) -> None:
        """The store takes nothing more, and nobody knows what became of what was open."""
        self._failure = error
        self._well = False
        for id_, (_, _, request) in list(self._open.items()):
            self._answer(Route(id_, False), m.Refused(request, error.code, str(error)))
        self._bell.ring()

    # --- when nobody calls ---

    def _keep_interval(self) -> None:
        """Turns for the sake of time alone: what was written is synced when it is due, whoever sleeps."""
        while True:
            with self.lock:
                if self._ended or self._failure is not None:
                    return
                self._turn()
                seen, now_ns = self._heard, time.monotonic_ns()
                wake_ns = self._nap_until_ns = min(self._node.driver.next_wakeup_ns(), now_ns + _NAP_NS_MAX)
            self._bell.wait(seen, wake_ns - now_ns)

    def _wake_syncer(self) -> None:
        """If it would sleep too long."""
        due_ns = self._node.driver.next_wakeup_ns()
        if due_ns < self._nap_until_ns:
            self._nap_until_ns = due_ns
            self._bell.ring()

    # --- life ---

    def close(self) -> None:
        """What waits for a sync gets it; then everything is on disk and the directory free. Idempotent; every later call raises Closed.

        Raises: StorageFailed, DiskFull: the end was not clean, and the log is read again at the next opening.
        """
        self.closed = True
        self._well = False
        if self._forked:
            return
        while (seen := self._end()) is not None:
            self._bell.wait(seen, _NAP_NS_MAX)
        if threading.current_thread() is not self._syncer:
            self._syncer.join()

    def _end(self) -> int | None:
        """None: all is over. While somebody waits for a sync it is not; then how often the bell had rung."""
        with self.lock:
            if self._ended:
                return None
            if self._failure is None:
                self._turn()
            if self._failure is None and not self._node.driver.idle:
                return self._heard
            try:
                if self._failure is None:
                    self._node.close()
                else:
                    self._node.give_up()
            finally:
                self._ended = True
                _ENGINES.discard(self)
                atexit.unregister(self.close)
                self._bell.ring()
            return None

    def close_unwatched(self) -> None:
        """As close, for a finalizer: it may run in the middle of anything, a turn included, and then leaves the store to the end of the process."""
        if self.lock.acquire(blocking=False):
            self.lock.release()
            self.close()

    def after_fork(self) -> None:
        """In the child: the store is our parent's. Its descriptors are let go, for they carry the lock of the directory."""
        self._forked = True
        self._well = False
        self.lock = threading.Lock()
        if not self._ended:
            self._node.log.abandon("forked")


_NOBODY: Final = (None, "", _NOTHING)
_ENGINES: Final[weakref.WeakSet[EmbeddedEngine]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_ENGINES):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
