"""Where slow file calls run: one thread, one job at a time, completions handed back.

Owns: the thread and the two queues. Must not know: what a job does, policies, sequence numbers.

Invariants: jobs run in the order of submission, never two at once; a completed job is seen by `completed` before the
wake-up is called; an exception of a job is kept on the job, never lost. `InlineWorker` is the same without a thread,
for simulations and tests.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Job:
    """One unit of slow work. Subclasses implement `run`; `error` holds what it raised, `ended` is true after it."""

    __slots__ = ("ended", "error", "took_ns")

    def __init__(self) -> None:
        #: how long it ran on a thread; 0 elsewhere, where time does not pass
        self.took_ns = 0
        self.ended = False
        self.error: Exception | None = None

    def run(self) -> None:
        raise NotImplementedError

    def run_caught(self) -> None:
        try:
            self.run()
        except Exception as error:  # handed to the owner, who turns it into the state of the store
            self.error = error
        self.ended = True


class Worker(Protocol):
    @property
    def busy_since_ns(self) -> int:
        """When the job that runs now began, on the monotonic clock; 0 if none does."""

    def submit(self, job: Job) -> None: ...

    def completed(self) -> list[Job]:
        """Jobs that ended since the last call, in order. Raises what the wake-up raised, if it did."""

    def wait(self, job: Job) -> None:
        """Returns when this submitted job has ended."""

    def stop(self) -> None:
        """Returns when every submitted job has ended. `completed` still works."""


class ThreadWorker:
    """Jobs on one daemon thread (a process that dies without `stop` must not hang on it)."""

    __slots__ = ("_busy_since_ns", "_completed", "_ended", "_on_wake", "_queue", "_run", "_thread", "_wake_error")

    def __init__(
        self, on_wake: Callable[[], None], run: Callable[[Job], None] = Job.run_caught, name: str = "zkv-log-sync"
    ) -> None:
        """run: how a job is carried out; it keeps what a job raises on the job, as `Job.run_caught` does."""
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._completed: deque[Job] = deque()
        #: one for all jobs: hardly ever does anybody wait, and an event for each would cost more than the rest of a job
        self._ended = threading.Condition()
        self._on_wake = on_wake
        self._run = run
        self._busy_since_ns = 0
        self._wake_error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            began_ns = self._busy_since_ns = time.monotonic_ns()
            self._run(job)
            with self._ended:
                self._ended.notify_all()
            job.took_ns = time.monotonic_ns() - began_ns
            self._busy_since_ns = 0
            self._completed.append(job)
            try:
                self._on_wake()
            except Exception as error:  # raised again where the owner asks; the thread must live on to run `stop`
                self._wake_error = error

    @property
    def busy_since_ns(self) -> int:
        return self._busy_since_ns

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def completed(self) -> list[Job]:
        jobs: list[Job] = []
        while self._completed:
            jobs.append(self._completed.popleft())
        if self._wake_error is not None and not jobs:
            error, self._wake_error = self._wake_error, None
            raise error
        return jobs

    def wait(self, job: Job) -> None:
        with self._ended:
            self._ended.wait_for(lambda: job.ended)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()


class InlineWorker:
    """Runs its jobs when told to, in the caller's thread: time and order belong to whoever owns it."""

    __slots__ = ("_completed", "_on_wake", "pending")

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self.pending: deque[Job] = deque()
        self._completed: list[Job] = []
        self._on_wake = on_wake

    @property
    def busy_since_ns(self) -> int:
        return 0

    def submit(self, job: Job) -> None:
        self.pending.append(job)

    def run_pending(self) -> None:
        while self.pending:
            job = self.pending.popleft()
            job.run_caught()
            self._completed.append(job)
            self._on_wake()

    def completed(self) -> list[Job]:
        jobs, self._completed = self._completed, []
        return jobs

    def wait(self, job: Job) -> None:
        if not job.ended:
            self.run_pending()

    def stop(self) -> None:
        self.run_pending()
