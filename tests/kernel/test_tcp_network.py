# SPDX-License-Identifier: Apache-2.0
"""Connections that the network or the routing table ends: in network namespaces of their own.

Every case is played by one forked process in a fresh namespace, both ends in it where there are two; nftables
drops and rejects, routes refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import shutil
import socket
import time
from collections.abc import Callable

import pytest
from tcp_alone import alone, door, flush, pair, rule, run, setting
from tcp_watch import TURN_LIMIT_S, Watch, read_exactly, snmp

pytestmark = [
    pytest.mark.lane,
    pytest.mark.skipif(not shutil.which("nft"), reason="missing feature: nftables"),
]

ASK = b"q" * 100
ELSEWHERE = ("192.0.2.1", 80)


def refuse(address: tuple[str, int], error: int) -> None:
    """Connecting fails with this error."""
    with socket.socket() as sock:
        assert sock.connect_ex(address) == error


def test_a_closed_port_refuses(watch: Watch) -> None:
    """Three attempts, three refusals, over IPv4, IPv6 and with a v4-mapped address."""

    def case() -> None:
        refuse(("127.0.0.1", 9), errno.ECONNREFUSED)
        for host in ("::1", "::ffff:127.0.0.1"):
            with socket.socket(socket.AF_INET6) as sock:
                assert sock.connect_ex((host, 9)) == errno.ECONNREFUSED

    assert alone(watch, case) == {"client connection refused": 3}


@pytest.mark.parametrize(
    ("route", "error", "outcome"),
    [
        ("blackhole", errno.EINVAL, "other"),
        ("prohibit", errno.EACCES, "other"),
        ("unreachable", errno.EHOSTUNREACH, "host_unreachable"),
        ("", errno.ENETUNREACH, "net_unreachable"),
    ],
)
def test_a_route_that_leads_nowhere(watch: Watch, route: str, error: int, outcome: str) -> None:
    """connect() fails before there is any TCP state; blocking, non-blocking, and again on the same socket."""

    def case() -> None:
        if route:
            run("ip", "route", "add", route, "192.0.2.0/24")
        refuse(ELSEWHERE, error)
        with socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex(ELSEWHERE) == error
            assert sock.connect_ex(ELSEWHERE) == error
        with socket.socket(socket.AF_INET6) as sock:
            assert sock.connect_ex(("::ffff:192.0.2.1", 80)) == error
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            assert sock.connect_ex(ELSEWHERE) == error

    assert alone(watch, case) == {f"client connection {outcome}": 4}


def test_a_failed_attempt_is_asked_about_once_more(watch: Watch) -> None:
    """A non-blocking connect whose result a second connect() fetches is one attempt."""

    def case() -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EINPROGRESS
            time.sleep(0.1)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED

    assert alone(watch, case) == {"client connection refused": 1}


def _disconnect(sock: socket.socket) -> None:
    """connect() with AF_UNSPEC: the socket may be connected anew."""
    assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0


def test_each_attempt_of_one_socket_is_counted(watch: Watch) -> None:
    """Refused, then without a route; connected, disconnected, then without a route twice; then connected."""

    def case() -> None:
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED
            assert sock.connect_ex(ELSEWHERE) == errno.ENETUNREACH
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED
        with door() as listening, socket.socket() as sock:
            assert sock.connect_ex(listening.getsockname()) == 0
            _disconnect(sock)
            assert sock.connect_ex(ELSEWHERE) == errno.ENETUNREACH
            assert sock.connect_ex(ELSEWHERE) == errno.ENETUNREACH
            assert sock.connect_ex(listening.getsockname()) == 0

    assert _without_resets(alone(watch, case)) == {
        "client connection refused": 2,
        "client connection net_unreachable": 3,
        "client connection ok": 2,
        "server connection ok": 2,
    }


def test_a_syn_that_never_leaves_the_host(watch: Watch) -> None:
    """Sending it again fails, too: 6.12 tells no hook, and connect() wipes the count (tcp_disconnect)."""

    def case() -> None:
        rule("tcp flags syn drop", hook="output")
        with socket.socket() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ETIMEDOUT
        assert snmp()["RetransSegs"] > 0

    assert alone(watch, case) == {"client connection timed_out": 1}


@pytest.mark.parametrize(
    ("answer", "error", "outcome"),
    [
        ("reject with tcp reset", errno.ECONNREFUSED, "refused"),
        ("reject with icmp type port-unreachable", errno.ECONNREFUSED, "refused"),
        ("reject with icmp type host-unreachable", errno.EHOSTUNREACH, "host_unreachable"),
        ("reject with icmp type net-unreachable", errno.ENETUNREACH, "net_unreachable"),
    ],
)
def test_a_firewall_that_rejects(watch: Watch, answer: str, error: int, outcome: str) -> None:
    """What it answers is the outcome."""

    def case() -> None:
        rule(f"tcp dport 9 {answer}")
        refuse(("127.0.0.1", 9), error)

    assert alone(watch, case) == {f"client connection {outcome}": 1}


@pytest.mark.parametrize(
    ("answer", "error", "outcome"),
    [
        ("host-unreachable", errno.EHOSTUNREACH, "host_unreachable"),
        ("net-unreachable", errno.ENETUNREACH, "net_unreachable"),
        ("admin-prohibited", errno.EHOSTUNREACH, "host_unreachable"),
    ],
)
def test_a_rejection_that_only_the_process_is_told(
    watch: Watch, answer: str, error: int, outcome: str
) -> None:
    """It comes within connect(): the socket goes on trying, the process reads SO_ERROR and closes."""

    def case() -> None:
        rule(f"tcp dport 9 reject with icmp type {answer}")
        for read in (True, False):
            with socket.socket() as sock:
                sock.setblocking(False)
                assert sock.connect_ex(("127.0.0.1", 9)) == errno.EINPROGRESS
                assert select.select([], [sock], [], 5)[1]
                if read:
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == error

    assert alone(watch, case) == {f"client connection {outcome}": 2}


def test_a_firewall_that_drops(watch: Watch) -> None:
    """The kernel gives up after its retries: timed out, and the SYNs sent again are counted."""

    def case() -> None:
        setting("tcp_syn_retries", 1)
        rule("tcp dport 9 drop")
        refuse(("127.0.0.1", 9), errno.ETIMEDOUT)

    assert alone(watch, case) == {"client connection timed_out": 1}


def test_attempts_given_up(watch: Watch) -> None:
    """Before the first SYN was sent again: cancelled (another address was quicker); after it: timed out."""

    def case() -> None:
        rule("tcp dport 9 drop")
        with socket.socket() as late, socket.socket() as early:
            for sock in (late, early):
                sock.setblocking(False)
                assert sock.connect_ex(("127.0.0.1", 9)) == errno.EINPROGRESS
            early.close()
            time.sleep(1.4)

    expected = {"client connection cancelled": 1, "client connection timed_out": 1}
    assert alone(watch, case) == expected


def test_a_socket_connected_to_itself(watch: Watch) -> None:
    """One connection, of the client."""

    def case() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.connect(sock.getsockname())
            sock.sendall(b"self")
            assert sock.recv(10) == b"self"

    assert alone(watch, case) == {"client connection ok": 1}


def test_both_ends_connect_at_once(watch: Watch) -> None:
    """Two clients' connections, no server's."""

    def case() -> None:
        first, second = socket.socket(), socket.socket()
        for sock in (first, second):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        rule("tcp flags syn / syn,ack drop")
        assert first.connect_ex(second.getsockname()) == errno.EINPROGRESS
        assert second.connect_ex(first.getsockname()) == errno.EINPROGRESS
        flush()
        for sock in (first, second):
            assert select.select([], [sock], [], TURN_LIMIT_S)[1]
            sock.setblocking(True)
        first.send(b"x")
        second.send(b"y")
        assert first.recv(9) + second.recv(9) == b"yx"

    assert alone(watch, case) == {"client connection ok": 2}


def test_a_full_backlog(watch: Watch) -> None:
    """Whoever comes when nobody accepts: the first ones are connected, the rest send their SYN again."""

    def case() -> None:
        setting("tcp_syn_retries", 1)
        listening = door(0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(listening.getsockname())
            time.sleep(1.5)
        listening.close()

    found = alone(watch, case)
    ok = found.pop("client connection ok")
    assert 1 <= ok <= 2
    assert found.pop("client connection timed_out") == 3 - ok
    assert found.pop("server connection ok", 0) <= ok
    assert {fact.split()[1] for fact in found} <= {"reset"}


def _silenced(case: Callable[[socket.socket], None]) -> Callable[[], None]:
    """Plays it on a connection whose packets are dropped from then on."""

    def play() -> None:
        client, server = pair()
        client.sendall(ASK)
        read_exactly(server, len(ASK))
        server.sendall(b"a")
        client.recv(1)
        rule("tcp dport != 0 drop")
        case(client)
        flush()

    return play


def test_keepalive_gives_up_an_idle_connection(watch: Watch) -> None:
    """A timeout, but no drop: no exchange was open."""

    def case(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            client.setsockopt(socket.IPPROTO_TCP, option, 1)
        with pytest.raises(TimeoutError):
            client.recv(1)

    assert _without_resets(alone(watch, _silenced(case))) == {
        "client connection ok": 1,
        "server connection ok": 1,
        "client timeout keepalive": 1,
    }


def test_a_request_that_is_never_acknowledged(watch: Watch) -> None:
    """TCP_USER_TIMEOUT: a timeout, and the exchange is dropped by the network."""

    def case(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
        client.sendall(ASK)
        with pytest.raises(TimeoutError):
            client.recv(1)

    assert _without_resets(alone(watch, _silenced(case))) == {
        "client connection ok": 1,
        "server connection ok": 1,
        "client timeout unacknowledged": 1,
        "client drop unanswered by network": 1,
    }


def _without_resets(found: dict[str, int]) -> dict[str, int]:
    """Whether the kernel sends a RST when it gives up, and what comes of it, depends on its version."""
    return {fact: count for fact, count in found.items() if " reset " not in fact}


def test_nothing_was_lost(watch: Watch) -> None:
    """No map was full."""
    assert watch.lost() == {}
