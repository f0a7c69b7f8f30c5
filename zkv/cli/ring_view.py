"""The ring in a terminal, and tables of plain text.

Owns: how a ring and a table look. Must not know: clients; it is given names and owners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_RADIUS: Final = 8
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: bright enough on dark and on light ground, and told apart with most kinds of colour blindness when the letter helps
_COLORS: Final = (36, 33, 35, 32, 34, 31, 96, 93, 95, 92, 94, 91)


class RingView:
    """owners[p] are the replicas of partition p, the first one first."""

    def __init__(self, names: Sequence[str], owners: Sequence[Sequence[str]], *, colored: bool) -> None:
        self._names = list(names)
        self._owners = owners
        self._colored = colored

    def circle(self) -> list[str]:
        """Clockwise from the top: at each place the letter of the first replica of the partition there."""
        width, height = 4 * _RADIUS + 1, 2 * _RADIUS + 1
        grid = [[" "] * width for _ in range(height)]
        steps = 16 * _RADIUS
        for step in range(steps):
            angle = 2 * math.pi * step / steps
            x, y = round(2 * _RADIUS * (1 + math.sin(angle))), round(_RADIUS * (1 - math.cos(angle)))
            owners = self._owners[step * len(self._owners) // steps]
            grid[y][x] = self._letter(owners[0]) if owners else "."
        self._label(grid)
        return ["".join(row).rstrip() for row in grid]

    def shares(self) -> list[dict[str, object]]:
        """For each node how many partitions it holds, and for how many it is asked first."""
        total = len(self._owners)
        rows: list[dict[str, object]] = []
        for name in self._names:
            first = sum(1 for owners in self._owners if owners and owners[0] == name)
            held = sum(1 for owners in self._owners if name in owners)
            rows.append({"name": name, "first": first, "held": held, "share": held / total if total else 0.0})
        return rows

    def lines(self) -> list[str]:
        rows = [
            [
                self._letter(str(row["name"])),
                str(row["name"]),
                f"{row['first']}",
                f"{row['held']}",
                f"{row['share']:.1%}",
            ]
            for row in self.shares()
        ]
        return [*self.circle(), "", *table(["", "NODE", "FIRST FOR", "HOLDS", "OF ALL PARTITIONS"], rows)]

    def _label(self, grid: list[list[str]]) -> None:
        text = f"{len(self._owners)} partitions"
        start = (len(grid[0]) - len(text)) // 2
        grid[_RADIUS][start : start + len(text)] = list(text)

    def _letter(self, name: str) -> str:
        number = self._names.index(name)
        letter = _LETTERS[number % len(_LETTERS)]
        return f"\x1b[{_COLORS[number % len(_COLORS)]}m{letter}\x1b[0m" if self._colored else letter


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns, two spaces apart; escape sequences take no width."""
    widths = [max(_width(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def _width(cell: str) -> int:
    visible = 0
    inside = False
    for character in cell:
        if character == "\x1b":
            inside = True
        elif inside:
            inside = character != "m"
        else:
            visible += 1
    return visible
