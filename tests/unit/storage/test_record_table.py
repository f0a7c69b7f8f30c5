"""The table with columns against the same table that goes record by record: whatever happens, both hold and remember the same."""

from __future__ import annotations

import random

import pytest

from zkv.codec.records import decode_block, encode_block
from zkv.core.columns import Columns
from zkv.core.effects import Join, Mint
from zkv.core.messages import RecordBlock
from zkv.core.request_memory import RequestMemory
from zkv.core.versions import Base, VersionSet
from zkv.ids import RequestId, checksum_of, stored_key
from zkv.storage.record_table import RecordTable

KEYS: list[bytes] = [stored_key(1, b"key %d" % i) for i in range(12)]


class RowTable(RecordTable):
    """Knows no columns."""

    def _mint_columns(self, mint: Mint) -> Columns | None:
        return None

    def join(self, join: Join) -> tuple[RecordBlock | None, int, list[int] | None, list[int]]:
        return super().join(Join(join.cause, RecordBlock(join.block.records), join.durable))


def received(block: RecordBlock) -> RecordBlock:
    return decode_block(*encode_block(block))


def table_of(kind: type[RecordTable], name: bytes) -> tuple[RecordTable, RequestMemory]:
    memory = RequestMemory()
    return kind(name, memory, lambda key: key[-1] % 4), memory


def mint_of(dice: random.Random, number: int, held: list[VersionSet | None]) -> Mint:
    """Mostly plain puts of a few keys by one or two requests; sometimes deletes, bases, voids, expiries, keys that stand twice."""
    n = dice.randint(1, 6)
    keys = dice.choices(KEYS, k=n) if dice.random() < 0.2 else dice.sample(KEYS, n)
    values: list[bytes | None] = [b"%d.%d" % (number, i) for i in range(n)]
    if dice.random() < 0.2:
        values[dice.randrange(n)] = None
    cut = dice.randint(1, n)
    segments: list[tuple[RequestId, list[int]]] = [((1, number * 2), list(range(cut)))]
    if cut < n:
        segments.append(((2, number * 2), list(range(n - cut))))
    covered: list[Base] | None = None
    replace = dice.random() < 0.8
    if not replace or dice.random() < 0.3:
        known = [held[KEYS.index(key)] for key in keys]
        covered = [VersionSet((), {}).context if k is None or dice.random() < 0.5 else k.context for k in known]
    return Mint(
        number,
        False,
        keys,
        values,
        [0 if v is None else checksum_of(v) for v in values],
        segments,
        replace,
        covered,
        [dice.choice((0, 5_000)) for _ in keys] if dice.random() < 0.2 else None,
        [dice.choice(((), (number,))) for _ in keys] if dice.random() < 0.2 else None,
        [1] * n,
        [0] * n,
        number,
    )


def same(a: VersionSet | None, b: VersionSet | None) -> bool:
    if a is None or b is None:
        return a is b
    mine, theirs = ([(s.value, s.stamp, s.expires_ms, s.voids, s.request) for s in x.siblings] for x in (a, b))
    return a.same_as(b) and mine == theirs and a.log_seq == b.log_seq


@pytest.mark.parametrize("seed", range(150))
def test_columns_and_rows_hold_and_remember_the_same(seed: int) -> None:
    dice = random.Random(seed)
    (a, a_memory), (b, b_memory) = table_of(RecordTable, b"store  A"), table_of(RowTable, b"store  A")
    #: a second store, whose blocks are joined here and the other way round
    peer, _ = table_of(RecordTable, b"store  B")
    travelled: list[RecordBlock] = []
    columns_seen = False
    seq = 0
    for number in range(1, 60):
        seq += 10
        draw = dice.random()
        if draw < 0.5:
            mint = mint_of(dice, number, a.read(KEYS)[0])
            block, counters, statuses = a.mint(mint)
            plain, *others = b.mint(mint)
            assert others == [counters, statuses] and block.keys == plain.keys
            columns_seen |= block.columns is not None
        elif draw < 0.7:
            block = peer.mint(mint_of(dice, 1_000 + number, peer.read(KEYS)[0]))[0]
            peer.commit(seq)
            travelled.append(block)
            continue
        elif travelled:
            block = dice.choice(travelled)  # late, repeated, or both
            logged, *answer = a.join(Join(number, received(block), False))
            plain_logged, *plain_answer = b.join(Join(number, received(block), False))
            assert answer == plain_answer
            assert (logged and logged.keys) == (plain_logged and plain_logged.keys)
        if dice.random() < 0.15:
            a.roll_back()
            b.roll_back()
            assert a.actor == b.actor
        else:
            a.commit(seq)
            b.commit(seq)
            if draw < 0.5 and dice.random() < 0.5:
                peer.join(Join(number, received(block), False))
                peer.commit(seq)
        a.check_invariants()
        for key, mine, theirs in zip(KEYS, a.read(KEYS)[0], b.read(KEYS)[0], strict=True):
            assert same(mine, theirs), f"{key!r}: {mine} against {theirs}"
        for request in [(s, number * 2) for s in (1, 2)]:
            mine_outcome, their_outcome = a_memory.recall(request), b_memory.recall(request)
            for item in range(6):
                assert (mine_outcome and mine_outcome.dot_of(item)) == (their_outcome and their_outcome.dot_of(item))
        assert a.stamp_high >= b.stamp_high
    assert columns_seen, "the shortcut was never taken"


def test_values_of_a_batch_that_is_mostly_overwritten_are_given_up() -> None:
    table, _ = table_of(RecordTable, b"store  A")
    dice = random.Random(1)
    first = mint_of(dice, 1, [])
    first.keys, first.values = KEYS, [b"old"] * len(KEYS)
    first.checksums, first.row_versions, first.fences = [0] * 12, [1] * 12, [0] * 12
    first.segments, first.covered, first.expires_ms, first.voids = [((1, 1), list(range(12)))], None, None, None
    first.replace_held = True
    columns = table.mint(first)[0].columns
    assert columns is not None
    table.commit(1)
    for number, key in enumerate(KEYS[:7], 2):
        again = Mint(
            number, False, [key], [b"new"], [0], [((1, number), [0])], True, None, None, None, [1], [0], number
        )
        table.mint(again)
        table.commit(number)
    kept = [h[0] for h in table.find(KEYS[7:])[0] if type(h) is tuple]
    assert len(kept) == 5 and all(c is not columns for c in kept), "what is left moved on, so the old values can go"
    table.check_invariants()


def test_large_value_that_is_overwritten_is_given_up_although_its_neighbours_stay() -> None:
    table, _ = table_of(RecordTable, b"store  A")
    hot, kept = KEYS[0], []
    for number in range(1, 200):
        new = [stored_key(1, b"new %d %d" % (number, i)) for i in range(4)]
        values: list[bytes | None] = [b"large" * 2_000, b"x", b"x", b"x", b"x"]
        mint = Mint(
            number,
            False,
            [hot, *new],
            values,
            [0] * 5,
            [((1, number), list(range(5)))],
            True,
            None,
            None,
            None,
            [1] * 5,
            [0] * 5,
        )
        assert table.mint(mint)[0].columns is not None
        table.commit(number)
        kept += new
    table.check_invariants()
    holders = {id(h[0]): h[0] for h in table.find([hot, *kept])[0] if type(h) is tuple}
    assert sum(columns.value_bytes for columns in holders.values()) < 2 * 10_000 + 4 * len(kept)


def test_single_puts_are_sets_of_their_own() -> None:
    table, _ = table_of(RecordTable, b"store  A")
    mint = Mint(1, False, [KEYS[0]], [b"v"], [0], [((1, 1), [0])], True, None, None, None, [1], [0])
    assert table.mint(mint)[0].columns is None


def test_keys_of_a_step_that_was_rolled_back_leave_nothing_behind() -> None:
    table, _ = table_of(RecordTable, b"store  A")
    for number in range(1, 10):
        mint = Mint(
            number,
            False,
            KEYS,
            [b"v"] * 12,
            [0] * 12,
            [((1, number), list(range(12)))],
            True,
            None,
            None,
            None,
            [1] * 12,
            [0] * 12,
        )
        table.mint(mint)
        table.roll_back()
    assert len(table) == 0 and not table._active._unplaced
