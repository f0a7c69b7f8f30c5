"""`zkv import` and `zkv export`: records in and out of a cluster as lines.

Owns: bulk loading with progress, counts of what was refused and why, going on after an interruption. Must not know:
the two line formats
(lines), retries (batches), the journal's file (journal).

Import is idempotent: a record is put under its key, and putting it twice leaves one value. Order is kept per key: a
key that is in flight is never
put again before that settled, and the last line of a key wins. Export is unordered.
"""

from __future__ import annotations

import argparse
import io
import os
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from zkv.cli.batches import BatchOutcome, BatchWriter, put_until_acknowledged
from zkv.cli.console import (
    EXIT_CONFLICT,
    EXIT_FAILED,
    EXIT_OK,
    Console,
    binary_in,
    binary_out,
    count,
    open_client,
    seconds,
)
from zkv.cli.journal import Journal, Position, head_of
from zkv.cli.lines import FORMATS, Entry, LineReader, LineWriter, Refusal
from zkv.cli.progress import Progress
from zkv.core.messages import BATCH_VALUES_BYTES_MAX
from zkv.errors import ZkvError

BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 1024 * 1024
IN_FLIGHT: Final = 3
PATIENCE_S: Final = 30.0
_REFUSALS_SHOWN: Final = 10
_JOURNAL_EVERY_S: Final = 0.5


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    load = commands.add_parser(
        "import",
        parents=[common],
        help="load JSON lines or CSV",
        description='Load JSON lines {"key": .., "value": ..} (key_b64 and value_b64 for bytes, expires_at in Unix '
        "seconds) or CSV with these names as columns. Loading the same input twice changes nothing.",
    )
    load.set_defaults(run=_import)
    load.add_argument("file", metavar="FILE", help="- is stdin")
    load.add_argument("--format", choices=FORMATS, help="default: csv if FILE ends in .csv, else jsonl")
    load.add_argument("--bucket", metavar="NAME")
    load.add_argument("--resume", metavar="JOURNAL", type=Path, help="keep the offset in this file and go on from it")
    load.add_argument(
        "--batch", type=count, default=BATCH_RECORDS, metavar="N", help=f"records a batch, default {BATCH_RECORDS}"
    )
    load.add_argument(
        "--patience", type=seconds, default=PATIENCE_S, metavar="S", help="how long to retry one batch, default 30"
    )
    dump = commands.add_parser("export", parents=[common], help="write all records as JSON lines or CSV, unordered")
    dump.set_defaults(run=_export)
    dump.add_argument("--output", metavar="FILE", default="-", help="default: stdout")
    dump.add_argument("--format", choices=FORMATS, help="default: csv if --output ends in .csv, else jsonl")
    dump.add_argument("--bucket", metavar="NAME")


def _import(args: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()
    with ExitStack() as stack:
        stream = binary_in() if args.file == "-" else stack.enter_context(open(args.file, "rb"))
        journal = Journal(args.resume, head_of(stream))
        done = journal.position
        if done.offset:
            console.say(f"going on after line {done.line:,} (byte {done.offset:,}) as {args.resume} says")
        kv = stack.enter_context(open_client(args))
        kv.ping()  # patience is for a cluster that was there once
        importer = Importer(kv, journal, batch_records=args.batch, patience_s=args.patience)
        progress = stack.enter_context(Progress("import", _bytes_total(stream), "bytes"))
        try:
            position = importer.run(
                LineReader(stream, _style(args.format, args.file), offset=done.offset, line=done.line), progress
            )
        except Refusal as refusal:
            console.say(f"zkv: {args.file}: {refusal}")
            return EXIT_FAILED
        except ZkvError:
            done = journal.position
            console.say(
                f"zkv: stopped after line {done.line:,}; {done.stored:,} records are in; importing again is safe"
            )
            raise
    return _report_import(importer, position, time.monotonic() - started, console)


def _export(args: argparse.Namespace, console: Console) -> int:
    """Conflicts are written as lines with all siblings, which import refuses until somebody has chosen: exit 9 says
    that there are some.
    """
    written = conflicts = 0
    with ExitStack() as stack:
        kv = stack.enter_context(open_client(args))
        if args.output == "-":
            binary: BinaryIO = binary_out()
        else:
            binary = stack.enter_context(open(args.output, "wb"))
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        stack.callback(_let_go, text)
        progress = stack.enter_context(Progress("export", None, "records"))
        writer = LineWriter(text, _style(args.format, args.output))
        for key, item in kv.export(as_bytes=True):
            if len(item.values) == 1:
                writer.write(Entry(key, item.value, item.expires_at))
            else:
                writer.write_siblings(key, item.values)
                conflicts += 1
            written += 1
            if written % 500 == 0:
                progress.update(written)
        text.flush()
    console.say(f"{written:,} records written" + (f", {conflicts:,} of them conflicts" if conflicts else ""))
    return EXIT_CONFLICT if conflicts else EXIT_OK


def _let_go(text: io.TextIOWrapper) -> None:
    """Write what is left, and leave the stream below open for its owner."""
    text.flush()
    text.detach()


class Importer:
    """Reads in one thread, writes batches in a few others, settles them in the order of the input."""

    def __init__(
        self, kv: BatchWriter, journal: Journal, *, batch_records: int = BATCH_RECORDS, patience_s: float = PATIENCE_S
    ) -> None:
        self.reasons: Counter[str] = Counter()
        self.unknown = 0
        self.retries = 0
        self._kv = kv
        self._journal = journal
        self._batch_records = batch_records
        self._patience_s = patience_s
        self._position = journal.position
        self._saved_at = time.monotonic()
        self._stop = threading.Event()
        self._shown = 0

    def run(self, reader: LineReader, progress: Progress) -> Position:
        """Import all that the reader has. Raises ZkvError when a batch cannot be acknowledged; what came before it is
        in and journalled.
        """
        flying: deque[tuple[_Batch, Future[BatchOutcome]]] = deque()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="import") as pool:
            try:
                for batch in self._batches(reader):
                    while flying and (len(flying) >= IN_FLIGHT or any(batch.overlaps(other) for other, _ in flying)):
                        self._settle(*flying.popleft(), progress)
                    flying.append((batch, pool.submit(self._store, batch)))
                while flying:
                    self._settle(*flying.popleft(), progress)
            finally:
                self._stop.set()
                self._journal.save(self._position)
        return self._position

    def _batches(self, reader: LineReader) -> Iterator[_Batch]:
        batch = _Batch()
        for number, entry in reader:
            if isinstance(entry, Refusal):
                batch.refuse(number, entry)
            elif entry.expires_at is not None and entry.expires_at <= time.time():
                batch.refuse(number, Refusal("already expired"))
            elif len(entry.value) > BATCH_VALUES_BYTES_MAX:
                batch.refuse(number, Refusal("TooLarge", f"{len(entry.value):,} bytes fit in no bucket"))
            else:
                batch.add(number, entry)
            batch.ends(reader)
            if batch.lines >= self._batch_records or batch.value_bytes >= BATCH_BYTES:
                yield batch
                batch = _Batch()
        if batch.lines:
            yield batch

    def _store(self, batch: _Batch) -> BatchOutcome:
        """In a pool thread: one call for each expiry in the batch, mostly one."""
        total = BatchOutcome()
        for expires_at, items in batch.by_expiry().items():
            ttl = None if expires_at is None else max(0.001, expires_at - time.time())
            outcome = put_until_acknowledged(self._kv, items, patience_s=self._patience_s, ttl=ttl, stop=self._stop)
            total.refused.update(outcome.refused)
            total.tries += outcome.tries - 1
            total.unknown += outcome.unknown
        return total

    def _settle(self, batch: _Batch, future: Future[BatchOutcome], progress: Progress) -> None:
        outcome = future.result()
        refusals = list(batch.refusals)
        refusals += [(batch.entries[key][0], Refusal(error.code, str(error))) for key, error in outcome.refused.items()]
        for number, refusal in sorted(refusals, key=lambda pair: pair[0]):
            self._tell(number, refusal, progress)
        self.unknown += outcome.unknown
        self.retries += outcome.tries
        done = self._position
        self._position = Position(
            batch.end_offset, batch.end_line, done.stored + batch.lines - len(refusals), done.refused + len(refusals)
        )
        progress.update(batch.end_offset, f"{self._position.stored:,} records")
        if time.monotonic() - self._saved_at >= _JOURNAL_EVERY_S:
            self._journal.save(self._position)
            self._saved_at = time.monotonic()

    def _tell(self, number: int, refusal: Refusal, progress: Progress) -> None:
        self.reasons[refusal.reason] += 1
        self._shown += 1
        if self._shown <= _REFUSALS_SHOWN:
            progress.say(f"line {number} refused: {refusal}")
        elif self._shown == _REFUSALS_SHOWN + 1:
            progress.say("more lines are refused; they are counted at the end")


class _Batch:
    """Lines that are settled together: the last entry of each key, and the lines that are refused."""

    __slots__ = ("end_line", "end_offset", "entries", "lines", "refusals", "value_bytes")

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[int, Entry]] = {}
        self.refusals: list[tuple[int, Refusal]] = []
        self.lines = 0
        self.value_bytes = 0
        self.end_offset = 0
        self.end_line = 0

    def add(self, number: int, entry: Entry) -> None:
        self.entries[entry.key] = (number, entry)
        self.lines += 1
        self.value_bytes += len(entry.value)

    def refuse(self, number: int, refusal: Refusal) -> None:
        self.refusals.append((number, refusal))
        self.lines += 1

    def ends(self, reader: LineReader) -> None:
        self.end_offset, self.end_line = reader.offset, reader.line

    def overlaps(self, other: _Batch) -> bool:
        return not self.entries.keys().isdisjoint(other.entries.keys())

    def by_expiry(self) -> dict[float | None, dict[bytes, bytes]]:
        groups: dict[float | None, dict[bytes, bytes]] = {}
        for _, entry in self.entries.values():
            groups.setdefault(entry.expires_at, {})[entry.key] = entry.value
        return groups


def _style(given: str | None, name: str) -> str:
    return given or ("csv" if name.endswith(".csv") else "jsonl")


def _bytes_total(stream: BinaryIO) -> int | None:
    """The size of a regular file; None for pipes."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _report_import(importer: Importer, position: Position, seconds_taken: float, console: Console) -> int:
    reasons = dict(importer.reasons.most_common())
    console.document(
        stored=position.stored,
        refused=position.refused,
        reasons=reasons,
        retries=importer.retries,
        unknown_retried=importer.unknown,
        lines=position.line,
        seconds=round(seconds_taken, 3),
    )
    console.say(
        f"{position.stored:,} records stored, {position.refused:,} refused, in {seconds_taken:.1f} s"
        + (f"; {importer.retries} batches were tried again until acknowledged" if importer.retries else "")
    )
    for reason, times in reasons.items():
        console.say(f"  refused {times:,} x {reason}")
    return EXIT_FAILED if position.refused else EXIT_OK
