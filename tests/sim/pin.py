"""`python -m tests.sim.pin [BUG ...]`: look anew for the seeds that find each planted bug, and write them to pinned.json.

Owns: the search. Wanted whenever what a seed draws, or the size or number of messages, has changed: then a pinned seed is another run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.sim.planted import PLANTED
from zkv.testing.sim import run_seed

PINNED = Path(__file__).with_name("pinned.json")
#: seeds kept for each bug: a change of timing rarely spoils all of them
KEPT = 3
SEEDS_MAX = 2_000


def finds(bug: str, seed: int) -> bool:
    """Whether this seed breaks a promise when the bug is there."""
    with pytest.MonkeyPatch.context() as patch:
        PLANTED[bug](patch)
        return not run_seed(seed).ok


def look_for(bug: str) -> list[int]:
    found: list[int] = []
    for seed in range(SEEDS_MAX):
        if finds(bug, seed):
            found.append(seed)
            if len(found) == KEPT:
                break
    return found


def main(bugs: list[str]) -> int:
    missing = False
    for bug in bugs or sorted(PLANTED):
        found = look_for(bug)
        missing = missing or not found
        print(f"{bug}: {found}", flush=True)
        before = (
            json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.exists() else {}
        )  # another one may look for other bugs
        pinned = {name: seeds for name, seeds in sorted((before | {bug: found}).items()) if name in PLANTED}
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(seeds)}" for name, seeds in pinned.items())
        PINNED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
