"""Seals and merges as jobs of a worker: in a process of their own, or inline.

Owns: the helper process, when it is started again, what becomes of the job that it died over. Must not know: what a job does, when one is due.

Invariants: at most one process, and one job in it, at a time; a process that died has been waited for before the next is started, so two never
write one file; a job is done again when its process died, for it is a function of files that do not change, and given up with an error after
`ATTEMPTS_MAX`; an error of the job itself is that job's `error` and is not tried again. Source: storage reference, 6.5.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from zkv.errors import ProtocolError, StorageError
from zkv.storage.files import FileSystem
from zkv.storage.helper_wire import PipeEnded, error_of_tree, read_message, write_message
from zkv.storage.merging import check_sums, merge
from zkv.storage.sealing import seal
from zkv.storage.segment import SegmentSummary
from zkv.storage.segment_jobs import MergeJob, MergeResult, SealJob
from zkv.storage.worker import Job, ThreadWorker

ATTEMPTS_MAX: Final = 3
COMMAND: Final = (sys.executable, "-P", "-m", "zkv.storage.helper")
#: a helper that lives on so long after the end of its input is killed; it should do nothing in between
EXIT_SECONDS: Final = 10.0


class HelperJob(Job):
    """A job that a helper process can carry out as well. `run` does it here."""

    __slots__ = ()

    def request(self) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, result: Any) -> None:
        """Takes the tree of a result. Raises: StorageError for one that cannot be."""
        raise NotImplementedError


class SealTask(HelperJob):
    """`summary` once it ended without error; None: there was nothing to seal."""

    __slots__ = ("_files", "job", "summary")

    def __init__(self, files: FileSystem, job: SealJob) -> None:
        super().__init__()
        self._files = files
        self.job = job
        self.summary: SegmentSummary | None = None

    def run(self) -> None:
        self.summary = seal(self._files, self.job)

    def request(self) -> dict[str, Any]:
        return {"kind": "seal", "job": self.job.to_tree()}

    def answer(self, result: Any) -> None:
        self.summary = None if result is None else SegmentSummary.from_tree(result)


class MergeTask(HelperJob):
    """`result` once it ended without error; its sums add up."""

    __slots__ = ("_files", "job", "result")

    def __init__(self, files: FileSystem, job: MergeJob) -> None:
        super().__init__()
        self._files = files
        self.job = job
        self.result: MergeResult | None = None

    def run(self) -> None:
        self.result = merge(self._files, self.job)

    def request(self) -> dict[str, Any]:
        return {"kind": "merge", "job": self.job.to_tree()}

    def answer(self, result: Any) -> None:
        merged = MergeResult.from_tree(result)
        check_sums(self.job, merged)
        self.result = merged


class HelperProcess:
    """A `Worker` (storage/worker) whose jobs run in a child process, started at the first one. Takes HelperJobs alone."""

    __slots__ = ("_cancelled", "_command", "_exit_seconds", "_lock", "_process", "_worker", "starts")

    def __init__(
        self, on_wake: Callable[[], None], command: Sequence[str] = COMMAND, exit_seconds: float = EXIT_SECONDS
    ) -> None:
        self._command = command
        self._exit_seconds = exit_seconds
        self._process: subprocess.Popen[bytes] | None = None
        #: held while the process is started or killed
        self._lock = threading.Lock()
        self._cancelled = False
        #: processes that were started so far
        self.starts = 0
        self._worker = ThreadWorker(on_wake, self._carry_out, "zkv-helper")

    # --- the owner's side ---

    @property
    def busy_since_ns(self) -> int:
        return self._worker.busy_since_ns

    @property
    def pid(self) -> int | None:
        """Of the child, if one was started."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, job: Job) -> None:
        assert isinstance(job, HelperJob), f"{job} cannot leave this process"
        self._worker.submit(job)

    def completed(self) -> list[Job]:
        return self._worker.completed()

    def wait(self, job: Job) -> None:
        self._worker.wait(job)

    def stop(self) -> None:
        """Returns when every submitted job has ended, and the child."""
        self._worker.stop()
        self._end()

    def cancel(self) -> None:
        """Gives up the job that runs and those that wait: they end with an error, and so does any later one. `stop` is quick then."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()

    # --- the thread's side ---

    def _carry_out(self, job: Job) -> None:
        assert isinstance(job, HelperJob)
        try:
            reply = self._ask(job.request())
            if "error" in reply:
                raise error_of_tree(reply)
            job.answer(reply["result"])
        except Exception as error:  # the owner's to judge, as in Job.run_caught
            job.error = error
        job.ended = True

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply of a helper that lived to give one."""
        why = ""
        for _ in range(ATTEMPTS_MAX):
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            try:
                write_message(process.stdin.write, request)
                process.stdin.flush()
                return read_message(process.stdout.read)
            except (PipeEnded, ProtocolError, OSError) as error:
                process.kill()  # it may live on with its pipe closed
                why = f"exit status {self._end()}, {error!r}"
        raise StorageError(f"a helper process died {ATTEMPTS_MAX} times over one job; the last time: {why}")

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._cancelled:
                raise StorageError("the job was cancelled")
            if self._process is None:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self.starts += 1
            return self._process

    def _end(self) -> int | None:
        """Waits for the child, so that none stays behind as a zombie; its exit status."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # what was still to be written is for nobody
        try:
            status = process.wait(self._exit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        process.stdout.close()
        return status
