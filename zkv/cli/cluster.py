"""Commands about the cluster: status, health, ring, explain, version.

Owns: how a cluster looks to a person and to a program. Must not know: how the answers come about.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from zkv.cli.console import EXIT_OK, EXIT_UNHEALTHY, Console, key_bytes, open_client, text_or_base64
from zkv.cli.ring_view import RingView, table

#: what one screen has room for; --json and /metrics have all
_FIGURES: Final = (
    ("requests", ("zkv_requests_total",)),
    ("refused", ("zkv_shed_total",)),
    ("without quorum", ("zkv_quorum_failures_total",)),
    ("read repairs", ("zkv_read_repairs_total",)),
    ("keys", ("zkv_keys",)),
    ("log bytes", ("zkv_wal_bytes_total",)),
    ("bad messages", ("zkv_messages_refused_total",)),
)


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    status = commands.add_parser("status", parents=[common], help="the cluster at a glance, as the asked node sees it")
    status.set_defaults(run=_status)
    health = commands.add_parser("health", parents=[common], help="whether a node serves; exit 8 if it does not")
    health.set_defaults(run=_health)
    ring = commands.add_parser("ring", parents=[common], help="who owns which part of the ring")
    ring.set_defaults(run=_ring)
    explain = commands.add_parser(
        "explain", parents=[common], help="where a key lives and what each replica holds of it"
    )
    explain.set_defaults(run=_explain)
    explain.add_argument("key", metavar="KEY", type=key_bytes)
    explain.add_argument("--bucket", metavar="NAME")
    version = commands.add_parser("version", parents=[common], help="versions of zkv and of what it stands on")
    version.set_defaults(run=_version)


def _status(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        document = kv.admin.status().document
    console.document(**document)
    for line in status_lines(document):
        console.line(line)
    return EXIT_OK


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """One screen, the verdict first."""
    columns = ("name", "state", "address", "dc", "rack", "host", "weight")
    rows = [[cell(node.get(name)) for name in columns] for node in status["nodes"]]
    head = f"cluster {status['cluster'] or '(forming)'}, epoch {status['epoch']}, as {status['node']} sees it"
    counters = status.get("counters", {})
    figures = [f"{text} {_figure(counters, names)}" for text, names in _FIGURES if names[0] in counters]
    lines = [status["verdict"], head, "", *table([name.upper() for name in columns], rows)]
    return [*lines, "", ", ".join(figures)] if figures else lines


def _figure(counters: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The counts of these names added up, over all of their labels."""
    values = [counters.get(name, 0) for name in names]
    return cell(sum(sum(value.values()) if isinstance(value, dict) else value for value in values))


def _health(args: argparse.Namespace, console: Console) -> int:
    """The verdict of /readyz, asked over the client port."""
    with open_client(args) as kv:
        document = kv.admin.status().document
    reasons = document["not_ready"]
    console.document(node=document["node"], ready=document["ready"], reasons=reasons, verdict=document["verdict"])
    console.line(
        f"{document['node']}: " + ("not ready: " + "; ".join(reasons) if reasons else "ready; " + document["verdict"])
    )
    return EXIT_UNHEALTHY if reasons else EXIT_OK


def _ring(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        ring = kv.admin.ring()
    view = RingView(ring.document["nodes"], ring.owners, colored=console.colored)
    console.document(**ring.document, shares=view.shares())
    for line in view.lines():
        console.line(line)
    return EXIT_OK


def _explain(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        document = kv.admin.explain(args.key)
    console.document(**text_or_base64("key", args.key), **document)
    for line in explain_lines(document):
        console.line(line)
    return EXIT_OK


def explain_lines(answer: Mapping[str, Any]) -> list[str]:
    """Where the key lives, then what each replica holds of it."""
    states = {node["name"]: node["state"] for node in answer["preference"]}
    rows = []
    for name, holds in answer["replicas"].items():
        siblings = ", ".join(
            f"{sibling['bytes']} bytes as event {sibling['counter']} of {sibling['actor'][:8]}"
            for sibling in holds.get("siblings", ())
        )
        rows.append([name, states[name], cell(holds.get("held", holds.get("refused"))), siblings])
    lines = [
        f"bucket {answer['bucket']}, position {answer['position']}, partition {answer['partition']}, "
        f"row version {answer['row_version']}",
        f"reads ask for {answer['r']}, writes for {answer['w']}; {answer['reachable']} of {len(rows)} in reach",
        "",
        *table(["REPLICA", "STATE", "HOLDS", "SIBLINGS"], rows),
    ]
    return [*lines, "", f"owed to replicas that were away: {answer['hints']}"] if answer.get("hints") else lines


def _version(args: argparse.Namespace, console: Console) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import zkv

    versions = {"zkv": zkv.__version__}
    for package in ("pyzmq", "msgpack", "cbor2", "xxhash", "sortedcontainers", "rich"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    versions["python"] = platform.python_version()
    console.document(**versions)
    for name, number in versions.items():
        console.line(f"{name} {number}")
    return EXIT_OK


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
