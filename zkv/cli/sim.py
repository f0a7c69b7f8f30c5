"""`zkv sim`: run seeds of the deterministic simulator, count what struck, and say how to reproduce what failed.

Owns: the options, the table, the exit code. Must not know: how a run is judged.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from zkv.cli.console import EXIT_FAILED, EXIT_OK, Console, count
from zkv.cli.sim_members import run_members

if TYPE_CHECKING:
    from zkv.testing.sim import Result


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "sim",
        parents=[common],
        help="run simulated clusters under faults and check every promise",
        description="Each seed is a whole cluster over virtual time with a faulty network and faulty disks. The same seed is always "
        "the same run.",
    )
    parser.set_defaults(run=run)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, metavar="N", help="this one; prints what it drew")
    which.add_argument("--seeds", type=_range, metavar="A..B", help="A to B - 1; default 0..100, with --members 1..2")
    parser.add_argument("--ops", type=count, default=200, metavar="N", help="operations a seed; default 200")
    parser.add_argument(
        "--jobs", type=count, default=os.cpu_count() or 1, metavar="J", help="processes; default: one per core"
    )
    parser.add_argument(
        "--members", type=count, metavar="N", help="the membership core at N members instead, judged by its gates"
    )
    parser.add_argument("--shrink", action="store_true", help="cut a failing seed down and print it as a scenario")


def run(args: argparse.Namespace, console: Console) -> int:
    from zkv.testing.sim import draw, shrink

    if args.members is not None:
        return run_members(args.members, _seeds(args, range(1, 2)), args.jobs, console)
    seeds = _seeds(args, range(100))
    if args.seed is not None:
        console.line(draw(args.seed, args.ops).line())
    started = time.monotonic()
    fired: Counter[str] = Counter()
    broken: list[Result] = []
    events = operations = 0
    for result in _watched(_results(seeds, args.ops, args.jobs), len(seeds), console):
        fired.update(result.fired)
        events += result.events
        operations += result.operations
        if not result.ok:
            broken.append(result)
            console.say(result.explain())
            if args.shrink:
                small = shrink(result.plan, result.rule)
                console.say(
                    f"shrunk to {len(small.operations)} operations, {len(small.faults)} faults:\n{small.to_json()}"
                )
    seconds = time.monotonic() - started
    jobs = min(args.jobs, len(seeds))
    figures: dict[str, Any] = {
        "seeds": len(seeds),
        "operations": operations,
        "events": events,
        "seconds": round(seconds, 1),
        "seeds_per_second_per_core": round(len(seeds) / seconds / jobs, 1),
        "violations": len(broken),
    }
    _table(figures, fired, console)
    failed = [{"seed": r.plan.seed, "rule": r.rule, "text": r.text, "command": r.command} for r in broken]
    console.document(**figures, faults=dict(sorted(fired.items())), failed=failed)
    return EXIT_FAILED if broken else EXIT_OK


def _seeds(args: argparse.Namespace, usual: range) -> list[int]:
    return [args.seed] if args.seed is not None else list(args.seeds or usual)


def one(work: tuple[int, int]) -> Result:
    from zkv.testing.sim import run_seed

    return run_seed(*work)


def _results(seeds: list[int], operations: int, jobs: int) -> Iterator[Result]:
    work = [(seed, operations) for seed in seeds]
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, work)
        return
    with ProcessPoolExecutor(min(jobs, len(seeds)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, work, chunksize=max(1, min(8, len(work) // jobs)))


def _watched(results: Iterable[Result], total: int, console: Console) -> Iterator[Result]:
    from rich.console import Console as RichConsole
    from rich.progress import track

    yield from track(
        results, description="seeds", total=total, console=RichConsole(stderr=True), disable=console.json or total == 1
    )


def _table(figures: dict[str, Any], fired: Counter[str], console: Console) -> None:
    from zkv.testing.sim.plan import FAULTS

    for name, value in figures.items():
        console.line(f"{name.replace('_', ' '):28} {value:>12,}")
    for name in sorted({*FAULTS, *fired}):
        console.line(f"  fault {name:20} {fired[name]:>12,}")


def _range(text: str) -> range:
    first, dots, last = text.partition("..")
    if not dots or not first.isdigit() or not last.isdigit() or int(last) <= int(first):
        raise argparse.ArgumentTypeError(f"{text!r}: expected A..B with A below B")
    return range(int(first), int(last))
