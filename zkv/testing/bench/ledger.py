"""What a side has written, so that it can be asked for it again.

Owns: keys, values, digests. Must not know: stores.

Values are random bytes from a fixed pool, another one for the key at each write: an old value, a value of another key or a value cut short
is told from the right one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from zkv.testing.bench.rounds import WrongAnswer

VALUE_BYTES: Final = 1000
#: odd and prime: neighbours of a batch and generations of a key all differ
_POOL: Final = 251

Read = Callable[[Sequence[str]], Sequence[bytes | None]]


class Ledger:
    """`batches` groups of `size` keys, written in turn over and over. For one thread or task."""

    __slots__ = ("_generations", "_pool", "_turn", "keys", "size")

    def __init__(self, name: str, batches: int, size: int, value_bytes: int = VALUE_BYTES) -> None:
        self.keys = [[f"{name}:{batch * size + i:08d}" for i in range(size)] for batch in range(batches)]
        self.size = size
        self._generations = [0] * batches
        self._pool = _pool(value_bytes)
        self._turn = 0

    def write(self) -> tuple[list[str], list[bytes]]:
        """The next batch, with values that it did not have before."""
        batch = self._turn
        self._turn = (batch + 1) % len(self.keys)
        self._generations[batch] += 1
        return self.keys[batch], self.values(batch)

    def read(self) -> tuple[list[str], list[bytes]]:
        """The next batch, with the values it must have. Only after all were written."""
        batch = self._turn
        self._turn = (batch + 1) % len(self.keys)
        return self.keys[batch], self.values(batch)

    def values(self, batch: int) -> list[bytes]:
        start = self._generations[batch] + batch * self.size
        return [self._pool[(start + i) % _POOL] for i in range(self.size)]

    @property
    def written(self) -> list[int]:
        """The batches that were written at least once."""
        return [batch for batch, generation in enumerate(self._generations) if generation]


def digest(ledgers: Iterable[Ledger], read: Read) -> str:
    """Read all that was written and compare it. Raises: WrongAnswer with the first key that differs."""
    summed = hashlib.sha256()
    keys = 0
    for ledger in ledgers:
        for batch in ledger.written:
            names, expected = ledger.keys[batch], ledger.values(batch)
            compare_values(names, expected, read(names))
            keys += len(names)
            for name, value in zip(names, expected, strict=True):
                summed.update(name.encode())
                summed.update(value)
    return f"{keys} keys {summed.hexdigest()[:12]}"


def compare_values(names: Sequence[str], expected: Sequence[bytes], found: Sequence[bytes | None]) -> None:
    if list(found) == list(expected):
        return
    if len(found) != len(expected):
        raise WrongAnswer(f"{len(found)} values for {len(expected)} keys, the first of them {names[0]}")
    for name, right, value in zip(names, expected, found, strict=True):
        if value != right:
            got = "nothing" if value is None else f"{len(value)} bytes that were not written last"
            raise WrongAnswer(f"{name}: acknowledged, and read back as {got}")


_POOLS: dict[int, list[bytes]] = {}


def _pool(value_bytes: int) -> list[bytes]:
    if value_bytes not in _POOLS:
        dice = random.Random(value_bytes)
        _POOLS[value_bytes] = [dice.randbytes(value_bytes) for _ in range(_POOL)]
    return _POOLS[value_bytes]
