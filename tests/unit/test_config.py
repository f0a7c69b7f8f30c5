"""Settings: precedence, units, derived addresses, and the sentence for each thing that cannot work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from zkv.config import NodeSettings, environment_of, load, parse_address, parse_bytes, parse_ms
from zkv.core.initial import parse_initial
from zkv.errors import ConfigError


def refused(settings: NodeSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.validate()
    return str(caught.value)


def test_defaults_are_valid_and_derived() -> None:
    settings = NodeSettings()
    settings.validate()
    assert settings.listen == settings.advertise == "127.0.0.1:7400"
    assert (settings.peer_listen, settings.gossip_listen) == ("127.0.0.1:7401", "127.0.0.1:7402")
    assert settings.name == settings.host == socket.gethostname()
    assert settings.alone
    assert settings.own_initial == f"{socket.gethostname()}@127.0.0.1:7400"


def test_name_has_the_port_when_it_is_not_the_usual_one() -> None:
    assert NodeSettings(listen="127.0.0.1:7500").name == f"{socket.gethostname()}-7500"


def test_advertise_behind_a_wildcard() -> None:
    settings = NodeSettings(name="a", listen="0.0.0.0:7400", advertise="db1.example:9000", insecure_network=True)
    settings.validate()
    assert settings.peer_advertise == "db1.example:9001"
    assert settings.gossip_advertise == "db1.example:9002"
    assert settings.peer_listen == "0.0.0.0:7401"
    assert settings.host == "db1.example"


def test_peer_listen_set_alone_is_what_is_advertised() -> None:
    settings = NodeSettings(name="a", listen="127.0.0.1:7400", peer_listen="127.0.0.1:9999")
    assert settings.peer_advertise == "127.0.0.1:9999"
    assert settings.gossip_advertise == "127.0.0.1:7402"


def test_wildcard_needs_advertise() -> None:
    assert "--advertise" in refused(NodeSettings(name="a", listen="0.0.0.0:7400", insecure_network=True))


def test_other_machines_need_insecure_network() -> None:
    sentence = refused(NodeSettings(name="a", listen="10.0.0.5:7400"))
    assert "--insecure-network" in sentence
    assert "127.0.0.1" in sentence
    NodeSettings(name="a", listen="10.0.0.5:7400", insecure_network=True).validate()
    NodeSettings(name="a", listen="[::1]:7400").validate()


def test_a_peer_socket_beyond_loopback_is_refused_too() -> None:
    assert "peer_listen" in refused(NodeSettings(name="a", peer_listen="10.0.0.5:7401"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a@b"}, "name"),
        ({"name": "a,b"}, "name"),
        ({"dc": ""}, "--dc"),
        ({"rack": "r 1"}, "--rack"),
        ({"weight": 0.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"partitions": 1000}, "power of two"),
        ({"partitions": 0}, "power of two"),
        ({"fsync": "groups"}, "did you mean group?"),
        ({"fsync_interval_ms": 0}, "at least 1"),
        ({"wal_bytes": 10}, "1MiB"),
        ({"reserve_bytes": -1}, "0 or more"),
        ({"heartbeat_interval_ms": 1}, "at least 10"),
        ({"heartbeat_timeout_ms": 600}, "twice"),
        ({"log_level": "loud"}, "debug, info"),
        ({"initial": "a@127.0.0.1:7400"}, "--cluster-name"),
        ({"cluster_name": "my cluster"}, "--cluster-name"),
        ({"listen": "node1:7400"}, "numeric"),
        ({"gossip_listen": "127.0.0.1:7401"}, "differ"),
    ],
)
def test_refused_with_a_sentence(changes: dict[str, object], words: str) -> None:
    assert words in refused(NodeSettings(**{"name": "a", **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["7400", "host", "host:", ":7400", "h:0", "h:65536", "h:x", "::1:7400", "h h:1", "h:\u0663"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        parse_address(text, "listen")


def test_addresses() -> None:
    assert str(parse_address("[::1]:7400", "x")) == "[::1]:7400"
    assert parse_address("[::1]:7400", "x").host == "::1"
    assert parse_address("localhost:1", "x").host == "127.0.0.1"


def test_ports_above_the_last_one() -> None:
    with pytest.raises(ConfigError, match="65535"):
        NodeSettings(listen="127.0.0.1:65534")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ("7", 7), ("64MiB", 64 << 20), ("64 mib", 64 << 20), ("1.5KiB", 1536), ("2GB", 2 * 10**9), (" 1 b ", 1)],
)
def test_bytes(value: object, expected: int) -> None:
    assert parse_bytes(value, "x") == expected


@pytest.mark.parametrize(("value", "expected"), [(500, 500), ("500ms", 500), ("1.5s", 1500), ("2 m", 120_000)])
def test_milliseconds(value: object, expected: int) -> None:
    assert parse_ms(value, "x") == expected


@pytest.mark.parametrize("value", ["", "x", "1 furlong", "-1", True, 1.5, None, "1e3"])
def test_bad_quantities(value: object) -> None:
    with pytest.raises(ConfigError, match="wal_bytes"):
        parse_bytes(value, "wal_bytes")
    with pytest.raises(ConfigError, match="interval"):
        parse_ms(value, "interval")


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "zkv.toml"
    file.write_text('[node]\nname="file"\ndc="eu"\nrack="r1"\nweight=2\n[storage]\nwal_bytes="128MiB"\n')
    settings = load(
        {"name": "flag", "dc": None}, {"ZKV_NODE__NAME": "env", "ZKV_NODE__DC": "us", "ZKV_URL": "zkv://x"}, file
    )
    assert (settings.name, settings.dc, settings.rack) == ("flag", "us", "r1")
    assert settings.wal_bytes == 128 << 20
    assert settings.weight == 2.0
    assert load({}, {}, None).fsync == "group"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[node]\nnme="x"', "did you mean node.name?"),
        ('[nodes]\nname="x"', "did you mean node?"),
        ("name=1", "no section [name]"),
        ("node=1", "must be a section"),
        ("[node]\nname=1", "node.name is 1; expected text"),
        ("[node]\nweight='x'", "expected a number"),
        ("[cluster]\npartitions=1.5", "whole number"),
        ("[network]\ninsecure_network='maybe'", "true or false"),
        ("[node", "not TOML"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "zkv.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert words in str(caught.value)
    assert "zkv.toml" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load({}, {}, tmp_path / "none.toml")


def test_unknown_variable_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean ZKV_STORAGE__FSYNC"):
        load({}, {"ZKV_STORAGE__FSYNK": "never"})


def test_environment_of_a_field() -> None:
    name = environment_of("heartbeat_interval_ms")
    assert load({}, {name: "1s"}).heartbeat_interval_ms == 1000
    with pytest.raises(ConfigError, match="did you mean fsync"):
        environment_of("fsyncs")


def test_flags_have_units_and_name_themselves() -> None:
    with pytest.raises(ConfigError, match="--weight"):
        load({"weight": "heavy"}, {})
    assert load({"insecure_network": True}, {}).insecure_network
    assert load({"data": "~/x"}, {}).data == Path("~/x").expanduser()


def test_labels_of_a_node_alone_go_into_its_list() -> None:
    settings = NodeSettings(name="a", dc="eu", weight=2.0)
    assert settings.own_initial == "a@127.0.0.1:7400/dc=eu/weight=2"
    node = parse_initial(settings.own_initial)[0]
    assert (node.dc, node.rack, node.weight) == ("eu", "rack1", 2.0)


def test_labels_beside_a_list_must_repeat_it() -> None:
    listed = "b@127.0.0.1:7500,a@127.0.0.1:7400/dc=eu/weight=2"
    NodeSettings(name="a", initial=listed, cluster_name="c").validate()
    NodeSettings(name="a", initial=listed, cluster_name="c", dc="eu", weight=2.0).validate()
    assert "--rack r9" in refused(NodeSettings(name="a", initial=listed, cluster_name="c", dc="eu", rack="r9"))
    assert "--dc e " in refused(NodeSettings(name="a", initial=listed, cluster_name="c", dc="e"))
