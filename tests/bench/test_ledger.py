"""What was written is known, and what comes back wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from zkv.testing.bench.ledger import Ledger, digest
from zkv.testing.bench.rounds import WrongAnswer


def written(batches: int, writes: int) -> tuple[Ledger, dict[str, bytes]]:
    ledger = Ledger("t", batches, 4, value_bytes=20)
    held: dict[str, bytes] = {}
    for _ in range(writes):
        keys, values = ledger.write()
        held.update(zip(keys, values, strict=True))
    return ledger, held


def reading(held: dict[str, bytes]) -> Callable[[Sequence[str]], list[bytes | None]]:
    return lambda keys: [held.get(key) for key in keys]


def test_digest_passes_for_the_last_writes_and_counts_only_what_was_written() -> None:
    ledger, held = written(batches=5, writes=3)
    assert digest([ledger], reading(held)).startswith("12 keys ")
    assert digest([ledger], reading(held)) == digest([ledger], reading(held))


def test_digest_changes_with_each_write() -> None:
    once, held_once = written(batches=2, writes=2)
    twice, held_twice = written(batches=2, writes=4)
    assert digest([once], reading(held_once)) != digest([twice], reading(held_twice))


@pytest.mark.parametrize(
    ("change", "story"),
    [
        (lambda held, key: held.pop(key), "nothing"),
        (lambda held, key: held.update({key: held[key][:-1]}), "19 bytes"),
        (lambda held, key: held.update({key: held["t:00000002"]}), "20 bytes that were not written last"),
    ],
)
def test_wrong_answer_is_named(change: Callable[[dict[str, bytes], str], object], story: str) -> None:
    ledger, held = written(batches=2, writes=2)
    change(held, "t:00000001")
    with pytest.raises(WrongAnswer, match=f"t:00000001.*{story}"):
        digest([ledger], reading(held))


def test_value_before_the_last_write_is_wrong() -> None:
    ledger, held = written(batches=2, writes=2)
    ledger.write()
    with pytest.raises(WrongAnswer, match="t:00000000"):
        digest([ledger], reading(held))


def test_answer_with_too_few_values_is_wrong() -> None:
    ledger, _ = written(batches=2, writes=2)
    with pytest.raises(WrongAnswer, match="3 values for 4 keys"):
        digest([ledger], lambda keys: [b""] * 3)
