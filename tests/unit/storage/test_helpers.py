"""The helper process: jobs cross into it and come back, and whatever becomes of it, none is lost, doubled or left hanging."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.storage.segments import columns, contents, key, seal_job, write_log
from tests.unit.storage.test_merging import job_of
from zkv.codec.value import dumps
from zkv.errors import CorruptData, DiskFull, ProtocolError, StorageError, StorageFailed
from zkv.storage.files import RealFiles
from zkv.storage.helper import carry_out, step_back
from zkv.storage.helper_wire import PipeEnded, error_of_tree, error_to_tree, read_message, write_message
from zkv.storage.helpers import ATTEMPTS_MAX, COMMAND, HelperJob, HelperProcess, MergeTask, SealTask
from zkv.storage.segment import Segment
from zkv.storage.segment_jobs import SealJob, SegmentSource
from zkv.storage.worker import InlineWorker, Job

FILES = RealFiles()


class Rig:
    """A helper and an event for its wake-ups."""

    def __init__(self, command: Any = COMMAND) -> None:
        self.woken = threading.Event()
        self.helper = HelperProcess(self.woken.set, command)


_HANGING = """
import os, sys, threading
from zkv.storage import helper

def seal(files, job, seal=helper.seal):
    if os.path.exists(sys.argv[1]):
        held = open(sys.argv[1], "wb")
        threading.Event().wait()
    return seal(files, job)

helper.seal = seal
helper.main()
"""


class Gate:
    """A helper that hangs in its first job, for as long as the gate is there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "gate"
        os.mkfifo(self._path)
        self.command = (sys.executable, "-c", _HANGING, str(self._path))

    def wait(self) -> int:
        """Returns when the helper is in its job: a descriptor that ends when the helper does."""
        return os.open(self._path, os.O_RDONLY)

    def wait_and_remove(self) -> None:
        os.close(self.wait())
        self._path.unlink()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.helper.cancel()
    made.helper.stop()


def seal_task(folder: Path, name: str = "out", **fields: Any) -> SealTask:
    source = write_log(
        FILES, [columns([key(n) for n in range(50)], [b"value %d" % n for n in range(50)])], str(folder / "log")
    )
    return SealTask(FILES, seal_job(source, output=str(folder / name), **fields))


def children() -> set[int]:
    """Of this process, dead ones that nobody waited for included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while this looked
        if int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


def test_jobs_are_carried_out_elsewhere_and_their_results_come_back(tmp_path: Path, rig: Rig) -> None:
    task = seal_task(tmp_path)
    rig.helper.submit(task)
    assert rig.woken.wait(60)
    rig.helper.wait(task)
    assert rig.helper.completed() == [task] and task.error is None and task.took_ns > 0
    assert task.summary is not None
    inline = seal_task(tmp_path, "inline")
    inline.run_caught()
    assert inline.summary == task.summary
    assert (tmp_path / "inline").read_bytes() == (tmp_path / "out").read_bytes()
    merging = MergeTask(
        FILES, job_of([SegmentSource(str(tmp_path / "out"), task.summary)], output=str(tmp_path / "merged"))
    )
    rig.helper.submit(merging)
    rig.helper.wait(merging)
    assert merging.error is None and merging.result is not None and merging.result.summary is not None
    segment = Segment.open(FILES, str(tmp_path / "merged"), merging.result.summary)
    assert len(contents(segment)) == 50
    segment.close()
    nothing = seal_task(tmp_path, first_seq=51, last_seq=50)
    rig.helper.submit(nothing)
    rig.helper.wait(nothing)
    assert nothing.error is None and nothing.summary is None
    assert rig.helper.starts == 1


def test_the_helper_yields_to_everybody_else(tmp_path: Path, rig: Rig) -> None:
    task = seal_task(tmp_path)
    rig.helper.submit(task)
    rig.helper.wait(task)
    assert rig.helper.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, rig.helper.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_an_error_of_a_job_comes_back_as_it_is_and_the_helper_lives(tmp_path: Path, rig: Rig) -> None:
    beyond = seal_task(tmp_path, last_seq=51)
    nowhere = seal_task(tmp_path, "no/such/place")
    source = beyond.job.sources[0]._replace(path=str(tmp_path / "gone"))
    gone = SealTask(FILES, seal_job(source, output=str(tmp_path / "out")))
    good = seal_task(tmp_path)
    for each in (beyond, nowhere, gone, good):
        rig.helper.submit(each)
        rig.helper.wait(each)
    assert isinstance(beyond.error, CorruptData) and "log records 51 to 51 cannot be read" in str(beyond.error)
    assert isinstance(nowhere.error, FileNotFoundError) and nowhere.error.filename == nowhere.job.output
    assert isinstance(gone.error, FileNotFoundError) and gone.error.filename == source.path
    assert good.error is None and good.summary is not None
    assert rig.helper.starts == 1


def test_a_helper_that_is_killed_in_a_job_is_started_again_and_the_job_done(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    helper = Rig(gate.command).helper
    task = seal_task(tmp_path)
    helper.submit(task)
    gate.wait_and_remove()
    first = helper.pid
    assert first is not None and helper.busy_since_ns > 0
    os.kill(first, signal.SIGKILL)
    helper.wait(task)
    assert task.error is None and task.summary is not None
    assert helper.starts == 2 and helper.pid != first
    assert first not in children(), "a zombie"
    helper.stop()


def test_a_helper_that_dies_between_jobs_is_started_again(tmp_path: Path, rig: Rig) -> None:
    task = seal_task(tmp_path)
    rig.helper.submit(task)
    rig.helper.wait(task)
    assert rig.helper.pid is not None
    os.kill(rig.helper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, rig.helper.pid, os.WEXITED | os.WNOWAIT)
    again = seal_task(tmp_path)
    rig.helper.submit(again)
    rig.helper.wait(again)
    assert again.error is None and again.summary == task.summary and rig.helper.starts == 2


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(3)",
        "import sys; sys.stdin.buffer.read(4); sys.stdout.buffer.write(bytes([9, 0, 0, 0, 1])); sys.exit(3)",
        "import sys; sys.stdin.buffer.read(4); sys.stdout.buffer.write(bytes([1, 0, 0, 0, 255])); sys.stdout.flush();"
        " sys.stdin.buffer.read()",
    ],
    ids=["dies at once", "dies in its reply", "talks rubbish"],
)
def test_a_job_that_no_helper_survives_is_given_up_with_an_error(tmp_path: Path, code: str) -> None:
    rig = Rig((sys.executable, "-c", code))
    task = seal_task(tmp_path)
    rig.helper.submit(task)
    rig.helper.wait(task)
    assert isinstance(task.error, StorageError)
    assert f"died {ATTEMPTS_MAX} times over one job" in str(task.error)
    assert rig.helper.starts == ATTEMPTS_MAX
    rig.helper.stop()


def test_a_helper_that_cannot_be_started_is_an_error_of_the_job(tmp_path: Path) -> None:
    rig = Rig((str(tmp_path / "nothing"),))
    task = seal_task(tmp_path)
    rig.helper.submit(task)
    rig.helper.wait(task)
    assert isinstance(task.error, FileNotFoundError)
    rig.helper.stop()


def test_stop_waits_for_the_jobs_and_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    rig = Rig()
    tasks = [seal_task(tmp_path, f"out{n}") for n in range(3)]
    for task in tasks:
        rig.helper.submit(task)
    rig.helper.stop()
    assert rig.helper.completed() == tasks and all(task.summary is not None for task in tasks)
    assert rig.helper.pid is None and children() <= before
    rig.helper.stop()


def test_stop_without_a_job_starts_nothing() -> None:
    rig = Rig()
    rig.helper.stop()
    assert rig.helper.starts == 0


def test_cancel_ends_the_job_that_runs_and_those_that_wait(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    helper = Rig(gate.command).helper
    task, other = seal_task(tmp_path), seal_task(tmp_path, "other")
    helper.submit(task)
    helper.submit(other)
    gate.wait_and_remove()
    helper.cancel()
    helper.stop()
    assert [str(each.error) for each in (task, other)] == ["the job was cancelled"] * 2
    assert helper.starts == 1


def test_a_helper_ends_with_its_store_even_in_a_job(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    child = subprocess.Popen(gate.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    write_message(child.stdin.write, seal_task(tmp_path).request())
    child.stdin.flush()
    gate.wait_and_remove()
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGTERM)
    assert child.poll() is None, "interrupts of the store's terminal or service are not for its helper"
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()


_STORE = """
import os, signal, sys
from zkv.codec.value import loads
from zkv.storage.files import RealFiles
from zkv.storage.helpers import HelperProcess, SealTask
from zkv.storage.segment_jobs import SealJob

helper = HelperProcess(lambda: None, sys.argv[2:])
helper.submit(SealTask(RealFiles(), SealJob.from_tree(loads(open(sys.argv[1], "rb").read()))))
sys.stdin.readline()
forked = os.fork()
if forked:
    print(forked, flush=True)
signal.pause()
"""


def test_a_helper_ends_with_its_store_though_a_fork_of_it_lives(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    (tmp_path / "job").write_bytes(dumps(seal_task(tmp_path).job.to_tree()))
    arguments = [sys.executable, "-c", _STORE, str(tmp_path / "job"), *gate.command]
    store = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert store.stdin is not None and store.stdout is not None
    helper = gate.wait()
    store.stdin.write(b"fork\n")
    store.stdin.flush()
    forked = int(store.stdout.readline())
    store.kill()
    store.wait()
    assert os.read(helper, 1) == b"", "the helper is gone"
    os.kill(forked, signal.SIGKILL)
    os.close(helper)
    store.stdin.close()
    store.stdout.close()


def started(folder: Path) -> tuple[subprocess.Popen[bytes], SealTask]:
    child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return child, seal_task(folder)


def test_a_helper_whose_reply_nobody_reads_ends(tmp_path: Path) -> None:
    child, task = started(tmp_path)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdout.close()
    write_message(child.stdin.write, task.request())
    child.stdin.flush()
    assert child.wait(60) == 0 and child.stderr.read() == b""
    child.stdin.close()
    child.stderr.close()


def test_a_helper_that_hears_rubbish_ends_and_says_so(tmp_path: Path) -> None:
    child, _ = started(tmp_path)
    _, said = child.communicate(b"\1\0\0\0\xff", timeout=60)
    assert child.returncode == 1 and b"ProtocolError" in said


def test_a_helper_that_may_not_step_back_says_so_and_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(increment: int) -> int:
        raise PermissionError(errno.EPERM, "not allowed here")

    monkeypatch.setattr(os, "nice", refuse)
    step_back()
    assert "not allowed here" in capsys.readouterr().err


def test_a_helper_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """One that answers and then does not listen."""
    code = (
        "import sys, time; from zkv.storage.helper_wire import *;"
        " read_message(sys.stdin.buffer.read);"
        " write_message(sys.stdout.buffer.write, {'result': None}); sys.stdout.flush(); time.sleep(1000)"
    )
    helper = HelperProcess(lambda: None, (sys.executable, "-c", code), exit_seconds=0.05)
    task = seal_task(tmp_path)
    helper.submit(task)
    helper.wait(task)
    assert task.error is None and task.summary is None
    child = helper.pid
    helper.stop()
    assert child not in children()


def test_a_request_that_a_dying_helper_never_reads_is_no_hang(tmp_path: Path) -> None:
    helper = HelperProcess(lambda: None, (sys.executable, "-c", "pass"))
    task = seal_task(tmp_path, missing=tuple((n, n) for n in range(20_000)))
    helper.submit(task)
    helper.wait(task)
    assert isinstance(task.error, StorageError) and "BrokenPipeError" in str(task.error)
    helper.stop()


def test_tasks_run_inline_as_well(tmp_path: Path) -> None:
    worker = InlineWorker(lambda: None)
    task = seal_task(tmp_path)
    worker.submit(task)
    worker.run_pending()
    assert worker.completed() == [task] and task.summary is not None
    merging = MergeTask(FILES, job_of([SegmentSource(str(tmp_path / "out"), task.summary)], output=str(tmp_path / "m")))
    worker.submit(merging)
    worker.run_pending()
    assert merging.result is not None and merging.result.records_out == 50


def test_a_reply_whose_sums_are_wrong_is_an_error(tmp_path: Path) -> None:
    task = seal_task(tmp_path)
    task.run()
    assert task.summary is not None
    merging = MergeTask(FILES, job_of([SegmentSource(str(tmp_path / "out"), task.summary)], output=str(tmp_path / "m")))
    merging.run()
    assert merging.result is not None
    tree = merging.result.to_tree()
    merging.result = None
    with pytest.raises(StorageError):
        merging.answer({**tree, "superseded": 1})
    assert merging.result is None


def test_other_jobs_are_not_for_a_helper() -> None:
    rig = Rig()
    with pytest.raises(AssertionError):
        rig.helper.submit(Job())
    rig.helper.stop()
    for call in (HelperJob().request, lambda: HelperJob().answer(None)):
        with pytest.raises(NotImplementedError):
            call()


# --- the wire ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        *(CorruptData("a"), DiskFull("b"), StorageFailed("c"), StorageError("d"), ProtocolError("e")),
        *(OSError(errno.ENOSPC, "no space", "/f"), FileNotFoundError(errno.ENOENT, "none", "/f"), OSError("no number")),
    ],
)
def test_errors_come_back_as_what_they_were(error: Exception) -> None:
    came = error_of_tree(error_to_tree(error))
    assert type(came) is type(error)
    assert str(error) in str(came)
    assert getattr(came, "errno", None) == (
        getattr(error, "errno", None) or (0 if isinstance(error, OSError) else None)
    )


def test_a_mistake_comes_back_as_a_storage_error(capfd: pytest.CaptureFixture[str]) -> None:
    reply = carry_out(FILES, {"kind": "seal", "job": {"output": "x"}})
    came = error_of_tree(reply)
    assert type(came) is StorageError and "KeyError" in str(came)
    assert "Traceback" in capfd.readouterr().err
    assert isinstance(error_of_tree(carry_out(FILES, {"kind": "dance", "job": {}})), ProtocolError)


def test_messages_are_read_back_and_half_ones_are_an_end() -> None:
    written: list[bytes] = []
    write_message(written.append, {"a": [1, b"x", None]})
    data = b"".join(written)
    for length in range(len(data)):
        with pytest.raises(PipeEnded):
            read_message(_reader(data[:length]))
    assert read_message(_reader(data)) == {"a": [1, b"x", None]}
    with pytest.raises(ProtocolError):
        read_message(_reader(b"\1\0\0\0\1"))


def _reader(data: bytes) -> Any:
    parts = bytearray(data)

    def read(length: int) -> bytes:
        part = bytes(parts[:length])
        del parts[:length]
        return part

    return read


def test_a_job_that_crossed_is_the_same(tmp_path: Path) -> None:
    task = seal_task(tmp_path, missing=((3, 4),))
    assert SealJob.from_tree(task.request()["job"]) == task.job
