# SPDX-License-Identifier: Apache-2.0
"""A peer whose end comes before the call that sends the request has returned, and with it the hook."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios
import threading
import time

import pytest
from harness import scaled
from tcp_watch import (
    ANSWER,
    ASK,
    Gate,
    Play,
    Watch,
    abort,
    act,
    answer,
    exchange,
    listener,
    play,
    read_exactly,
)

pytestmark = pytest.mark.lane

TURNS = scaled(4000, 200)
"""A faster server was seen twice in so many, on two processors."""
UPLOAD_BYTES, TAKEN_BYTES = 64 << 20, 1 << 20
_TCP_REPAIR = 19
"""include/uapi/linux/tcp.h"""


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer has not acknowledged (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def vanish(sock: socket.socket) -> None:
    """Closes without a word, as a host does that has lost its memory of the connection (tcp_close)."""
    while unacknowledged(sock):
        time.sleep(0.01)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.close()


def _facts_of_who_sends_to_a_vanished_server(watch: Watch, client: Play, answers: int) -> dict[str, int]:
    """The client's: over loopback the kernel sends the RST and takes it in while the caller is in send()."""
    gone = Gate()

    def server(sock: socket.socket) -> None:
        for _ in range(answers):
            answer(sock)
        vanish(sock)
        gone.open()

    def connect(sock: socket.socket) -> None:
        for _ in range(answers):
            exchange(sock)
        gone.wait()
        client(sock)

    here, _there = play(watch, connect, server)
    return here


@pytest.mark.parametrize("answers", [0, 1], ids=["first request", "second request"])
def test_a_reset_within_the_send_is_the_request_s(watch: Watch, answers: int) -> None:
    """Whether it was known to be one or not."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    assert _facts_of_who_sends_to_a_vanished_server(watch, client, answers) == {
        "client connection ok": 1,
        "client reset received": 1,
        "client drop unanswered by peer": 1,
    }


def test_who_said_that_it_reads_no_more_has_lost_no_answer(watch: Watch) -> None:
    """A RST within send() all the same."""

    def client(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_RD)
        sock.sendall(ASK)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(ASK)

    assert _facts_of_who_sends_to_a_vanished_server(watch, client, 1) == {
        "client connection ok": 1,
        "client reset received": 1,
    }


@pytest.mark.parametrize("head", [b"", b"head"], ids=["alone", "behind its head"])
@pytest.mark.parametrize("silent_s", [0.0, 1.3], ids=["at once", "after a while"])
def test_a_reset_of_an_upload_that_blocks(watch: Watch, silent_s: float, head: bytes) -> None:
    """One send() that has not returned, in whose middle the server aborts: who reads then had asked."""

    def client(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            if head:
                sock.sendall(head)
            sock.send(bytes(UPLOAD_BYTES))
            sock.recv(1)

    def server(sock: socket.socket) -> None:
        read_exactly(sock, TAKEN_BYTES)
        time.sleep(silent_s)
        abort(sock)

    here, _there = play(watch, client, server)
    assert here == {
        "client connection ok": 1,
        "client reset received": 1,
        "client drop unanswered by peer": 1,
    }


def _turns(watch: Watch, client: Play, server: Play) -> dict[str, int]:
    """The client's facts of many connections, one after the other; both ends may run at the same time."""
    door = listener()

    def serve() -> None:
        for _ in range(TURNS):
            with door.accept()[0] as sock:
                server(sock)

    def connect() -> None:
        for _ in range(TURNS):
            with socket.create_connection(door.getsockname()) as sock:
                client(sock)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""

    actors = [act(serve), act(connect)]
    door.close()
    for actor in actors:
        actor.wait()
    return watch.of(actors[1].pid)


@pytest.mark.parametrize("end", [socket.socket.close, abort], ids=["FIN", "RST"])
def test_an_end_right_behind_the_request(watch: Watch, end: Play) -> None:
    """The server reads the request and closes while the caller's send() still returns."""

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        end(sock)

    expected = {"client connection ok": TURNS, "client drop unanswered by peer": TURNS}
    if end is abort:
        expected["client reset received"] = TURNS
    assert _turns(watch, lambda sock: sock.sendall(ASK), server) == expected


def test_an_answer_and_the_end_right_behind_the_request(watch: Watch) -> None:
    """Nothing is wrong with a server that is fast."""

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER)

    assert _turns(watch, exchange, server) == {"client connection ok": TURNS}


def test_an_end_right_behind_a_farewell(watch: Watch) -> None:
    """Nor with one that closes when it is told to."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(b"QUIT\r\n")

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(b"QUIT\r\n"))

    assert _turns(watch, client, server) == {"client connection ok": TURNS}


def test_an_answer_that_another_thread_reads_and_the_end(watch: Watch) -> None:
    """It may have read both before the send has returned to the thread that asked."""

    def client(sock: socket.socket) -> None:
        def read() -> None:
            assert len(read_exactly(sock, len(ANSWER) + 1)) == len(ANSWER)

        reader = threading.Thread(target=read)
        reader.start()
        sock.sendall(ASK)
        reader.join()

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER)

    assert _turns(watch, client, server) == {"client connection ok": TURNS}
