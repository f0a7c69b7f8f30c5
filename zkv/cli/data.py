"""Commands about one key: put, get, delete, exists, touch, ttl.

Owns: their flags and what they print. Must not know: the protocol. These run in loops of scripts, so nothing heavy is
imported here.
"""

from __future__ import annotations

import argparse
import base64
import os
from typing import TYPE_CHECKING, Any

from zkv.cli.console import (
    EXIT_CONFLICT,
    EXIT_NOT_FOUND,
    EXIT_OK,
    Console,
    binary_in,
    context,
    key_bytes,
    level,
    open_client,
    seconds,
    text_or_base64,
)

if TYPE_CHECKING:
    from zkv.client import Item, PutResult

_SHOWN_BYTES = 200


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    put = _command(commands, common, "put", _put, "store a value")
    put.add_argument("value", metavar="VALUE", help="the value, or - for all of stdin")
    put.add_argument("--w", type=level, metavar="LEVEL", help="acknowledgements to wait for")
    put.add_argument("--ttl", type=seconds, metavar="S", help="expires after so many seconds")
    put.add_argument("--context", type=context, metavar="BASE64", help="replace exactly what this context covers")
    get = _command(commands, common, "get", _get, "print a value; exit 3 if there is none, 9 if there are several")
    get.add_argument("--r", type=level, metavar="LEVEL", help="replicas that must answer")
    get.add_argument("--raw", action="store_true", help="no newline after the value")
    delete = _command(commands, common, "delete", _delete, "delete a key")
    delete.add_argument("--w", type=level, metavar="LEVEL", help="acknowledgements to wait for")
    delete.add_argument("--context", type=context, metavar="BASE64", help="delete exactly what this context covers")
    exists = _command(commands, common, "exists", _exists, "exit 0 if the key exists, 3 if not")
    exists.add_argument("--r", type=level, metavar="LEVEL", help="replicas that must answer")
    touch = _command(commands, common, "touch", _touch, "set a new time to live; exit 3 if there is no such key")
    touch.add_argument("ttl", type=seconds, metavar="SECONDS")
    _command(commands, common, "ttl", _ttl, "print the seconds left, or `never`; exit 3 if there is no such key")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    name: str,
    run: object,
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, parents=[common], help=summary, description=summary)
    parser.set_defaults(run=run)
    parser.add_argument("key", metavar="KEY", type=key_bytes)
    parser.add_argument("--bucket", metavar="NAME", help="default: the one of the URL, else `default`")
    return parser


def _put(args: argparse.Namespace, console: Console) -> int:
    value = binary_in().read() if args.value == "-" else os.fsencode(args.value)
    options: dict[str, Any] = {}
    if args.context is not None:
        options["context"] = args.context
    with open_client(args) as kv:
        result = kv.put(args.key, value, w=args.w, ttl=args.ttl, **options)
    _report_put(console, args.key, "stored", result)
    return EXIT_OK


def _delete(args: argparse.Namespace, console: Console) -> int:
    options: dict[str, Any] = {}
    if args.context is not None:
        options["context"] = args.context
    with open_client(args) as kv:
        result = kv.delete(args.key, w=args.w, **options)
    _report_put(console, args.key, "deleted", result)
    return EXIT_OK


def _get(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        item = kv.get_item(args.key, r=args.r)
    if not item.found:
        return _missing(args, console, context=_base64(item.context))
    if len(item.values) > 1:
        return _conflict(args, console, item)
    value = item.value
    console.document(
        **text_or_base64("key", args.key),
        found=True,
        **text_or_base64("value", value),
        context=_base64(item.context),
        expires_at=item.expires_at,
    )
    if not console.json:
        console.raw(value if args.raw else value + b"\n")
    return EXIT_OK


def _exists(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        found = kv.exists(args.key, r=args.r)
    console.document(**text_or_base64("key", args.key), found=found)
    console.line("true" if found else "false")
    return EXIT_OK if found else EXIT_NOT_FOUND


def _touch(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        found = kv.touch(args.key, args.ttl)
    if not found:
        return _missing(args, console)
    console.document(**text_or_base64("key", args.key), found=True, ttl=args.ttl)
    if not console.json:
        console.say(f"{_shown(args.key)} expires in {args.ttl:g} s")
    return EXIT_OK


def _ttl(args: argparse.Namespace, console: Console) -> int:
    with open_client(args) as kv:
        item = kv.get_item(args.key)
        left = kv.ttl(args.key) if item.found else None
    if not item.found:
        return _missing(args, console)
    console.document(**text_or_base64("key", args.key), found=True, ttl=left)
    console.line("never" if left is None else f"{left:.3f}")
    return EXIT_OK


def _report_put(console: Console, key: bytes, done: str, result: PutResult) -> None:
    acked = [str(name) for name in result.acked]
    console.document(
        **text_or_base64("key", key),
        outcome=done,
        acked=acked,
        durable=result.durable,
        sloppy=result.sloppy,
        context=_base64(result.context),
    )
    if not console.json:
        promise = "durable" if result.durable else "in memory or not yet synced"
        console.say(
            f"{done} {_shown(key)}: acknowledged by {', '.join(acked)} ({promise}{', sloppy' if result.sloppy else ''})"
        )


def _missing(args: argparse.Namespace, console: Console, **fields: object) -> int:
    console.document(**text_or_base64("key", args.key), found=False, **fields)
    if not console.json:
        console.say(f"zkv: {_shown(args.key)}: not found")
    return EXIT_NOT_FOUND


def _conflict(args: argparse.Namespace, console: Console, item: Item) -> int:
    """Nothing on stdout without --json: a script must not take one of several for the value."""
    token = _base64(item.context)
    console.document(
        **text_or_base64("key", args.key),
        found=True,
        conflict=True,
        siblings=[text_or_base64("value", value) for value in item.values],
        context=token,
    )
    if not console.json:
        console.say(
            f"zkv: {_shown(args.key)} has {len(item.values)} siblings, written by writers that did not see each other:"
        )
        for number, value in enumerate(item.values, start=1):
            cut = "" if len(value) <= _SHOWN_BYTES else f" ... ({len(value)} bytes)"
            console.say(f"  {number}: {value[:_SHOWN_BYTES].decode('utf-8', 'backslashreplace')}{cut}")
        console.say(f"settle it with: zkv put {_shown(args.key)} VALUE --context {token}")
    return EXIT_CONFLICT


def _base64(token: object) -> str | None:
    """A context as text: what --context takes."""
    return None if token is None else base64.b64encode(bytes(token)).decode("ascii")  # type: ignore[call-overload]


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
