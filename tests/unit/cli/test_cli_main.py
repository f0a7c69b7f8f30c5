"""The command line as a whole: usage, reserved names, exit codes, output, what is imported; no real client."""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from zkv.cli import cluster, console, data
from zkv.cli.main import build_parser, main
from zkv.cli.reserved import RESERVED
from zkv.errors import BatchError, ConnectFailed, DeadlineExceeded, QuorumNotMet, StoreLocked, Unavailable, ZkvError


class FakeClient:
    """One key `a`; `error` is raised by every call."""

    def __init__(self, values: tuple[bytes, ...] = (b"1",), error: BaseException | None = None) -> None:
        self.values = values
        self.error = error
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            if self.error is not None:
                raise self.error
            return self.answer(name, *args)

        return call

    def answer(self, name: str, key: bytes = b"", *rest: object) -> Any:
        found = key == b"a" and bool(self.values)
        value = self.values[0] if found else None
        item = SimpleNamespace(
            found=found, values=self.values if found else (), value=value, context=b"ctx", expires_at=None
        )
        result = SimpleNamespace(acked=["n1", "n2"], durable=True, sloppy=False, context=b"ctx")
        answers = {"get_item": item, "put": result, "delete": result, "exists": found, "touch": found, "ttl": 12.5}
        return answers[name]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(data, "open_client", lambda args: fake)
    monkeypatch.setattr(cluster, "open_client", lambda args: fake)
    return fake


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(RESERVED))
@pytest.mark.parametrize("rest", [[], ["x", "--plan", "--yes"]])
def test_reserved_commands_are_refused_with_a_sentence(
    name: str, rest: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, *rest]) == 2
    assert RESERVED[name] in capsys.readouterr().err


def test_the_interface_names_all_exist_or_are_reserved() -> None:
    names = """
        put get delete exists touch ttl scan import export serve status ring explain health top bucket join
        leave remove replace weight plan commit clear pause resume jobs drain recover autoscale repair
        verify backup restore compact debug init keygen config demo bench sim version
    """
    parser = build_parser()
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert set(action.choices) == set(names.split())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required"),
        (["gte", "a"], "invalid choice"),
        (["get"], "KEY"),
        (["get", "a", "b"], "unrecognized"),
        (["get", "a", "--bukket", "x"], "unrecognized"),
        (["get", "a", "--r", "most"], "no level"),
        (["get", "a", "--r", "0"], "no level"),
        (["put", "a", "1", "--ttl", "-1"], "above 0"),
        (["put", "a", "1", "--context", "?"], "base64"),
        (["get", "a", "--timeout", "inf"], "seconds"),
        (["get", "a", "--js"], "unrecognized"),
        (["serve", "--fsync", "sometimes"], "invalid choice"),
        (["demo", "--records", "0"], "above 0"),
    ],
)
def test_usage_errors_exit_2(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in usage_error(capsys, *argv)


def test_help_of_every_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("put", "get", "import", "export", "serve", "status", "demo"):
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
    assert "usage: zkv put" in capsys.readouterr().out


def test_get_prints_the_value(client: FakeClient, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["get", "a"]) == 0
    assert main(["get", "a", "--raw", "--r", "all"]) == 0
    assert capfdbinary.readouterr() == (b"1\n1", b"")
    assert client.calls[1] == ("get_item", (b"a",), {"r": "all"})


def test_get_of_a_missing_key_exits_3(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "b"]) == 3
    assert capsys.readouterr() == ("", "zkv: b: not found\n")
    assert main(["--json", "get", "b"]) == 3
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "key": "b", "found": False, "context": "Y3R4"}


def test_get_of_siblings_exits_9_and_shows_each(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.values = (b"one", b"\xfftwo")
    assert main(["get", "a"]) == 9
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 siblings" in err
    assert "1: one" in err
    assert "2: \\xfftwo" in err
    assert "--context Y3R4" in err
    assert main(["get", "a", "--json"]) == 9
    document = json.loads(capsys.readouterr().out)
    assert document["siblings"] == [{"value": "one"}, {"value_b64": "/3R3bw=="}]
    assert base64.b64decode(document["context"]) == b"ctx"


def test_json_before_or_after_the_command(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--json", "get", "a"], ["get", "a", "--json"]):
        assert main(argv) == 0
        assert json.loads(capsys.readouterr().out)["value"] == "1"


def test_put_from_argument_and_stdin(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["put", "a", "text", "--w", "3", "--ttl", "60", "--context", "Y3R4"]) == 0
    assert client.calls[-1] == ("put", (b"a", b"text"), {"w": 3, "ttl": 60.0, "context": b"ctx"})
    out, err = capsys.readouterr()
    assert out == ""
    assert "acknowledged by n1, n2 (durable)" in err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\x00raw\n")))
    assert main(["put", "a", "-", "--json"]) == 0
    assert client.calls[-1][1] == (b"a", b"\x00raw\n")
    assert json.loads(capsys.readouterr().out)["acked"] == ["n1", "n2"]


def test_bytes_of_the_shell_are_kept(client: FakeClient) -> None:
    assert main(["put", "k\udcff", "v\udcfe"]) == 0
    assert client.calls[-1][1] == (b"k\xff", b"v\xfe")


def test_exists_touch_ttl(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["exists", "a"]), main(["exists", "b"])] == [0, 3]
    assert capsys.readouterr().out == "true\nfalse\n"
    assert [main(["touch", "a", "5"]), main(["touch", "b", "5"])] == [0, 3]
    assert [main(["ttl", "a"]), main(["ttl", "b"])] == [0, 3]
    assert capsys.readouterr().out == "12.500\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectFailed("nobody"), 6),
        (Unavailable(required=2, alive=1), 4),
        (QuorumNotMet(required=2, got=1), 5),
        (DeadlineExceeded("late"), 5),
        (StoreLocked("in use by process 7"), 1),
        (BatchError("some", errors={"a": Unavailable(), "b": QuorumNotMet()}), 5),
        (BatchError("some", errors={"a": Unavailable()}), 4),
        (KeyboardInterrupt(), 130),
        (OSError("disk"), 1),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.error = error
    assert main(["put", "a", "1", "--json"]) == code
    out, err = capsys.readouterr()
    assert err.startswith("zkv: ")
    if isinstance(error, ZkvError):
        assert json.loads(out)["error"]["code"] == type(error).__name__


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["serve", "--seed", "x:1"], 2, "--initial"),
        (["serve", "--keys", "d"], 2, "encryption"),
        (["serve", "--listen", "0.0.0.0:7400"], 78, "--insecure-network"),
        (["serve", "--listen", "0.0.0.0:7400", "--insecure-network"], 78, "--advertise"),
        (["serve", "--initial", "a@127.0.0.1:7400"], 78, "--cluster-name"),
        (["serve", "--weight", "heavy"], 78, "--weight"),
        (["serve", "--config", "/nonexistent/zkv.toml"], 78, "no such configuration"),
        (["demo", "--story", "partition"], 2, "kill"),
    ],
)
def test_refused_before_anything_starts(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    assert words in capsys.readouterr().err


def test_serve_with_a_config_never_makes_a_directory(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zkv.toml"
    file.write_text(f'[node]\ndata="{tmp_path}/data"\n[network]\nlisten="127.0.0.1:31990"\n')
    assert main(["serve", "--config", str(file)]) == 78
    assert "missing or empty" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_demo_wants_an_empty_directory(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").touch()
    assert main(["demo", "--data", str(tmp_path)]) == 78
    assert "not empty" in capsys.readouterr().err


def test_levels() -> None:
    assert [console.level("2"), console.level("quorum")] == [2, "quorum"]


def test_get_imports_nothing_heavy_before_it_connects() -> None:
    heavy = {
        "rich",
        "asyncio",
        "zmq",
        "msgpack",
        "cbor2",
        "blosc2",
        "numpy",
        "logging",
        "subprocess",
        "ssl",
        "tomllib",
        "unicodedata",
    }
    code = "import sys, zkv.cli.main as m; m.build_parser(['get']); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "zkv.cli.data" in loaded
    assert not heavy & set(loaded)
