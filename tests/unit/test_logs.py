"""The three formats of a log line."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from zkv import logs

LOG = logging.getLogger("zkv.test")


@pytest.fixture(autouse=True)
def _root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else `force` would close those of the test runner
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(form: str) -> str:
    stream = io.StringIO()
    logs.configure("info", form, stream)
    logs.event(LOG, logging.INFO, "recovered", "recovered 3 keys", keys=3)
    try:
        raise ValueError("broken")
    except ValueError:
        logs.event(LOG, logging.ERROR, "store_failed", "it failed", trace=True)
    logs.event(LOG, logging.DEBUG, "unseen", "below the level")
    return stream.getvalue()


def test_text_ends_with_the_event_and_its_fields() -> None:
    lines = written("text").splitlines()
    assert lines[0].endswith("INFO    zkv.test: recovered 3 keys [recovered keys=3]")
    assert "ERROR   zkv.test: it failed [store_failed]" in lines[1]
    assert lines[-1] == "ValueError: broken"


def test_json_is_one_document_a_line() -> None:
    first, second = map(json.loads, written("json").splitlines())
    assert (first["event"], first["fields"], first["level"], first["message"]) == (
        "recovered",
        {"keys": 3},
        "INFO",
        "recovered 3 keys",
    )
    assert "ValueError: broken" in second["traceback"]


def test_journal_has_a_priority_on_each_line() -> None:
    lines = written("journal").splitlines()
    assert lines[0] == "<6>zkv.test: recovered 3 keys [recovered keys=3]"
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines[1:])


def test_bytes_have_no_place_in_a_line() -> None:
    with pytest.raises(AssertionError, match="bytes"):
        logs.event(LOG, logging.INFO, "x", "x", key=b"secret")  # type: ignore[arg-type]


def test_import_zkv_imports_nothing_that_only_a_node_needs() -> None:
    heavy = ("blosc2", "numpy", "rich", "prometheus_client", "waitress", "sdnotify", "pythonjsonlogger")
    code = f"import sys, zkv; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
