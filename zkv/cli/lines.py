"""Records as lines: JSON lines and CSV, both ways, with byte offsets so that a reader can go on where it stopped.

Owns: the two text formats of import and export and the reasons for which a line is refused. Must not know: clients,
terminals, journals.

JSON lines: one object a line with `key` or `key_b64`, `value` or `value_b64`, and optionally `expires_at` (Unix
seconds).
CSV (RFC 4180): the same names as columns of a header line; bytes that are no UTF-8 pass through unchanged.
Invariant: what `write` puts out, `read` gives back byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from zkv.cli.console import text_or_base64
from zkv.ids import KEY_BYTES_MAX

FORMATS: Final = ("jsonl", "csv")
COLUMNS: Final = ("key", "value", "key_b64", "value_b64", "expires_at")
#: longer lines are refused instead of being read into memory
LINE_BYTES_MAX: Final = 16 * 1024 * 1024


class Entry:
    """One record. expires_at is Unix seconds or None."""

    __slots__ = ("expires_at", "key", "value")

    def __init__(self, key: bytes, value: bytes, expires_at: float | None = None) -> None:
        self.key = key
        self.value = value
        self.expires_at = expires_at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self._tuple() == other._tuple()

    def __hash__(self) -> int:
        return hash(self._tuple())

    def __repr__(self) -> str:
        return f"Entry{self._tuple()}"

    def _tuple(self) -> tuple[bytes, bytes, float | None]:
        return (self.key, self.value, self.expires_at)


class Refusal(Exception):
    """A line that is not imported. `reason` is one of few texts, so that refusals can be counted by it; `detail` is
    about this line.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LineReader:
    """Iterates (line number, entry or refusal) from `offset` on. `offset` and `line` always name the end of what was
    given out.
    """

    def __init__(self, stream: BinaryIO, style: str, *, offset: int = 0, line: int = 0) -> None:
        assert style in FORMATS
        self.offset = 0
        self.line = 0
        self._stream = stream
        self._columns: list[str] = []
        self._style = style
        if style == "csv":
            self._rows = csv.reader(iter(self._next_text, ""), strict=True)
            csv.field_size_limit(LINE_BYTES_MAX)
            self._columns = self._header()
        if offset:
            self._skip_to(offset)
            self.line = line

    def __iter__(self) -> Iterator[tuple[int, Entry | Refusal]]:
        return self._csv() if self._style == "csv" else self._json_lines()

    def _json_lines(self) -> Iterator[tuple[int, Entry | Refusal]]:
        while True:
            try:
                raw = self._next_line()
                if not raw:
                    return
                if not raw.isspace():
                    yield self.line, entry_of_json(raw)
            except Refusal as refusal:
                yield self.line, refusal

    def _csv(self) -> Iterator[tuple[int, Entry | Refusal]]:
        while True:
            try:
                row = next(self._rows)
                if not row:
                    continue
                if len(row) != len(self._columns):
                    raise Refusal("wrong number of columns", f"{len(row)} instead of {len(self._columns)}")
                # an empty cell is an absent one, except that a record without any value has the empty value
                fields: dict[str, object] = {name: cell for name, cell in zip(self._columns, row, strict=True) if cell}
                if "value" not in fields and "value_b64" not in fields:
                    fields["value"] = ""
                yield self.line, _entry(fields)
            except StopIteration:
                return
            except csv.Error as error:
                yield self.line, Refusal("not CSV", str(error))
            except Refusal as refusal:
                yield self.line, refusal

    def _header(self) -> list[str]:
        try:
            columns = next(self._rows, [])
        except csv.Error as error:
            raise Refusal("not CSV", str(error)) from None
        unknown = [name for name in columns if name not in COLUMNS]
        if unknown or not {"key", "key_b64"} & set(columns):
            raise Refusal(
                "the first line of a CSV file names its columns",
                f"out of {', '.join(COLUMNS)}, not {', '.join(columns)}",
            )
        return columns

    def _next_text(self) -> str:
        return self._next_line().decode("utf-8", "surrogateescape")

    def _next_line(self) -> bytes:
        """The next line, b"" at the end. A line above the limit is passed over and refused; the one after it can be
        read.
        """
        raw = self._stream.readline(LINE_BYTES_MAX)
        self.offset += len(raw)
        self.line += bool(raw)
        if len(raw) < LINE_BYTES_MAX or raw.endswith(b"\n"):
            return raw
        while rest := self._stream.readline(LINE_BYTES_MAX):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                break
        raise Refusal("line too long", f"more than {LINE_BYTES_MAX} bytes")

    def _skip_to(self, offset: int) -> None:
        while self.offset < offset:
            skipped = self._stream.read(min(1 << 20, offset - self.offset))
            if not skipped:
                raise Refusal("the input is shorter than where the journal stopped", f"{self.offset} of {offset} bytes")
            self.offset += len(skipped)


class LineWriter:
    """Writes entries to a text stream that keeps newlines as they are."""

    def __init__(self, stream: io.TextIOBase, style: str) -> None:
        assert style in FORMATS
        self._stream = stream
        self._csv = csv.DictWriter(stream, COLUMNS, lineterminator="\r\n") if style == "csv" else None
        if self._csv is not None:
            self._csv.writeheader()

    def write_siblings(self, key: bytes, values: Sequence[bytes]) -> None:
        """A key in conflict. Import refuses such a line; CSV has no form for it."""
        if self._csv is not None:
            raise Refusal("a conflict", f"{key!r} has {len(values)} siblings, which CSV cannot hold; export as jsonl")
        fields = {**text_or_base64("key", key), "siblings": [text_or_base64("value", value) for value in values]}
        self._stream.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def write(self, entry: Entry) -> None:
        fields: dict[str, object] = {**text_or_base64("key", entry.key), **text_or_base64("value", entry.value)}
        if entry.expires_at is not None:
            fields["expires_at"] = entry.expires_at
        if self._csv is None:
            self._stream.write(json.dumps(fields, ensure_ascii=False) + "\n")
        else:
            self._csv.writerow(fields)


def entry_of_json(line: bytes) -> Entry:
    """One JSON line. Raises Refusal."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refusal("not JSON", str(error)) from None
    if not isinstance(fields, dict):
        raise Refusal("not a JSON object", type(fields).__name__)
    return _entry(fields)


def _entry(fields: dict[str, object]) -> Entry:
    if "siblings" in fields:
        raise Refusal("a conflict", "choose one of the siblings and give it as value")
    key = _bytes(fields, "key")
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise Refusal("key of a wrong length", f"{len(key)} bytes; keys are 1 to {KEY_BYTES_MAX} bytes")
    return Entry(key, _bytes(fields, "value"), _expiry(fields.get("expires_at")))


def _bytes(fields: dict[str, object], name: str) -> bytes:
    text, encoded = fields.get(name), fields.get(f"{name}_b64")
    if (text is None) == (encoded is None):
        raise Refusal(f"no {name}" if text is None else f"{name} and {name}_b64 at once")
    if text is not None:
        if not isinstance(text, str):
            raise Refusal(
                f"{name} is not text", f"{type(text).__name__}; bytes go into {name}_b64, other things into a string"
            )
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise Refusal(f"{name} is not text", str(error)) from None
    if not isinstance(encoded, str):
        raise Refusal(f"{name}_b64 is not base64", type(encoded).__name__)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(f"{name}_b64 is not base64", str(error)) from None


def _expiry(value: object) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(type(value).__name__)
        seconds = float(value)
        if not 0 < seconds < 1e11:
            raise ValueError(f"{value} is not between 0 and 1e11")
    except ValueError as error:
        raise Refusal("expires_at is not Unix seconds", str(error)) from None
    return seconds
