"""The package lists of a Debian machine go in by `zkv import` and come out of `zkv export` equal, with every node killed and restarted meanwhile."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration
#: the default bucket's limit: longer stanzas are refused, counted and left out
VALUE_BYTES_MAX = 10_240


def stanzas() -> Iterator[tuple[str, str]]:
    """(package=version:arch, stanza) of every stanza that apt knows; nothing on a machine without apt or its lists."""
    if shutil.which("apt-cache") is None:
        return
    text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout.decode("utf-8", "replace")
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
        if {"Package", "Version", "Architecture"} <= fields.keys():
            yield f"{fields['Package']}={fields['Version']}:{fields['Architecture']}", stanza


def zkv_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "zkv", *arguments]


def exported(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        record = json.loads(line)
        value = record["value"] if "value" in record else base64.b64decode(record["value_b64"]).decode()
        found[record["key"]] = value
    return found


def test_package_lists_come_out_as_they_went_in_while_each_node_is_killed_in_turn(
    tmp_path: Path, stanza_count: int
) -> None:
    records = dict(list(stanzas())[:stanza_count])
    if not records:
        pytest.skip("NOT RUN: apt-cache has no package lists on this machine")
    expected = {key: stanza for key, stanza in records.items() if len(stanza.encode()) <= VALUE_BYTES_MAX}
    source = tmp_path / "stanzas.jsonl"
    source.write_text("".join(json.dumps({"key": k, "value": v}) + "\n" for k, v in records.items()))
    with LocalCluster(3) as cluster:
        killed = threading.Event()

        def kill_each_in_turn() -> None:
            for node in cluster.nodes:
                node.kill()
                node.restart()
            killed.set()

        nemesis = threading.Thread(target=kill_each_in_turn)
        load = subprocess.Popen(
            zkv_command("--json", "import", str(source), "--url", cluster.url), stdout=subprocess.PIPE, text=True
        )
        nemesis.start()
        summary, _ = load.communicate(timeout=240)
        nemesis.join(60)
        assert killed.is_set(), "every node was killed and came back"
        cluster.wait_until_healthy()
        result = json.loads(summary)
        assert result["schema"] == 1
        assert load.returncode == (0 if len(expected) == len(records) else 1), result
        done = subprocess.run(
            zkv_command("export", "--url", cluster.url), capture_output=True, text=True, check=True, timeout=240
        )
        assert exported(done.stdout) == expected
