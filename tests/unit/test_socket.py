# SPDX-License-Identifier: Apache-2.0
"""The snapshot socket: what clients get, and that nothing they do reaches the agent."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from kernob.errors import AgentUnreachableError, ConfigError, KernobError, PreconditionError
from kernob.export.socket import MAX_CLIENTS, SnapshotServer
from kernob.features.feature import no_report
from kernob.ui.client import SocketFeed, fetch_once, fetch_report
from kernob.view import MAX_REQUEST_BYTES, Request
from tests.unit.fake_agent import FAILSAFE_S, FakeAgent, eventually, flow, snapshot


class Raw:
    """A client that speaks bytes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(FAILSAFE_S)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def say(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def hear(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line.endswith(b"\n"), "the server hung up"
        document: dict[str, Any] = json.loads(line)
        return document

    def ended(self) -> bool:
        return self._file.readline() == b""


@pytest.mark.usefixtures("server")
def test_once(agent: FakeAgent, socket_path: Path) -> None:
    """A "once" request is answered with one view, then the connection and the subscription end."""
    agent.standing = snapshot(flow(7, rate=30.0), flow(8, rate=10.0))
    with Raw(socket_path) as client:
        client.say(b'{"want":"once","limit":1}')
        answer = client.hear()
        assert client.ended()
    eventually(lambda: agent.unsubscribed == 1)
    assert answer["v"] == 1
    assert answer["host"] == "web-01"
    assert [row["pid"] for row in answer["rows"]] == [7]
    assert answer["rows"][0]["share"] == 0.75
    assert answer["total"] == {"rows": 2, "tx_bytes": 2000, "rx_bytes": 200, "tx_rate": 40.0, "rx_rate": 0.0}
    assert answer["left_out"] == {
        "rows": 1,
        "tx_bytes": 1000,
        "rx_bytes": 100,
        "tx_rate": 10.0,
        "rx_rate": 0.0,
    }
    assert answer["leader"] == {"name": "curl.service", "share": 1.0}


@pytest.mark.usefixtures("server")
def test_a_report_is_one_document(socket_path: Path) -> None:
    """A feature's answer is one line; a question it does not understand is refused in one line."""
    assert fetch_report(socket_path, "echo", {"host": "a b"}) == {"words": {"host": "a b"}}
    with pytest.raises(KernobError, match=r"refused: no report .other.$"):
        fetch_report(socket_path, "other")
    with Raw(socket_path) as client:
        client.say(b'{"want":"report","name":"echo","words":{"n":1}}')
        assert "words" in client.hear()["error"]
        assert client.ended()


@pytest.mark.usefixtures("server")
def test_once_waits_for_a_tick(agent: FakeAgent, socket_path: Path) -> None:
    """A "once" request is never answered from an earlier tick."""
    agent.publish(snapshot(flow(6)))
    with Raw(socket_path) as client:
        client.say(b'{"want":"once","interval_s":0.5}')
        agent.publish(snapshot(flow(7)), subscribers=1)
        assert client.hear()["rows"][0]["pid"] == 7
    assert agent.intervals == [0.5]
    eventually(lambda: agent.unsubscribed == 1)


@pytest.mark.usefixtures("server")
def test_every_tick_reaches_every_client(agent: FakeAgent, socket_path: Path) -> None:
    """Two clients with queries of their own each get one answer per tick."""
    with Raw(socket_path) as first, Raw(socket_path) as second:
        first.say(b'{"want":"snapshot","interval_s":2}')
        second.say(b'{"want":"snapshot","interval_s":3,"sort":"pid","reverse":true,"filter":"CURL"}')
        for second_of_day in (1, 2, 3):
            agent.publish(snapshot(flow(5), flow(6), flow(9, "sshd"), second=second_of_day), subscribers=2)
        for second_of_day in (1, 2, 3):
            mine, other = first.hear(), second.hear()
            assert mine["time_unix_ns"] == other["time_unix_ns"] == second_of_day * 10**9
            assert {row["pid"] for row in mine["rows"]} == {5, 6, 9}
            assert [row["pid"] for row in other["rows"]] == [6, 5]
    assert sorted(agent.intervals) == [2.0, 3.0]


@pytest.mark.usefixtures("server")
def test_hold(agent: FakeAgent, socket_path: Path) -> None:
    """A client on hold gets nothing by itself, and its new queries are answered from what it saw last."""
    with Raw(socket_path) as client:
        client.say(b'{"want":"snapshot"}')
        agent.publish(snapshot(flow(1, rate=1.0), flow(2, rate=2.0), second=1), subscribers=1)
        assert [row["pid"] for row in client.hear()["rows"]] == [2, 1]
        client.say(b'{"want":"snapshot","hold":true}')
        assert client.hear()["time_unix_ns"] == 10**9
        agent.publish(snapshot(flow(3), second=2))
        eventually(lambda: agent.settled == 2)  # it was passed over, and does not come when the hold ends
        client.say(b'{"want":"snapshot","hold":true,"sort":"pid"}')
        held = client.hear()
        assert (held["time_unix_ns"], [row["pid"] for row in held["rows"]]) == (10**9, [1, 2])
        client.say(b'{"want":"snapshot","hold":false}')
        assert client.hear()["time_unix_ns"] == 10**9
        agent.publish(snapshot(flow(4), second=3))
        assert [row["pid"] for row in client.hear()["rows"]] == [4]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1",
        b"\x00\xff\x1b[2J",
        b"null",
        b'{"want":"everything"}',
        b'{"want":"once","v":2}',
        b'{"limit":0}',
        b'{"limit":20001}',
        b'{"limit":true}',
        b'{"limit":1.5}',
        b'{"interval_s":0.1}',
        b'{"interval_s":1e999}',
        b'{"interval_s":NaN}',
        b'{"sort":"size"}',
        b'{"filter":7}',
        b'{"filter":"' + b"x" * 257 + b'"}',
        b"[" * 4000,
        b'{"a":' * 700,
    ],
)
@pytest.mark.usefixtures("server")
def test_malformed_requests(agent: FakeAgent, socket_path: Path, line: bytes) -> None:
    """A request that is not one is answered with the reason, and ends that connection only."""
    agent.standing = snapshot(flow(7))
    with Raw(socket_path) as client:
        client.say(line)
        assert client.hear()["error"].startswith("not a valid request: ")
        assert client.ended()
    assert fetch_once(socket_path).rows[0].pid == 7


@pytest.mark.parametrize("tail", [b"", b"\n"])
@pytest.mark.usefixtures("server")
def test_endless_request(agent: FakeAgent, socket_path: Path, tail: bytes) -> None:
    """A request line beyond 4 KiB is refused, whether it ends or not."""
    agent.standing = snapshot(flow(7))
    with Raw(socket_path) as client:
        client.socket.sendall(b"x" * (MAX_REQUEST_BYTES + 1) + tail)
        assert client.hear()["error"] == "not a valid request: longer than 4096 bytes"


def test_silent_client(agent: FakeAgent, socket_path: Path) -> None:
    """A client that never asks is let go."""
    with (
        SnapshotServer(socket_path, agent, first_request_timeout_s=0.01) as server,
        Raw(socket_path) as client,
    ):
        assert client.ended()
        eventually(lambda: server.client_count == 0)


def test_client_that_does_not_read(agent: FakeAgent, socket_path: Path) -> None:
    """A client that stops reading is dropped after the send timeout; another one misses nothing."""
    many = [flow(pid, "x" * 200) for pid in range(5000)]  # ten times what a unix socket buffers
    with (
        SnapshotServer(socket_path, agent, send_timeout_s=0.05) as server,
        Raw(socket_path) as stuck,
        Raw(socket_path) as healthy,
    ):
        stuck.say(b'{"want":"snapshot","limit":20000}')
        healthy.say(b'{"want":"snapshot","limit":1}')
        for second in range(1, 6):
            agent.publish(snapshot(*many, second=second), subscribers=2)
        assert [healthy.hear()["time_unix_ns"] // 10**9 for _ in range(5)] == [1, 2, 3, 4, 5]
        eventually(lambda: server.client_count == 1)
        assert agent.unsubscribed == 1
        agent.end()


def test_clients_that_leave_at_any_time(agent: FakeAgent, server: SnapshotServer, socket_path: Path) -> None:
    """Clients that hang up before, in or after a request leave nothing behind."""
    for said in (b"", b'{"want":', b'{"want":"once"}\n', b'{"want":"snapshot"}\n'):
        with Raw(socket_path) as client:
            client.socket.sendall(said)

    def ticked_away() -> bool:
        agent.publish(snapshot(flow(1)))
        return server.client_count == 0

    eventually(ticked_away)


def test_too_many_clients(agent: FakeAgent, server: SnapshotServer, socket_path: Path) -> None:
    """Client 17 is refused with the reason; when one leaves there is room again."""
    agent.standing = snapshot(flow(7))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(socket_path)) for _ in range(MAX_CLIENTS)]
        eventually(lambda: server.client_count == MAX_CLIENTS)
        with pytest.raises(AgentUnreachableError, match="refused: 16 clients are connected already"):
            fetch_once(socket_path)
        clients[0].socket.shutdown(socket.SHUT_RDWR)
        eventually(lambda: server.client_count == MAX_CLIENTS - 1)
        assert fetch_once(socket_path).rows[0].pid == 7


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("bad", ["kernob-client", "kernob-client-push"])
def test_without_threads_clients_are_refused_and_later_ones_served(
    server: SnapshotServer, socket_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """Where the system grants no thread, each client hears why, and holds no place once it does again."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith(bad):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    for _ in range(MAX_CLIENTS + 1):
        with Raw(socket_path) as client:
            with contextlib.suppress(OSError):  # it may have been refused and hung up on already
                client.say(b'{"want":"snapshot"}')
            assert "no more threads" in client.hear()["error"]
        eventually(lambda: server.client_count == 0)
    monkeypatch.undo()
    assert fetch_report(socket_path, "echo", {"host": "a"}) == {"words": {"host": "a"}}


def test_foreign_uid(agent: FakeAgent, socket_path: Path) -> None:
    """A peer that is neither root nor the agent's own user is refused by its SO_PEERCRED uid."""
    foreign = os.geteuid() + 12345
    with (
        SnapshotServer(socket_path, agent, peer_uid=lambda _: foreign),
        pytest.raises(AgentUnreachableError, match=f"refused: uid {foreign} may not"),
    ):
        fetch_once(socket_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.usefixtures("server")
def test_unprivileged_user_cannot_connect(socket_path: Path) -> None:
    """The file modes keep another user out before the server is asked."""
    for parent in socket_path.parents[1:4]:
        parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        try:
            fetch_once(socket_path)
        except PreconditionError as error:
            os._exit(42 if "run as root" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_modes_and_removal(agent: FakeAgent, socket_path: Path) -> None:
    """The socket is 0600 in a directory made 0700, and gone after close."""
    with SnapshotServer(socket_path, agent):
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert not socket_path.exists()
    assert socket_path.parent.exists()


def test_stale_socket_is_replaced(agent: FakeAgent, socket_path: Path) -> None:
    """The socket file of an agent that was killed does not hinder the next one."""
    socket_path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(socket_path))
    agent.standing = snapshot(flow(7))
    with SnapshotServer(socket_path, agent):
        assert fetch_once(socket_path).rows[0].pid == 7


@pytest.mark.usefixtures("server")
def test_live_socket_is_refused(agent: FakeAgent, socket_path: Path) -> None:
    """A second agent is refused with the first one's pid, and the first goes on."""
    agent.standing = snapshot(flow(7))
    with pytest.raises(
        PreconditionError, match=rf"another kernob agent \(pid {os.getpid()}\) already serves"
    ):
        SnapshotServer(socket_path, agent).bind()
    assert fetch_once(socket_path).rows[0].pid == 7


def test_two_agents_at_once(agent: FakeAgent, socket_path: Path) -> None:
    """Of agents that start at the same moment on a stale file exactly one wins."""
    socket_path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(socket_path))
    servers = [SnapshotServer(socket_path, agent) for _ in range(8)]
    refused: list[str] = []
    start = threading.Barrier(8)

    def race(server: SnapshotServer) -> None:
        start.wait()
        try:
            server.start()
        except PreconditionError as error:
            refused.append(str(error))

    racers = [threading.Thread(target=race, args=(server,)) for server in servers]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(refused) == 7
    agent.standing = snapshot(flow(7))
    assert fetch_once(socket_path).rows[0].pid == 7
    for server in servers:
        server.close()
    assert not socket_path.exists()


def test_only_our_own_file_is_removed(agent: FakeAgent, socket_path: Path) -> None:
    """A server whose file was replaced by somebody else's leaves that one alone."""
    with SnapshotServer(socket_path, agent):
        socket_path.unlink()
        socket_path.write_text("not ours")
    assert socket_path.read_text() == "not ours"


def test_unusable_paths(agent: FakeAgent, tmp_path: Path) -> None:
    """A path that is taken, too long, or open to others is refused, naming the setting."""
    taken = tmp_path / "file"
    taken.write_text("x")
    with pytest.raises(ConfigError, match=r"KERNOB_SOCKET: .*file exists and is not a socket"):
        SnapshotServer(taken, agent).bind()
    with pytest.raises(ConfigError, match=r"KERNOB_SOCKET: .*file is not a directory"):
        SnapshotServer(taken / "agent.sock", agent).bind()
    with pytest.raises(ConfigError, match=r"KERNOB_SOCKET=.* is too long: at most 107 bytes"):
        SnapshotServer(tmp_path / ("x" * 108), agent).bind()
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o1777)
    with pytest.raises(ConfigError, match="others may write into"):
        SnapshotServer(public / "agent.sock", agent).bind()
    assert list(public.iterdir()) == []


def test_close_ends_clients(agent: FakeAgent, socket_path: Path) -> None:
    """Closing the server hangs up on everybody, and a feed says that the agent went away."""
    server = SnapshotServer(socket_path, agent)
    server.start()
    feed = SocketFeed(socket_path, Request())
    agent.publish(snapshot(flow(7)), subscribers=1)
    views = feed.views()
    assert next(views).rows[0].pid == 7
    agent.end()
    server.close()
    with pytest.raises(AgentUnreachableError, match="went away"):
        next(views)


def test_what_is_switched_off_is_said_with_its_switch() -> None:
    """Whoever asks for the map of an agent without one learns which setting that is."""
    assert no_report("destinations", ["scores"]).startswith("KERNOB_MAP=false switches that off, or")
    assert no_report("lifecycle", []).startswith("KERNOB_LIFECYCLE=false switches that off, or")
    assert no_report("x", ["b", "a"]) == "this agent has no report 'x'; it has: a, b"
