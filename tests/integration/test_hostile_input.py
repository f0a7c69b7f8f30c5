"""What no correct client or peer sends, to real nodes on every port: refused with a reason, counted, nothing written, and the node serves on."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.unit.codec.test_packed import announced, filled
from zkv.codec import packed, wire
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.errors import CodecError, InvalidArgument, InvalidKey, NoSuchBucket, TooLarge, ZkvError
from zkv.ids import NodeId, checksum_of, stored_key
from zkv.testing import LocalCluster

pytestmark = pytest.mark.integration

WAIT_MS = 10_000
DEFAULT = 1
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, fsync="interval", partitions=64) as started:
        yield started


class Raw:
    """A DEALER that checks nothing."""

    def __init__(self, address: str, *, peer: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        self.socket.connect(f"tcp://{host}:{int(port) + peer}")

    def ask(self, *frames: bytes) -> m.Message:
        self.socket.send_multipart(frames)
        return wire.decode(self.socket.recv_multipart(), now_ns=1)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()


def driver_counts(address: str) -> dict[str, int]:
    with zkv.connect(f"zkv://{address}") as kv:
        document: Any = kv.admin.status().document
    refused: dict[str, int] = document["counters"]["zkv_messages_refused_total"]
    counts = {"refused_" + label.removeprefix("reason="): n for label, n in refused.items()}
    counts["frames_refused"] = sum(refused.values())
    counts["puts_logged"] = document["counters"]["zkv_records_logged_total"]
    return counts


def logged(cluster: LocalCluster) -> int:
    return sum(driver_counts(node.address)["puts_logged"] for node in cluster.nodes)


def assert_serves(cluster: LocalCluster) -> None:
    """Every node runs, takes a put of its own and shows it."""
    for node in cluster.nodes:
        assert node.is_running, node.log_tail()
        with zkv.connect(node.url) as kv:
            kv.put("serves", node.name.encode(), w="all")
            assert kv.get("serves") == node.name.encode()
        assert "Traceback" not in node.log_tail()


def cluster_number(cluster: LocalCluster) -> int:
    with zkv.connect(cluster.url) as kv:
        document: Any = kv.admin.status().document
    return int.from_bytes(bytes.fromhex(document["cluster_id"])[:8], "big")


# --- frames ------------------------------------------------------------------------------------------------------------------


def header(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "magic": wire.MAGIC,
        "version": wire.WIRE_VERSION,
        "kind": m.Kind.ADMIN,
        "flags": 0,
        "class": 0,
        "zero": 0,
        "cluster": 0,
        "session": 7,
        "sequence": 1,
        "remaining": 1_000,
        "count": 0,
        "body": 0,
        "values": 0,
    }
    return wire.HEADER.pack(*(fields | changes).values())


def with_body(body: bytes, **changes: Any) -> bytes:
    return header(body=len(body), **changes) + body


FRAMES: dict[str, tuple[tuple[bytes, ...], str]] = {
    "garbage": ((os.urandom(200),), "frame"),
    "text of another protocol": ((b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + bytes(40),), "frame"),
    "an empty frame": ((b"",), "frame"),
    "two empty frames": ((b"", b""), "frame"),
    "half a header": ((header()[:20],), "frame"),
    "a header and half a body": ((header(body=100) + b"half",), "frame"),
    "too many frames": ((header(), b"", b"more"), "frame"),
    "a thousand frames": ((b"x",) * 1_000, "frame"),
    "values that were not announced": ((header(), b"values"), "frame"),
    "values that do not come": ((header(values=10),), "frame"),
    "an unknown kind": ((header(kind=250),), "frame"),
    "a body over the limit": ((with_body(bytes(wire.BODY_BYTES_MAX + 1)),), "frame"),
    "another version": ((header(version=9),), "version"),
    "flags of a later version": ((header(flags=4),), "version"),
    "an answer": ((header(kind=m.Kind.PUT_REPLY),), "port"),
    "a heartbeat": ((header(kind=m.Kind.HEARTBEAT),), "port"),
    "another cluster": ((header(kind=m.Kind.PUT, cluster=99),), "cluster"),
}
#: those of kinds that the port takes, by port
BODIES: dict[str, bytes] = {
    "no body": b"",
    "a body that is no array": packed.pack({"a": 1}),
    "too few columns": packed.pack([1]),
    "numbers for columns": packed.pack([7] * 15),
    "half a body": packed.pack([[b"key"] * 10] * 15)[:-20],
    "empty arrays": filled(b"\x90"),
    "empty maps": filled(b"\x80"),
    "arrays announced in vain": announced(65_535, 1_000),
    "a thousand deep": b"\x91" * 5_000 + b"\xc0",
}


@pytest.mark.parametrize("peer", [False, True], ids=["client port", "peer port"])
@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_none_of_ours_are_refused_counted_and_survived(
    cluster: LocalCluster, name: str, peer: bool
) -> None:
    frames, reason = FRAMES[name]
    if peer and name == "another cluster":
        frames = (header(kind=m.Kind.REPLICA_PUT, cluster=99),)
    address = cluster.nodes[0].address
    before = driver_counts(address)
    with Raw(address, peer=peer) as raw:
        reply = raw.ask(*frames)
    assert isinstance(reply, m.Refused)
    assert reply.code == ("VersionMismatch" if reason == "version" else "ProtocolError")
    assert reply.message
    after = driver_counts(address)
    assert after["frames_refused"] == before["frames_refused"] + 1
    assert after[f"refused_{reason}"] == before[f"refused_{reason}"] + 1
    assert after["puts_logged"] == before["puts_logged"]


@pytest.mark.parametrize(
    ("kind", "peer"), [(m.Kind.PUT, False), (m.Kind.GET, False), (m.Kind.REPLICA_PUT, True), (m.Kind.PULL, True)]
)
def test_bodies_that_do_not_fit_are_refused_in_bounded_memory(cluster: LocalCluster, kind: m.Kind, peer: bool) -> None:
    node = cluster.nodes[0]
    number = cluster_number(cluster)
    before, peak = driver_counts(node.address), peak_bytes(node.pid)
    with Raw(node.address, peer=peer) as raw:
        for sequence, body in enumerate(BODIES.values(), 1):
            reply = raw.ask(with_body(body, kind=kind, cluster=number, count=1, sequence=sequence))
            assert isinstance(reply, m.Refused) and reply.code == "ProtocolError"
            if not peer:
                assert reply.request == (7, sequence)
    after = driver_counts(node.address)
    assert after["refused_body"] == before["refused_body"] + len(BODIES)
    assert after["puts_logged"] == before["puts_logged"]
    assert peak_bytes(node.pid) - peak < 128 * 1024 * 1024


def test_message_above_the_limit_of_the_socket_costs_its_sender_the_connection_only(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    peak = peak_bytes(node.pid)
    with Raw(node.address) as raw:
        lost = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        raw.socket.send(bytes(81 * 1024 * 1024))
        assert lost.poll(WAIT_MS), "the connection was kept"
        raw.socket.disable_monitor()
        lost.close()
    assert peak_bytes(node.pid) - peak < 128 * 1024 * 1024
    assert_serves(cluster)


def peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


# --- requests that a client with checks would not send ------------------------------------------------------------------------


def put(keys: list[bytes], values: list[bytes | None], **options: Any) -> m.Put:
    return m.Put(
        (99, next(SEQUENCES)),
        keys,
        values,
        options.pop("checksums", [0 if v is None else checksum_of(v) for v in values]),
        **({"deadline_ns": 2_000_000_000} | options),
    )


#: a second copy of a request that was refused is answered as the first was
SEQUENCES = itertools.count(1)
KEY = stored_key(DEFAULT, b"hostile")
REFUSED: dict[str, tuple[Callable[[], m.Message], str]] = {
    "no key at all": (lambda: put([], []), "InvalidKey"),
    "an empty key": (lambda: put([stored_key(DEFAULT, b"")], [b"v"]), "ProtocolError"),
    "a key of 1,025 bytes": (lambda: put([stored_key(DEFAULT, b"k" * 1_025)], [b"v"]), "ProtocolError"),
    "a key twice": (lambda: put([KEY, KEY], [b"v", b"w"]), "InvalidKey"),
    "a level of 0": (lambda: put([KEY], [b"v"], w=0), "ProtocolError"),
    "a level of -1": (lambda: put([KEY], [b"v"], w=-1), "ProtocolError"),
    "a level that is none": (lambda: put([KEY], [b"v"], w="most"), "ProtocolError"),
    "an expiry in the past of all time": (lambda: put([KEY], [b"v"], expires_ms=[-1]), "ProtocolError"),
    "an expiry beyond all time": (lambda: put([KEY], [b"v"], expires_ms=[1 << 63]), "ProtocolError"),
    "more items than columns": (lambda: put([KEY], [b"v"], checksums=[1, 2]), "ProtocolError"),
    "a get of an empty key": (lambda: m.Get((99, 1), [stored_key(DEFAULT, b"")]), "ProtocolError"),
    "a get of no key": (lambda: m.Get((99, 1), []), "InvalidKey"),
    "an operation that is none": (lambda: m.Admin((99, 1), "destroy"), "Unsupported"),
}
STATUSES: dict[str, tuple[Callable[[], m.Message], Status]] = {
    "a value over the bucket's limit": (lambda: put([KEY], [bytes(10_241)]), Status.TOO_LARGE),
    "an unknown bucket": (lambda: put([stored_key(404, b"k")], [b"v"]), Status.NO_SUCH_BUCKET),
    "a value that is not what its checksum says": (lambda: put([KEY], [b"v"], checksums=[1]), Status.CORRUPT),
    "more replicas than there are": (lambda: put([KEY], [b"v"], w=7, sloppy=False), Status.UNAVAILABLE),
    "a get from an unknown bucket": (lambda: m.Get((99, 1), [stored_key(404, b"k")]), Status.NO_SUCH_BUCKET),
    "a get of more replicas than there are": (lambda: m.Get((99, 1), [KEY], 7), Status.UNAVAILABLE),
}


@pytest.mark.parametrize("name", [*REFUSED, *STATUSES])
def test_request_that_breaks_a_rule_is_told_so_and_writes_nothing(cluster: LocalCluster, name: str) -> None:
    make, expected = REFUSED[name] if name in REFUSED else STATUSES[name]
    number = cluster_number(cluster)
    before = logged(cluster)
    for node in cluster.nodes:
        with Raw(node.address) as raw:
            reply = raw.ask(*wire.encode(make(), cluster=number))
        if isinstance(expected, str):
            assert isinstance(reply, m.Refused) and reply.code == expected and reply.message
        else:
            assert isinstance(reply, m.PutReply | m.GetReply) and reply.statuses == [expected]
            if expected is Status.UNAVAILABLE:
                assert reply.required == [7] and reply.got is not None and reply.got[0] <= 3
    assert logged(cluster) == before


@pytest.mark.parametrize("partition", [-1, 64, 1 << 40])
def test_scan_of_what_does_not_exist_is_answered_as_that(cluster: LocalCluster, partition: int) -> None:
    number = cluster_number(cluster)
    with Raw(cluster.nodes[0].address) as raw:
        reply = raw.ask(*wire.encode(m.Scan((99, 1), DEFAULT, partition, b"", 10), cluster=number))
    assert isinstance(reply, m.ScanReply | m.Refused)
    assert isinstance(reply, m.Refused) or reply.status == Status.NO_SUCH_BUCKET


def test_hello_of_a_stranger_on_the_peer_port_changes_nothing(cluster: LocalCluster) -> None:
    """A node that nobody listed, one that claims to be another, and one of another list."""
    victim = cluster.nodes[0]
    with Raw(victim.address, peer=True) as raw:
        for node in (NodeId(1), NodeId(2**64 - 1)):
            hello = m.PeerHello(node, "n2", b"S" * 16, b"open-id!", b"h" * 32, "active", "n2@127.0.0.1:1", 7)
            reply = raw.ask(*wire.encode(hello, cluster=cluster_number(cluster)))
            assert isinstance(reply, m.PeerHelloAck) and reply.refusal
    assert_serves(cluster)


# --- the client's own checks, and the command line ----------------------------------------------------------------------------


CALLS: dict[str, tuple[Callable[[Any], object], type[ZkvError], str]] = {
    "an empty key": (lambda kv: kv.put("", b"v"), InvalidKey, "1 to 1,024 bytes"),
    "a key of 1,025 bytes": (lambda kv: kv.put("k" * 1_025, b"v"), InvalidKey, "this one has 1,025"),
    "a key of 1,025 bytes in fewer letters": (lambda kv: kv.get("é" * 513), InvalidKey, "this one has 1,026"),
    "a key that is no text": (lambda kv: kv.get("\ud800"), InvalidKey, "UTF-8"),
    "a key that is a number": (lambda kv: kv.get(7), InvalidKey, "not int"),
    "a value over the bucket's limit": (lambda kv: kv.put("k", bytes(10_241)), TooLarge, "10241 bytes.*10240"),
    "a value over any limit": (lambda kv: kv.put("k", bytes(5 * 2**20)), TooLarge, "any bucket"),
    "an unknown bucket": (lambda kv: kv.bucket("nowhere").put("k", b"v"), NoSuchBucket, "nowhere"),
    "r above the replicas": (lambda kv: kv.get("k", r=7), InvalidArgument, "r=7: .* 3 replicas"),
    "w above the replicas": (lambda kv: kv.put("k", b"v", w=4), InvalidArgument, "w=4: .* 3 replicas"),
    "r of 0": (lambda kv: kv.get("k", r=0), InvalidArgument, "r=0"),
    "w of true": (lambda kv: kv.put("k", b"v", w=True), InvalidArgument, "w=True"),
    "a level that is none": (lambda kv: kv.get("k", r="most"), InvalidArgument, "r='most'"),
    "a ttl of 0": (lambda kv: kv.put("k", b"v", ttl=0), InvalidArgument, "ttl=0"),
    "a ttl that is not a number": (lambda kv: kv.put("k", b"v", ttl=float("nan")), InvalidArgument, "ttl=nan"),
    "a negative ttl": (lambda kv: kv.put("k", b"v", ttl=timedelta(-1)), InvalidArgument, "ttl="),
    "a context that is none": (lambda kv: kv.put("k", b"v", context=b"junk"), CodecError, "context="),
    "a context of too much": (lambda kv: kv.put("k", b"v", context=filled(b"\x90", 2**20)), CodecError, "context="),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_that_cannot_work_raises_what_is_wrong_and_writes_nothing(cluster: LocalCluster, name: str) -> None:
    call, error, says = CALLS[name]
    before = logged(cluster)
    with zkv.connect(cluster.url) as kv, pytest.raises(error, match=says) as raised:
        call(kv)
    assert raised.value.definite
    assert logged(cluster) == before


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("put", "", "v"), 2, "1 to 1,024 bytes"),
        (("put", "k" * 1_025, "v"), 2, "1,025"),
        (("put", "k", "v" * 10_241), 1, "10240"),
        (("put", "k", "v", "--bucket", "nowhere"), 1, "nowhere"),
        (("get", "k", "--r", "7"), 2, "r=7: bucket 'default' keeps 3 replicas"),
        (("put", "k", "v", "--w", "4"), 2, "w=4: bucket 'default' keeps 3 replicas"),
        (("get", "k", "--r", "0"), 2, "'0' is no level"),
        (("get", "k", "--r", "most"), 2, "'most' is no level"),
        (("put", "k", "v", "--ttl", "0"), 2, "above 0"),
        (("put", "k", "v", "--ttl", "nan"), 2, "above 0"),
        (("put", "k", "v", "--ttl", "soon"), 2, "above 0"),
        (("put", "k", "v", "--context", "*"), 2, "base64"),
        (("put", "k", "v", "--context", "anVuaw=="), 1, "not a context"),
        (("get", "k", "--timeout", "61"), 78, "timeout"),
        (("get", "k", "--url", "http://x"), 78, "client URL"),
    ],
)
def test_command_that_cannot_work_says_why_with_its_exit_code(
    cluster: LocalCluster, argv: tuple[str, ...], code: int, says: str
) -> None:
    before = logged(cluster)
    done = run(cluster, *argv)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    if code != 2 or b"usage:" not in done.stderr:
        document = json.loads(run(cluster, *argv, "--json").stdout)
        assert document["error"]["definite"] and document["error"]["message"]
    assert logged(cluster) == before


def test_key_of_bytes_that_are_no_text_goes_in_and_comes_out_of_the_command_line(cluster: LocalCluster) -> None:
    key = b"\xff\xfe key"
    assert run(cluster, "put", key, "v").returncode == 0
    assert run(cluster, "get", key).stdout == b"v\n"
    with zkv.connect(cluster.url) as kv:
        assert kv.get(key) == b"v"


def run(cluster: LocalCluster, *argv: str | bytes) -> subprocess.CompletedProcess[bytes]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ZKV_")}
    environment.update(PYTHONPATH=str(ROOT), ZKV_URL=cluster.url)
    command: list[str | bytes] = [sys.executable, "-m", "zkv", *argv]
    return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)


def test_after_all_of_this_every_node_serves(cluster: LocalCluster) -> None:
    assert_serves(cluster)
