"""`zkv verify DIR`: is a data directory whole?

Owns: the option, the report for people and for programs. Must not know: what is checked.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

from zkv.cli.console import EXIT_OK, EXIT_UNHEALTHY, Console

_DAMAGES_SHOWN: Final = 20


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="check a data directory that no node has open",
        description="Read all of a data directory and check it: manifest, log, every record, the checksum of every value. Changes nothing. "
        "Exit code 0: whole; 8: damaged; 1: could not be checked, or is open in another process; 78: no data directory.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("directory", metavar="DIR")


def run(args: argparse.Namespace, console: Console) -> int:
    from functools import partial

    from zkv.storage.files import RealFiles
    from zkv.storage.segment_check import checks_of
    from zkv.storage.verify import verify_directory

    started = time.monotonic()
    files = RealFiles()
    report = verify_directory(files, args.directory, partial(checks_of, files, args.directory))
    took = time.monotonic() - started
    for damage in report.damages[:_DAMAGES_SHOWN]:
        console.line(f"DAMAGED  {damage.file}: {damage.what}")
    damages = len(report.damages) + report.more_damages
    if damages > _DAMAGES_SHOWN:
        console.line(
            f"DAMAGED  and {damages - _DAMAGES_SHOWN:,} more" + " (--json lists them)" * (not report.more_damages)
        )
    for note in report.notes:
        console.line(f"note     {note}")
    for first, last in report.known_lost:
        console.line(f"note     records {first} to {last} were reported lost by an earlier start")
    if report.torn_bytes:
        console.line(
            f"note     {report.torn_bytes:,} bytes at the end of the log were never acknowledged as durable; the next start leaves them out"
        )
    if report.store_id:
        console.line(
            f"store    {report.store_id}, node {report.node_name or '-'}, {'closed' if report.clean_shutdown else 'not closed'}"
        )
        console.line(
            f"log      {report.log_files} files, up to record {report.last_seq:,} ({report.durable_seq:,} durable): {report.records:,} records, "
            f"{report.values:,} values, {report.value_bytes:,} bytes"
        )
        if report.segments:
            console.line(f"sealed   {report.segments} segments, {report.sealed_records:,} records")
    console.line(f"{args.directory} is whole" if report.whole else f"{args.directory} is damaged: {damages:,} findings")
    console.document(
        directory=args.directory,
        whole=report.whole,
        damages=[damage._asdict() for damage in report.damages],
        damages_not_listed=report.more_damages,
        notes=report.notes,
        known_lost=[list(seqs) for seqs in report.known_lost],
        store_id=report.store_id,
        node=report.node_name,
        clean_shutdown=report.clean_shutdown,
        log={
            "files": report.log_files,
            "last_seq": report.last_seq,
            "durable_seq": report.durable_seq,
            "torn_bytes": report.torn_bytes,
            "records": report.records,
            "values": report.values,
            "value_bytes": report.value_bytes,
        },
        sealed={"segments": report.segments, "records": report.sealed_records},
        seconds=round(took, 3),
    )
    return EXIT_OK if report.whole else EXIT_UNHEALTHY
