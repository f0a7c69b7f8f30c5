"""Ports for nodes about to start: four in a row, free, never the same twice in one choice."""

from __future__ import annotations

import random
import socket

import pytest

from zkv.errors import ConfigError, Unsupported
from zkv.testing import ports
from zkv.testing.local_cluster import LocalCluster
from zkv.testing.ports import HOST, PORTS_PER_NODE, free_base_ports


def test_chosen_ports_are_free_and_disjoint() -> None:
    bases = free_base_ports(5)
    wanted = [base + step for base in bases for step in range(PORTS_PER_NODE)]
    assert len(set(wanted)) == 5 * PORTS_PER_NODE
    for port in wanted:
        with socket.socket() as probe:
            probe.bind((HOST, port))


def test_a_port_that_is_taken_is_passed_over() -> None:
    free = free_base_ports(1, random.Random(7))[0]
    with socket.socket() as holder:
        holder.bind((HOST, free + 1))
        holder.listen(1)
        assert free_base_ports(1, random.Random(7))[0] != free


def test_a_full_range_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_LOWEST", 31_000)
    monkeypatch.setattr(ports, "_HIGHEST", 31_000 + PORTS_PER_NODE)
    monkeypatch.setattr(ports, "_TRIES", 20)
    with pytest.raises(OSError, match="found only"):
        free_base_ports(2)


def test_impossible_clusters_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        LocalCluster(0)
    with pytest.raises(ConfigError, match="different names"):
        LocalCluster(2, names=["a", "a"])
    with pytest.raises(ConfigError, match="did you mean fsync"):
        LocalCluster(1, fsyncs="never")


def test_add_is_refused_with_a_sentence() -> None:
    with pytest.raises(Unsupported, match="cannot join"):
        LocalCluster.add(object.__new__(LocalCluster))
