"""Server processes of peers: started, awaited, always stopped.

Owns: the life of such a process. Must not know: what it serves.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zkv.errors import ZkvError
from zkv.testing.ports import HOST

_START_TIMEOUT: Final = 15.0
_POLL: Final = 0.05


class PeerStartFailed(ZkvError):
    """A peer's server ended, or did not listen in time. The message holds the end of what it said."""


@contextmanager
def served(command: Sequence[str], ports: Sequence[int]) -> Iterator[int]:
    """Run the command until the block ends; enters when all ports accept, yields the pid. Its stdin stays open as long as we live."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            for port in ports:
                if not _listens(process, port):
                    log.seek(0)
                    said = log.read()[-2000:].decode(errors="replace").strip()
                    raise PeerStartFailed(f"{command[0]} does not listen on port {port}: {said or 'it said nothing'}")
            yield process.pid
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def own_server(module: str, *arguments: object) -> list[str]:
    """The command that runs a server of this package."""
    return [sys.executable, "-m", f"zkv.testing.bench.{module}", *map(str, arguments)]


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zkv-bench-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), 0.2).close()
            return True
        except OSError:
            try:
                process.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue
            return False
    return False
