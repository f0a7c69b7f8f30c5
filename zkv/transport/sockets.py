"""Every socket a node uses, with the reason for each option.

Owns: socket types and options. Must not know: what a frame means, when it is sent.
Measured facts behind the options: docs/decisions/002-sockets.md.
"""

from __future__ import annotations

import random
from typing import Final

import zmq

from zkv.errors import AddressInUse, ConfigError

#: whole messages above this are dropped by libzmq together with their connection; senders check their sizes first
MESSAGE_BYTES_MAX: Final = 80 * 1024 * 1024
GOSSIP_BYTES_MAX: Final = 1024 * 1024
HWM_CLIENTS: Final = 2_000
HWM_PEERS: Final = 10_000
HWM_GOSSIP: Final = 1_000
#: from this size on handing over the buffer is cheaper than copying it
COPY_BYTES: Final = 262_144


def client_router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """Answers clients."""
    return _bound(_router(context, HWM_CLIENTS), address, "--listen")


def peer_router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """Answers other nodes."""
    return _bound(_router(context, HWM_PEERS), address, "--peer-listen")


def gossip_publisher(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.PUB), HWM_GOSSIP, GOSSIP_BYTES_MAX)
    return _bound(socket, address, "--gossip-listen")


def gossip_subscriber(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """One per neighbour: a SUB that is fed by several cannot tell its senders apart, so the socket is the sender."""
    socket = _common(context.socket(zmq.SUB), HWM_GOSSIP, GOSSIP_BYTES_MAX)
    _reconnecting(socket)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint(address))
    return socket


def peer_dealer(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """Requests to one node, one socket per node: a DEALER with two connections would deal in turn."""
    socket = _common(context.socket(zmq.DEALER), HWM_PEERS, MESSAGE_BYTES_MAX)
    # Without a connection a send must fail at once: queued writes would be delivered after a restart, as stale news.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    _reconnecting(socket)
    return socket


def endpoint(address: str) -> str:
    return f"tcp://{address}"


def _router(context: zmq.Context[zmq.Socket[bytes]], hwm: int) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.ROUTER), hwm, MESSAGE_BYTES_MAX)
    # Unknown or stuck receivers are reported instead of silently dropped.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # Restart storms of clients: more may wait to be accepted than the default of 100.
    socket.setsockopt(zmq.BACKLOG, 1024)
    return socket


def _common(socket: zmq.Socket[bytes], hwm: int, message_bytes_max: int) -> zmq.Socket[bytes]:
    """Options that must stand before bind or connect."""
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    # Closing never waits for a peer; whoever must be sure of delivery waits for an answer.
    socket.setsockopt(zmq.LINGER, 0)
    # A stopped process or a cut cable shows within two seconds, on both ends.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 2000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.IPV6, 1)
    return socket


def _reconnecting(socket: zmq.Socket[bytes]) -> None:
    # libzmq adds jitter only when there is no maximum; nodes draw their own interval so that they do not come in step.
    socket.setsockopt(zmq.RECONNECT_IVL, random.SystemRandom().randint(80, 250))
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)


def _bound(socket: zmq.Socket[bytes], address: str, option: str) -> zmq.Socket[bytes]:
    try:
        socket.bind(endpoint(address))
    except zmq.ZMQError as error:
        socket.close()
        if error.errno == zmq.EADDRINUSE:
            port = address.rpartition(":")[2]
            raise AddressInUse(f"port {port} is in use ({option} {address}); choose another {option}") from error
        raise ConfigError(f"{option} {address}: {error.strerror}") from error
    return socket
