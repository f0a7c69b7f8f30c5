"""The helper process: `python -m zkv.storage.helper`, started by storage/helpers, never by hand.

Owns: its main loop. Must not know: manifests, indexes, what becomes of the files it makes.

Seals and merges here, because a busy thread of the store's own process would hold up its event loop. It keeps nothing between jobs. It ends when
its standard input does, at once and in the middle of a job if need be: whoever asked is gone, and a successor may be writing under the same
names. Interrupts meant for the store are not meant for it. Source: storage reference, 0.6 and 6.5.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO, Final

from zkv.errors import ProtocolError, ZkvError
from zkv.storage.files import FileSystem, RealFiles
from zkv.storage.helper_wire import PipeEnded, error_to_tree, read_message, write_message
from zkv.storage.merging import merge
from zkv.storage.sealing import seal
from zkv.storage.segment_jobs import MergeJob, SealJob

_NICENESS: Final = 10
_PR_SET_PDEATHSIG: Final = 1


def carry_out(files: FileSystem, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request; errors of the job are part of it."""
    try:
        kind, job = request["kind"], request["job"]
        if kind == "seal":
            summary = seal(files, SealJob.from_tree(job))
            return {"result": None if summary is None else summary.to_tree()}
        if kind == "merge":
            return {"result": merge(files, MergeJob.from_tree(job)).to_tree()}
        raise ProtocolError(f"a helper knows no job {kind!r}")
    except Exception as error:  # the asker's to judge; this process holds nothing that could be in doubt
        if not isinstance(error, ZkvError | OSError):
            traceback.print_exc()  # a mistake of ours: its place is not in what crosses the pipe
        return error_to_tree(error)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    step_back()
    # Whatever prints must not get in between the replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    files = RealFiles()
    while True:
        reply = carry_out(files, requests.get())
        try:
            write_message(lambda data: _write_all(replies, data), reply)
        except BrokenPipeError:
            os._exit(0)  # nobody waits for it any more


def _die_with_parent() -> None:
    """The end of the input is not enough where the store's process was forked: the fork holds the pipe as well."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def step_back() -> None:
    """Everything else on this machine goes first. A sandbox may forbid even that; the work is done all the same."""
    try:
        os.nice(_NICENESS)
    except OSError as error:
        print(f"zkv helper: runs at the store's own priority: {error}", file=sys.stderr)


def _listen(source: BinaryIO, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Ends the process when the store does, or when it says what no store says: a helper that hears nothing must not seem to work."""
    while True:
        try:
            requests.put(read_message(source.read))
        except PipeEnded:
            os._exit(0)
        except Exception:
            traceback.print_exc()
            os._exit(1)


def _write_all(target: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


if __name__ == "__main__":
    main()
