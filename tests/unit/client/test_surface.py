"""The two clients are one surface: the same names, parameters, defaults and promises, one of them awaited."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import zkv
from zkv.client.admin import Admin, AsyncAdmin
from zkv.client.aio_bucket import AsyncBucket
from zkv.client.bucket import Bucket

PAIRS: list[tuple[type, type]] = [(zkv.Client, zkv.AsyncClient), (Bucket, AsyncBucket), (Admin, AsyncAdmin)]
#: what differs in more than being awaited, and why
ONLY_SYNC = {
    "mapping",  # the operators of a mapping cannot be awaited
    "__enter__",
    "__exit__",
}
ONLY_ASYNC = {"__aenter__", "__aexit__"}


def public(kind: type) -> dict[str, Any]:
    names = [name for name in dir(kind) if not name.startswith("_") or name in ONLY_SYNC | ONLY_ASYNC | {"__reduce__"}]
    return {name: inspect.getattr_static(kind, name) for name in names}


def spoken(annotation: object) -> str:
    """An annotation as the synchronous client would have it."""
    text = re.sub(r"\bAsyncIterator\b", "Iterator", str(annotation))
    return re.sub(r"\bAsync(Client|Bucket|Admin)\b", r"\1", text)


def signature(function: Callable[..., object]) -> list[tuple[str, object, object, str]]:
    described = inspect.signature(function)
    parameters = [(p.name, p.kind, p.default, spoken(p.annotation)) for p in described.parameters.values()]
    return [*parameters, ("return", None, None, spoken(described.return_annotation))]


@pytest.mark.parametrize(("sync", "twin"), PAIRS, ids=lambda kind: kind.__name__)
def test_surfaces_are_equal_but_for_await(sync: type, twin: type) -> None:
    ours, theirs = public(sync), public(twin)
    assert set(ours) - ONLY_SYNC == set(theirs) - ONLY_ASYNC
    compared = 0
    for name in sorted(set(ours) & set(theirs)):
        mine, other = ours[name], theirs[name]
        assert type(mine) is type(other), name
        if isinstance(mine, property):
            mine, other = mine.fget, other.fget
        if not inspect.isfunction(mine):
            continue
        assert signature(mine) == signature(other), name
        compared += 1
    assert compared >= 5, "the walk found what there is"


def test_what_talks_to_nodes_is_awaited_and_the_rest_is_not() -> None:
    at_once = {"bucket", "url", "admin", "closed", "create_bucket", "scan", "incr", "lock", "watch", "__reduce__"}
    for _, twin in PAIRS:
        for name, member in public(twin).items():
            if inspect.isfunction(member):
                awaited = inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
                assert awaited is (name not in at_once), f"{twin.__name__}.{name}"


def test_connect_and_aconnect_take_the_same() -> None:
    assert signature(zkv.connect) == signature(zkv.aconnect)


def test_store_has_the_surface_of_a_client() -> None:
    ours, theirs = public(zkv.Client), public(zkv.Store)
    assert set(ours) == set(theirs)
    for name in sorted(set(ours) - {"__reduce__"}):  # a store stays where it is
        if inspect.isfunction(ours[name]) and ours[name] is not theirs[name]:
            assert signature(ours[name]) == signature(theirs[name]), name
            assert inspect.getdoc(ours[name]) == inspect.getdoc(theirs[name]), name
    parameters = {p.name: p for p in inspect.signature(zkv.open).parameters.values()}
    for parameter in list(inspect.signature(zkv.connect).parameters.values())[1:]:
        assert parameters[parameter.name] == parameter


def test_docstrings_of_twins_say_the_same() -> None:
    for name, member in public(Bucket).items():
        if name not in ONLY_SYNC and inspect.isfunction(member):
            assert inspect.getdoc(member) == inspect.getdoc(public(AsyncBucket)[name]), name
