"""The bytes of every message never change within a version: decode the page's examples, rebuild them, compare."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from tests.formats import examples
from zkv.codec import wire
from zkv.core import messages as m

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
EXAMPLE = re.compile(r"^### `(\w+)`\n+```\n([0-9a-f\s|]+)```", re.MULTILINE)


def page_examples() -> dict[str, list[bytes]]:
    """name -> frames, from the hex of docs/wire.md; `|` stands between two frames."""
    found = {}
    for name, text in EXAMPLE.findall(PAGE.read_text()):
        found[name] = [bytes.fromhex(re.sub(r"\s", "", frame)) for frame in text.split("|")]
    return found


def test_page_shows_an_example_of_every_kind() -> None:
    shown = page_examples()
    assert set(shown) == set(examples.messages())
    kinds = {wire.decode_header(frames).kind for frames in shown.values()}
    assert kinds == set(m.Kind)
    assert {type(message) for message in examples.messages().values()} == set(get_args(m.Message))


@pytest.mark.parametrize("name", sorted(examples.messages()))
def test_example_decodes_to_the_message_and_the_message_to_the_example(name: str) -> None:
    frames = page_examples()[name]
    message = examples.messages()[name]
    assert wire.encode(message, cluster=examples.CLUSTER) == frames
    decoded = wire.decode(frames)
    assert wire.encode(decoded, cluster=examples.CLUSTER) == frames
    assert type(decoded) is type(message)
    if not hasattr(message, "block"):  # blocks hold sets, which are compared by bytes above
        assert decoded == message
