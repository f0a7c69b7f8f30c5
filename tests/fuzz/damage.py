"""Valid bytes made invalid: bits flipped, cut, spliced, doubled; and trees with one thing in them replaced by another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

Parts = list[bytes]

JUNK: list[Any] = [
    *(None, True, 0, 1, -1, 255, 65_536, 2**32, 2**63, 2**64 - 1, -(2**63), 1.5, float("inf")),
    *("", "a", "\x00", "one", b"", b"a", b"a" * 12, b"a" * 16, [], [[]], [None], {}, {"a": 1}, [1] * 20),
]


@st.composite
def damaged_bytes(draw: st.DrawFn, valid: st.SearchStrategy[Parts]) -> Parts:
    parts = [bytearray(part) for part in draw(valid)]
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(parts))
        at = draw(st.integers(0, len(part)))
        to = draw(st.integers(at, min(len(part), at + 16)))
        match draw(st.sampled_from(("flip", "set", "cut", "splice", "double", "remove", "part", "no part"))):
            case "flip" if at < len(part):
                part[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(part):
                part[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xDD, 0xDF, 0xFF)))
            case "cut":
                del part[at:]
            case "splice":
                part[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "double":
                part[at:at] = part[at:to]
            case "remove":
                del part[at:to]
            case "part":
                parts.insert(draw(st.integers(0, len(parts))), bytearray(draw(st.binary(max_size=8))))
            case "no part" if len(parts) > 1:
                parts.remove(part)
    return [bytes(part) for part in parts]


@st.composite
def damaged_trees(
    draw: st.DrawFn,
    valid: st.SearchStrategy[Parts],
    index: int,
    loads: Callable[[bytes], Any],
    dumps: Callable[[Any], bytes],
) -> Parts:
    """Part `index` holds a tree: well-formed after it, with one or two wrong things in it."""
    parts = list(draw(valid))
    tree = loads(parts[index])
    for _ in range(draw(st.integers(1, 2))):
        tree = _with_junk(draw, tree)
    try:
        parts[index] = dumps(tree)
    except ValueError:
        reject()  # this format has no bytes for that junk, so nobody can send it
    return parts


def _with_junk(draw: st.DrawFn, tree: Any) -> Any:
    """Walks down to some place; replaces, removes, doubles or adds there."""
    places = list(range(len(tree))) if isinstance(tree, list) else list(tree) if isinstance(tree, dict) else []
    if not places or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(JUNK))
    place = draw(st.sampled_from(places))
    made = tree.copy()
    match draw(st.sampled_from(("down", "down", "down", "remove", "double", "name"))):
        case "remove":
            del made[place]
        case "double" if isinstance(made, list):
            made.insert(place, made[place])
        case "name" if isinstance(made, dict):
            made["unknown"] = made.pop(place)
        case _:
            made[place] = _with_junk(draw, made[place])
    return made
