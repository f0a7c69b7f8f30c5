"""What the index over sealed records costs in memory, beside a dictionary and beside its budget.

Owns: filling an index as a store does, table after table, and the yardstick: growth of a fresh process. Must not know: rounds, targets.

Each round is a process of its own (this module, run), because memory that an allocator keeps cannot be told from memory in use. All of it counts that
was not there before the first import: the libraries, what growing left behind, the spare room of tables.
"""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zkv.testing.bench.rounds import Sample, WrongAnswer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: what the index may take per key
BUDGET_BYTES: Final = 32
PARTITIONS: Final = 1024
#: records of one sealed table
TABLE: Final = 64_000
#: how many answers are looked at
CHECKED: Final = 10_000


class IndexMemory:
    """A side of a benchmark. kind: `index`, `dict` or `budget`."""

    processes: Mapping[str, int] = {}

    def __init__(self, kind: str, keys: int) -> None:
        self._command = [sys.executable, "-m", __name__, kind, str(keys)]
        self._keys = keys
        self._digest = ""

    def run(self, seconds: float) -> Sample:
        started = time.perf_counter()
        report = json.loads(subprocess.run(self._command, check=True, capture_output=True, text=True).stdout)
        if report["wrong"] or report["keys"] != self._keys:
            raise WrongAnswer(
                f"{report['wrong']} of {report['checked']} answers are wrong; {report['keys']} keys of {self._keys}"
            )
        self._digest = f"{report['checked']} keys looked up, {report['get_us']:.2f} us each"
        return Sample(self._keys, time.perf_counter() - started, held_bytes=report["bytes"])

    def check(self) -> str:
        """Each round has checked its own answers before it ended."""
        return self._digest


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def hold_index(keys: int) -> tuple[int, Callable[[int], int], Callable[[int], int]]:
    """(keys held, hash of the n-th, location by hash), filled through sealed tables of new keys."""
    import numpy as np

    from zkv.storage.index import HashIndex

    shift = 64 - (PARTITIONS.bit_length() - 1)
    index = HashIndex(PARTITIONS, shift, lambda pid: [], lambda loc: b"")
    index.warm(PARTITIONS)
    for table, first in enumerate(range(0, keys, TABLE)):
        numbers = np.arange(first, min(first + TABLE, keys), dtype=np.uint64)
        hashes = _hashes_of(numbers)
        order = np.argsort(hashes)
        hashes = hashes[order]
        locs = np.uint64(table + 1 << 40) | numbers[order] << np.uint64(8)
        cuts = np.searchsorted(hashes >> np.uint64(shift), np.arange(PARTITIONS + 1))
        for pid in range(PARTITIONS):
            rows = slice(cuts[pid], cuts[pid + 1])
            index.install(pid, hashes[rows], locs[rows])
    return (
        len(index),
        lambda n: int(_hashes_of(np.array([n], np.uint64))[0]),
        lambda hashed: index.get(hashed) >> 8 & 0xFFFFFFFF,
    )


def _hashes_of(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finisher of splitmix64: a bijection, so no two keys share a hash."""
    import numpy as np

    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def hold_dict(keys: int) -> tuple[int, Callable[[int], bytes], Callable[[bytes], int]]:
    """What one would write first: a dictionary of keys."""
    locations = {b"key-%013d" % n: 1 << 40 | n << 8 for n in range(keys)}
    return len(locations), lambda n: b"key-%013d" % n, lambda key: locations[key] >> 8 & 0xFFFFFFFF


def hold_budget(keys: int) -> tuple[int, Callable[[int], int], Callable[[int], int]]:
    """The budget itself, by the same yardstick; each key's number is in its share."""
    shares = array("Q", (0,)) * (keys * BUDGET_BYTES // 8)
    for n in range(keys):
        shares[n * BUDGET_BYTES // 8] = n
    return keys, int, lambda n: shares[n * BUDGET_BYTES // 8]


#: keys -> (how many it holds, name of the n-th, number by name)
HOLDERS: Final[dict[str, Callable[[int], tuple[int, Callable[[int], Any], Callable[[Any], int]]]]] = {
    "index": hold_index,
    "dict": hold_dict,
    "budget": hold_budget,
}


def measure(kind: str, keys: int) -> dict[str, float]:
    before = resident_bytes()
    count, name_of, get = HOLDERS[kind](keys)
    gc.collect()
    held = max(1, resident_bytes() - before)  # pages: a tiny one may fit into what was there
    asked = random.Random(1).choices(range(keys), k=CHECKED)
    names = [name_of(n) for n in asked]
    started = time.process_time()
    found = [get(name) for name in names]
    spent = time.process_time() - started
    wrong = sum(n != answer for n, answer in zip(asked, found, strict=True))
    return {"keys": count, "bytes": held, "checked": len(asked), "wrong": wrong, "get_us": 1e6 * spent / len(asked)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
