"""The command `zkv`: parse, run one command, turn the outcome into an exit code.

Owns: the parser, global options, exit codes of everything that can be raised. Must not know: what a command does.

Invariant: a command line imports only the module of its own command: scripts call `zkv get` in loops.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import zkv
from zkv.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Console, exit_code_of, refuse, seconds
from zkv.cli.reserved import RESERVED
from zkv.errors import ZkvError

#: which module holds a command; each has `add_parsers`
_MODULES: Final = {
    **dict.fromkeys(("put", "get", "delete", "exists", "touch", "ttl"), "data"),
    **dict.fromkeys(("import", "export"), "transfer"),
    **dict.fromkeys(("status", "health", "ring", "explain", "version"), "cluster"),
    "serve": "serve",
    "demo": "demo",
    "sim": "sim",
    "bench": "bench",
    "verify": "verify",
}
_EPILOG: Final = """\
exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unavailable (nothing applied), 5 unknown outcome,
6 cannot connect, 7 not allowed, 8 unhealthy, 9 conflict, 78 configuration, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Usage errors exit with 2 from within argparse."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words)
    args, rest = parser.parse_known_args(words)
    console = Console(as_json=getattr(args, "json", False))
    try:
        if args.command in RESERVED:
            raise refuse(f"{args.command}: {RESERVED[args.command]}")
        if rest:
            args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        code: int = args.run(args, console)
        sys.stdout.flush()
        return code
    except ZkvError as error:
        console.error(error)
        return exit_code_of(error)
    except KeyboardInterrupt:
        console.say("zkv: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has left; there is nobody to tell, and the interpreter must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        console.say(f"zkv: {error}")
        return EXIT_FAILED


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the commands that are named among the words (a value that looks like one does no harm), or of
    all.
    """
    common = argparse.ArgumentParser(add_help=False)
    shared = common.add_argument_group("everywhere")
    # SUPPRESS: an option given before the command must not be reset by the command's own default
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON document on stdout")
    shared.add_argument("--url", default=argparse.SUPPRESS, help="default: $ZKV_URL or zkv://127.0.0.1:7400")
    shared.add_argument(
        "--timeout", type=seconds, default=argparse.SUPPRESS, metavar="S", help="for each call; default 5"
    )
    parser = _Parser(
        prog="zkv",
        parents=[common],
        description="A key-value store of equal nodes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"zkv {zkv.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    named = {_MODULES[word] for word in words if word in _MODULES}
    for module in sorted(named or set(_MODULES.values())):
        importlib.import_module(f"zkv.cli.{module}").add_parsers(commands, common)
    for name, command in commands.choices.items():
        command.set_defaults(parser=command)
        assert name not in RESERVED, f"{name} exists and is reserved"
    for name in RESERVED:
        commands.add_parser(name, add_help=False)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with abbreviations off (a new option must not change what an old script means) and the hint where help
    is.
    """

    def __init__(self, *args: object, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")
