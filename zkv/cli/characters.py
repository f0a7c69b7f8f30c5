"""The demo's records: what Python's own `unicodedata` knows of each character.

Owns: one key and one JSON value per character. Must not know: where they go. Real data, found on every machine that
runs Python.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator
from typing import Final

#: not assigned, private, surrogate: nothing is known of them
_UNKNOWN: Final = frozenset({"Cn", "Co", "Cs"})


def character_records() -> Iterator[tuple[bytes, bytes]]:
    """(key, JSON document) for every assigned character; keys (its name, else U+XXXX) are all different."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category not in _UNKNOWN:
            name = unicodedata.name(character, "") or f"U+{code:04X}"
            yield name.encode("ascii"), _document(character, code, name, category)


def _document(character: str, code: int, name: str, category: str) -> bytes:
    fields = {
        "character": character,
        "code": f"U+{code:04X}",
        "name": name,
        "category": category,
        "bidirectional": unicodedata.bidirectional(character),
        "combining": unicodedata.combining(character),
        "mirrored": bool(unicodedata.mirrored(character)),
        "decomposition": unicodedata.decomposition(character),
        "numeric": unicodedata.numeric(character, None),
        "east_asian_width": unicodedata.east_asian_width(character),
        "upper": character.upper(),
        "lower": character.lower(),
        "nfkd": unicodedata.normalize("NFKD", character),
        "utf8": character.encode("utf-8").hex(" "),
        "utf16": character.encode("utf-16-be").hex(" "),
        "unicode": unicodedata.unidata_version,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
