"""A progress bar on stderr for a person, a line now and then for a log file.

Owns: how progress looks. Must not know: what makes progress. rich is imported only when stderr is a terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PLAIN_EVERY_S: Final = 5.0


class Progress:
    """Counts `unit`s up to `total` (None: unknown). Safe to use from several threads."""

    def __init__(self, title: str, total: int | None, unit: str, *, plain_every_s: float = _PLAIN_EVERY_S) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._plain_every_s = plain_every_s
        self._plain_next = time.monotonic() + plain_every_s
        self._lock = threading.Lock()
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._start_rich()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def update(self, done: int, note: str = "") -> None:
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, completed=done, note=note)
            return
        with self._lock:
            if time.monotonic() < self._plain_next:
                return
            self._plain_next = time.monotonic() + self._plain_every_s
            print(f"{self._title}: {self._amount(done)} {note}".rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Narration that must not tear the bar."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
            return
        with self._lock:
            print(text, file=sys.stderr, flush=True)

    def _amount(self, done: int) -> str:
        if not self._total:
            return f"{done:,} {self._unit}"
        return f"{done:,} of {self._total:,} {self._unit} ({100 * done / self._total:.0f} %)"

    def _start_rich(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=RichConsole(stderr=True),
        )
        self._task = self._rich.add_task(self._title, total=self._total, note="")
        self._rich.start()
