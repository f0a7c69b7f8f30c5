"""What the service manager is told: starting, ready, alive, stopping. The home module of sdnotify.

Owns: the thread that tells it, and when. Must not know: how a node finds out that it lives.

READY=1 once, when the node serves. WATCHDOG=1 at a third of the watchdog's interval, only while loop and store both live, so a node that
hangs is killed and started again. While it opens, forms or catches up, the time to start is extended instead. STOPPING=1 at the end.
Source: sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from sdnotify import SystemdNotifier

from zkv import logs
from zkv.health import NS_PER_S, Health

log = logging.getLogger("zkv.notify")

#: how often the manager hears of a node that is not ready yet, and how much time each such message asks for
_STARTING_S: Final = 5.0
_EXTEND_US: Final = 30_000_000
_CLOSE_S: Final = 2.0


def watchdog_ns(environ: Mapping[str, str], pid: int) -> int:
    """The interval in which the manager wants to hear from this process; 0: it does not."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) * 1_000 if text.isascii() and text.isdigit() else 0


class Notify:
    """Tells from the start until `close`."""

    def __init__(self, health: Health, watchdog_ns: int) -> None:
        """Raises: OSError when $NOTIFY_SOCKET cannot be reached."""
        self._health = health
        self._watchdog_ns = watchdog_ns
        self._notifier = SystemdNotifier(debug=True)  # errors raise; without that they vanish
        self._failed = False
        self._ready = False
        self._told: tuple[int, list[str]] | None = None
        self._stopping = False
        self._stopping_told = False
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="zkv-notify", daemon=True)
        self._thread.start()

    def stopping(self) -> None:
        self._stopping = True
        self._health.changed.set()

    def close(self) -> None:
        self._stopping = self._ending = True
        self._health.changed.set()
        self._thread.join(_CLOSE_S)
        self._notifier.socket.close()

    def _run(self) -> None:
        while True:
            ending = self._ending  # before telling: what was said until then is told
            self._health.changed.clear()
            self._tell()
            if ending:
                return
            self._health.changed.wait(self._interval_s)

    @property
    def _interval_s(self) -> float:
        return min(_STARTING_S, self._watchdog_ns / NS_PER_S / 3) if self._watchdog_ns else _STARTING_S

    def _tell(self) -> None:
        """One message for all that is to be said now."""
        lines = []
        reasons = self._health.not_ready
        dead = self._health.dead(self._watchdog_ns or None)
        if self._stopping and not self._stopping_told:
            self._stopping_told = True
            lines.append("STOPPING=1")
        elif not self._ready and not self._stopping and not dead:
            if not reasons:
                self._ready = True
                lines.append("READY=1")
            else:
                lines.append(f"EXTEND_TIMEOUT_USEC={_EXTEND_US}")
        if self._watchdog_ns and not dead:
            lines.append("WATCHDOG=1")
        told = (len(dead), reasons)  # the sentences of the dead count seconds: said once
        if told != self._told:
            self._told = told
            lines.append("STATUS=" + ("; ".join(dead + reasons).replace("\n", " ") or "serving"))
        if lines:
            self._send("\n".join(lines))

    def _send(self, message: str) -> None:
        try:
            self._notifier.notify(message)
            self._failed = False
        except OSError as error:
            if not self._failed:  # said once: the next try is a moment away
                logs.event(log, logging.WARNING, "notify_failed", f"the service manager cannot be told: {error}")
            self._failed = True
