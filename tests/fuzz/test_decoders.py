"""Every decoder, told by a table: what was written is read back; whatever else comes is refused with the documented error, at a bounded cost,
or is something that can be written again.

The usual run takes half a minute and is always the same; `--fuzz-scale 20` is the long one, and draws anew.
"""

from __future__ import annotations

import ast
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zkv
from tests.fuzz.damage import Parts, damaged_bytes, damaged_trees
from tests.fuzz.table import DECODERS, Decoder
from zkv.core.messages import Kind

#: for inputs of a few hundred bytes; what large ones cost is tested in tests/unit/codec/test_packed
PEAK_BYTES_MAX = 4 * 1024 * 1024
_ROUND_TRIPS = 25
_DAMAGED = 60

#: readers that are not in the table, and why
ELSEWHERE = {
    "zkv.core.client_calls.Call.errors_from": "takes messages, not bytes",
    "zkv.storage.manifest.load_manifest": "which of two files; the bytes are decode_manifest's. tests/unit/storage/test_manifest",
    "zkv.storage.record_table.RecordTable.load": "takes blocks, not bytes",
    "zkv.storage.segment_jobs.SealJob.from_tree": "comes through a pipe from this very process",
    "zkv.storage.segment_jobs.MergeJob.from_tree": "the same",
    "zkv.storage.segment_jobs.MergeResult.from_tree": "comes through a pipe from a child of this process",
    "zkv.testing.sim.plan.Plan.from_json": "reads the corpus of this repository alone",
}
_READER = re.compile(r"(^|_)(decode|parse|loads?|unpack|from|of_json|read_batches|scan_file)(_|$)")


def run(test: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int, scale: float) -> None:
    rules = settings(
        max_examples=max(1, int(examples * scale)),
        deadline=2_000,
        database=None,
        derandomize=scale == 1,  # a gate says the same of the same change; the long run goes where nobody has been
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    rules(given(strategy)(test))()


def image(decoder: Decoder, thing: Any) -> Any:
    return decoder.encode(thing) if decoder.image is None else decoder.image(thing)


@pytest.mark.parametrize("name", DECODERS)
def test_what_was_written_is_read_back(name: str, fuzz_scale: float) -> None:
    decoder = DECODERS[name]

    def holds(thing: Any) -> None:
        assert image(decoder, decoder.decode(decoder.encode(thing))) == image(decoder, thing)

    run(holds, decoder.objects, _ROUND_TRIPS, fuzz_scale)


@pytest.mark.parametrize("name", DECODERS)
def test_anything_else_is_refused_or_can_be_written_again(name: str, fuzz_scale: float) -> None:
    decoder = DECODERS[name]
    strategy: st.SearchStrategy[Parts] = damaged_bytes(decoder.valid) | st.lists(
        st.binary(max_size=200), min_size=1, max_size=3
    )
    if decoder.tree is not None:
        strategy = damaged_trees(decoder.valid, *decoder.tree) | strategy

    def holds(parts: Parts) -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            thing = decoder.decode(parts)
        except decoder.refuses:
            return
        finally:
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < PEAK_BYTES_MAX
        written = image(decoder, thing)
        if decoder.image is None:
            assert image(decoder, decoder.decode(written)) == written

    tracemalloc.start()
    try:
        run(holds, strategy, _DAMAGED, fuzz_scale)
    finally:
        tracemalloc.stop()


def test_every_reader_is_in_the_table() -> None:
    """By name: whatever is public and decodes, parses, loads, unpacks or makes something from bytes."""
    covered = {name for decoder in DECODERS.values() for name in decoder.covers}
    package = Path(zkv.__file__).parent
    found = set()
    for path in package.glob("**/*.py"):
        module = ".".join(("zkv", *path.relative_to(package).with_suffix("").parts))
        for name in _functions(ast.parse(path.read_text(encoding="utf-8"))):
            function = name.rpartition(".")[2]
            if _READER.search(function) and not function.startswith("_"):
                found.add(f"{module}.{name}")
    assert found - covered - set(ELSEWHERE) == set(), "give each a line in tests/fuzz/table"
    assert set(ELSEWHERE) - found == set(), "these are gone"
    assert {f"Kind.{kind.name}" for kind in Kind} <= covered


def _functions(tree: ast.Module) -> list[str]:
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    for outer in tree.body:
        if isinstance(outer, ast.ClassDef):
            found += [f"{outer.name}.{inner.name}" for inner in outer.body if isinstance(inner, ast.FunctionDef)]
    return found
