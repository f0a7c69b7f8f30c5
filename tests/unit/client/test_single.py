"""The straight way of one key, and where the general way takes over from it: nothing is asked twice, nothing unknown is called definite."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import zkv
from tests.unit.client.fake_node import HONEST, FakeCluster, running
from zkv.client import Client, lanes
from zkv.client.lanes import Lane
from zkv.client.single import LaneFlight
from zkv.core import messages as m
from zkv.core.messages import Status
from zkv.errors import Closed, DeadlineExceeded, ZkvError

pytestmark = pytest.mark.integration


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with running(1) as cluster:
        yield cluster


class Watched:
    """A client whose straight answers are noted; `returned` is set when one was given, before the general way goes on."""

    def __init__(self, kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[object] = []
        self.returned = threading.Event()
        singles = kv._engine.singles
        get, put = singles.get, singles.put
        monkeypatch.setattr(singles, "get", lambda *given: self._note(get(*given)))
        monkeypatch.setattr(singles, "put", lambda *given: self._note(put(*given)))

    def _note(self, answer: object) -> object:
        self.answers.append(answer)
        self.returned.set()
        return answer


@pytest.fixture
def kv(cluster: FakeCluster) -> Iterator[Client]:
    with zkv.connect(cluster.url, timeout=2) as client:
        client.put("k", b"before")  # the first call connects, in the general way
        cluster.nodes[0].seen.clear()
        yield client


@pytest.fixture
def watched(kv: Client, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(kv, monkeypatch)


def _plain(cluster: FakeCluster) -> None:
    """Puts are answered as a node does that was asked for nothing unusual: the context is the dot's own."""
    node = cluster.nodes[0]

    def script(message: m.Message) -> object:
        reply = cluster.answer(node, message)
        if isinstance(reply, m.PutReply):
            reply.contexts = None
        return reply

    node.script = script


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are threads of this process here, and may get their turn late."""
    monkeypatch.setattr(lanes, "BLOCK_MS", 5_000)


def test_usual_answers_need_no_call(patient: None, cluster: FakeCluster, kv: Client, watched: Watched) -> None:
    _plain(cluster)
    result = kv.put("k", b"v")
    assert kv.get("k") == b"v" and kv.get("absent", b"none") == b"none"
    assert [type(answer) for answer in watched.answers] == [tuple, tuple, tuple]
    assert result.acked == ("n0",) and result.durable and not result.sloppy
    assert kv.put("k", b"w", context=result.context).context > result.context
    assert kv.get_item("k").values == (b"w",), "the context covers what was put"


def test_late_answer_of_a_put_is_waited_for_and_the_put_sent_once(
    cluster: FakeCluster, kv: Client, watched: Watched
) -> None:
    node = cluster.nodes[0]

    def late(message: m.Message) -> object:
        if isinstance(message, m.Put):
            assert watched.returned.wait(5)
        return HONEST

    node.script = late
    assert kv.put("k", b"late").acked == ("n0",)
    assert isinstance(watched.answers[0], LaneFlight) and watched.answers[0].frames == []
    assert len(node.puts()) == 1
    assert kv.get("k") == b"late"


def test_late_answer_of_a_get_is_waited_for_and_the_get_sent_once(
    cluster: FakeCluster, kv: Client, watched: Watched
) -> None:
    node = cluster.nodes[0]

    def late(message: m.Message) -> object:
        assert watched.returned.wait(5)
        return HONEST

    node.script = late
    assert kv.get("k") == b"before"
    assert isinstance(watched.answers[0], LaneFlight) and len(node.gets()) == 1


def test_refusal_is_judged_by_the_general_way_and_tried_as_a_new_request(
    cluster: FakeCluster, kv: Client, watched: Watched
) -> None:
    node = cluster.nodes[0]
    refused: list[m.Put] = []

    def once(message: m.Message) -> object:
        if isinstance(message, m.Put) and not refused:
            refused.append(message)
            return m.PutReply(message.request, [Status.OVERLOADED], [0], [0], [], [-1], [0], [], [-1])
        return HONEST

    node.script = once
    assert kv.put("k", b"v").acked == ("n0",)
    assert isinstance(watched.answers[0], LaneFlight)
    first, second = node.puts()
    assert first.request != second.request and not second.retry


def test_answer_to_an_earlier_request_is_dropped_and_the_own_one_taken(
    cluster: FakeCluster, kv: Client, watched: Watched
) -> None:
    node = cluster.nodes[0]
    before = kv._engine.dropped

    def twice(message: m.Message) -> object:
        honest = cluster.answer(node, message)
        if isinstance(message, m.Get):
            session, sequence = message.request
            assert isinstance(honest, m.GetReply)
            stale = m.GetReply(
                (session, sequence - 1), None, None, None, None, honest.checksums, None, None, [b"before"]
            )
            return [stale, honest]
        return honest

    node.script = twice
    assert kv.get("k") == b"before"
    assert isinstance(watched.answers[0], LaneFlight) and kv._engine.dropped == before + 1
    assert len(node.gets()) == 1


def test_put_that_was_sent_when_the_client_was_closed_is_unknown(
    cluster: FakeCluster, kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes[0].script = lambda message: None
    put = kv._engine.singles.put

    def closing(*given: object) -> object:
        flight = put(*given)  # type: ignore[arg-type]
        kv.close()
        return flight

    monkeypatch.setattr(kv._engine.singles, "put", closing)
    with pytest.raises(ZkvError) as raised:
        kv.put("k", b"v")
    assert isinstance(raised.value, DeadlineExceeded) and not raised.value.definite
    with pytest.raises(Closed):
        kv.put("k", b"v")


@pytest.mark.parametrize("where", ["ask", "after"])
def test_put_that_is_interrupted_is_voided_by_the_next(
    cluster: FakeCluster, kv: Client, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    node = cluster.nodes[0]
    if where == "ask":
        ask = Lane.ask

        def interrupted(lane: Lane, address: str, frames: list[bytes]) -> list[bytes] | None:
            ask(lane, address, frames)
            raise KeyboardInterrupt

        monkeypatch.setattr(Lane, "ask", interrupted)
    else:

        def stopped(*given: object, **options: object) -> object:
            raise KeyboardInterrupt
            yield  # a generator, as the steps are

        monkeypatch.setattr(kv, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        kv.put("k", b"v")
    monkeypatch.undo()
    (sent,) = node.puts()
    assert not kv._engine._lanes, "its link may hold half a message"
    kv.put("k", b"w")
    assert node.puts()[-1].voids == [(sent.request[1],)]


def test_put_follows_the_last_one_of_its_session_where_there_are_several_replicas(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(3) as cluster, zkv.connect(cluster.url) as kv:
        kv.put("k", b"1")
        watched = Watched(kv, monkeypatch)
        node = cluster.replicas(b"k")[0]

        def plain(message: m.Message) -> object:
            reply = cluster.answer(node, message)
            if isinstance(reply, m.PutReply):
                reply.contexts = None
            return reply

        node.script = plain
        for value in (b"2", b"3", b"4"):
            kv.put("k", value)
        assert all(isinstance(answer, tuple) for answer in watched.answers[1:])
        assert [put.bases for put in node.puts()[2:]] == [[(node.actor, 2)], [(node.actor, 3)]]


@pytest.mark.parametrize("key", ["", "x" * 1025, 7, "\ud800", "x" * 300, b"\xff\x00"])
def test_odd_keys_are_left_to_the_general_way(cluster: FakeCluster, kv: Client, watched: Watched, key: object) -> None:
    usual = key == b"\xff\x00"
    for call in (lambda: kv.put(key, b"v"), lambda: kv.get(key)):  # type: ignore[arg-type]
        if (isinstance(key, str) and len(key) == 300) or usual:
            call()
        else:
            with pytest.raises(zkv.InvalidKey):
                call()
    assert all(answer is None for answer in watched.answers) or usual
