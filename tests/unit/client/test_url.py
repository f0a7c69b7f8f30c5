from __future__ import annotations

import pytest

from zkv.client.url import DEFAULT_URL, Target, parse
from zkv.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("zkv://127.0.0.1:7400", Target(("127.0.0.1:7400",))),
        ("zkv://h1", Target(("h1:7400",))),
        ("zkv://h1:7400,h2:7500/carts?timeout=2", Target(("h1:7400", "h2:7500"), "carts", 2.0)),
        ("zkv://h1,h1:7400", Target(("h1:7400",))),
        ("zkv://[::1]:7401,[fe80::1%eth0]/a%20b", Target(("[::1]:7401", "[fe80::1%eth0]:7400"), "a b")),
        ("zkv://node-1.example.org./", Target(("node-1.example.org.:7400",))),
        ("zkv://h?timeout=0.25", Target(("h:7400",), timeout=0.25)),
    ],
)
def test_url_says(url: str, target: Target) -> None:
    assert parse(url) == target


def test_url_of_a_target_says_the_same() -> None:
    for url in (DEFAULT_URL, "zkv://h1:7400,[::1]:7500/carts?timeout=2"):
        assert parse(url).url == url
        assert parse(parse(url).url) == parse(url)


def test_no_url_takes_the_environment_then_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKV_URL", "zkv://there:1234/b")
    assert parse() == Target(("there:1234",), "b")
    monkeypatch.setenv("ZKV_URL", "")
    assert parse() == Target(("127.0.0.1:7400",))


def test_several_urls_are_one_target() -> None:
    assert parse(["zkv://a:1/x?timeout=3", "zkv://b:2,a:1"]) == Target(("a:1", "b:2"), "x", 3.0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", "zkv://HOST:PORT"),
        ("zkv://", "no HOST:PORT"),
        ("zkv://h:", "no port"),
        ("zkv://h:0", "no port"),
        ("zkv://h:65536", "no port"),
        ("zkv://h:74x", "no port"),
        ("zkv://::1:7400", "brackets"),
        ("zkv://[::1", "no IPv6"),
        ("zkv://[::1]7400", "no IPv6"),
        ("zkv://u@h", "user"),
        ("zkv://h/a/b", "slash"),
        ("zkv://h?timout=1", "timout"),
        ("zkv://h?timeout=x", "timeout='x'"),
        ("zkv://h?timeout=0", "above 0"),
        ("zkv://h?timeout=inf", "up to 60"),
        ("zkv://h?timeout=nan", "above 0"),
        ("zkv://-h", "no HOST:PORT"),
    ],
)
def test_url_that_cannot_work_says_what_would(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match="(?i)" + said.replace(":", "[:]")):
        parse(url)


def test_empty_list_of_urls_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        parse([])
