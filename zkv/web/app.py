"""What a node answers over HTTP: /livez, /readyz, /metrics, /v1/status.

Owns: paths, codes, who may ask what. Must not know: sockets, threads of the server, how the node is asked.

/livez and /readyz read what the loop last said and never wait for it. The other two wait for the loop, at most ASK_S, and only so many at
once that a thread is always left for a probe.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from zkv.counters import Family
from zkv.health import Health
from zkv.web.metrics import CONTENT_TYPE, Exposition

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: how long a request waits for the loop
ASK_S: Final = 2.0
#: threads of the server, and how many of them may wait for the loop
THREADS: Final = 4
WAITING_MAX: Final = 2
_JSON: Final = "application/json; charset=utf-8"

_Answer = tuple[str, str, bytes]


class WebApp:
    """A WSGI application. `ask` runs a function on the loop and returns its result, or raises TimeoutError."""

    def __init__(
        self,
        health: Health,
        *,
        ask: Callable[[Callable[[], Any], float], Any],
        status: Callable[[], Mapping[str, object]],
        families: Callable[[], Sequence[Family]],
        token: bytes | None,
    ) -> None:
        """token: what `Authorization: Bearer` must carry for /v1/*; None: nothing, and the listener is on loopback."""
        self._health = health
        self._ask = ask
        self._status = status
        self._exposition = Exposition(lambda: ask(families, ASK_S))
        self._token = token
        self._waiting = threading.BoundedSemaphore(WAITING_MAX)
        self._routes: dict[str, Callable[[Mapping[str, Any]], _Answer]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/v1/status": self._v1_status,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        route = self._routes.get(environ["PATH_INFO"])
        if route is None:
            code, kind, body = _json("404 Not Found", error=f"there are: {' '.join(self._routes)}")
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            code, kind, body = _json("405 Method Not Allowed", error="only GET and HEAD")
        else:
            code, kind, body = route(environ)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        if code.startswith("401"):
            headers.append(("WWW-Authenticate", "Bearer"))
        if code.startswith("405"):
            headers.append(("Allow", "GET, HEAD"))
        start_response(code, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    # --- routes ---

    def _livez(self, environ: Mapping[str, Any]) -> _Answer:
        return _verdict("live", self._health.dead())

    def _readyz(self, environ: Mapping[str, Any]) -> _Answer:
        return _verdict("ready", self._health.unready())

    def _metrics(self, environ: Mapping[str, Any]) -> _Answer:
        return self._asked(lambda: ("200 OK", CONTENT_TYPE, self._exposition.text()))

    def _v1_status(self, environ: Mapping[str, Any]) -> _Answer:
        refusal = self._refusal(environ)
        return refusal or self._asked(lambda: _json("200 OK", **self._ask(self._status, ASK_S)))

    # --- what they share ---

    def _asked(self, answer: Callable[[], _Answer]) -> _Answer:
        if self._health.dead():
            return _verdict("live", self._health.dead())  # waiting could only time out
        if not self._waiting.acquire(blocking=False):
            return _json("503 Service Unavailable", error=f"{WAITING_MAX} others are asking; try again")
        try:
            return answer()
        except TimeoutError:
            return _json("503 Service Unavailable", error=f"the node did not answer within {ASK_S:g} s")
        finally:
            self._waiting.release()

    def _refusal(self, environ: Mapping[str, Any]) -> _Answer | None:
        if self._token is not None:
            kind, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
            # WSGI text is latin-1, whatever was sent: comparing bytes takes all of it
            if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token):
                return None
            return _json("401 Unauthorized", error="this needs the bearer token of --http-token-file")
        if _is_local_name(environ.get("HTTP_HOST", "")):
            return None
        # A page in somebody's browser can make a name of its own mean 127.0.0.1; it cannot make the browser send another name.
        return _json("403 Forbidden", error="ask by address, as in 127.0.0.1, or as localhost")


def _is_local_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name in ("", "localhost"):
        return True
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False


def _verdict(name: str, reasons: list[str]) -> _Answer:
    return _json("503 Service Unavailable" if reasons else "200 OK", **{name: not reasons, "reasons": reasons})


def _json(code: str, **fields: Any) -> _Answer:
    return code, _JSON, json.dumps({"schema": 1} | fields).encode() + b"\n"
