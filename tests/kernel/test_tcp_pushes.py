# SPDX-License-Identifier: Apache-2.0
"""Resets of connections on which something moves although nobody has asked: idle, and no drop.

Found with real servers (test_tcp_servers.py), here each by itself; and the drops beside them, which stay so.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import time

import pytest
from tcp_watch import ANSWER, ASK, Gate, Watch, abort, answer, exchange, play, read_exactly, wait_for_reset

pytestmark = pytest.mark.lane

OK_CLIENT, OK_SERVER = {"client connection ok": 1}, {"server connection ok": 1}
BEAT = b"h" * 8
SO_ATTACH_FILTER = 26
PAUSE_S = 1.3
"""Longer than the second that makes a connection idle."""


def read_to_reset(sock: socket.socket) -> None:
    """Reads whatever comes until the peer resets."""
    try:
        while sock.recv(100):
            pass
    except ConnectionResetError:
        return
    raise AssertionError("it ended in order")


def deafen(sock: socket.socket) -> None:
    """From now on nothing that arrives gets to it, as if it were on its way still."""
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(drop_all))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.parametrize("reads", [True, False], ids=["who reads", "who is stopped"])
def test_a_broker_that_misses_heartbeats_resets_an_idle_connection(watch: Watch, reads: bool) -> None:
    """Its own heartbeats come until the RST, the last one right before it; the client has sent one."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(BEAT)
        if not reads:
            time.sleep(3 * PAUSE_S)
        read_to_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(BEAT))
        for _ in range(2):
            time.sleep(PAUSE_S)
            sock.sendall(BEAT)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received idle": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_a_publisher_that_reads_nothing_was_idle_when_its_broker_resets_it(watch: Watch) -> None:
    """What it published wants no answer; heartbeats lie unread, the last one came with the RST."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(ASK)
        time.sleep(3 * PAUSE_S)
        read_to_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(ASK))
        for _ in range(2):
            time.sleep(PAUSE_S)
            sock.sendall(BEAT)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received idle": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_an_answer_that_nobody_has_read_yet_when_a_reset_cuts_it_is_a_drop(watch: Watch) -> None:
    """It came late, in one piece with the RST, and is no trickle: the caller reads it and misses the rest."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(ASK)
        time.sleep(2 * PAUSE_S)
        read_to_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(ASK))
        time.sleep(PAUSE_S)
        sock.sendall(ANSWER)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1, "client drop reset_mid_response by peer": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


@pytest.mark.parametrize("reads", [True, False], ids=["who reads", "who is stopped"])
def test_a_reset_right_after_a_push_is_idle(watch: Watch, reads: bool) -> None:
    """A subscriber: its answer came long ago; a message is pushed, and with it ends the connection."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        if not reads:
            time.sleep(2 * PAUSE_S)
        read_to_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        time.sleep(PAUSE_S)
        sock.sendall(b"-ERR bye")
        time.sleep(0.05)
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received idle": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_who_only_wakes_is_owed_nothing(watch: Watch) -> None:
    """A pair by which threads wake each other: one end only sends, the other closes with bytes unread."""

    def client(sock: socket.socket) -> None:
        for _ in range(4):
            sock.sendall(b"w")
        wait_for_reset(sock)

    def server(sock: socket.socket) -> None:
        sock.recv(1, socket.MSG_WAITALL)
        assert len(sock.recv(3, socket.MSG_WAITALL | socket.MSG_PEEK)) == 3

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_who_sends_into_a_reset_has_lost_the_answer_before(watch: Watch) -> None:
    """Request and answer, a request that meets a RST, and the next send tells of it: a drop."""

    def client(sock: socket.socket) -> None:
        exchange(sock)
        sock.sendall(ASK)
        wait_for_reset(sock)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(ASK)

    def server(sock: socket.socket) -> None:
        answer(sock)
        read_exactly(sock, len(ASK))
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1, "client drop unanswered by peer": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_a_request_in_the_moment_of_an_idle_timeout_is_no_drop(watch: Watch) -> None:
    """Keep-alive reuse: the server says goodbye and closes while the next request is under way."""
    done = Gate()

    def client(sock: socket.socket) -> None:
        exchange(sock)
        done.open()
        assert len(sock.recv(9, socket.MSG_WAITALL | socket.MSG_PEEK)) == 9
        sock.sendall(ASK)
        sock.recv(100)
        done.open()
        read_to_reset(sock)

    def server(sock: socket.socket) -> None:
        answer(sock)
        done.wait()
        time.sleep(PAUSE_S)
        deafen(sock)
        sock.sendall(b"-ERR idle")
        done.wait()
        abort(sock)

    first, second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1}
    assert second == OK_SERVER | {"server reset sent": 1}


def test_a_long_answer_that_is_reset_is_a_drop(watch: Watch) -> None:
    """A download of two seconds without a pause of one: reset in the middle, long after it was asked."""

    def client(sock: socket.socket) -> None:
        sock.sendall(ASK)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(10_000):
                pass

    def server(sock: socket.socket) -> None:
        read_exactly(sock, len(ASK))
        for _ in range(10):
            sock.sendall(ANSWER)
            time.sleep(0.2)
        abort(sock)

    first, _second = play(watch, client, server)
    assert first == OK_CLIENT | {"client reset received": 1, "client drop reset_mid_response by peer": 1}
