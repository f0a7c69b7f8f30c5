"""The HTTP listener of a node: bound early, served by waitress in a thread of its own, bounded in every direction.

Owns: the socket, the limits, the thread. Must not know: what is answered.

Limits: connections, bytes of a request, time for a request to arrive whole. A client that sends a byte now and then is cut like one that
sends none. docs/decisions/006.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer, create_server

from zkv.config import Address
from zkv.errors import AddressInUse, ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONNECTIONS_MAX: Final = 64
HEADER_BYTES_MAX: Final = 8 * 1024
BODY_BYTES_MAX: Final = 1024
REQUEST_S_MAX: Final = 10
_CLOSE_S: Final = 5.0


def bind(address: Address) -> socket.socket:
    """A listening socket. Raises AddressInUse or ConfigError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"port {address.port} is in use (--http {address}); choose another --http, or --http off"
            ) from error
        raise ConfigError(f"--http {address}: {error.strerror}") from error
    return listener


class WebServer:
    """Serves from the start until `close`."""

    def __init__(
        self, listener: socket.socket, app: WSGIApplication, *, threads: int, request_s_max: int = REQUEST_S_MAX
    ) -> None:
        """Takes over the socket."""
        # Its warnings say what a prober sees anyway, and a log that blocks must not hold up /livez.
        logging.getLogger("waitress").setLevel(logging.ERROR)
        self._stopping = False
        self._map: dict[int, Any] = {}
        server = create_server(
            app,
            map=self._map,
            sockets=[listener],
            threads=threads,
            connection_limit=CONNECTIONS_MAX,
            max_request_header_size=HEADER_BYTES_MAX,
            max_request_body_size=BODY_BYTES_MAX,
            channel_timeout=request_s_max,
            cleanup_interval=1,
            asyncore_use_poll=True,
            ident=None,
        )
        assert isinstance(server, TcpWSGIServer)
        server.channel_class = _Channel
        self._server = server
        self._thread = threading.Thread(target=self._run, name="zkv-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        server = self._server
        while not self._stopping:
            server.asyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
        server.task_dispatcher.shutdown()
        server.asyncore.close_all(self._map)

    def close(self) -> None:
        """Stops serving; what is being answered gets a moment to end."""
        self._stopping = True
        self._server.pull_trigger()
        self._thread.join(_CLOSE_S)


class _Channel(HTTPChannel):
    """Time for a request runs from its first byte, or from the connection; more bytes of the same request do not renew it."""

    def handle_read(self) -> None:
        before = self.last_activity
        super().handle_read()
        if self.request is not None:
            self.last_activity = before
