"""An unsynced store becomes an answer again: it pulls what every other replica of its rows holds, joins it, and says so durably.

Owns: which peers have been pulled and how far, pages for others. Must not know: sockets, how a page is read.

Until it is done the store takes writes and answers no reads, with one exception: a page for another unsynced store. Any write acknowledged
before the pull began is on a replica that survived or is lost with all copies that acknowledged it; any write since comes here directly.
So a store that has joined all that all others hold misses nothing that anybody still has. With no other replica there is nobody to ask.
Source: 30-replication, requests (unsynced); counterexamples 2 and 3. Merkle trees will make this cheap; it is already right.
"""

from __future__ import annotations

from typing import Final

from zkv.core.effects import Effect, Join, MarkSynced, Note, ReadPage, Reply, Send
from zkv.core.events import Joined, Pulled, Route
from zkv.core.messages import Pull, PullReply, Record, RecordBlock, Status
from zkv.core.view import Owner, View
from zkv.ids import NodeId

PAGE_BYTES: Final = 512 * 1024
#: an unanswered pull is asked again after this
RETRY_NS: Final = 2_000_000_000
PAUSE_NS: Final = 200_000_000


class _Source:
    """One peer and how far it has been pulled."""

    __slots__ = ("after", "asked_ns", "done", "group", "partition")

    def __init__(self) -> None:
        self.partition = 0
        self.after = b""
        self.group = 0
        self.asked_ns = 0
        self.done = False


class Resync:
    def __init__(self, view: View) -> None:
        self._view = view
        self._sources: dict[NodeId, _Source] = {}
        self._joining: dict[int, tuple[NodeId, PullReply]] = {}
        self._pages: dict[int, tuple[Route, Pull]] = {}
        self._next_ns = 0
        self._finished = False
        self.records = 0

    # --- the unsynced side ---

    def on_time(self) -> list[Effect]:
        view = self._view
        if not view.unsynced or view.ring is None or self._finished or view.now_ns < self._next_ns:
            return []
        self._next_ns = view.now_ns + PAUSE_NS
        if not self._sources:
            self._sources = {node: _Source() for node in self._neighbours()}
            if not self._sources:
                self._finished = True
                return [
                    Note(
                        "error",
                        "resync_impossible",
                        "this store must not answer reads and there is no other replica to compare with: run zkv repair",
                    )
                ]
        effects: list[Effect] = []
        for node, source in self._sources.items():
            waiting = source.group and view.now_ns - source.asked_ns < RETRY_NS
            if not source.done and not waiting and source.group not in self._joining and view.linked(node):
                effects.append(self._ask(node, source))
        return effects

    def _neighbours(self) -> list[NodeId]:
        """Everybody who shares a row with us."""
        assert self._view.ring is not None
        found: dict[NodeId, None] = {}
        for group in self._view.ring.groups:
            if self._view.node in group:
                found.update(dict.fromkeys(n for n in group if n != self._view.node))
        return list(found)

    def _ask(self, node: NodeId, source: _Source) -> Effect:
        view = self._view
        source.group = view.number(Owner.RESYNC)
        source.asked_ns = view.now_ns
        pull = Pull(source.group, view.node, source.partition, source.after, deadline_ns=view.now_ns + RETRY_NS)
        return Send(node, pull)

    def on_reply(self, node: NodeId, reply: PullReply) -> list[Effect]:
        source = self._sources.get(node)
        if source is None or source.group != reply.group or source.done or reply.group in self._joining:
            return []
        self._joining[reply.group] = (node, reply)
        if not len(reply.block):
            return self._page_joined(reply.group)
        self.records += len(reply.block)
        return [Join(reply.group, reply.block, durable=True, restores=True)]

    def on_joined(self, event: Joined) -> list[Effect]:
        """A page that the log refused is asked for again later. A corrupt key stays what it is here, and is said."""
        if event.statuses is None:
            return []
        if Status.DISK_FULL in event.statuses or Status.OVERLOADED in event.statuses:
            node, _ = self._joining.pop(event.cause)
            self._sources[node].asked_ns = self._view.now_ns
            if Status.OVERLOADED in event.statuses:
                return []
            return [Note("error", "resync_no_space", "resync: no space for what the other replicas hold; asking again")]
        return [
            Note(
                "error",
                "dot_collision",
                f"resync: {sum(map(bool, event.statuses))} keys have one dot with two values: corrupt",
            )
        ]

    def on_persisted(self, causes: list[int]) -> list[Effect]:
        return [effect for cause in causes if cause in self._joining for effect in self._page_joined(cause)]

    def _page_joined(self, group: int) -> list[Effect]:
        node, reply = self._joining.pop(group)
        source = self._sources[node]
        source.group = 0
        source.partition, source.after, source.done = reply.partition, reply.after, reply.done
        if not source.done:
            return [self._ask(node, source)] if self._view.linked(node) else []
        if all(s.done for s in self._sources.values()):
            self._finished = True
            return [MarkSynced()]
        return []

    def on_lost(self, node: NodeId) -> None:
        source = self._sources.get(node)
        if source is not None and source.group not in self._joining:
            source.group = 0

    def next_wakeup_ns(self) -> int | None:
        view = self._view
        return self._next_ns if view.unsynced and view.ring is not None and not self._finished else None

    # --- the side that is asked ---

    def on_pull(self, route: Route, pull: Pull) -> list[Effect]:
        ring = self._view.ring
        if ring is None or (pull.deadline_ns and pull.deadline_ns <= self._view.now_ns):
            return []  # asked again in RETRY_NS
        shared = sorted(
            {
                row.partition
                for rows in ring.rows.values()
                for row in rows[pull.partition :]
                if pull.node in row.replicas and self._view.node in row.replicas
            }
        )
        after = pull.after if shared and shared[0] == pull.partition else b""
        cause = self._view.number(Owner.RESYNC)
        self._pages[cause] = (route, pull)
        return [ReadPage(cause, shared, after, PAGE_BYTES)]

    def on_pulled(self, event: Pulled) -> list[Effect]:
        route, pull = self._pages.pop(event.cause)
        if (
            event.corrupt
        ):  # a page without some of its records would say that they do not exist; we are asked again in RETRY_NS
            return []
        records = []
        for key, row, versions in zip(
            event.keys, self._view.rows_of(event.keys) if event.keys else [], event.sets, strict=True
        ):
            if row is not None and pull.node in row.replicas:
                records.append(Record(key, row.version, row.fence, None, versions))
        block = RecordBlock(records)
        return [Reply(route, PullReply(pull.group, self._view.store, block, event.partition, event.after, event.done))]
