"""How a node's log looks: text for people, JSON lines for programs, or lines for the journal.

Owns: the three formats, `event`, which every line goes through. Must not know: what happens.

A line is an event with a name that does not change, a sentence, and fields. Keys and values of users are in none of them: fields are
numbers and short texts of our own, never bytes.
"""

from __future__ import annotations

import logging
import sys
from typing import IO, Any, Final

from pythonjsonlogger.json import JsonFormatter

_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def event(
    log: logging.Logger, level: int, name: str, text: str, *, trace: bool = False, **fields: int | float | str
) -> None:
    """trace: with the traceback of the exception that is being handled."""
    assert not any(isinstance(value, bytes) for value in fields.values()), f"{name}: bytes in a log line"
    log.log(level, "%s", text, exc_info=trace, extra={"event": name, "fields": fields})


def configure(level: str, form: str, stream: IO[str] | None = None) -> None:
    """Everything that is logged in this process goes to `stream` (default: stderr), and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_FORMATS[form]())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record) + _tail(record)


class _Json(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
            timestamp="time",
            json_ensure_ascii=False,
        )


class _Journal(logging.Formatter):
    """One line per line of text, each with its priority in front, as journald reads a service's stderr."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record) + _tail(record)

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


_FORMATS: Final[dict[str, Any]] = {"text": _Text, "json": _Json, "journal": _Journal}


def _tail(record: logging.LogRecord) -> str:
    """` [name field=value ...]`, for lines that are events."""
    name = getattr(record, "event", None)
    if name is None:
        return ""
    fields = getattr(record, "fields", {})
    return " [" + " ".join([name, *(f"{field}={value}" for field, value in fields.items())]) + "]"
