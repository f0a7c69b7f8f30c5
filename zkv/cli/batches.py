"""Writing a batch until every key of it is acknowledged or definitely refused.

Owns: the patience of bulk writers (import, demo). Must not know: where records come from, terminals.

A put that ended unknown is put again with the same value by the same client session, which tells the store which of
its earlier tries it never
heard of; so tries add up to one value, not to siblings.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from zkv.errors import BatchError, ZkvError

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0


class BatchWriter(Protocol):
    """What is needed of a client."""

    def put_many(self, items: Iterable[tuple[bytes, bytes]], *, ttl: float | None = None) -> object: ...


@dataclass(slots=True)
class BatchOutcome:
    """How a batch got in. refused: keys that will never get in, and why; tries: calls made; unknown: keys whose
    outcome was open in between.
    """

    refused: dict[bytes, ZkvError] = field(default_factory=dict)
    tries: int = 0
    unknown: int = 0
    failed: int = 0


def put_until_acknowledged(
    kv: BatchWriter,
    items: Mapping[bytes, bytes],
    *,
    patience_s: float,
    ttl: float | None = None,
    stop: threading.Event | None = None,
) -> BatchOutcome:
    """Put all items, again and again where that can help. Raises the last error when patience ends or `stop` is set."""
    outcome = BatchOutcome()
    left = dict(items)
    halt = stop or threading.Event()
    give_up = time.monotonic() + patience_s
    while left:
        outcome.tries += 1
        try:
            kv.put_many(left.items(), ttl=ttl)
            return outcome
        except BatchError as error:
            trouble = _sort_out(error, left, outcome)
        except ZkvError as error:
            if not error.retryable:
                raise
            _count(outcome, error, len(left))
            trouble = error
        if trouble is None:
            return outcome
        # full jitter, so that writers that failed together do not come back together
        pause = random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(outcome.tries, 10)))
        if time.monotonic() + pause > give_up or halt.wait(pause):
            raise trouble
    return outcome


def _sort_out(error: BatchError, left: dict[bytes, bytes], outcome: BatchOutcome) -> ZkvError | None:
    """Leave in `left` what is worth another try, and return one of its errors; None if nothing is."""
    again: dict[bytes, bytes] = {}
    trouble: ZkvError | None = None
    for key, reason in error.errors.items():
        if reason.retryable:
            again[key] = left[key]
            trouble = reason
            _count(outcome, reason, 1)
        else:
            outcome.refused[key] = reason
    left.clear()
    left.update(again)
    return trouble


def _count(outcome: BatchOutcome, error: ZkvError, keys: int) -> None:
    if error.definite:
        outcome.failed += keys
    else:
        outcome.unknown += keys
