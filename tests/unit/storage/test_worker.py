from __future__ import annotations

import threading

import pytest

from zkv.storage.worker import InlineWorker, Job, ThreadWorker


class Note(Job):
    def __init__(self, notes: list[str], text: str) -> None:
        super().__init__()
        self.notes = notes
        self.text = text

    def run(self) -> None:
        self.notes.append(f"{self.text} in {threading.current_thread().name}")
        if self.text == "bad":
            raise ValueError("bad job")


def test_thread_worker_runs_in_order_and_hands_errors_back() -> None:
    notes: list[str] = []
    woken = threading.Semaphore(0)
    worker = ThreadWorker(woken.release)
    jobs = [Note(notes, text) for text in ("one", "bad", "three")]
    for job in jobs:
        worker.submit(job)
    for _ in jobs:
        assert woken.acquire(timeout=10)
    assert worker.completed() == jobs
    assert worker.completed() == []
    assert notes == ["one in zkv-log-sync", "bad in zkv-log-sync", "three in zkv-log-sync"]
    assert [str(job.error) for job in jobs] == ["None", "bad job", "None"]
    worker.stop()
    worker.stop()


def test_thread_worker_stop_waits_for_what_was_submitted() -> None:
    notes: list[str] = []
    worker = ThreadWorker(lambda: None)
    jobs = [Note(notes, str(number)) for number in range(20)]
    for job in jobs:
        worker.submit(job)
    worker.wait(jobs[7])
    assert len(notes) >= 8
    worker.stop()
    assert worker.completed() == jobs


def test_thread_worker_survives_a_wake_up_that_fails_and_tells_the_owner() -> None:
    def wake() -> None:
        raise RuntimeError("loop is closed")

    worker = ThreadWorker(wake)
    for _ in range(2):
        job = Note([], "x")
        worker.submit(job)
    worker.stop()
    assert len(worker.completed()) == 2
    with pytest.raises(RuntimeError, match="loop is closed"):
        worker.completed()
    assert worker.completed() == []


def test_inline_worker_runs_when_told() -> None:
    notes: list[str] = []
    wakes: list[int] = []
    worker = InlineWorker(lambda: wakes.append(1))
    good, bad = Note(notes, "good"), Note(notes, "bad")
    worker.submit(good)
    worker.submit(bad)
    assert notes == []
    assert worker.completed() == []
    worker.wait(good)
    assert (good.error, str(bad.error), len(wakes)) == (None, "bad job", 2)
    worker.wait(good)
    assert worker.completed() == [good, bad]
    worker.submit(good)
    worker.stop()
    assert worker.completed() == [good]


def test_job_without_work_is_an_error() -> None:
    with pytest.raises(NotImplementedError):
        Job().run()
