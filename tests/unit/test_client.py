# SPDX-License-Identifier: Apache-2.0
"""Where a screen's views come from, and what it is told when they stop."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from kernob.errors import AgentUnreachableError, KernelError, KernobError
from kernob.ui.client import LocalFeed, SocketFeed, connect, fetch_once, fetch_report
from kernob.view import MAX_REQUEST_BYTES, Request, Sort, View, encode_refusal
from tests.unit.fake_agent import FAILSAFE_S, FakeAgent, eventually, flow, snapshot


@pytest.mark.parametrize("exists", [False, True])
def test_no_agent(socket_path: Path, *, exists: bool) -> None:
    """Without a socket, or with one that nobody listens on, connecting says that no agent answers."""
    socket_path.parent.mkdir()
    if exists:
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(socket_path))
    with pytest.raises(AgentUnreachableError, match=f"no agent answers on {socket_path}"):
        fetch_once(socket_path)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"nonsense\n", "its answer is malformed"),
        (b'{"v":1}\n', "its answer is malformed"),
        (b'{"v":2,"rows":[]}\n', "another version of the protocol"),
        (b'{"rows":[]}\n', "another version of the protocol"),
        (b"[" * 100_000 + b"\n", "its answer is malformed"),
        (b"", "went away"),
    ],
)
def test_answers_that_cannot_be_read(socket_path: Path, answer: bytes, message: str) -> None:
    """Whatever listens there and is no agent of this version is reported in one line."""
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen(1)
        feed = SocketFeed(socket_path, Request())
        connection, _ = listener.accept()
        connection.recv(MAX_REQUEST_BYTES)
        connection.sendall(answer)
        connection.close()
        with pytest.raises(AgentUnreachableError, match=message):
            list(feed.views())


@pytest.mark.parametrize(
    ("says", "error", "message"),
    [
        (encode_refusal("too many clients") + b"\n", KernobError, "refused: too many clients"),
        (b"", AgentUnreachableError, "cannot read the agent on /a/socket"),
    ],
)
def test_an_agent_that_hangs_up_before_it_is_asked_for_a_report(
    says: bytes, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said is told."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(says)
    monkeypatch.setattr("kernob.ui.client.open_socket", lambda _path: ours)
    with pytest.raises(error, match=message):
        fetch_report(Path("/a/socket"), "map")


def test_hung_agent(socket_path: Path) -> None:
    """An agent that accepts and then says nothing counts as gone once the grace period is over."""
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen(1)
        feed = SocketFeed(socket_path, Request(interval_s=0.2), grace_s=0.01)
        with pytest.raises(AgentUnreachableError, match="is silent for"):
            list(feed.views())


@pytest.mark.usefixtures("server")
def test_feed_is_closed_from_another_thread(agent: FakeAgent, socket_path: Path) -> None:
    """Closing a feed ends the iteration that waits for it, without an error."""
    feed = SocketFeed(socket_path, Request(interval_s=300))
    seen: list[View] = []
    reader = threading.Thread(target=lambda: seen.extend(feed.views()))
    reader.start()
    agent.publish(snapshot(flow(7)), subscribers=1)
    eventually(lambda: len(seen) == 1)
    feed.close()
    reader.join(FAILSAFE_S)
    assert not reader.is_alive()


@pytest.mark.usefixtures("server")
def test_connect_leaves(agent: FakeAgent, socket_path: Path) -> None:
    """Leaving the iteration of `connect` ends the subscription at the agent."""
    views = connect(socket_path, Request(interval_s=1))
    first: list[View] = []
    reader = threading.Thread(target=lambda: first.append(next(views)))
    reader.start()
    agent.publish(snapshot(flow(7)), subscribers=1)
    reader.join(FAILSAFE_S)
    views.close()
    agent.publish(snapshot(flow(7)))
    eventually(lambda: agent.unsubscribed == 1)


def test_local_feed(agent: FakeAgent) -> None:
    """An agent in the same process answers queries at once, holds, and ends the iteration when it ends."""
    feed = LocalFeed(agent, Request())
    views = feed.views()
    agent.publish(snapshot(flow(1), flow(2, rate=5.0)), subscribers=1)
    assert [row.pid for row in next(views).rows] == [2, 1]
    feed.ask(Request(sort=Sort.PID, hold=True))
    assert [row.pid for row in next(views).rows] == [1, 2]
    agent.publish(snapshot(flow(3)))
    feed.ask(Request(sort=Sort.PID, filter="curl", limit=1, hold=True))
    assert [row.pid for row in next(views).rows] == [1]
    agent.end()
    assert list(views) == []


def test_local_feed_raises_what_the_agent_raised() -> None:
    """An agent that fails ends the screen with its own reason."""
    agent = FakeAgent()
    feed = LocalFeed(agent, Request())
    agent.failure = OSError("the map is gone")
    agent.end()
    with pytest.raises(KernelError, match="the agent stopped: the map is gone"):
        list(feed.views())
