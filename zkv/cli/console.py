"""What all commands share: where output goes, how a client is opened, how an error becomes an exit code.

Owns: `Console`, the shape of JSON output (`"schema": 1`), exit codes.
Must not know: any one command.

Results go to stdout, narration to stderr. With --json exactly one document goes to stdout, also for an error.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from zkv.errors import BatchError, Conflict, Unsupported, ZkvError

if TYPE_CHECKING:
    from zkv.client import Client

SCHEMA: Final = 1
DEFAULT_URL: Final = "zkv://127.0.0.1:7400"
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_UNHEALTHY: Final = 8
EXIT_CONFLICT: Final = 9
EXIT_INTERRUPTED: Final = 130


class Console:
    """Where one run of the command writes."""

    __slots__ = ("json",)

    def __init__(self, as_json: bool = False) -> None:
        self.json = as_json

    @property
    def colored(self) -> bool:
        """Color only for a person: a terminal, and no wish against it (https://no-color.org)."""
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str) -> None:
        """Narration."""
        print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """A result for people; nothing with --json."""
        if not self.json:
            print(text)

    def document(self, **fields: Any) -> None:
        """The one result for programs; nothing without --json."""
        if self.json:
            print(json.dumps({"schema": SCHEMA, **fields}, ensure_ascii=False, default=_plain))

    def raw(self, value: bytes) -> None:
        out = binary_out()
        out.write(value)
        out.flush()

    def error(self, error: ZkvError) -> None:
        self.say(f"zkv: {error}")
        fields: dict[str, Any] = {
            "code": error.code,
            "message": str(error),
            "definite": error.definite,
            "retryable": error.retryable,
        }
        if isinstance(error, Conflict):
            fields["context"] = base64.b64encode(bytes(error.context)).decode("ascii")
            fields["siblings"] = [text_or_base64("value", value) for value in error.values]
        self.document(error=fields)


def exit_code_of(error: ZkvError) -> int:
    return error.exit_status if isinstance(error, BatchError) else error.exit_code


def open_client(args: argparse.Namespace) -> Client:
    """The client of --url, $ZKV_URL or the default, with --bucket and --timeout on top."""
    import zkv

    options: dict[str, Any] = {}
    if getattr(args, "bucket", None) is not None:
        options["bucket"] = args.bucket
    if getattr(args, "timeout", None) is not None:
        options["timeout"] = args.timeout
    return zkv.connect(getattr(args, "url", None) or os.environ.get("ZKV_URL") or DEFAULT_URL, **options)


def key_bytes(text: str) -> bytes:
    """A key as typed. Bytes that are no UTF-8 come from the shell as surrogates and go back to what they were."""
    return os.fsencode(text)


def text_or_base64(name: str, value: bytes) -> dict[str, str]:
    """`{name: text}` if the bytes are UTF-8, else `{name_b64: ...}`."""
    try:
        return {name: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_b64": base64.b64encode(value).decode("ascii")}


# --- types for argparse ---


def level(text: str) -> int | str:
    """A consistency level: a count, or a name."""
    names = ("one", "quorum", "all", "local_quorum", "each_quorum")
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text in names:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no level: use a number from 1, or {', '.join(names)}")


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return value


def context(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise argparse.ArgumentTypeError("a context is the base64 text that `zkv get --json` prints") from None


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def refuse(sentence: str) -> Unsupported:
    return Unsupported(sentence)


def _plain(value: object) -> object:
    """Sets and bytes inside documents of the admin calls."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, set | frozenset | tuple):
        return sorted(value, key=str)
    raise TypeError(f"{type(value).__name__} in a JSON document")


def binary_in() -> BinaryIO:
    """Standard input as bytes. Raises: ZkvError when whoever started us closed it."""
    if sys.stdin is None:
        raise ZkvError("standard input is closed; give a file instead of -")
    return sys.stdin.buffer


def binary_out() -> BinaryIO:
    """Standard output as bytes. Raises: ZkvError when whoever started us closed it."""
    if sys.stdout is None:
        raise ZkvError("standard output is closed; there is nowhere to write to")
    return sys.stdout.buffer
