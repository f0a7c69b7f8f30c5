"""Moves frames between this node, its clients and its peers, in one thread.

Owns: the sockets of a node, the poll, draining, link state as the transport sees it, waking the loop from other threads.
Must not know: what a frame means, storage.

Everything that waits is drained before anything is thought about. A send that cannot be handed over says so at once. Links come from socket
monitors: a finished handshake is a link, a disconnect is the end of one. Source: 40-membership (8 to 10).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from zkv.ids import NodeId
from zkv.ports import Frames, Inbox
from zkv.transport import sockets

#: most messages taken from one socket in a turn; the rest waits one turn
DRAIN_MAX: Final = 1_024
MAX_SOCKETS: Final = 16_384
#: as numbers: members of the enums take longer to combine than the calls that they are for
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class _Peer:
    __slots__ = ("address", "dealer", "linked", "monitor", "node", "subscriber")

    def __init__(
        self,
        node: NodeId,
        address: str,
        dealer: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        subscriber: zmq.Socket[bytes],
    ) -> None:
        self.node = node
        self.address = address
        self.dealer = dealer
        self.monitor = monitor
        self.subscriber = subscriber
        self.linked = False


class ZmqTransport:
    """All sockets of one node. Every method but `wake` belongs to the thread that made it."""

    def __init__(self, *, listen: str, peer_listen: str, gossip_listen: str) -> None:
        """Binds all three ports. Raises AddressInUse or ConfigError, with nothing left open."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = MAX_SOCKETS
        self._open: list[zmq.Socket[bytes]] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._peers: dict[NodeId, _Peer] = {}
        try:
            self._clients = self._keep(sockets.client_router(self._context, listen), poll=True)
            self._peer_in = self._keep(sockets.peer_router(self._context, peer_listen), poll=True)
            self._publisher = self._keep(sockets.gossip_publisher(self._context, gossip_listen), poll=False)
        except BaseException:
            self.close()
            raise

    def _keep(self, socket: zmq.Socket[bytes], *, poll: bool) -> zmq.Socket[bytes]:
        self._open.append(socket)
        if poll:
            self._poller.register(socket, zmq.POLLIN)
        return socket

    def connect(self, peers: Mapping[NodeId, tuple[str, str]]) -> None:
        """peers: node -> (peer address, gossip address)."""
        for node, (address, gossip_address) in peers.items():
            dealer = self._keep(sockets.peer_dealer(self._context, address), poll=True)
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            self._keep(monitor, poll=True)
            subscriber = self._keep(sockets.gossip_subscriber(self._context, gossip_address), poll=True)
            dealer.connect(sockets.endpoint(address))
            self._peers[node] = _Peer(node, address, dealer, monitor, subscriber)

    def wake(self) -> None:
        """End the current or next `poll` at once. From any thread or signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    # --- in ---

    def poll(self, timeout_ns: int) -> Inbox:
        """Wait until something is there, at most `timeout_ns`; then all that is there."""
        ready = dict(self._poller.poll(max(0, -(-timeout_ns // 1_000_000))))
        inbox = Inbox()
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        for peer in self._peers.values():  # links first: what follows may depend on them
            if peer.monitor in ready:
                self._drain_monitor(peer, inbox)
        for peer in self._peers.values():
            if peer.subscriber in ready:
                inbox.gossip.extend((peer.node, frames) for frames in _drain(peer.subscriber))
            if peer.dealer in ready:
                inbox.replies.extend((peer.node, frames) for frames in _drain(peer.dealer))
        if self._peer_in in ready:
            inbox.peers.extend((frames[0], frames[1:]) for frames in _drain(self._peer_in))
        if self._clients in ready:
            inbox.clients.extend((frames[0], frames[1:]) for frames in _drain(self._clients))
        return inbox

    def _drain_monitor(self, peer: _Peer, inbox: Inbox) -> None:
        for frames in _drain(peer.monitor):
            linked = parse_monitor_message(frames)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if linked != peer.linked:
                peer.linked = linked
                inbox.links.append((peer.node, linked))

    # --- out ---

    def send_peer(self, node: NodeId, frames: Frames) -> bool:
        peer = self._peers.get(node)
        return peer is not None and _send(peer.dealer, frames)

    def send_client(self, route: bytes, frames: Frames) -> bool:
        return _send(self._clients, (route, *frames))

    def answer_peer(self, route: bytes, frames: Frames) -> bool:
        return _send(self._peer_in, (route, *frames))

    def publish(self, frames: Frames) -> None:
        _send(self._publisher, frames)

    def close(self) -> None:
        """Close everything; nothing that was not handed over yet is waited for."""
        for peer in self._peers.values():
            peer.dealer.disable_monitor()
        for socket in self._open:
            socket.close(linger=0)
        self._open.clear()
        self._peers.clear()
        self._context.term()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1


def _drain(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    try:
        messages.append(socket.recv_multipart(_NOBLOCK))
        if not int(socket.get(_EVENTS)) & _POLLIN:
            return messages  # mostly it is one, and asking costs less than the exception
        for _ in range(1, DRAIN_MAX):
            messages.append(socket.recv_multipart(_NOBLOCK))  # noqa: PERF401 - it ends by an exception
    except zmq.Again:
        pass  # empty: the usual end of a drain
    return messages


def _send(socket: zmq.Socket[bytes], frames: Frames) -> bool:
    """Hand over all frames or none."""
    try:
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            socket.send(frame, _NOBLOCK if i == last else _NOBLOCK_MORE, len(frame) < sockets.COPY_BYTES)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return False
    return True
