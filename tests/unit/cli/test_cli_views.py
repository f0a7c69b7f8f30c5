"""What is drawn: the ring, tables, progress without a terminal, the demo's records."""

from __future__ import annotations

import itertools
import json

import pytest

from zkv.cli.characters import character_records
from zkv.cli.cluster import explain_lines, status_lines
from zkv.cli.progress import Progress
from zkv.cli.ring_view import RingView, table

OWNERS = [["a", "b"], ["b", "c"], ["c", "a"], ["c", "b"]]


def test_circle_goes_clockwise_from_the_top() -> None:
    rows = RingView(["a", "b", "c"], OWNERS, colored=False).circle()
    assert len(rows) == 17
    assert {"A", "B", "C"} <= set("".join(rows))
    # quarters: right top a, right bottom b, left both c
    assert rows[3].rstrip()[-1] == "A"
    assert rows[13].rstrip()[-1] == "B"
    assert rows[3].strip()[0] == rows[13].strip()[0] == "C"
    assert "4 partitions" in rows[8]


def test_shares() -> None:
    shares = RingView(["a", "b", "c"], OWNERS, colored=False).shares()
    assert [(row["name"], row["first"], row["held"], row["share"]) for row in shares] == [
        ("a", 1, 2, 0.5),
        ("b", 1, 3, 0.75),
        ("c", 2, 3, 0.75),
    ]


def test_colors_only_where_asked() -> None:
    plain = RingView(["a", "b", "c"], OWNERS, colored=False).lines()
    colored = RingView(["a", "b", "c"], OWNERS, colored=True).lines()
    assert "\x1b" not in "".join(plain)
    assert "\x1b[36mA\x1b[0m" in "".join(colored)
    assert len(plain) == len(colored)


def test_table_aligns_by_what_is_seen() -> None:
    assert table(["A", "LONG"], [["\x1b[31mx\x1b[0m", "1"], ["yyy", "2"]]) == [
        "A    LONG",
        "\x1b[31mx\x1b[0m    1",
        "yyy  2",
    ]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("load", 200, "records", plain_every_s=0.0) as progress:
        progress.update(50, "fast")
        progress.say("hello")
    with Progress("load", None, "records", plain_every_s=1000.0) as progress:
        progress.update(50)
    assert capsys.readouterr().err == "load: 50 of 200 records (25 %) fast\nhello\n"


def test_character_records_are_distinct_small_and_true() -> None:
    records = dict(itertools.islice(character_records(), 3000))
    assert len(records) == 3000
    assert max(map(len, records.values())) < 10 * 1024
    alpha = json.loads(records[b"GREEK SMALL LETTER ALPHA"])
    assert (alpha["character"], alpha["utf8"], alpha["upper"]) == ("\u03b1", "ce b1", "\u0391")
    assert b"U+000A" in records


def test_status_puts_the_verdict_first() -> None:
    node = {
        "name": "n1",
        "state": "alive",
        "address": "127.0.0.1:7400",
        "dc": "d",
        "rack": "r",
        "host": "n1",
        "weight": 1.0,
    }
    status = {
        "verdict": "healthy: all 1 nodes are alive",
        "node": "n1",
        "cluster": "local",
        "epoch": 1,
        "nodes": [node],
        "counters": {"zkv_requests_total": {"op=put,result=ok": 7, "op=get,result=ok": 2}, "zkv_keys": 5},
    }
    lines = status_lines(status)
    assert lines[0] == "healthy: all 1 nodes are alive"
    assert lines[1] == "cluster local, epoch 1, as n1 sees it"
    assert lines[4].split() == ["n1", "alive", "127.0.0.1:7400", "d", "r", "n1", "1"]
    assert lines[-1] == "requests 9, keys 5"


def test_explain_shows_each_replica() -> None:
    answer = {
        "bucket": "default",
        "position": "00ff",
        "partition": 3,
        "row_version": 1,
        "preference": [
            {"name": "n1", "state": "alive"},
            {"name": "n2", "state": "dead"},
            {"name": "n3", "state": "alive"},
        ],
        "r": "quorum",
        "w": "quorum",
        "reachable": 2,
        "hints": 0,
        "replicas": {
            "n1": {
                "held": "value",
                "siblings": [{"actor": "ab" * 12, "counter": 2, "bytes": 5, "stamp": 1}],
                "past": {},
            },
            "n2": {"held": "no answer"},
            "n3": {"refused": "unsynced"},
        },
    }
    lines = explain_lines(answer)
    assert "partition 3" in lines[0]
    assert "2 of 3 in reach" in lines[1]
    assert lines[4] == "n1       alive  value      5 bytes as event 2 of abababab"
    assert lines[5] == "n2       dead   no answer"
    assert lines[6] == "n3       alive  unsynced"
