"""The line formats: what is written is read back, what is refused says why, offsets let a reader go on."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zkv.cli import lines
from zkv.cli.lines import Entry, LineReader, LineWriter, Refusal, entry_of_json

ENTRIES = st.lists(
    st.builds(
        Entry,
        st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8")),
        st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8")),
        st.none() | st.floats(1, 1e10),
    ),
    max_size=20,
)


def written(entries: list[Entry], style: str) -> bytes:
    binary = io.BytesIO()
    text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
    writer = LineWriter(text, style)
    for entry in entries:
        writer.write(entry)
    text.flush()
    return binary.getvalue()


def read(data: bytes, style: str, **position: int) -> list[Entry | Refusal]:
    return [entry for _, entry in LineReader(io.BytesIO(data), style, **position)]


def reasons(data: bytes, style: str = "jsonl") -> list[str]:
    return [entry.reason if isinstance(entry, Refusal) else "ok" for entry in read(data, style)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(ENTRIES, st.sampled_from(lines.FORMATS))
def test_read_gives_back_what_write_put_out(entries: list[Entry], style: str) -> None:
    assert read(written(entries, style), style) == entries


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(ENTRIES.filter(bool), st.sampled_from(lines.FORMATS), st.data())
def test_reader_goes_on_from_any_offset_that_it_named(entries: list[Entry], style: str, data: st.DataObject) -> None:
    text = written(entries, style)
    reader = LineReader(io.BytesIO(text), style)
    taken = data.draw(st.integers(0, len(entries)))
    first = [entry for _, entry in zip(range(taken), (entry for _, entry in reader), strict=False)]
    if taken == 0:
        return
    rest = read(text, style, offset=reader.offset, line=reader.line)
    assert first + rest == entries


def test_line_numbers_and_offsets() -> None:
    data = b'{"key":"a","value":"1"}\n\n{"key":"b","value":"2"}\nnot json\n'
    reader = LineReader(io.BytesIO(data), "jsonl")
    seen = [(number, type(entry).__name__, reader.offset) for number, entry in reader]
    assert seen == [(1, "Entry", 24), (3, "Entry", 49), (4, "Refusal", 58)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"value":"1"}', "no key"),
        (b'{"key":"a"}', "no value"),
        (b'{"key":1,"value":"1"}', "key is not text"),
        (b'{"key":"a","value":{"x":1}}', "value is not text"),
        (b'{"key":"a","value":null}', "no value"),
        (b'{"key":"a","key_b64":"YQ==","value":"1"}', "key and key_b64 at once"),
        (b'{"key":"a","value_b64":"?"}', "value_b64 is not base64"),
        (b'{"key":"a","value_b64":7}', "value_b64 is not base64"),
        (b'{"key":"","value":"1"}', "key of a wrong length"),
        (b'{"key":"' + b"k" * 1025 + b'","value":"1"}', "key of a wrong length"),
        (b'{"key":"\\ud800","value":"1"}', "key is not text"),
        (b'{"key":"a","value":"1","expires_at":"soon"}', "expires_at is not Unix seconds"),
        (b'{"key":"a","value":"1","expires_at":NaN}', "expires_at is not Unix seconds"),
        (b'{"key":"a","value":"1","expires_at":true}', "expires_at is not Unix seconds"),
        (b'{"key":"a","siblings":[{"value":"1"}]}', "a conflict"),
    ],
)
def test_refused_json_lines(line: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        entry_of_json(line)
    assert caught.value.reason == reason


def test_a_refused_line_does_not_stop_the_next() -> None:
    assert reasons(b'{\n{"key":"a","value":"1"}\n') == ["not JSON", "ok"]


def test_a_line_above_the_limit_is_refused_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 64)
    long = json.dumps({"key": "a", "value": "x" * 500}).encode() + b"\n"
    data = long + b'{"key":"b","value":"2"}\n'
    reader = LineReader(io.BytesIO(data), "jsonl")
    seen = [(number, entry.reason if isinstance(entry, Refusal) else "ok") for number, entry in reader]
    assert seen == [(1, "line too long"), (2, "ok")]
    assert reader.offset == len(data)


def test_csv_needs_a_header_of_known_names() -> None:
    for header in (b"", b"name,value\n", b"value\n"):
        with pytest.raises(Refusal, match="first line"):
            read(header + b"a,1\n", "csv")


def test_csv_rows() -> None:
    data = b'key,value\na,1\nb,"x\n""y"", z"\n\nc\nd,\n\xffe,\xfe\n'
    found = read(data, "csv")
    assert found[:2] == [Entry(b"a", b"1"), Entry(b"b", b'x\n"y", z')]
    assert isinstance(found[2], Refusal)
    assert found[2].reason == "wrong number of columns"
    assert found[3:] == [Entry(b"d", b""), Entry(b"\xffe", b"\xfe")]


def test_csv_with_an_open_quote_is_refused() -> None:
    assert reasons(b'key,value\na,"1\n', "csv") == ["not CSV"]


def test_an_input_shorter_than_its_journal() -> None:
    with pytest.raises(Refusal, match="shorter"):
        read(b'{"key":"a","value":"1"}\n', "jsonl", offset=100, line=3)


def test_siblings_are_written_for_people_and_refused_on_the_way_in() -> None:
    text = io.StringIO()
    LineWriter(text, "jsonl").write_siblings(b"a", [b"1", b"\xff"])
    assert json.loads(text.getvalue()) == {"key": "a", "siblings": [{"value": "1"}, {"value_b64": "/w=="}]}
    assert reasons(text.getvalue().encode()) == ["a conflict"]
    with pytest.raises(Refusal, match="jsonl"):
        LineWriter(io.StringIO(), "csv").write_siblings(b"a", [b"1", b"2"])


def test_csv_goes_on_after_a_line_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 64)
    assert reasons(b"key,value\na," + b"x" * 500 + b"\nb,2\n", "csv") == ["line too long", "ok"]
