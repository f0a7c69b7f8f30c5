"""`zkv bench`: our workloads in alternating rounds with their peers, as a table.

Owns: the options, the table, the document. Must not know: how a benchmark is run.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zkv.cli.console import EXIT_OK, Console, count, open_client, seconds
from zkv.cli.ring_view import table

if TYPE_CHECKING:
    from zkv.testing.bench.rounds import Case, Result, SideResult


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="measure against an echo, redis, etcd and bare probes, in one run",
        description="Rounds of zkv and of a peer in turn; the median ratio with its quartiles. Servers are started on free loopback ports "
        "and stopped at the end. With --url: zkv's own workloads on that cluster, under keys of their own, which are deleted afterwards.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="P1 ... P7 (see --list); default: those that are quick"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="of each side; default 5")
    parser.add_argument("--seconds", type=seconds, default=0.4, metavar="S", help="for each round; default 0.4")
    parser.add_argument("--keys", type=count, metavar="N", help="in the index of P7; default 1000000")
    parser.add_argument("--profile", action="store_true", help="CPU microseconds per key of the client and each server")


def run(args: argparse.Namespace, console: Console) -> int:
    from zkv.testing.bench.catalog import CATALOG, QUICK
    from zkv.testing.bench.machine import machine, machine_line
    from zkv.testing.bench.rounds import compare

    names = [name.upper() for name in args.names]
    if unknown := [name for name in names if name not in CATALOG]:
        args.parser.error(f"{unknown[0]}: no such benchmark; there are {', '.join(CATALOG)}")
    if args.list:
        stories = {name: (bench.__doc__ or "").strip() for name, bench in CATALOG.items()}
        console.document(benchmarks=stories)
        for name, story in stories.items():
            console.line(f"{name}  {story}")
        return EXIT_OK
    url = getattr(args, "url", None)
    if url and names:
        args.parser.error("--url runs zkv's own workloads; it cannot be combined with a benchmark that starts servers")
    if not names and not url:
        names = list(QUICK)
        console.say(f"running {', '.join(names)}; `zkv bench --list` says what else there is")
    facts = machine()
    console.line(machine_line(facts))
    started = time.monotonic()
    results: list[Result] = []
    with _stopped_in_order():
        for case in _on_cluster(args, console) if url else _started(names, args.keys):
            console.say(f"{case.name}: {case.shape}")
            results.append(compare(case, args.rounds, args.seconds))
    _report(results, console, profile=args.profile)
    console.line(f"{args.rounds} rounds of {args.seconds:g} s of each side; {time.monotonic() - started:.0f} s in all")
    console.document(
        machine=facts, rounds=args.rounds, seconds=args.seconds, cases=[result.document() for result in results]
    )
    return EXIT_OK


def _started(names: list[str], index_keys: int | None) -> Iterator[Case]:
    from zkv.testing.bench.catalog import CATALOG, Scale

    scale = Scale() if index_keys is None else Scale(index_keys=index_keys)
    for name in names:
        yield from CATALOG[name](scale)


def _on_cluster(args: argparse.Namespace, console: Console) -> Iterator[Case]:
    from zkv.testing.bench.catalog import Scale, running

    console.say("writing only keys that begin with zkv-bench-; they are deleted at the end")
    with open_client(args) as kv:
        kv.ping()
        yield from running(kv, Scale(keys=3_000))


def _report(results: list[Result], console: Console, *, profile: bool) -> None:
    head = ["BENCHMARK", "SHAPE", "UNIT", "ZKV", "PEER", "", "RATIO", "QUARTILES", "TARGET"]
    lines = table(head, [_row(result) for result in results])
    for line in ["", *lines, ""]:
        console.line(line)
    for result in results:
        if result.not_run:
            console.line(f"{result.case.name}: NOT RUN: {result.not_run}")
    if profile:
        sides = [(r, name, side) for r in results for name, side in (("zkv", r.ours), (r.case.peer_name, r.peer))]
        rows = [[r.case.name, name, _cpu(side)] for r, name, side in sides if side is not None]
        for line in ["", *table(["BENCHMARK", "SIDE", "CPU MICROSECONDS PER KEY, USER AND SYSTEM"], rows), ""]:
            console.line(line)


def _row(result: Result) -> list[str]:
    case, ratio = result.case, result.ratio
    ours, peer = (f"{side.spread.median:,.0f}" if side else "NOT RUN" for side in (result.ours, result.peer))
    row = [case.name, case.shape, case.unit, ours, case.peer_name, peer]
    if ratio is None:
        return [*row, "-", "-", str(case.target or "-")]
    verdict = {None: "-", True: f"{case.target} met", False: f"{case.target} MISSED"}[result.met]
    return [*row, f"{ratio.median:.2f}", f"{ratio.low:.2f} - {ratio.high:.2f}", verdict]


def _cpu(side: SideResult) -> str:
    spent = side.cpu_us_per_key()
    return ", ".join(f"{name} {us:.1f}" for name, us in spent.items()) + f"; together {sum(spent.values()):.1f}"


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM ends us as Ctrl-C does: servers that we started must not stay behind."""

    def interrupt(number: int, frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
