"""`zkv sim --members N`: the membership core at that size over virtual time, judged by its gates beside memberlist's figures.

Owns: the work over processes, the table, the exit code. Must not know: what a trial does, what is good enough.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from math import isinf
from multiprocessing import get_context
from typing import TYPE_CHECKING

from zkv.cli.console import EXIT_FAILED, EXIT_OK, Console

if TYPE_CHECKING:
    from zkv.testing.members.gates import Figures

#: trial, members, seed
Work = tuple[str, int, int]


def run_members(members: int, seeds: list[int], jobs: int, console: Console) -> int:
    from zkv.testing.members.gates import GATES, TRIALS, broken, worst

    started = time.monotonic()
    work = [(trial, members, seed) for seed in seeds for trial in TRIALS]
    by_seed: dict[int, list[Figures]] = {}
    for (trial, _, seed), figures in zip(work, _measured(work, jobs), strict=True):
        by_seed.setdefault(seed, []).append(figures)
        bad = broken(figures)
        console.say(f"seed {seed}, {trial}: {'BROKEN ' + ', '.join(bad) if bad else 'ok'}")
    figures = worst(figures for found in by_seed.values() for figures in found)
    bad = broken(figures)
    if not console.json:
        _table(members, seeds, figures, console)
    console.document(
        members=members,
        seeds=seeds,
        seconds=round(time.monotonic() - started, 1),
        gates=[
            {
                "gate": key,
                "title": gate.title,
                "measured": None if isinf(figures[key]) else round(figures[key], 4),
                "limit": gate.limit,
                "unit": gate.unit,
                "memberlist": gate.memberlist,
                "holds": key not in bad,
            }
            for key, gate in GATES.items()
            if key in figures
        ],
    )
    for seed, found in by_seed.items():
        for key in broken(worst(found)):
            console.say(f"{key} does not hold; again with: zkv sim --members {members} --seed {seed}")
    return EXIT_FAILED if bad else EXIT_OK


def one(work: Work) -> Figures:
    from zkv.testing.members.gates import measure

    # A world is a million objects that live as long as it does: looking for cycles among them takes most of the time.
    gc.collect()
    gc.disable()
    try:
        return measure(*work)
    finally:
        gc.enable()


def _measured(work: list[Work], jobs: int) -> Iterator[Figures]:
    if jobs == 1:
        yield from map(one, work)
        return
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=get_context("spawn"), max_tasks_per_child=8) as pool:
        yield from pool.map(one, work)


def _table(members: int, seeds: list[int], figures: Figures, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table

    from zkv.testing.members.gates import CUT_MEMBERS, DISTURBED_MEMBERS, rows

    table = Table("what", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("memberlist", "measured", "gate"):
        table.add_column(name, justify="right")
    table.add_column("")
    for title, memberlist, measured, gate, holds in rows(figures):
        table.add_row(title, memberlist, measured, gate, "ok" if holds else "[bold red]BROKEN[/]")
    width = None if console.colored else 140
    RichConsole(no_color=not console.colored, width=width, highlight=False).print(table)
    seeds_text = f"seed {seeds[0]}" if len(seeds) == 1 else f"the worst of seeds {seeds[0]} to {seeds[-1]}"
    console.line(
        f"{members} members ({min(members, DISTURBED_MEMBERS)} where some are stopped or isolated, "
        f"{min(members, CUT_MEMBERS)} in partitions); {seeds_text}"
    )
    console.line("memberlist: its LAN defaults at 1,000 members, in a simulator of the same kind")
