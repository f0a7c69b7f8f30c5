"""The bytes of gossip never change within a version: decode the page's examples, rebuild them, compare."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from tests.formats import gossip_examples as examples
from tests.formats.test_wire_format import PAGE
from zkv.codec import gossip
from zkv.core.membership import messages as m

EXAMPLE = re.compile(r"^#### `(\w+)`\n+```\n([0-9a-f\s]+)```", re.MULTILINE)


def page_examples() -> dict[str, bytes]:
    return {name: bytes.fromhex(re.sub(r"\s", "", text)) for name, text in EXAMPLE.findall(PAGE.read_text())}


def test_page_shows_an_example_of_every_kind_of_gossip() -> None:
    shown = page_examples()
    assert set(shown) == {*examples.messages(), "members"}
    assert {type(message) for message in examples.messages().values()} == set(get_args(m.Message))
    assert {gossip.HEADER.unpack_from(shown[name])[2] for name in examples.messages()} == set(m.Kind)


@pytest.mark.parametrize("name", sorted(examples.messages()))
def test_gossip_example_decodes_to_the_message_and_the_message_to_the_example(name: str) -> None:
    frame = page_examples()[name]
    assert gossip.encode(examples.messages()[name]) == frame
    assert gossip.decode(frame) == examples.messages()[name]


def test_list_of_members_decodes_to_the_members_and_the_members_to_the_list() -> None:
    data = page_examples()["members"]
    assert gossip.encode_members(examples.MEMBERS) == data
    assert gossip.decode_members(data) == examples.MEMBERS
