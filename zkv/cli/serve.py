"""`zkv serve`: one node in the foreground.

Owns: the flags of a node, the checks that come before anything is created, logging. Must not know: what the node does
once it runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from zkv.cli.console import EXIT_OK, Console, refuse
from zkv.config import FSYNC_MODES, LOG_FORMATS, LOG_LEVELS, NodeSettings, load
from zkv.errors import ConfigError

_SEED = (
    "serve --seed: nodes cannot join a running cluster yet; start every node of a new cluster with the same "
    "--initial NAME@HOST:PORT,... and --cluster-name NAME"
)


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "serve",
        parents=[common],
        help="run a node",
        description="Run a node until SIGTERM or Ctrl-C. Alone it is a cluster of one, with its data in ./zkv-data.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--name", metavar="NAME", help="default: hostname, plus the port if not 7400")
    parser.add_argument("--data", metavar="DIR", help="default: ./zkv-data")
    parser.add_argument("--listen", metavar="HOST:PORT", help="clients; default: 127.0.0.1:7400")
    parser.add_argument("--peer-listen", metavar="HOST:PORT", help="other nodes; default: PORT+1")
    parser.add_argument("--gossip-listen", metavar="HOST:PORT", help="heartbeats; default: PORT+2")
    parser.add_argument("--advertise", metavar="HOST:PORT", help="what others dial; default: --listen")
    parser.add_argument("--initial", metavar="LIST", help="NAME@HOST:PORT,... of all first nodes, the same on each")
    parser.add_argument("--cluster-name", metavar="NAME", help="goes with --initial")
    parser.add_argument("--dc", metavar="NAME", help="data center of this node")
    parser.add_argument("--rack", metavar="NAME", help="rack of this node")
    parser.add_argument("--host", metavar="NAME", help="machine of this node; replicas never share one")
    parser.add_argument("--weight", metavar="X", help="share of the data, 1 is usual")
    parser.add_argument("--fsync", choices=FSYNC_MODES, help="group: before each acknowledgement (default)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML; the data directory must exist then")
    parser.add_argument(
        "--insecure-network", action="store_true", default=None, help="allow open links, test networks only"
    )
    parser.add_argument("--http", metavar="HOST:PORT", help="health and metrics; default: 127.0.0.1:PORT+3; or: off")
    parser.add_argument(
        "--http-token-file", metavar="FILE", type=Path, help="bearer token for /v1/*; a must with --http on a network"
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS)
    parser.add_argument("--log-format", choices=LOG_FORMATS, help="default: text")
    parser.add_argument("--seed", metavar="HOST:PORT", help=argparse.SUPPRESS)
    parser.add_argument("--no-join", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keys", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--stop-with-stdin", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, console: Console) -> int:
    settings = settings_of(args, os.environ)
    if args.config is not None:
        _require_data(settings.data)
    from zkv import logs

    logs.configure(settings.log_level, settings.log_format)
    if settings.insecure_network:
        console.say("WARNING: --insecure-network: whoever reaches these ports may read and write everything")
    if args.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, name="stdin-watch", daemon=True).start()
    from zkv.node import Node

    Node(settings).run()
    return EXIT_OK


def settings_of(args: argparse.Namespace, environ: os._Environ[str] | dict[str, str]) -> NodeSettings:
    """Validated settings out of flags, environment and file."""
    if args.seed or args.no_join:
        raise refuse(_SEED)
    if args.keys:
        raise refuse(
            "serve --keys: keys and encryption do not exist yet; stay on loopback, or use --insecure-network on a "
            "test network"
        )
    names: tuple[str, ...] = (
        "name",
        "data",
        "listen",
        "peer_listen",
        "gossip_listen",
        "advertise",
        "initial",
        "cluster_name",
    )
    names += ("dc", "rack", "host", "weight", "fsync", "insecure_network")
    names += ("http", "http_token_file", "log_level", "log_format")
    settings = load({name: getattr(args, name) for name in names}, environ, args.config)
    settings.validate()
    return settings


def _require_data(data: Path) -> None:
    """A service that comes up without its disk must not begin an empty life."""
    if not data.is_dir() or not any(entry.name != "lost+found" for entry in data.iterdir()):
        raise ConfigError(
            f"{data}: missing or empty, and with --config a node never makes a data directory (an unmounted disk must "
            f"not become "
            f"a new cluster); for the very first start give the settings as flags, without --config"
        )


def _stop_with_stdin() -> None:
    """For whoever started us as a child and keeps the other end: when it is gone, so are we."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
