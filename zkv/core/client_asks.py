"""Exchanges without retries by item: hello, admin calls, pages of scans.

Owns: which address owes an answer. Must not know: sockets, clocks, what documents mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zkv.core import messages as m
from zkv.core.client_calls import CONNECT_PATIENCE_NS
from zkv.core.client_outcomes import error_of, failure_of_refusal
from zkv.core.client_state import ClientState
from zkv.errors import ConnectFailed, DeadlineExceeded, Unavailable, ZkvError


class Ask:
    """Send `message` to `address`. number: its request's sequence, 0 where a message has none."""

    __slots__ = ("address", "message", "number")

    def __init__(self, address: str, message: m.Scan | m.Admin | m.Hello, number: int = 0) -> None:
        self.address = address
        self.message = message
        self.number = number


class AskEach:
    """The same simple exchange with several addresses at once, without retries: admin calls, pages of scans.

    replies[i] is the answer to asks[i], None where the address could not be reached, broke off or stayed silent until the deadline.
    """

    __slots__ = ("_asks", "_open", "_session", "_unsent", "deadline_ns", "replies")

    def __init__(self, state: ClientState, asks: Sequence[tuple[str, m.Scan | m.Admin]], deadline_ns: int) -> None:
        self.deadline_ns: Final = deadline_ns
        self.replies: list[m.ScanReply | m.AdminReply | m.Refused | None] = [None] * len(asks)
        self._session: Final = state.session
        self._asks: Final = asks
        self._open = {(address, message.request[1]): i for i, (address, message) in enumerate(asks)}
        self._unsent = True

    def abandon(self) -> None:
        """The caller was interrupted; nothing was changed anywhere, so there is nothing to remember."""

    @property
    def done(self) -> bool:
        return not self._open

    def turn(self, now_ns: int) -> list[Ask]:
        if now_ns >= self.deadline_ns:
            self._open.clear()
        if not self._unsent or not self._open:
            return []
        self._unsent = False
        return [Ask(address, message, message.request[1]) for address, message in self._asks]

    def next_wakeup_ns(self) -> int:
        return self.deadline_ns

    def on_sent(self, order: Ask, now_ns: int) -> None:
        pass

    def on_unsent(self, order: Ask, now_ns: int) -> None:
        self._open.pop((order.address, order.number), None)

    def on_lost(self, address: str, now_ns: int) -> None:
        for key in [key for key in self._open if key[0] == address]:
            del self._open[key]

    def on_reply(self, address: str, reply: m.ClientReply, now_ns: int) -> bool:
        if not isinstance(reply, m.ScanReply | m.AdminReply | m.Refused) or reply.request[0] != self._session:
            return False
        place = self._open.pop((address, reply.request[1]), None)
        if place is None:
            return False
        self.replies[place] = reply
        return True


class HelloCall:
    """Asks all addresses for the topology until one has an active one. Nodes that have not formed a cluster yet are asked again."""

    def __init__(
        self, addresses: Sequence[str], client: str, now_ns: int, deadline_ns: int, backoff_ns: Callable[[int], int]
    ) -> None:
        self.welcome: tuple[str, m.Welcome] | None = None
        self.deadline_ns: Final = deadline_ns
        self._addresses: Final = tuple(addresses)
        self._client: Final = client
        self._backoff_ns: Final = backoff_ns
        self._patience_ns: Final = now_ns + CONNECT_PATIENCE_NS
        self._waiting: set[str] = set()
        self._tries = 0
        self._due_ns = now_ns
        self._sent = False
        self._unformed = ""
        self._error: ZkvError | None = None

    def abandon(self) -> None:
        """The caller was interrupted; nothing was changed anywhere, so there is nothing to remember."""

    @property
    def done(self) -> bool:
        return self.welcome is not None or self._error is not None

    def turn(self, now_ns: int) -> list[Ask]:
        if self.done:
            return []
        if now_ns >= self.deadline_ns:
            self._error = self._last_word()
            return []
        if self._waiting or now_ns < self._due_ns:
            return []
        self._waiting.update(self._addresses)
        return [Ask(address, m.Hello(self._client)) for address in self._addresses]

    def next_wakeup_ns(self) -> int:
        return self.deadline_ns if self._waiting else min(self.deadline_ns, self._due_ns)

    def on_sent(self, order: Ask, now_ns: int) -> None:
        self._sent = True

    def on_unsent(self, order: Ask, now_ns: int) -> None:
        self._settle(order.address, now_ns)

    def on_lost(self, address: str, now_ns: int) -> None:
        self._settle(address, now_ns)

    def on_reply(self, address: str, reply: m.ClientReply, now_ns: int) -> bool:
        if isinstance(reply, m.Refused) and reply.request == (0, 0):
            self._error = error_of(failure_of_refusal(reply))
        elif not isinstance(reply, m.Welcome):
            return False
        elif reply.document:
            self.welcome = (address, reply)
        else:
            self._unformed = reply.name
            self._settle(address, now_ns)
        return True

    def check(self) -> tuple[str, m.Welcome]:
        """Where the topology came from, and it. Raises: ConnectFailed, Unavailable, DeadlineExceeded or what a node refused with."""
        if self.welcome is None:
            raise self._error or self._last_word()
        return self.welcome

    def _settle(self, address: str, now_ns: int) -> None:
        self._waiting.discard(address)
        if self._waiting:
            return
        self._tries += 1
        self._due_ns = now_ns + self._backoff_ns(self._tries)
        if not self._sent and now_ns >= self._patience_ns:
            self._error = self._last_word()

    def _last_word(self) -> ZkvError:
        if self._unformed:
            return Unavailable(
                f"the cluster has not formed yet: node {self._unformed!r} still waits for others of its initial list"
            )
        if self._sent:
            return DeadlineExceeded(f"no answer in time from {', '.join(self._addresses)}")
        return ConnectFailed(f"no node could be reached ({', '.join(self._addresses)}); nothing was sent")
