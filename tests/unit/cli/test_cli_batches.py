"""The patience of bulk writers: what is tried again, what is not, and what is counted."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from zkv.cli import batches
from zkv.cli.batches import put_until_acknowledged
from zkv.errors import BatchError, ConnectFailed, DeadlineExceeded, QuorumNotMet, TooLarge, Unavailable, ZkvError


class ScriptedClient:
    """put_many plays one step of the script for each call: an error to raise, or errors per key, or None for
    success.
    """

    def __init__(self, *script: ZkvError | dict[bytes, ZkvError] | None) -> None:
        self.script = list(script)
        self.calls: list[dict[bytes, bytes]] = []
        self.stored: dict[bytes, bytes] = {}

    def put_many(self, given: Iterable[tuple[bytes, bytes]], *, ttl: float | None = None) -> None:
        items = dict(given)
        self.calls.append(items)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, ZkvError):
            raise step
        failed = step or {}
        self.stored.update({key: value for key, value in items.items() if key not in failed})
        if failed:
            raise BatchError("some keys are not ok", errors=failed)


def put(
    kv: Any, items: dict[bytes, bytes], patience_s: float = 30.0, stop: threading.Event | None = None
) -> batches.BatchOutcome:
    return put_until_acknowledged(kv, items, patience_s=patience_s, stop=stop)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BACKOFF_FIRST_S", 0.0001)


ITEMS = {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_one_call_when_all_is_well() -> None:
    kv = ScriptedClient()
    outcome = put(kv, ITEMS)
    assert (outcome.tries, outcome.unknown, outcome.failed, outcome.refused) == (1, 0, 0, {})
    assert kv.stored == ITEMS


def test_only_retryable_keys_are_put_again() -> None:
    kv = ScriptedClient(
        {b"a": QuorumNotMet(required=2, got=1), b"b": TooLarge("b"), b"c": Unavailable()}, {b"c": Unavailable()}
    )
    outcome = put(kv, ITEMS)
    assert [sorted(call) for call in kv.calls] == [[b"a", b"b", b"c"], [b"a", b"c"], [b"c"]]
    assert kv.stored == {b"a": b"1", b"c": b"3"}
    assert list(outcome.refused) == [b"b"]
    assert (outcome.tries, outcome.unknown, outcome.failed) == (3, 1, 2)


def test_a_failed_call_repeats_the_whole_batch() -> None:
    kv = ScriptedClient(DeadlineExceeded("late"), ConnectFailed("nobody"))
    outcome = put(kv, ITEMS)
    assert (outcome.tries, outcome.unknown, outcome.failed) == (3, 3, 3)
    assert kv.stored == ITEMS


def test_an_error_that_no_retry_helps_is_raised_at_once() -> None:
    kv = ScriptedClient(ZkvError("broken"))
    with pytest.raises(ZkvError, match="broken"):
        put(kv, ITEMS)
    assert len(kv.calls) == 1


def test_patience_ends_with_the_last_error() -> None:
    kv = ScriptedClient(*[Unavailable(f"try {number}") for number in range(1000)])
    with pytest.raises(Unavailable, match="try"):
        put(kv, ITEMS, patience_s=0.02)
    assert 1 < len(kv.calls) < 1000
    assert kv.stored == {}


def test_stop_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BACKOFF_FIRST_S", 1000.0)
    monkeypatch.setattr(batches, "BACKOFF_MAX_S", 1000.0)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable):
        put(ScriptedClient(Unavailable()), ITEMS, patience_s=1e6, stop=stop)


def test_all_refused_ends_at_once() -> None:
    kv = ScriptedClient({key: TooLarge("too large") for key in ITEMS})
    assert set(put(kv, ITEMS).refused) == set(ITEMS)
    assert len(kv.calls) == 1
