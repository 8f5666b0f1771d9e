# SPDX-License-Identifier: Apache-2.0
"""What becomes of connections, case by case: the facts expected of each process, and no others.

Each case is played by processes of its own. `nobody` stands for what belongs to no process.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import time

import pytest
from tcp_watch import (
    ANSWER,
    ASK,
    Gate,
    Watch,
    abort,
    answer,
    exchange,
    play,
    read_exactly,
    wait_for_reset,
)

pytestmark = pytest.mark.lane

OK_CLIENT, OK_SERVER = {"client connection ok": 1}, {"server connection ok": 1}
FIN_WAIT2 = 5  # include/net/tcp_states.h


def kill_myself(_sock: socket.socket) -> None:
    """Ends by SIGKILL, sockets open."""
    signal.raise_signal(signal.SIGKILL)


def test_an_answered_request(watch: Watch) -> None:
    """A connection is counted once at each end, nothing else; its answer has a duration."""

    def client(sock: socket.socket) -> None:
        for _ in range(5):
            exchange(sock)
        sock.close()

    def server(sock: socket.socket) -> None:
        for _ in range(5):
            answer(sock)
        assert sock.recv(1) == b""

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_connection_close_is_no_drop(watch: Watch) -> None:
    """HTTP/1.0: the server answers and closes; the client reads up to the end."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        assert sock.recv(1) == b""

    assert play(watch, client, answer) == (OK_CLIENT, OK_SERVER)


def test_a_close_with_the_answer_unread_is_no_drop(watch: Watch) -> None:
    """Answer and FIN are there before the client reads any of it."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        time.sleep(0.2)
        assert len(read_exactly(sock, 10_000)) == len(ANSWER)

    assert play(watch, client, answer) == (OK_CLIENT, OK_SERVER)


@pytest.mark.parametrize("farewell", [b"QUIT\r\n", b"\x15\x03\x03" + b"n" * 21])
def test_a_farewell_is_no_drop(watch: Watch, farewell: bytes) -> None:
    """QUIT and close_notify get no answer but the peer's FIN."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(farewell)
        assert sock.recv(1) == b""

    def server(sock: socket.socket) -> None:
        answer(sock)
        assert len(read_exactly(sock, len(farewell))) == len(farewell)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


@pytest.mark.parametrize("reads_the_end", [True, False])
def test_a_one_way_sender_is_no_drop(watch: Watch, reads_the_end: bool) -> None:
    """Who sends for over a second and is never answered does not wait for an answer."""

    def client(sock: socket.socket) -> None:
        for _ in range(4):
            sock.sendall(ASK)
            time.sleep(0.4)
        time.sleep(0.3)
        if reads_the_end:
            assert sock.recv(1) == b""

    def server(sock: socket.socket) -> None:
        assert len(read_exactly(sock, 4 * len(ASK))) == 4 * len(ASK)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_who_never_reads_the_end_did_not_wait(watch: Watch) -> None:
    """A log shipper: sends once and closes; the peer had closed before."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        time.sleep(0.3)

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_heartbeats_are_no_drop(watch: Watch) -> None:
    """Both ends send small frames on their own; the server closes some time after the client's last one."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        for _ in range(3):
            sock.sendall(b"h" * 8)
            time.sleep(0.2)
        while sock.recv(100):
            pass

    def server(sock: socket.socket) -> None:
        answer(sock)
        sock.sendall(b"h" * 8)
        read_exactly(sock, 24)
        time.sleep(0.2)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_a_push_stream_is_no_drop(watch: Watch) -> None:
    """One subscription, many messages, each acknowledged; the server closes."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        while sock.recv(100):
            sock.sendall(b"ack")

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        for _ in range(10):
            sock.sendall(b"m" * 50)
            read_exactly(sock, 3)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_a_half_closed_request_is_answered(watch: Watch) -> None:
    """The client closes its side with the request and reads the answer."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        sock.shutdown(socket.SHUT_WR)
        assert len(read_exactly(sock, 10_000)) == len(ANSWER)

    def server(sock: socket.socket) -> None:
        assert len(read_exactly(sock, 10_000)) == len(ASK)
        sock.sendall(ANSWER)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_an_upload_ended_by_half_close_is_no_drop(watch: Watch) -> None:
    """The client sends, closes its side and waits for the peer to close: an answer was never due."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""

    def server(sock: socket.socket) -> None:
        assert len(read_exactly(sock, 10_000)) == len(ASK)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_a_request_that_meets_a_closed_connection_is_no_drop(watch: Watch) -> None:
    """Keep-alive reuse: the server had closed; the request is answered by a RST."""
    closed = Gate()

    def client(sock: socket.socket) -> None:
        exchange(sock)
        closed.wait()
        sock.sendall(ASK)
        wait_for_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        sock.shutdown(socket.SHUT_WR)
        while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != FIN_WAIT2:
            time.sleep(0.001)
        sock.close()  # nothing is left that could be said to have sent the RST
        closed.open()

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1}
    assert second == OK_SERVER


def test_a_client_that_closes_after_its_answer(watch: Watch) -> None:
    """No drop; with bytes left unread it sends a RST."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        assert len(read_exactly(sock, 100)) == 100
        time.sleep(0.2)
        sock.close()

    def server(sock: socket.socket) -> None:
        answer(sock)
        wait_for_reset(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset sent": 1}
    assert second == OK_SERVER | {"server reset received": 1}


def wait_for_the_end(sock: socket.socket) -> None:
    """Asks and gets nothing."""
    sock.sendall(ASK)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1000) == b""


def test_a_request_whose_server_closes_is_unanswered(watch: Watch) -> None:
    """The request was read, the peer sent FIN without a byte."""

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))

    first, second = play(watch, wait_for_the_end, server)
    assert first == OK_CLIENT | {"client drop unanswered by peer": 1}
    assert second == OK_SERVER


def test_a_killed_server_that_had_read_the_request(watch: Watch) -> None:
    """SIGKILL sends a FIN."""

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(ASK))
        kill_myself(sock)

    def client(sock: socket.socket) -> None:
        exchange(sock)
        wait_for_the_end(sock)

    first, second = play(watch, client, server, -signal.SIGKILL)
    assert first == OK_CLIENT | {"client drop unanswered by peer": 1}
    assert second == OK_SERVER


def test_a_killed_server_that_had_not_read_the_request(watch: Watch) -> None:
    """SIGKILL with unread bytes sends a RST."""

    def server(sock: socket.socket) -> None:
        assert sock.recv(1)
        time.sleep(0.3)
        kill_myself(sock)

    first, second = play(watch, wait_for_the_end, server, -signal.SIGKILL)
    assert first == OK_CLIENT | {"client drop unanswered by peer": 1, "client reset received": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_a_reset_in_the_middle_of_an_answer(watch: Watch) -> None:
    """SO_LINGER 0 after half of the answer."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        assert len(read_exactly(sock, 50)) == 50
        with pytest.raises(ConnectionResetError):
            sock.recv(10)

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER[:50])
        time.sleep(0.2)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client drop reset_mid_response by peer": 1, "client reset received": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_a_reset_of_an_idle_connection(watch: Watch) -> None:
    """The broker that closes what it thinks is dead: an event of its own kind, no drop."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    def server(sock: socket.socket) -> None:
        answer(sock)
        time.sleep(1.4)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received idle": 1}
    assert second == OK_SERVER | {"server reset sent idle": 1}


def _receive_timeout(sock: socket.socket, seconds: float) -> None:
    whole = int(seconds)
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, int((seconds - whole) * 1e6))
    )


def test_an_answer_that_stops_half_way(watch: Watch) -> None:
    """The client waits its SO_RCVTIMEO for the rest, and gives up."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        assert len(read_exactly(sock, 50)) == 50
        _receive_timeout(sock, 0.3)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        sock.close()

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER[:50])
        read_exactly(sock, 1)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client drop stalled_mid_response by self": 1}
    assert second == OK_SERVER


def test_waits_that_only_poll_are_no_drop(watch: Watch) -> None:
    """A consumer that calls recv again and again, each time for a moment."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        _receive_timeout(sock, 0.1)
        for _ in range(4):
            with pytest.raises(BlockingIOError):
                sock.recv(100)
        sock.close()

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, 1)

    assert play(watch, client, server) == (OK_CLIENT, OK_SERVER)


def test_a_peer_that_does_not_read_stalls_the_sender(watch: Watch) -> None:
    """Counted once until something can be sent again, however often the process tries."""

    def client(sock: socket.socket) -> None:
        sock.setblocking(False)
        sent_s = missed_s = time.monotonic()
        while missed_s < sent_s + 0.4:  # after a second the connection would be idle
            try:
                sock.send(b"x" * 65536)
                sent_s = time.monotonic()
            except BlockingIOError:
                missed_s = time.monotonic()
                time.sleep(0.02)
        abort(sock)

    def server(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            while True:
                sock.send(b"x")
                time.sleep(0.05)

    first, second = play(watch, client, server)
    assert 1 <= first.pop("client stall") <= 3  # the window may open a little in between
    assert first == OK_CLIENT | {"client reset sent": 1}
    assert second == OK_SERVER | {"server reset received": 1}


def test_nothing_was_lost_and_nothing_is_left(watch: Watch) -> None:
    """No map was full."""
    assert watch.lost() == {}
