"""`python -m tests.sim.pin [BUG ...]`: look anew for the seeds that find each planted bug, and write them to pinned.json.

Owns: the search. Wanted whenever what a seed draws, or the size or number of messages, has changed: then a pinned seed is another run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.sim.planted import PLANTED
from zkv.testing import Simulation

PINNED = Path(__file__).with_name("pinned.json")
#: seeds kept for each bug: a change of timing rarely spoils all of them
KEPT = 3
SEEDS_MAX = 2_000


def finds(bug: str, seed: int) -> bool:
    """Whether this seed breaks a promise when the bug is there."""
    with pytest.MonkeyPatch.context() as patch:
        PLANTED[bug](patch)
        return not Simulation(seed).run().ok


def look_for(bug: str) -> list[int]:
    found: list[int] = []
    for seed in range(SEEDS_MAX):
        if finds(bug, seed):
            found.append(seed)
            if len(found) == KEPT:
                break
    return found


def main(bugs: list[str]) -> int:
    pinned = json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.exists() else {}
    for bug in bugs or sorted(PLANTED):
        pinned[bug] = look_for(bug)
        print(f"{bug}: {pinned[bug]}", flush=True)
        kept = {name: pinned[name] for name in sorted(pinned) if name in PLANTED}
        PINNED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if all(pinned[bug] for bug in pinned) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
