"""Import: order per key, counts, reasons, expiry, going on after a stop; the client is a dictionary that may fail."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from zkv.cli.journal import Journal, Position
from zkv.cli.lines import LineReader
from zkv.cli.progress import Progress
from zkv.cli.transfer import Importer
from zkv.errors import BatchError, ConfigError, DiskFull, TooLarge, Unavailable, ZkvError


class Store:
    """Remembers puts; `trouble(key, value)` may raise for a whole call; overlapping calls on one key are an error of
    the importer.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.ttls: dict[bytes, float | None] = {}
        self.calls = 0
        self.fail_after: int | None = None
        self.limit = 1000
        self._busy: set[bytes] = set()
        self._lock = threading.Lock()

    def put_many(self, given: Iterable[tuple[bytes, bytes]], *, ttl: float | None = None) -> None:
        items = dict(given)
        with self._lock:
            assert self._busy.isdisjoint(items), "a key was in flight twice"
            self._busy.update(items)
            self.calls += 1
            calls = self.calls
        time.sleep(0.001)
        with self._lock:
            self._busy.difference_update(items)
            if self.fail_after is not None and calls > self.fail_after:
                raise Unavailable("no quorum", required=2, alive=1)
            errors: dict[bytes, ZkvError] = {}
            for key, value in items.items():
                if len(value) > self.limit:
                    errors[key] = TooLarge(f"{len(value)} bytes, the limit is {self.limit}")
                else:
                    self.values[key] = value
                    self.ttls[key] = ttl
        if errors:
            raise BatchError("some failed", errors=errors)


def line(key: str, value: str, **more: object) -> bytes:
    return json.dumps({"key": key, "value": value, **more}).encode() + b"\n"


def load(store: Store, data: bytes, journal: Journal | None = None, **options: Any) -> tuple[Importer, Position]:
    journal = journal or Journal(None, b"")
    importer = Importer(store, journal, **{"batch_records": 10, "patience_s": 0.05, **options})
    done = journal.position
    position = importer.run(
        LineReader(io.BytesIO(data), "jsonl", offset=done.offset, line=done.line), Progress("t", None, "bytes")
    )
    return importer, position


def test_all_records_arrive() -> None:
    store = Store()
    data = b"".join(line(f"k{number}", f"v{number}") for number in range(95))
    importer, position = load(store, data)
    assert store.values == {f"k{number}".encode(): f"v{number}".encode() for number in range(95)}
    assert position == Position(len(data), 95, 95, 0)
    assert not importer.reasons


def test_the_last_line_of_a_key_wins_and_a_key_is_never_in_flight_twice() -> None:
    store = Store()
    load(store, b"".join(line(f"k{number % 7}", f"v{number}") for number in range(500)))
    assert store.values == {f"k{number % 7}".encode(): f"v{number}".encode() for number in range(493, 500)}


def test_refusals_are_counted_by_reason_and_told_with_line_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    data = (
        line("a", "1")
        + b"nonsense\n"
        + line("b", "x" * 1001)
        + b"{}\n"
        + line("c", "3", expires_at=1.0)
        + line("d", "4")
    )
    importer, position = load(store, data)
    assert store.values == {b"a": b"1", b"d": b"4"}
    assert importer.reasons == {"not JSON": 1, "TooLarge": 1, "no key": 1, "already expired": 1}
    assert (position.stored, position.refused) == (2, 4)
    told = capsys.readouterr().err
    assert "line 2 refused: not JSON" in told
    assert "line 3 refused: TooLarge: 1001 bytes, the limit is 1000" in told


def test_only_the_first_refusals_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    importer, _ = load(Store(), b"x\n" * 50)
    assert importer.reasons == {"not JSON": 50}
    assert capsys.readouterr().err.count("refused") == 11


def test_expiry_becomes_time_to_live() -> None:
    store = Store()
    soon = time.time() + 100
    load(store, line("a", "1", expires_at=soon) + line("b", "2"))
    assert store.ttls[b"b"] is None
    assert store.ttls[b"a"] == pytest.approx(100, abs=5)


def test_stopped_import_goes_on_from_its_journal(tmp_path: Path) -> None:
    store = Store()
    data = b"".join(line(f"k{number}", f"v{number}") for number in range(200)) + b"bad\n"
    store.fail_after = 5
    with pytest.raises(Unavailable):
        load(store, data, Journal(tmp_path / "j", data))
    stopped = Journal(tmp_path / "j", data)
    assert 0 < stopped.position.line <= 50
    # the journal never leads: whatever it counts is stored
    assert all(f"k{number}".encode() in store.values for number in range(stopped.position.line))
    store.fail_after = None
    _, position = load(store, data, stopped)
    assert len(store.values) == 200
    assert (position.line, position.stored, position.refused, position.offset) == (201, 200, 1, len(data))
    calls = store.calls
    load(store, data, Journal(tmp_path / "j", data))
    assert store.calls == calls, "nothing is left to import"


def test_retries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flaky(Store):
        def put_many(self, given: Iterable[tuple[bytes, bytes]], *, ttl: float | None = None) -> None:
            self.calls += 1
            if self.calls == 1:
                raise DiskFull("for a moment")
            super().put_many(given, ttl=ttl)

    store = Flaky()
    importer, position = load(store, line("a", "1"), patience_s=10.0)
    assert (importer.retries, position.stored) == (1, 1)


def test_journal_of_another_input_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j", b"one\n").save(Position(4, 1, 1, 0))
    assert Journal(tmp_path / "j", b"one\ntwo\n").position.offset == 4
    with pytest.raises(ConfigError, match="another input"):
        Journal(tmp_path / "j", b"two\n")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "head": "x", "offset": "y"}'])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(ConfigError, match="journal"):
        Journal(tmp_path / "j", b"")
