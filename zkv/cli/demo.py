"""`zkv demo`: three real nodes, real data, one of them killed and brought back, and proof that nothing was lost.

Owns: the story and its figures. Must not know: how nodes work; it starts them as anybody would and talks to them with
the client.

What is acknowledged goes into a ledger the moment the client says so; at the end every entry of the ledger is read
back from a quorum and compared.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zkv.cli.batches import BatchOutcome, put_until_acknowledged
from zkv.cli.characters import character_records
from zkv.cli.console import EXIT_FAILED, EXIT_OK, Console, count, refuse
from zkv.cli.progress import Progress
from zkv.cli.ring_view import RingView, table
from zkv.errors import BatchError, ConfigError, Conflict

if TYPE_CHECKING:
    from zkv.client import Client
    from zkv.testing import LocalCluster, LocalNode

RECORDS: Final = 60_000
BATCH: Final = 500
WRITERS: Final = 3
KILL_AT: Final = 0.2
RESTART_AT: Final = 0.3
PATIENCE_S: Final = 45.0
STORY: Final = "kill"


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="see it work: three nodes, real data, one killed and brought back",
        description="Start three nodes on this machine, load one record per Unicode character, kill a node in the "
        "middle, bring it back, "
        "and compare every acknowledged record. Ends by itself in less than a minute.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--records", type=count, default=RECORDS, metavar="N", help=f"default {RECORDS}")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep data and logs here (must be empty); default: temporary"
    )
    parser.add_argument("--keep", action="store_true", help="leave the nodes running at the end, until Ctrl-C")
    parser.add_argument("--story", default=STORY, metavar="NAME", help=f"only `{STORY}` exists")


def run(args: argparse.Namespace, console: Console) -> int:
    if args.story != STORY:
        raise refuse(
            f"demo --story {args.story}: does not exist yet; the one story is `{STORY}`, a node killed during a load"
        )
    if args.data is not None and args.data.exists() and any(args.data.iterdir()):
        raise ConfigError(
            f"--data {args.data}: not empty; the demo starts a new cluster and needs a new or empty directory"
        )
    from zkv.testing import LocalCluster

    started = time.monotonic()
    console.say("starting three nodes ...")
    with LocalCluster(3, directory=args.data) as cluster:
        for node in cluster.nodes:
            console.say(f"  {node.name}: process {node.pid} on {node.address}")
        figures = Demo(cluster, console, args.records).run()
        figures.seconds = time.monotonic() - started
        _report(figures, console)
        if args.keep:
            _keep(cluster, console)
    return EXIT_OK if figures.lost == 0 else EXIT_FAILED


@dataclass(slots=True)
class Figures:
    """What happened, in numbers."""

    records: int = 0
    value_bytes: int = 0
    disk_bytes: int = 0
    load_seconds: float = 0.0
    verify_seconds: float = 0.0
    seconds: float = 0.0
    batch_seconds: list[float] = field(default_factory=list)
    batches_retried: int = 0
    keys_failed: int = 0
    keys_unknown: int = 0
    down_seconds: float = 0.0
    acked_while_down: int = 0
    verified: int = 0
    missing: int = 0
    different: int = 0
    siblings: int = 0
    ring: tuple[tuple[str, ...], ...] = ()
    names: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.missing + self.different

    def percentile_ms(self, share: float) -> float:
        ranked = sorted(self.batch_seconds)
        return 1000 * ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


class Demo:
    """One run of the story on a cluster that serves."""

    def __init__(self, cluster: LocalCluster, console: Console, records: int) -> None:
        self._cluster = cluster
        self._console = console
        self._wanted = records
        self._victim = cluster.nodes[1]
        self._killed_at = 0.0
        self._acked_at_kill = 0
        self._back: Future[None] | None = None
        self._ledger: dict[bytes, bytes] = {}
        self._stop = threading.Event()
        self.figures = Figures()

    def run(self) -> Figures:
        import zkv

        with zkv.connect(self._cluster.url) as kv:
            self._load(kv)
            self._cluster.wait_until_healthy()
            self._verify(kv)
            self._survey(kv)
        return self.figures

    # --- act one: load, kill, restart ---

    def _load(self, kv: Client) -> None:
        """Writers in threads; this thread keeps the ledger and, between two batches, kills and brings back."""
        size = max(20, min(BATCH, self._wanted // 40))
        batches = _batches(itertools.islice(character_records(), self._wanted), size)
        started = time.monotonic()
        with Progress("load", self._wanted, "records", plain_every_s=2.0) as progress, _pool() as pool:
            flying: set[Future[_Written]] = set()
            try:
                while True:
                    for batch in itertools.islice(batches, WRITERS - len(flying)):
                        flying.add(pool.submit(self._write, kv, batch))
                    if not flying:
                        break
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._settle(future.result())
                    rate = len(self._ledger) / (time.monotonic() - started)
                    progress.update(len(self._ledger), f"{rate:,.0f} records/s")
                    self._play(len(self._ledger) / self._wanted, pool, progress)
                self.figures.load_seconds = time.monotonic() - started
                while self._back is None:
                    self._play(1.0, pool, progress)
                self._back.result()
            finally:
                self._stop.set()

    def _play(self, share: float, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """The next scene, if its time has come."""
        if not self._killed_at:
            if share >= KILL_AT:
                self._victim.kill()
                self._killed_at = time.monotonic()
                self._acked_at_kill = len(self._ledger)
                progress.say(
                    f"  {self._victim.name} is killed with SIGKILL after {self._acked_at_kill:,} acknowledged records; "
                    f"the load goes on"
                )
        elif self._back is None and share >= RESTART_AT:
            progress.say(f"  {self._victim.name} is started again on its old data; the load goes on")
            self._back = pool.submit(self._bring_back, progress)

    def _bring_back(self, progress: Progress) -> None:
        self._victim.restart()
        self.figures.down_seconds = time.monotonic() - self._killed_at
        self.figures.acked_while_down = len(self._ledger) - self._acked_at_kill
        progress.say(
            f"  {self._victim.name} serves again as process {self._victim.pid} after {self.figures.down_seconds:.1f} s; "
            f"{self.figures.acked_while_down:,} records came in meanwhile"
        )

    def _write(self, kv: Client, batch: dict[bytes, bytes]) -> _Written:
        started = time.monotonic()
        outcome = put_until_acknowledged(kv, batch, patience_s=PATIENCE_S, stop=self._stop)
        return _Written(batch, outcome, time.monotonic() - started)

    def _settle(self, written: _Written) -> None:
        figures, outcome = self.figures, written.outcome
        if outcome.refused:
            raise next(iter(outcome.refused.values()))
        self._ledger.update(written.batch)
        figures.batch_seconds.append(written.seconds)
        figures.batches_retried += outcome.tries > 1
        figures.keys_failed += outcome.failed
        figures.keys_unknown += outcome.unknown

    # --- act two: read everything back ---

    def _verify(self, kv: Client) -> None:
        figures = self.figures
        started = time.monotonic()
        self._console.say(
            f"reading all {len(self._ledger):,} acknowledged records back, from two of three replicas each ..."
        )
        with Progress("verify", len(self._ledger), "records", plain_every_s=2.0) as progress, _pool() as pool:
            batches = _batches(self._ledger.items(), BATCH)
            for checked in pool.map(lambda batch: _compare(kv, batch), batches):
                figures.verified += checked.equal
                figures.missing += checked.missing
                figures.different += checked.different
                figures.siblings += checked.siblings
                progress.update(figures.verified)
        figures.verify_seconds = time.monotonic() - started

    def _survey(self, kv: Client) -> None:
        figures = self.figures
        figures.records = len(self._ledger)
        figures.value_bytes = sum(map(len, self._ledger.values()))
        figures.disk_bytes = sum(_bytes_below(node) for node in self._cluster.nodes)
        figures.names = [node.name for node in self._cluster.nodes]
        figures.ring = kv.admin.ring().owners


@dataclass(slots=True)
class _Written:
    batch: dict[bytes, bytes]
    outcome: BatchOutcome
    seconds: float


@dataclass(slots=True)
class _Checked:
    equal: int = 0
    missing: int = 0
    different: int = 0
    siblings: int = 0


def _compare(kv: Client, batch: dict[bytes, bytes]) -> _Checked:
    """Equal means that every value which the store has for the key is the acknowledged one. An error that is no
    conflict is raised.
    """
    checked = _Checked()
    errors: dict[Any, Any] = {}
    try:
        found = kv.get_many(batch, r="quorum")
    except BatchError as error:
        found, errors = error.result, error.errors
    for key, value in batch.items():
        trouble = errors.get(key)
        if trouble is not None and not isinstance(trouble, Conflict):
            raise trouble
        values = set(trouble.values) if trouble is not None else {found[key]} if key in found else set()
        if not values:
            checked.missing += 1
        elif values == {value}:
            checked.equal += 1
            checked.siblings += trouble is not None
        else:
            checked.different += 1
    return checked


def _batches(records: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[dict[bytes, bytes]]:
    rest = iter(records)
    while batch := dict(itertools.islice(rest, size)):
        yield batch


def _pool() -> ThreadPoolExecutor:
    """One thread for each writer and one for the node that comes back."""
    return ThreadPoolExecutor(WRITERS + 1, thread_name_prefix="demo")


def _bytes_below(node: LocalNode) -> int:
    return sum(path.stat().st_blocks * 512 for path in node.data.rglob("*") if path.is_file())


def _report(figures: Figures, console: Console) -> None:
    view = RingView(figures.names, figures.ring, colored=console.colored)
    whole = figures.records and figures.lost == 0
    console.document(
        verdict="nothing acknowledged was lost" if whole else "acknowledged records were lost",
        records=figures.records,
        verified=figures.verified,
        lost=figures.lost,
        missing=figures.missing,
        different=figures.different,
        siblings=figures.siblings,
        value_bytes=figures.value_bytes,
        disk_bytes=figures.disk_bytes,
        load_seconds=round(figures.load_seconds, 3),
        records_per_second=round(figures.records / figures.load_seconds, 1),
        batch_p50_ms=round(figures.percentile_ms(0.50), 2),
        batch_p99_ms=round(figures.percentile_ms(0.99), 2),
        batches=len(figures.batch_seconds),
        batches_retried=figures.batches_retried,
        keys_failed_and_retried=figures.keys_failed,
        keys_unknown_and_retried=figures.keys_unknown,
        down_seconds=round(figures.down_seconds, 3),
        acked_while_down=figures.acked_while_down,
        verify_seconds=round(figures.verify_seconds, 3),
        seconds=round(figures.seconds, 3),
        shares=view.shares(),
    )
    if console.json:
        return
    rows = [
        ("records acknowledged", f"{figures.records:,} ({figures.value_bytes / 1e6:.1f} MB of values)"),
        ("load", f"{figures.load_seconds:.1f} s, {figures.records / figures.load_seconds:,.0f} records/s"),
        ("batch latency", f"p50 {figures.percentile_ms(0.5):.0f} ms, p99 {figures.percentile_ms(0.99):.0f} ms"),
        (
            "batches",
            f"{len(figures.batch_seconds)}, the slowest {1000 * max(figures.batch_seconds):.0f} ms; "
            f"{figures.batches_retried} were put again, beyond the client's own retries",
        ),
        (
            "keys put again",
            f"{figures.keys_unknown:,} with unknown outcome, {figures.keys_failed:,} certainly not applied",
        ),
        ("node away", f"{figures.down_seconds:.1f} s, {figures.acked_while_down:,} records acknowledged meanwhile"),
        ("on disk", f"{figures.disk_bytes / 1e6:.1f} MB on three nodes, log space kept ready included"),
        (
            "read back",
            f"{figures.verified:,} equal, {figures.missing:,} missing, {figures.different:,} different; "
            f"{figures.verify_seconds:.1f} s",
        ),
        ("siblings of one value", f"{figures.siblings:,}"),
    ]
    for line in ["", *view.lines(), "", *table(["", ""], rows)[1:], ""]:
        console.line(line)
    verdict = f"nothing acknowledged was lost: {figures.verified:,} of {figures.records:,} records came back equal"
    console.line(verdict if whole else f"LOST: {figures.lost:,} of {figures.records:,} acknowledged records")


def _keep(cluster: LocalCluster, console: Console) -> None:
    console.say(f"the nodes keep running until Ctrl-C; try: zkv get 'LATIN CAPITAL LETTER A' --url {cluster.url}")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.say("stopping the nodes")
